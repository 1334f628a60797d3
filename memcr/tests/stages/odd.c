/*
 * A transform for tests with one oddity, chosen by -DODD=N and named by -DNAME. Healthy,
 * it xors each byte with the number of the chunk among those it saw, so that chunks in
 * another order decode to other bytes: it declares no INDEPENDENT_CHUNKS.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memcr_stage.h"

enum {
    ORDERED,         /* nothing odd: wants its chunks in order */
    SAYS_TOO_MUCH,   /* encode says it wrote more than there is room for */
    HUGE_BOUND,      /* asks for ten times the frame */
    DOUBLE_BOUND,    /* asks for twice the frame, as much as it may */
    GROWING_BOUND,   /* asks for more, the shorter the frame */
    PASSES,          /* answers PASS without compressing */
    UNKNOWN_ANSWER,  /* answers 7 */
    FAILS_LATE,      /* the third chunk fails */
    DECODES_WRONG,   /* decode gives other bytes of the right length */
    DECODES_SHORT,   /* decode gives fewer bytes */
    DECODES_TOO_MUCH, /* decode says it wrote more than there is room for */
    SOLO_IN_PLUGIN,  /* takes chunks in any order, but one call at a time over all handles */
    SOLO_IN_HANDLE,  /* the same, one call at a time on each handle */
    HANGS_IN_PLUGIN, /* encode does not come back; one call at a time over all handles */
    KEEPS_TO_ITSELF  /* only the handle that encodes an image can decode it */
};

#define SOLO (ODD == SOLO_IN_PLUGIN || ODD == SOLO_IN_HANDLE)

static int calls_of_all; /* at this moment */


struct odd {
    int calls; /* at this moment */
    uint64_t seen;
    int secret; /* known */
    long caller; /* the thread that must never be in here */
};

/* Loud, because destroy has no other way to complain. */
static void check_thread(const struct odd *odd)
{
    if (gettid() == odd->caller)
        abort();
}

static int32_t fail(memcr_error *err, int32_t code, const char *message)
{
    snprintf(err->message, sizeof err->message, "%s", message);
    return code;
}

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    struct odd *odd = calloc(1, sizeof *odd);

    (void)err;
    if (n_params)
        odd->caller = atol(params[0].value);
    check_thread(odd);
    if (host && host->log)
        host->log(4, "odd: created");
    *out_handle = odd;
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    check_thread(handle);
    free(handle);
}

static size_t bound(memcr_handle handle, size_t in_len)
{
    check_thread(handle);
    if (ODD == HUGE_BOUND)
        return in_len * 10 + (1 << 20);
    if (ODD == DOUBLE_BOUND)
        return in_len * 2;
    if (ODD == GROWING_BOUND)
        return in_len < 4096 ? in_len + (4 << 20) : in_len;
    return in_len;
}

static int32_t begin_encode(memcr_handle handle, const memcr_image_info *info, uint8_t *out,
                            size_t out_cap, size_t *out_len, memcr_error *err)
{
    struct odd *odd = handle;

    (void)info;
    (void)out_cap;
    (void)err;
    check_thread(odd);
    odd->seen = 0;
    odd->secret = 1;
    memcpy(out, "odd", 3);
    *out_len = 3;
    return MEMCR_CODE_OK;
}

static int32_t begin_decode(memcr_handle handle, const memcr_image_info *info, const uint8_t *state,
                            size_t state_len, memcr_error *err)
{
    struct odd *odd = handle;

    (void)info;
    check_thread(odd);
    odd->seen = 0;
    if (state_len != 3 || memcmp(state, "odd", 3))
        return fail(err, MEMCR_CODE_CORRUPT, "this is not my state");
    if (ODD == KEEPS_TO_ITSELF && !odd->secret)
        return fail(err, MEMCR_CODE_NOT_FOUND, "my secret is not here");
    return MEMCR_CODE_OK;
}

static int32_t apply(struct odd *odd, const uint8_t *input, size_t in_len, uint8_t *out,
                     size_t out_cap, size_t *out_len, memcr_error *err)
{
    size_t i;

    int *calls = ODD == SOLO_IN_PLUGIN ? &calls_of_all : &odd->calls;
    uint8_t with = SOLO ? 1 : (uint8_t)(odd->seen * 7 + 1);

    check_thread(odd);
    if (__atomic_fetch_add(calls, 1, __ATOMIC_SEQ_CST))
        return fail(err, MEMCR_CODE_INTERNAL, "two calls at once");
    if (SOLO)
        sched_yield(); /* time for another call to get in, if one may */
    if (in_len > out_cap)
        return fail(err, MEMCR_CODE_BUFFER_TOO_SMALL, "the frame is longer than the buffer");
    for (i = 0; i < in_len; i++)
        out[i] = input[i] ^ with;
    odd->seen++;
    *out_len = in_len;
    __atomic_fetch_sub(calls, 1, __ATOMIC_SEQ_CST);
    return MEMCR_CODE_OK;
}

static int32_t encode(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err)
{
    struct odd *odd = handle;
    int32_t code;

    (void)worker;
    while (ODD == HANGS_IN_PLUGIN)
        pause();
    if (ODD == PASSES)
        return MEMCR_CODE_PASS;
    if (ODD == UNKNOWN_ANSWER)
        return 7;
    if (!SOLO && chunk->index != odd->seen)
        return fail(err, MEMCR_CODE_INTERNAL, "chunks come out of order");
    if (ODD == FAILS_LATE && chunk->index == 2)
        return fail(err, MEMCR_CODE_IO, "the third chunk is too much");
    code = apply(odd, input, in_len, out, out_cap, out_len, err);
    if (ODD == SAYS_TOO_MUCH)
        *out_len = out_cap + 1;
    return code;
}

static int32_t decode(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err)
{
    struct odd *odd = handle;
    int32_t code;

    (void)worker;
    if (!SOLO && chunk->index != odd->seen)
        return fail(err, MEMCR_CODE_INTERNAL, "chunks come out of order");
    code = apply(odd, input, in_len, out, out_cap, out_len, err);
    if (ODD == DECODES_WRONG && *out_len)
        out[0] ^= 1;
    if (ODD == DECODES_SHORT && *out_len)
        *out_len -= 1;
    if (ODD == DECODES_TOO_MUCH)
        *out_len = out_cap + 1;
    return code;
}

static int32_t finish_encode(memcr_handle handle, uint64_t n_chunks, uint8_t *out, size_t out_cap,
                             size_t *out_len, memcr_error *err)
{
    struct odd *odd = handle;

    (void)out_cap;
    check_thread(odd);
    if (n_chunks != odd->seen)
        return fail(err, MEMCR_CODE_INTERNAL, "chunks are missing");
    memcpy(out, &odd->seen, sizeof odd->seen);
    *out_len = sizeof odd->seen;
    return MEMCR_CODE_OK;
}

static int32_t finish_decode(memcr_handle handle, uint64_t n_chunks, const uint8_t *trailer,
                             size_t trailer_len, memcr_error *err)
{
    struct odd *odd = handle;
    uint64_t seen;

    check_thread(odd);
    if (trailer_len != sizeof seen)
        return fail(err, MEMCR_CODE_CORRUPT, "this is not my trailer");
    memcpy(&seen, trailer, sizeof seen);
    if (n_chunks != odd->seen || seen != odd->seen)
        return fail(err, MEMCR_CODE_CORRUPT, "chunks are missing");
    return MEMCR_CODE_OK;
}

static const memcr_param params[] = {
    {.name = "caller", .kind = MEMCR_PARAM_INTEGER, .max = 1 << 30, .help = "thread that is not to be seen"},
};

static const memcr_stage_table table = {
    .struct_size = sizeof(memcr_stage_table),
    .abi_version = MEMCR_ABI_VERSION,
    .kind = MEMCR_KIND_TRANSFORM,
    .threads = THREADS,
    .capabilities = SOLO ? MEMCR_CAPABILITY_INDEPENDENT_CHUNKS : 0,
    .name = NAME,
    .version = "1.0.0",
    .summary = "a transform for tests",
    .params = params,
    .n_params = 1,
    .param_size = sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .begin_encode = begin_encode,
    .begin_decode = begin_decode,
    .bound = bound,
    .encode = encode,
    .decode = decode,
    .finish_encode = finish_encode,
    .finish_decode = finish_decode,
};

const memcr_stage_table *memcr_stage_v1(void)
{
    return &table;
}
