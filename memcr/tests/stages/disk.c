/*
 * A sink for tests: one file, and faults on demand.
 *
 *   cc -shared -fPIC -DNAME='"disk"' -DCAPABILITIES=... -DTHREADS=...
 *
 * Parameters: path of the file; fail_write, fail_read, the number of the write or read
 * (from 1) that fails; max_read, most bytes that one read answers;
 * fail_step (none, open, commit, remove, read); caller, a thread that must never call;
 * hang (none, open, write, commit, remove, read, len, chunk), the step that does not come
 * back until somebody opens the FIFO PATH.fifo for writing. The step chunk is the write or
 * read of more than 8 KiB, which is one of a chunk if chunks are longer.
 * Without WRITE_ANYWHERE it refuses writes that do not continue where the last one ended,
 * and two calls at once.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memcr_stage.h"

struct disk {
    int fd;
    int committed;
    long caller;
    long fail_write;
    long fail_read;
    long n_reads;
    long max_read;
    long n_writes;
    uint64_t next;
    char path[1024];
    char fail_step[32];
    char hang[32];
    pthread_mutex_t lock;
};

static int32_t fail(memcr_error *err, int32_t code, const char *message)
{
    snprintf(err->message, sizeof err->message, "%s", message);
    return code;
}

/* Loud, because destroy has no other way to complain. */
static struct disk *enter(memcr_handle handle)
{
    struct disk *disk = handle;

    if (gettid() == disk->caller)
        abort();
    return disk;
}

/* Once the FIFO was opened nothing hangs any more. */
static void hang_at(struct disk *disk, const char *step)
{
    char fifo[1100];
    int fd;

    if (strcmp(disk->hang, step))
        return;
    snprintf(fifo, sizeof fifo, "%s.fifo", disk->path);
    fd = open(fifo, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    strcpy(disk->hang, "none");
}

static int32_t create(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err)
{
    struct disk *disk = calloc(1, sizeof *disk);
    size_t i;

    (void)host;
    (void)err;
    disk->fd = -1;
    pthread_mutex_init(&disk->lock, NULL);
    for (i = 0; i < n_params; i++) {
        if (!strcmp(params[i].key, "path"))
            snprintf(disk->path, sizeof disk->path, "%s", params[i].value);
        if (!strcmp(params[i].key, "caller"))
            disk->caller = atol(params[i].value);
        if (!strcmp(params[i].key, "fail_read"))
            disk->fail_read = atol(params[i].value);
        if (!strcmp(params[i].key, "max_read"))
            disk->max_read = atol(params[i].value);
        if (!strcmp(params[i].key, "fail_write"))
            disk->fail_write = atol(params[i].value);
        if (!strcmp(params[i].key, "hang"))
            snprintf(disk->hang, sizeof disk->hang, "%s", params[i].value);
        if (!strcmp(params[i].key, "fail_step"))
            snprintf(disk->fail_step, sizeof disk->fail_step, "%s", params[i].value);
    }
    enter(disk);
    *out_handle = disk;
    return MEMCR_CODE_OK;
}

static int32_t sink_remove(memcr_handle handle, memcr_error *err)
{
    struct disk *disk = enter(handle);

    hang_at(disk, "remove");
    if (!strcmp(disk->fail_step, "remove"))
        return fail(err, MEMCR_CODE_IO, "the image does not go away");
    if (disk->fd >= 0)
        unlink(disk->path);
    return MEMCR_CODE_OK;
}

static void destroy(memcr_handle handle)
{
    struct disk *disk = enter(handle);

    if (disk->fd >= 0) {
        if (!disk->committed)
            unlink(disk->path);
        close(disk->fd);
    }
    free(disk);
}

static int32_t sink_open(memcr_handle handle, const memcr_sink_open *open_, memcr_error *err)
{
    struct disk *disk = enter(handle);
    int flags = open_->mode == MEMCR_SINK_WRITE ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR;

    hang_at(disk, "open");
    if (!strcmp(disk->fail_step, "open"))
        return fail(err, MEMCR_CODE_NO_SPACE, "the disk is full");
    if (open_->mode == MEMCR_SINK_READ)
        snprintf(disk->path, sizeof disk->path, "%s", open_->locator);
    disk->fd = open(disk->path, flags | O_CLOEXEC, 0600);
    disk->committed = open_->mode == MEMCR_SINK_READ;
    return disk->fd < 0 ? fail(err, MEMCR_CODE_NOT_FOUND, strerror(errno)) : MEMCR_CODE_OK;
}

static int32_t sink_write_at(memcr_handle handle, uint64_t offset, const uint8_t *data, size_t len,
                             memcr_error *err)
{
    struct disk *disk = enter(handle);
    int32_t code = MEMCR_CODE_OK;
    int anywhere = (CAPABILITIES) & MEMCR_CAPABILITY_WRITE_ANYWHERE;

    hang_at(disk, len > 8192 ? "chunk" : "write");
    if (pthread_mutex_trylock(&disk->lock)) {
        if (!anywhere)
            return fail(err, MEMCR_CODE_INTERNAL, "two calls at once");
        pthread_mutex_lock(&disk->lock);
    }
    if (!anywhere && offset != disk->next)
        code = fail(err, MEMCR_CODE_INTERNAL, "a write does not continue the last one");
    disk->next = offset + len;
    if (++disk->n_writes == disk->fail_write)
        code = fail(err, MEMCR_CODE_NO_SPACE, "no space left on the test device");
    pthread_mutex_unlock(&disk->lock);
    if (code == MEMCR_CODE_OK && pwrite(disk->fd, data, len, (off_t)offset) != (ssize_t)len)
        code = fail(err, MEMCR_CODE_IO, strerror(errno));
    return code;
}

static int32_t sink_read_at(memcr_handle handle, uint64_t offset, uint8_t *out, size_t cap,
                            size_t *out_len, memcr_error *err)
{
    struct disk *disk = enter(handle);
    ssize_t n;

    hang_at(disk, cap > 8192 ? "chunk" : "read");
    if (disk->max_read && cap > (size_t)disk->max_read)
        cap = (size_t)disk->max_read;
    n = pread(disk->fd, out, cap, (off_t)offset);
    if (__atomic_add_fetch(&disk->n_reads, 1, __ATOMIC_SEQ_CST) == disk->fail_read)
        return fail(err, MEMCR_CODE_IO, "one read of the test device fails");
    if (n < 0 || !strcmp(disk->fail_step, "read"))
        return fail(err, MEMCR_CODE_IO, "the test device does not read");
    *out_len = (size_t)n;
    return MEMCR_CODE_OK;
}

static int32_t sink_len(memcr_handle handle, uint64_t *out_len, memcr_error *err)
{
    struct disk *disk = enter(handle);
    struct stat st;

    hang_at(disk, "len");
    if (fstat(disk->fd, &st))
        return fail(err, MEMCR_CODE_IO, strerror(errno));
    *out_len = (uint64_t)st.st_size;
    return MEMCR_CODE_OK;
}

static int32_t sink_commit(memcr_handle handle, uint64_t len, uint64_t raw_len, memcr_error *err)
{
    struct disk *disk = enter(handle);

    (void)len;
    (void)raw_len;
    hang_at(disk, "commit");
    if (!strcmp(disk->fail_step, "commit"))
        return fail(err, MEMCR_CODE_IO, "the image cannot be made to last");
    disk->committed = 1;
    return MEMCR_CODE_OK;
}

static int32_t sink_locator(memcr_handle handle, char *out, size_t out_cap, size_t *out_len,
                            memcr_error *err)
{
    struct disk *disk = enter(handle);

    (void)err;
    *out_len = (size_t)snprintf(out, out_cap, "%s", disk->path);
    return MEMCR_CODE_OK;
}

static const memcr_param params[] = {
    {.name = "path", .kind = MEMCR_PARAM_PATH, .flags = MEMCR_PARAM_REQUIRED, .help = "file"},
    {.name = "fail_write", .kind = MEMCR_PARAM_INTEGER, .max = 1 << 20, .help = "write that fails"},
    {.name = "caller", .kind = MEMCR_PARAM_INTEGER, .max = 1 << 30, .help = "thread that is not to be seen"},
    {.name = "fail_step",
     .kind = MEMCR_PARAM_CHOICE,
     .default_value = "none",
     .choices = "none|open|commit|remove|read",
     .help = "step that fails"},
    {.name = "hang",
     .kind = MEMCR_PARAM_CHOICE,
     .default_value = "none",
     .choices = "none|open|write|commit|remove|read|len|chunk",
     .help = "step that hangs"},
    {.name = "fail_read", .kind = MEMCR_PARAM_INTEGER, .max = 1 << 20, .help = "read that fails"},
    {.name = "max_read", .kind = MEMCR_PARAM_INTEGER, .max = 1 << 20, .help = "longest read"},
};

static const memcr_stage_table table = {
    .struct_size = sizeof(memcr_stage_table),
    .abi_version = MEMCR_ABI_VERSION,
    .kind = MEMCR_KIND_SINK,
    .threads = THREADS,
    .capabilities = CAPABILITIES,
    .name = NAME,
    .version = "1.0.0",
    .summary = "a sink for tests",
    .params = params,
    .n_params = 7,
    .param_size = sizeof(memcr_param),
    .create = create,
    .destroy = destroy,
    .sink_open = sink_open,
    .sink_write_at = sink_write_at,
    .sink_read_at = sink_read_at,
    .sink_len = sink_len,
    .sink_commit = sink_commit,
    .sink_locator = sink_locator,
    .sink_remove = sink_remove,
};

const memcr_stage_table *memcr_stage_v1(void)
{
    return &table;
}
