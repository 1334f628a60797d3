/*
 * A stage with one fault, chosen by -DFAULT=N: what only C can do wrong. The tests of the
 * conformance suite compile it once per fault and look that the suite finds it.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <string.h>

#include "memcr_stage.h"

enum {
    HEALTHY,
    WRITES_BEHIND,
    WRITES_BEFORE,
    CHANGES_INPUT,
    LENGTH_BESIDE_FAILURE,
    SAYS_NOTHING,
    ENDLESS_MESSAGE,
    NOT_UTF8,
    UNKNOWN_CODE,
    PASSES_IN_DECODE,
    HALF_A_PAIR,
    WITHOUT_BOUND,
    SHORT_TABLE,
    BAD_NAME,
    UNKNOWN_CAPABILITY,
    BAD_DEFAULT,
    SWAPPED_LIMITS,
    TAKES_ANY_VALUE
};

static int32_t fail(memcr_error *err, size_t *out_len)
{
    strcpy(err->message, "parameter `level`, or a buffer, is not as it should be");
    if (FAULT == LENGTH_BESIDE_FAILURE && out_len)
        *out_len = 0;
    if (FAULT == SAYS_NOTHING)
        err->message[0] = '\0';
    if (FAULT == ENDLESS_MESSAGE)
        memset(err->message, 'a', sizeof err->message);
    if (FAULT == NOT_UTF8)
        strcpy(err->message, "\xff\xfe");
    return FAULT == UNKNOWN_CODE ? -99 : out_len ? MEMCR_CODE_BUFFER_TOO_SMALL : MEMCR_CODE_INVALID_CONFIG;
}

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    static char nothing;

    (void)host;
    if (FAULT != TAKES_ANY_VALUE && n_params == 1 &&
        (strlen(params[0].value) != 1 || params[0].value[0] < '0' || params[0].value[0] > '9'))
        return fail(err, NULL);
    *out_handle = &nothing;
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    (void)handle;
}

static int32_t worker_create(memcr_handle handle, memcr_worker *out_worker, memcr_error *err)
{
    (void)handle;
    (void)err;
    *out_worker = NULL;
    return MEMCR_CODE_OK;
}

static size_t bound(memcr_handle handle, size_t in_len)
{
    (void)handle;
    return in_len;
}

static int32_t copy(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                    const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                    size_t *out_len, memcr_error *err)
{
    (void)handle;
    (void)worker;
    (void)chunk;
    if (FAULT == WRITES_BEHIND)
        out[out_cap] = 0;
    if (FAULT == WRITES_BEFORE)
        out[-1] = 0;
    if (in_len > out_cap)
        return fail(err, out_len);
    if (in_len)
        memcpy(out, input, in_len);
    if (FAULT == CHANGES_INPUT && in_len)
        ((uint8_t *)input)[in_len - 1] ^= 1;
    *out_len = in_len;
    return MEMCR_CODE_OK;
}

static int32_t decode(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err)
{
    if (FAULT == PASSES_IN_DECODE)
        return MEMCR_CODE_PASS;
    return copy(handle, worker, chunk, input, in_len, out, out_cap, out_len, err);
}

static const memcr_param params[] = {{
    .name = "level",
    .kind = MEMCR_PARAM_INTEGER,
    .default_value = FAULT == BAD_DEFAULT ? "12" : "5",
    .min = FAULT == SWAPPED_LIMITS ? 10 : 0,
    .max = 9,
    .help = "changes nothing",
}};

static const memcr_stage_table table = {
    .struct_size = FAULT == SHORT_TABLE ? 64 : sizeof(memcr_stage_table),
    .abi_version = MEMCR_ABI_VERSION,
    .kind = MEMCR_KIND_TRANSFORM,
    .threads = MEMCR_THREADS_SERIAL,
    .capabilities = FAULT == UNKNOWN_CAPABILITY ? UINT64_C(1) << 40 : MEMCR_CAPABILITY_INDEPENDENT_CHUNKS,
    .name = FAULT == BAD_NAME ? "Sick-Stage" : "sick",
    .version = "1",
    .summary = "has one fault",
    .params = params,
    .n_params = 1,
    .param_size = sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .worker_create = FAULT == HALF_A_PAIR ? worker_create : NULL,
    .bound = FAULT == WITHOUT_BOUND ? NULL : bound,
    .encode = copy,
    .decode = decode,
};

const memcr_stage_table *memcr_stage_v1(void)
{
    return &table;
}
