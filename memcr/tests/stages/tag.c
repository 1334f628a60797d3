/*
 * A checksum for tests with one oddity, chosen by -DODD=N and named by -DNAME. Its tag tells
 * nothing about the bytes.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <string.h>

#include "memcr_stage.h"

enum {
    TAGS_AND_CHANGES,   /* changes the bytes that it makes a tag of */
    CHECKS_AND_CHANGES, /* changes the bytes whose tag it checks */
    MADE_OF_NOTHING     /* create answers PASS, and no handle */
};

static const uint8_t tag[4] = "tag";
static int one;

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    (void)host, (void)params, (void)n_params, (void)err;
    if (ODD == MADE_OF_NOTHING)
        return MEMCR_CODE_PASS;
    *out_handle = &one;
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    (void)handle;
}

static size_t bound(memcr_handle handle, size_t in_len)
{
    (void)handle, (void)in_len;
    return sizeof tag;
}

static void change(const uint8_t *input, size_t in_len)
{
    if (in_len > 100)
        ((uint8_t *)input)[100] ^= 1;
}

static int32_t encode(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err)
{
    (void)handle, (void)worker, (void)chunk, (void)out_cap, (void)err;
    if (ODD == TAGS_AND_CHANGES)
        change(input, in_len);
    memcpy(out, tag, sizeof tag);
    *out_len = sizeof tag;
    return MEMCR_CODE_OK;
}

static int32_t decode(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err)
{
    (void)handle, (void)worker, (void)chunk, (void)out, (void)out_cap, (void)out_len, (void)err;
    if (ODD == CHECKS_AND_CHANGES)
        change(input, in_len);
    return MEMCR_CODE_OK;
}

static const memcr_stage_table table = {
    .struct_size = sizeof(memcr_stage_table),
    .abi_version = MEMCR_ABI_VERSION,
    .kind = MEMCR_KIND_CHECKSUM,
    .threads = MEMCR_THREADS_PARALLEL,
    .capabilities = MEMCR_CAPABILITY_INDEPENDENT_CHUNKS,
    .name = NAME,
    .version = "1.0.0",
    .summary = "a checksum for tests",
    .param_size = sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .bound = bound,
    .encode = encode,
    .decode = decode,
};

const memcr_stage_table *memcr_stage_v1(void)
{
    return &table;
}
