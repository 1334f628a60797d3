/*
 * A file that looks like a stage plugin and is none, in the way that -DFAULT=N says.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "memcr_stage.h"

enum {
    OTHER_MAJOR,
    SHORT_TABLE,
    NO_TABLE,
    NO_SYMBOL,
    UNKNOWN_KIND,
    UNKNOWN_THREADS,
    UNKNOWN_CAPABILITY,
    SINK_THAT_COMPRESSES,
    LACKS_FUNCTIONS,
    HALF_A_PAIR,
    OTHER_NAME,
    BAD_NAME,
    TWO_PARAMS,
    BAD_PARAM_KIND,
    SHORT_PARAM,
    NO_VERSION
};

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    (void)host, (void)params, (void)n_params, (void)out_handle, (void)err;
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    (void)handle;
}

static size_t bound(memcr_handle handle, size_t in_len)
{
    (void)handle;
    return in_len;
}

static int32_t apply(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                     const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                     size_t *out_len, memcr_error *err)
{
    (void)handle, (void)worker, (void)chunk, (void)input, (void)in_len, (void)out, (void)out_cap,
        (void)out_len, (void)err;
    return MEMCR_CODE_OK;
}

static int32_t finish_decode(memcr_handle handle, uint64_t n_chunks, const uint8_t *trailer,
                             size_t trailer_len, memcr_error *err)
{
    (void)handle, (void)n_chunks, (void)trailer, (void)trailer_len, (void)err;
    return MEMCR_CODE_OK;
}

static const memcr_param params[] = {
    {.name = "same", .kind = FAULT == BAD_PARAM_KIND ? 77 : MEMCR_PARAM_BOOL, .help = "one"},
    {.name = "same", .kind = MEMCR_PARAM_BOOL, .help = "two"},
};

static const memcr_stage_table table = {
    .struct_size = FAULT == SHORT_TABLE ? 64 : sizeof(memcr_stage_table),
    .abi_version = FAULT == OTHER_MAJOR ? 9u << 16 | 3 : MEMCR_ABI_VERSION,
    .kind = FAULT == UNKNOWN_KIND ? 9 : FAULT == SINK_THAT_COMPRESSES ? MEMCR_KIND_SINK : MEMCR_KIND_TRANSFORM,
    .threads = FAULT == UNKNOWN_THREADS ? 0 : MEMCR_THREADS_PARALLEL,
    .capabilities = FAULT == UNKNOWN_CAPABILITY     ? 1ull << 40
                    : FAULT == SINK_THAT_COMPRESSES ? MEMCR_CAPABILITY_COMPRESSES
                                                    : 0,
    .name = FAULT == OTHER_NAME ? "other" : FAULT == BAD_NAME ? "../evil" : NAME,
    .version = FAULT == NO_VERSION ? 0 : "1.0.0",
    .summary = "broken",
    .params = params,
    .n_params = FAULT == TWO_PARAMS ? 2 : FAULT == BAD_PARAM_KIND || FAULT == SHORT_PARAM ? 1 : 0,
    .param_size = FAULT == SHORT_PARAM ? 8 : sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .bound = bound,
    .encode = FAULT == LACKS_FUNCTIONS ? 0 : apply,
    .decode = FAULT == LACKS_FUNCTIONS ? 0 : apply,
    .finish_decode = FAULT == HALF_A_PAIR ? finish_decode : 0,
};

#if FAULT_NUMBER != 3
const memcr_stage_table *memcr_stage_v1(void)
{
    return FAULT == NO_TABLE ? 0 : &table;
}
#else
const memcr_stage_table *some_other_symbol = &table;
#endif
