/*
 * memcr_stage.h - the interface between memcr and a stage plugin, version 1.0
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A plugin is a shared object libmemcr_stage_NAME.so that exports one function,
 * memcr_stage_v1(). It answers a table of constants and functions that lives as long as
 * the process. This header is normative; plugin-api/src/abi.rs is its twin in Rust.
 *
 *   plugin file --memcr_stage_v1()--> memcr_stage_table --create()--> handle
 *                                          |                            |
 *            kind: transform               |  encode / decode           +- worker contexts
 *                  checksum                |  encode / decode           |  (scratch memory
 *                  sink                    |  sink_open, sink_write_at  |   of one thread)
 *
 * Life of a handle:
 *
 *   transform, checksum
 *     create -> worker_create * n
 *            -> begin_encode -> encode * n_chunks -> finish_encode
 *            -> begin_decode -> decode * n_chunks -> finish_decode     (any number of
 *            -> worker_destroy * n -> destroy                           times, any order)
 *   sink
 *     create -> sink_open(write) -> sink_write_at * n -> sink_commit -> sink_locator
 *            -> sink_len, sink_read_at * n -> sink_remove -> destroy
 *     create -> sink_open(read) -> sink_len, sink_read_at * n -> sink_remove -> destroy
 *
 * The two uses of a life need not follow each other in one process: an image is often
 * read back by another process, through a new handle made from the same parameters.
 *
 * Rules, kept by both sides
 *
 *   Ownership  Nothing allocated crosses. The host owns every buffer; the plugin says how
 *              much it may need (bound) and writes to out[0 .. out_cap) only. What the
 *              host passes in is valid during the call and must not be kept, but for
 *              struct memcr_host, which lives as long as the process. Texts and tables of
 *              the plugin live as long as the process: it is never unloaded.
 *   Buffers    input and out never overlap. A pointer may be NULL where its length is 0.
 *              *out_len is written on success only.
 *   Threads    The table says what the host may do at the same time (MEMCR_THREADS_...).
 *              Calls on one handle may come from different threads, one after the other.
 *              A worker context is used by one thread at a time.
 *   Errors     A call answers MEMCR_CODE_OK, or (encode of a compressing transform)
 *              MEMCR_CODE_PASS, or a negative code. With a negative code it has described
 *              the failure in *err: what failed, to what, with its numbers; lower case, no
 *              full stop. err is never NULL. While the target of memcr stands still, a
 *              plugin must not end the process and must not wait for ever.
 *   Unwinding  No exception, panic or longjmp crosses the boundary.
 *   Growth     Tables grow at the end, and only with the minor version. Each begins with
 *              its own size in bytes; a reader uses no field that lies beyond the size it
 *              was given, whoever wrote it. Codes and bits are only added. A plugin of
 *              another major version is refused; so is one with an unknown capability bit.
 *   Trust      decode is called with whatever the image holds. It must not read or write
 *              outside its buffers, nor end the process, whatever the input.
 */
#ifndef MEMCR_STAGE_H
#define MEMCR_STAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and limits ---------------------------------------------------------- */

#define MEMCR_ABI_MAJOR 1u
#define MEMCR_ABI_MINOR 0u
/* major << 16 | minor: the form in which tables carry it. */
#define MEMCR_ABI_VERSION ((MEMCR_ABI_MAJOR << 16) | MEMCR_ABI_MINOR)
/* The one symbol a plugin exports, of type memcr_entry_fn. */
#define MEMCR_ENTRY_SYMBOL "memcr_stage_v1"
/* Longest name of a stage or a parameter, in bytes. */
#define MEMCR_MAX_NAME_LEN 32u
/* Longest state, trailer or locator, in bytes. */
#define MEMCR_MAX_STATE_LEN 4096u
/* Longest tag of a checksum, in bytes. */
#define MEMCR_MAX_TAG_LEN 64u
/* What bound of a transform may add to twice the length of a frame, in bytes. */
#define MEMCR_MAX_GROWTH 65536u

/* ---- Result codes ---------------------------------------------------------------- */

/* Done. */
#define MEMCR_CODE_OK 0
/* encode of a transform with MEMCR_CAPABILITY_COMPRESSES only: the output would not be
 * smaller; the host keeps the input and remembers that this stage was passed over. */
#define MEMCR_CODE_PASS 1
/* A parameter has a value the stage cannot work with. */
#define MEMCR_CODE_INVALID_CONFIG (-1)
/* The sink has no room for the bytes. */
#define MEMCR_CODE_NO_SPACE (-2)
/* An operation on a file, socket or device failed; sys_errno says why. */
#define MEMCR_CODE_IO (-3)
/* The bytes are not those that were encoded: they are provably wrong. */
#define MEMCR_CODE_CORRUPT (-4)
/* The key does not fit the image (the bytes may still be right). */
#define MEMCR_CODE_WRONG_KEY (-5)
/* The stage cannot do this here (missing CPU, kernel or library feature). */
#define MEMCR_CODE_UNSUPPORTED (-6)
/* out_cap is smaller than what the call has to write. */
#define MEMCR_CODE_BUFFER_TOO_SMALL (-7)
/* The caller may not do this (ownership, mode, capability). */
#define MEMCR_CODE_PERMISSION (-8)
/* The plugin panicked; its handle must not be used for anything but destroy. */
#define MEMCR_CODE_PANIC (-9)
/* A defect of the plugin. */
#define MEMCR_CODE_INTERNAL (-10)
/* A named thing (image, key, directory) does not exist. */
#define MEMCR_CODE_NOT_FOUND (-11)
/* The plugin gave up after a deadline of its own. */
#define MEMCR_CODE_TIMED_OUT (-12)

/* ---- memcr_stage_table.kind ------------------------------------------------------ */

/* Changes the bytes of a frame: encode in->out, decode out->in. */
#define MEMCR_KIND_TRANSFORM 1u
/* Leaves the bytes and appends a tag of fixed length; decode checks it. */
#define MEMCR_KIND_CHECKSUM 2u
/* Keeps the bytes; last in a pipeline. */
#define MEMCR_KIND_SINK 3u

/* ---- memcr_stage_table.threads --------------------------------------------------- */

/* One call into the plugin at a time, over all its handles. */
#define MEMCR_THREADS_SERIAL 1u
/* One call at a time on one handle; several handles at once. */
#define MEMCR_THREADS_PER_HANDLE 2u
/* Any calls at once, each with a worker context of its own. create, destroy, begin_*,
 * finish_*, sink_open, sink_commit and sink_remove still have their handle to
 * themselves. */
#define MEMCR_THREADS_PARALLEL 3u

/* ---- memcr_stage_table.capabilities ---------------------------------------------- */

/* Transform, checksum: each chunk decodes alone and in any order. Without it the host
 * calls in the order of chunk indices, one at a time, from index 0. */
#define MEMCR_CAPABILITY_INDEPENDENT_CHUNKS (UINT64_C(1) << 0)
/* Transform: makes bytes fewer; may answer PASS; useless after ENCRYPTS. */
#define MEMCR_CAPABILITY_COMPRESSES (UINT64_C(1) << 1)
/* Transform: hides the bytes from a reader of the image. */
#define MEMCR_CAPABILITY_ENCRYPTS (UINT64_C(1) << 2)
/* Transform, checksum: a changed frame or associated datum fails to decode (keyed tag). */
#define MEMCR_CAPABILITY_AUTHENTICATES (UINT64_C(1) << 3)
/* Sink: takes sink_write_at at any offset, in any order, from several threads. */
#define MEMCR_CAPABILITY_WRITE_ANYWHERE (UINT64_C(1) << 4)
/* Sink: sink_read_at works before sink_commit. */
#define MEMCR_CAPABILITY_READ_BEFORE_COMMIT (UINT64_C(1) << 5)
/* Sink: what it stores takes RAM of this machine. */
#define MEMCR_CAPABILITY_IN_MEMORY (UINT64_C(1) << 6)
/* Sink: understands MEMCR_SINK_KEEP. */
#define MEMCR_CAPABILITY_KEEPS_UNFINISHED (UINT64_C(1) << 7)
/* Every capability of this minor version. */
#define MEMCR_CAPABILITY_ALL ((UINT64_C(1) << 8) - 1)

/* ---- memcr_param.kind and .flags ------------------------------------------------- */

/* Any UTF-8 text. */
#define MEMCR_PARAM_STRING 1u
/* A decimal integer in min..=max. */
#define MEMCR_PARAM_INTEGER 2u
/* "true" or "false". */
#define MEMCR_PARAM_BOOL 3u
/* A length in bytes in min..=max; the host has resolved suffixes (64MiB). */
#define MEMCR_PARAM_SIZE 4u
/* One of choices. */
#define MEMCR_PARAM_CHOICE 5u
/* A path of a file or directory. */
#define MEMCR_PARAM_PATH 6u
/* A number of an open descriptor of the host. */
#define MEMCR_PARAM_FD 7u

/* Flag: there is no default, the user must give a value. */
#define MEMCR_PARAM_REQUIRED (1u << 0)
/* Flag: needed to read an image back; its value is stored in the image. Never a secret. */
#define MEMCR_PARAM_RECORDED (1u << 1)
/* Flag: says where something is (a key, for one), not how bytes are encoded, as a path and a
 * descriptor do anyway: whoever reads an image back may give another value. */
#define MEMCR_PARAM_PLACE (1u << 2)

/* ---- Structs --------------------------------------------------------------------- */

/* What went wrong, written by the plugin into memory of the host, which lends it zeroed
 * but for struct_size. */
typedef struct memcr_error {
    uint32_t struct_size; /* set by the host */
    int32_t sys_errno;    /* errno behind a failure, or 0 */
    char message[376];    /* what failed, to what, with its numbers; NUL-terminated UTF-8 */
    char hint[128];       /* what the user can do about it, or empty */
} memcr_error;

/* A parameter that a stage understands. */
typedef struct memcr_param {
    const char *name;          /* key in pipeline.toml and --set: [a-z0-9_]+, 1 to 32 bytes */
    uint32_t kind;             /* MEMCR_PARAM_STRING ... */
    uint32_t flags;            /* MEMCR_PARAM_REQUIRED | ... */
    const char *default_value; /* when the user gives none; NULL: the stage finds one itself */
    const char *choices;       /* CHOICE: the words, separated by '|'; else NULL */
    int64_t min;               /* INTEGER, SIZE: smallest value */
    int64_t max;               /* INTEGER, SIZE: largest value */
    const char *help;          /* one line for --stage-help */
} memcr_param;

/* One parameter with its value, checked by the host against its memcr_param. */
typedef struct memcr_key_value {
    const char *key;
    const char *value;
} memcr_key_value;

/* What the host offers to a plugin; lives as long as the process. */
typedef struct memcr_host {
    uint32_t struct_size;
    uint32_t abi_version; /* MEMCR_ABI_VERSION of the host */
    /* Writes one line to memcr's log. level: 1 error, 2 warning, 3 info, 4 debug. From
     * any thread. message is UTF-8 and NUL-terminated. May be NULL. */
    void (*log)(uint32_t level, const char *message);
} memcr_host;

/* The image that a stage is about to encode or decode. */
typedef struct memcr_image_info {
    uint32_t struct_size;
    uint32_t page_size;     /* of the target, bytes */
    uint8_t image_id[16];   /* random, unique per image */
    uint64_t max_chunk_len; /* longest frame that enters the first stage, bytes */
    uint64_t expected_len;  /* all chunks before the first stage, bytes; an estimate */
} memcr_image_info;

/* The chunk that a frame belongs to. */
typedef struct memcr_chunk_info {
    uint32_t struct_size;
    uint32_t flags;     /* MEMCR_CHUNK_LAST */
    uint64_t index;     /* position in the image, dense from 0: encode sees each once */
    uint64_t address;   /* of its first page in the target */
    uint64_t raw_len;   /* before the first stage, bytes; 0: a chunk of zero pages only */
    const uint8_t *aad; /* data to authenticate beside the frame; must fit to decode */
    uint64_t aad_len;   /* bytes */
} memcr_chunk_info;

/* memcr_chunk_info.flags: no chunk follows this one. */
#define MEMCR_CHUNK_LAST 1u

/* How a sink opens an image. */
typedef struct memcr_sink_open {
    uint32_t struct_size;
    uint32_t mode;         /* MEMCR_SINK_WRITE or MEMCR_SINK_READ */
    uint8_t image_id[16];  /* write: to be stored; read: zero, the host checks it */
    uint64_t pid;          /* write: of the target, for the name of the image */
    uint64_t expected_len; /* write: bytes to be stored, at most; 0 unknown */
    uint32_t flags;        /* write: MEMCR_SINK_COMPRESSED, _KEEP */
    uint32_t reserved;     /* 0 */
    const char *locator;   /* read: what sink_locator answered; else NULL */
} memcr_sink_open;

/* memcr_sink_open.mode: write a new image. */
#define MEMCR_SINK_WRITE 1u
/* memcr_sink_open.mode: read an image that was committed, be it for the first time. */
#define MEMCR_SINK_READ 2u
/* memcr_sink_open.flags: a stage before the sink compresses. */
#define MEMCR_SINK_COMPRESSED 1u
/* memcr_sink_open.flags: the host gives memory back while it stores. A first sink_commit
 * comes before the image is complete: from then on it is found by its locator, with what was
 * written so far, and stays until sink_remove. Writes go on; a second one comes when it is
 * complete. Only set where the sink has KEEPS_UNFINISHED. */
#define MEMCR_SINK_KEEP 2u

/* A handle made by create: whatever the plugin likes. */
typedef void *memcr_handle;
/* Scratch memory of one thread, made by worker_create; NULL if the stage needs none. */
typedef void *memcr_worker;

/*
 * Everything a plugin offers.
 *
 * Needed by every kind: all fields up to params, create, destroy.
 * Transform, checksum: bound, encode, decode. Each of these pairs may be NULL together,
 *   when there is nothing to do and nothing to store: worker_create/worker_destroy,
 *   begin_encode/begin_decode, finish_encode/finish_decode.
 * Sink: all functions that begin with sink_.
 * get_extension may be NULL. Functions that a kind does not need are NULL.
 */
typedef struct memcr_stage_table {
    uint32_t struct_size;   /* sizeof(memcr_stage_table) as the plugin was compiled */
    uint32_t abi_version;   /* MEMCR_ABI_VERSION the plugin was compiled for */
    uint32_t kind;          /* MEMCR_KIND_... */
    uint32_t threads;       /* MEMCR_THREADS_... */
    uint64_t capabilities;  /* MEMCR_CAPABILITY_... | ... */
    const char *name;       /* as in the file name: [a-z0-9_]+, 1 to 32 bytes */
    const char *version;    /* the plugin's own */
    const char *summary;    /* one line for --stages */
    const memcr_param *params; /* n_params parameters, or NULL with n_params 0 */
    uint32_t n_params;
    uint32_t param_size;    /* sizeof(memcr_param) as the plugin was compiled: the stride */

    /* Makes a handle from checked parameters: every one that has a value or a default is
     * present. Everything that can fail early fails here, in begin_* or in sink_open: the
     * target still runs then. */
    int32_t (*create)(const memcr_host *host, const memcr_key_value *params, size_t n_params,
                      memcr_handle *out_handle, memcr_error *err);
    /* Ends a handle. All its worker contexts are gone before. An open sink is closed; an
     * image that was not committed is gone afterwards. */
    void (*destroy)(memcr_handle handle);
    /* Makes the scratch memory of one thread, allocated and touched. */
    int32_t (*worker_create)(memcr_handle handle, memcr_worker *out_worker, memcr_error *err);
    /* Ends a worker context. */
    void (*worker_destroy)(memcr_handle handle, memcr_worker worker);
    /* A further table under a name, or NULL. */
    const void *(*get_extension)(const char *id);

    /* Transform, checksum: starts an image; writes what a later begin_decode needs (salt,
     * algorithm; no secrets), at most MEMCR_MAX_STATE_LEN bytes. */
    int32_t (*begin_encode)(memcr_handle handle, const memcr_image_info *info, uint8_t *out,
                            size_t out_cap, size_t *out_len, memcr_error *err);
    /* Transform, checksum: starts reading an image whose begin_encode wrote state. May
     * follow finish_encode on the same handle, or the encodes of an image that was given
     * up in the middle, and may be called again. */
    int32_t (*begin_decode)(memcr_handle handle, const memcr_image_info *info,
                            const uint8_t *state, size_t state_len, memcr_error *err);
    /* Transform: largest output of encode for in_len bytes, at most twice that and
     * MEMCR_MAX_GROWTH. Checksum: length of the tag, whatever in_len is, at most
     * MEMCR_MAX_TAG_LEN. */
    size_t (*bound)(memcr_handle handle, size_t in_len);
    /* Transform: input to out. Checksum: writes the tag of input to out. input may be
     * empty. */
    int32_t (*encode)(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err);
    /* Transform: input back to what encode was given; out_cap is exactly the largest
     * length that can be right. Checksum: input is the frame without its tag, out holds
     * the tag (out_cap bytes, to be read only), *out_len is not written. */
    int32_t (*decode)(memcr_handle handle, memcr_worker worker, const memcr_chunk_info *chunk,
                      const uint8_t *input, size_t in_len, uint8_t *out, size_t out_cap,
                      size_t *out_len, memcr_error *err);
    /* Transform, checksum: all n_chunks were encoded; writes a trailer for finish_decode
     * (digest or tag over the image), at most MEMCR_MAX_STATE_LEN bytes. */
    int32_t (*finish_encode)(memcr_handle handle, uint64_t n_chunks, uint8_t *out,
                             size_t out_cap, size_t *out_len, memcr_error *err);
    /* Transform, checksum: all n_chunks were decoded; checks the trailer. */
    int32_t (*finish_decode)(memcr_handle handle, uint64_t n_chunks, const uint8_t *trailer,
                             size_t trailer_len, memcr_error *err);

    /* Sink: opens the one image of this handle. Checks room for expected_len. */
    int32_t (*sink_open)(memcr_handle handle, const memcr_sink_open *open, memcr_error *err);
    /* Sink: stores all len bytes at offset or fails. Without WRITE_ANYWHERE each call
     * continues where the last one ended. */
    int32_t (*sink_write_at)(memcr_handle handle, uint64_t offset, const uint8_t *data,
                             size_t len, memcr_error *err);
    /* Sink: reads up to cap bytes at offset; *out_len less than cap only at the end. */
    int32_t (*sink_read_at)(memcr_handle handle, uint64_t offset, uint8_t *out, size_t cap,
                            size_t *out_len, memcr_error *err);
    /* Sink: length of the image, bytes. */
    int32_t (*sink_len)(memcr_handle handle, uint64_t *out_len, memcr_error *err);
    /* Sink: the image is complete: len bytes, of which raw_len were chunks before the
     * first stage. Afterwards it lasts, and sink_read_at works. */
    int32_t (*sink_commit)(memcr_handle handle, uint64_t len, uint64_t raw_len,
                           memcr_error *err);
    /* Sink: a text that sink_open for reading finds the committed image by, UTF-8, not
     * NUL-terminated, at most MEMCR_MAX_STATE_LEN bytes. */
    int32_t (*sink_locator)(memcr_handle handle, char *out, size_t out_cap, size_t *out_len,
                            memcr_error *err);
    /* Sink: removes the image, committed or not. Nothing of it stays behind. */
    int32_t (*sink_remove)(memcr_handle handle, memcr_error *err);
} memcr_stage_table;

/* The type of MEMCR_ENTRY_SYMBOL. */
typedef const memcr_stage_table *(*memcr_entry_fn)(void);

/* What a plugin defines: MEMCR_STAGE_EXPORT const memcr_stage_table *memcr_stage_v1(void) */
#if defined(__GNUC__)
#define MEMCR_STAGE_EXPORT __attribute__((visibility("default")))
#else
#define MEMCR_STAGE_EXPORT
#endif

MEMCR_STAGE_EXPORT const memcr_stage_table *memcr_stage_v1(void);

#ifdef __cplusplus
}
#endif

#endif /* MEMCR_STAGE_H */
