/*
 * A complete stage in C: a transform that xors every byte with a number.
 *
 *   cc -std=c99 -Wall -Wextra -Werror -shared -fPIC -Iplugin-api/include \
 *      -o libmemcr_stage_xor.so plugin-api/examples/xor.c
 *   MEMCR_STAGE_PATH=. memcr --stage-help xor
 *
 * It hides nothing from anybody: it shows what a table needs, and is compiled, loaded and
 * run through the conformance suite by the tests.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memcr_stage.h"

struct xor_stage {
    uint8_t with;
};

/* Describes a failure; the buffers belong to the host. */
static int32_t fail(memcr_error *err, int32_t code, const char *message)
{
    snprintf(err->message, sizeof err->message, "%s", message);
    err->hint[0] = '\0';
    err->sys_errno = 0;
    return code;
}

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    struct xor_stage *stage;
    long with = 90;
    size_t i;

    for (i = 0; i < n_params; i++) {
        char *end;
        if (strcmp(params[i].key, "with") != 0)
            return fail(err, MEMCR_CODE_INVALID_CONFIG, "xor knows only the parameter with");
        with = strtol(params[i].value, &end, 10);
        /* The host has checked this; a stage looks again at what it relies on. */
        if (end == params[i].value || *end != '\0' || with < 0 || with > 255)
            return fail(err, MEMCR_CODE_INVALID_CONFIG, "parameter `with` is not in 0..=255");
    }
    stage = malloc(sizeof *stage);
    if (!stage)
        return fail(err, MEMCR_CODE_INTERNAL, "no memory for a stage");
    stage->with = (uint8_t)with;
    if (host && host->log)
        host->log(4, "xor: hides nothing");
    *out_handle = stage;
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    free(handle);
}

static size_t bound(memcr_handle handle, size_t in_len)
{
    (void)handle;
    return in_len;
}

/* Encodes and decodes: xor is its own inverse. */
static int32_t apply(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                     const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                     size_t *out_len, memcr_error *err)
{
    const struct xor_stage *stage = handle;
    size_t i;

    (void)worker;
    (void)chunk;
    if (in_len > out_cap)
        return fail(err, MEMCR_CODE_BUFFER_TOO_SMALL, "the frame is longer than the buffer");
    for (i = 0; i < in_len; i++)
        out[i] = input[i] ^ stage->with;
    *out_len = in_len;
    return MEMCR_CODE_OK;
}

static const memcr_param params[] = {{
    .name = "with",
    .kind = MEMCR_PARAM_INTEGER,
    .flags = MEMCR_PARAM_RECORDED,
    .default_value = "90",
    .min = 0,
    .max = 255,
    .help = "what every byte is xored with",
}};

static const memcr_stage_table table = {
    .struct_size = sizeof(memcr_stage_table),
    .abi_version = MEMCR_ABI_VERSION,
    .kind = MEMCR_KIND_TRANSFORM,
    .threads = MEMCR_THREADS_PARALLEL,
    .capabilities = MEMCR_CAPABILITY_INDEPENDENT_CHUNKS,
    .name = "xor",
    .version = "1.0.0",
    .summary = "xors every byte with a number; an example",
    .params = params,
    .n_params = 1,
    .param_size = sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .bound = bound,
    .encode = apply,
    .decode = apply,
};

const memcr_stage_table *memcr_stage_v1(void)
{
    return &table;
}
