//! The tables that cross the boundary between memcr and a stage plugin.
//!
//! Normative twin: `include/memcr_stage.h`. Every item here has the same name
//! (without the `memcr_` prefix), order, size and offsets there; a test compiles
//! the header and compares them.
//!
//! ```text
//!   plugin file ──memcr_stage_v1()──▶ StageTable ──create()──▶ handle
//!                                         │                      │
//!              kind: transform            │  encode/decode       ├─ worker contexts (scratch of one thread)
//!                    checksum             │  encode/decode       │
//!                    sink                 │  open/write_at/…     │
//! ```
//!
//! Rules, kept by both sides:
//!
//! * Nothing allocated crosses: the host owns every buffer, the plugin says how much
//!   it may need ([`StageTable::bound`]) and writes into `out[..cap]`.
//! * Tables only grow at the end. Each begins with its own size in bytes; a reader
//!   uses no field that lies beyond the size it was given.
//! * No unwinding across the boundary. A plugin that panics reports
//!   [`code::PANIC`].
//! * A returned code other than [`code::OK`] (and [`code::PASS`] from `encode`) is a
//!   failure, described in the [`Error`] that the host lent.

use core::ffi::{c_char, c_void};

use abi_stable::StableAbi;

/// Major version: a plugin of another major version is refused.
pub const ABI_MAJOR: u32 = 1;
/// Minor version: grows when fields or codes are appended.
pub const ABI_MINOR: u32 = 0;
/// `major << 16 | minor`, the form in which tables carry it.
pub const ABI_VERSION: u32 = ABI_MAJOR << 16 | ABI_MINOR;
/// The one symbol a C plugin exports: [`EntryFn`].
pub const ENTRY_SYMBOL: &core::ffi::CStr = c"memcr_stage_v1";
/// Longest name of a stage or a parameter, in bytes.
pub const MAX_NAME_LEN: usize = 32;
/// Longest state, trailer or locator, in bytes.
pub const MAX_STATE_LEN: usize = 4096;
/// Longest tag a checksum stage may append to a frame, in bytes.
pub const MAX_TAG_LEN: usize = 64;
/// What [`StageTable::bound`] of a transform may add to twice the length of a frame, in
/// bytes: buffers are allocated for it before the target is frozen.
pub const MAX_GROWTH: usize = 64 * 1024;

/// Result codes of plugin calls.
pub mod code {
    /// Done.
    pub const OK: i32 = 0;
    /// `encode` of a compressing stage only: the output would not be smaller, the
    /// host keeps the input as it is and remembers that this stage was passed over.
    pub const PASS: i32 = 1;
    /// A parameter has a value the stage cannot work with.
    pub const INVALID_CONFIG: i32 = -1;
    /// The sink has no room for the bytes.
    pub const NO_SPACE: i32 = -2;
    /// An operation on a file, socket or device failed; `Error::sys_errno` says why.
    pub const IO: i32 = -3;
    /// The bytes are not those that were encoded: they are provably wrong.
    pub const CORRUPT: i32 = -4;
    /// The key does not fit the image (the bytes may still be right).
    pub const WRONG_KEY: i32 = -5;
    /// The stage cannot do this here (missing CPU, kernel or library feature).
    pub const UNSUPPORTED: i32 = -6;
    /// `out_cap` is smaller than what the call has to write.
    pub const BUFFER_TOO_SMALL: i32 = -7;
    /// The caller may not do this (ownership, mode, capability).
    pub const PERMISSION: i32 = -8;
    /// The plugin panicked; its handle must not be used for anything but `destroy`.
    pub const PANIC: i32 = -9;
    /// A defect of the plugin.
    pub const INTERNAL: i32 = -10;
    /// A named thing (image, key, directory) does not exist.
    pub const NOT_FOUND: i32 = -11;
    /// The plugin gave up after a deadline of its own.
    pub const TIMED_OUT: i32 = -12;
}

/// Values of [`StageTable::kind`].
pub mod kind {
    /// Changes the bytes of a frame: `encode` in→out, `decode` out→in.
    pub const TRANSFORM: u32 = 1;
    /// Leaves the bytes and appends a tag of fixed length; `decode` checks it.
    pub const CHECKSUM: u32 = 2;
    /// Keeps the bytes; last in a pipeline.
    pub const SINK: u32 = 3;
}

/// Values of [`StageTable::threads`]: what the host may do at the same time.
pub mod threads {
    /// One call into the plugin at a time, over all its handles.
    pub const SERIAL: u32 = 1;
    /// One call at a time on one handle; several handles at once.
    pub const PER_HANDLE: u32 = 2;
    /// Any calls at once, each with a worker context of its own. `create`, `destroy`,
    /// `begin_*`, `finish_*`, `sink_open`, `sink_commit` and `sink_remove` still have
    /// their handle to themselves.
    pub const PARALLEL: u32 = 3;
}

/// Bits of [`StageTable::capabilities`].
pub mod capability {
    /// Transform, checksum: each chunk decodes alone and in any order. Without it the
    /// host calls in the order of chunk indices, one at a time.
    pub const INDEPENDENT_CHUNKS: u64 = 1 << 0;
    /// Transform: makes bytes fewer; may answer `PASS`; useless after `ENCRYPTS`.
    pub const COMPRESSES: u64 = 1 << 1;
    /// Transform: hides the bytes from a reader of the image.
    pub const ENCRYPTS: u64 = 1 << 2;
    /// Transform, checksum: a changed frame or associated datum fails to decode (keyed tag).
    pub const AUTHENTICATES: u64 = 1 << 3;
    /// Sink: takes `write_at` at any offset, in any order, from several threads.
    pub const WRITE_ANYWHERE: u64 = 1 << 4;
    /// Sink: `read_at` works before `commit`.
    pub const READ_BEFORE_COMMIT: u64 = 1 << 5;
    /// Sink: what it stores takes RAM of this machine.
    pub const IN_MEMORY: u64 = 1 << 6;
    /// Sink: understands [`super::SINK_KEEP`].
    pub const KEEPS_UNFINISHED: u64 = 1 << 7;
    /// Every capability of this minor version; unknown bits are refused.
    pub const ALL: u64 = (1 << 8) - 1;
}

/// Values of [`Param::kind`].
pub mod param {
    /// Any UTF-8 text.
    pub const STRING: u32 = 1;
    /// A decimal integer in `min..=max`.
    pub const INTEGER: u32 = 2;
    /// `true` or `false`.
    pub const BOOL: u32 = 3;
    /// A length in bytes; the host has resolved suffixes (`64MiB`) to a decimal number.
    pub const SIZE: u32 = 4;
    /// One of `choices`.
    pub const CHOICE: u32 = 5;
    /// A path of a file or directory.
    pub const PATH: u32 = 6;
    /// A number of an open descriptor of the host.
    pub const FD: u32 = 7;

    /// Flag: there is no default, the user must give a value.
    pub const REQUIRED: u32 = 1 << 0;
    /// Flag: needed to read an image back; its value is stored in the image.
    pub const RECORDED: u32 = 1 << 1;
    /// Flag: says where something is (a key, for one), not how bytes are encoded, as a path
    /// and a descriptor do anyway: whoever reads an image back may give another value.
    pub const PLACE: u32 = 1 << 2;
}

/// What went wrong, written by the plugin into memory of the host, which lends it zeroed
/// but for its size.
#[repr(C)]
#[derive(StableAbi)]
pub struct Error {
    /// Size of this struct, set by the host.
    pub struct_size: u32,
    /// `errno` behind a failure, or 0.
    pub sys_errno: i32,
    /// What failed, to what, with its numbers; NUL-terminated UTF-8, no full stop.
    pub message: [c_char; 376],
    /// What the user can do about it, or empty; NUL-terminated UTF-8.
    pub hint: [c_char; 128],
}

/// A parameter that a stage understands.
#[repr(C)]
#[derive(StableAbi)]
pub struct Param {
    /// Key in `pipeline.toml` and `--set`.
    pub name: *const c_char,
    /// One of [`param`]'s kinds.
    pub kind: u32,
    /// Or-ed flags of [`param`].
    pub flags: u32,
    /// Value when the user gives none; null: the stage finds one itself.
    pub default_value: *const c_char,
    /// `CHOICE`: the words, separated by `|`; else null.
    pub choices: *const c_char,
    /// `INTEGER`, `SIZE`: smallest value.
    pub min: i64,
    /// `INTEGER`, `SIZE`: largest value.
    pub max: i64,
    /// One line for `--stage-help`.
    pub help: *const c_char,
}

/// One parameter with its value, checked by the host against its [`Param`].
#[repr(C)]
#[derive(StableAbi)]
pub struct KeyValue {
    /// [`Param::name`].
    pub key: *const c_char,
    /// The value as text.
    pub value: *const c_char,
}

/// What the host offers to a plugin; lives as long as the process.
#[repr(C)]
#[derive(StableAbi)]
pub struct Host {
    /// Size of this struct.
    pub struct_size: u32,
    /// [`ABI_VERSION`] of the host.
    pub abi_version: u32,
    /// Writes one line to memcr's log. `level`: 1 error, 2 warning, 3 info, 4 debug.
    /// May be called from any thread. `message` is UTF-8 and NUL-terminated.
    pub log: Option<unsafe extern "C" fn(level: u32, message: *const c_char)>,
}

/// The image that a stage is about to encode or decode.
#[repr(C)]
#[derive(StableAbi)]
pub struct ImageInfo {
    /// Size of this struct.
    pub struct_size: u32,
    /// Page size of the target, bytes.
    pub page_size: u32,
    /// Random, unique per image.
    pub image_id: [u8; 16],
    /// Longest frame that enters the first stage, bytes.
    pub max_chunk_len: u64,
    /// Length of all chunks before the first stage, bytes; an estimate before `encode`.
    pub expected_len: u64,
}

/// The chunk that a frame belongs to.
#[repr(C)]
#[derive(StableAbi)]
pub struct ChunkInfo {
    /// Size of this struct.
    pub struct_size: u32,
    /// Bit 0: the last chunk of the image. Other bits are 0.
    pub flags: u32,
    /// Position in the image, dense from 0: `encode` sees each once.
    pub index: u64,
    /// Address of its first page in the target.
    pub address: u64,
    /// Length before the first stage, bytes; 0 for a chunk of zero pages only.
    pub raw_len: u64,
    /// Data to authenticate beside the frame (the chunk's header in the image).
    pub aad: *const u8,
    /// Length of `aad`, bytes.
    pub aad_len: u64,
}

/// [`ChunkInfo::flags`]: no chunk follows this one.
pub const CHUNK_LAST: u32 = 1;

/// How a sink opens an image.
#[repr(C)]
#[derive(StableAbi)]
pub struct SinkOpen {
    /// Size of this struct.
    pub struct_size: u32,
    /// 1 write a new image, 2 read one.
    pub mode: u32,
    /// The image's identity (write: to be stored; read: zero, the host checks it).
    pub image_id: [u8; 16],
    /// Write: the pid of the target, for the name of the image.
    pub pid: u64,
    /// Write: bytes the host expects to store, at most; 0 unknown.
    pub expected_len: u64,
    /// Write: or-ed [`SINK_COMPRESSED`], [`SINK_KEEP`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Read: what `locator` answered when the image was written; else null.
    pub locator: *const c_char,
}

/// [`SinkOpen::mode`]: write a new image.
pub const SINK_WRITE: u32 = 1;
/// [`SinkOpen::mode`]: read an image that was committed, be it for the first time.
pub const SINK_READ: u32 = 2;
/// [`SinkOpen::flags`]: a stage before the sink compresses.
pub const SINK_COMPRESSED: u32 = 1;
/// [`SinkOpen::flags`]: the host gives memory back while it stores. A first `sink_commit` comes
/// before the image is complete: from then on it is found by its locator, with what was written
/// so far, and stays until `sink_remove`. Writes go on; a second one comes when it is complete.
/// Only set where the sink has `KEEPS_UNFINISHED`.
pub const SINK_KEEP: u32 = 2;

/// A handle made by [`StageTable::create`].
pub type Handle = *mut c_void;
/// Scratch memory of one thread, made by [`StageTable::worker_create`]; null if the stage needs none.
pub type Worker = *mut c_void;

/// Everything a plugin offers. Functions that its kind does not need are null.
///
/// Needed by every kind: all fields up to `params`, `create`, `destroy`. Transform,
/// checksum: `bound`, `encode`, `decode`; each of the pairs `worker_create`/`_destroy`,
/// `begin_encode`/`_decode`, `finish_encode`/`_decode` may be null together, when there
/// is nothing to do and nothing to store. Sink: all functions that begin with `sink_`.
///
/// `out_len` is written on success only. `err` is never null.
#[repr(C)]
#[derive(StableAbi)]
pub struct StageTable {
    /// Size of this struct as the plugin was compiled.
    pub struct_size: u32,
    /// [`ABI_VERSION`] the plugin was compiled for.
    pub abi_version: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`threads`].
    pub threads: u32,
    /// Or-ed bits of [`capability`].
    pub capabilities: u64,
    /// Name; the file is `libmemcr_stage_NAME.so`. `[a-z0-9_]+`, at most 32 bytes.
    pub name: *const c_char,
    /// The plugin's own version.
    pub version: *const c_char,
    /// One line for `--stages`.
    pub summary: *const c_char,
    /// `n_params` parameters.
    pub params: *const Param,
    /// Number of parameters.
    pub n_params: u32,
    /// Size of one [`Param`] as the plugin was compiled (the stride of `params`).
    pub param_size: u32,

    /// Makes a handle from checked parameters (every parameter with a value or a default is present).
    /// Everything that can fail early fails here or in `begin_*`/`sink_open`: the target still runs.
    pub create: Option<
        unsafe extern "C" fn(
            host: *const Host,
            params: *const KeyValue,
            n_params: usize,
            out_handle: *mut Handle,
            err: *mut Error,
        ) -> i32,
    >,
    /// Ends a handle. All its worker contexts are gone before. An open sink is closed;
    /// an image that was not committed is gone afterwards.
    pub destroy: Option<unsafe extern "C" fn(handle: Handle)>,
    /// Makes the scratch memory of one thread. Null: no stage of this plugin needs any.
    pub worker_create: Option<
        unsafe extern "C" fn(handle: Handle, out_worker: *mut Worker, err: *mut Error) -> i32,
    >,
    /// Ends a worker context.
    pub worker_destroy: Option<unsafe extern "C" fn(handle: Handle, worker: Worker)>,
    /// A further table under a name, or null. Null itself: no extensions.
    pub get_extension: Option<unsafe extern "C" fn(id: *const c_char) -> *const c_void>,

    /// Transform, checksum: starts an image; writes what a later `begin_decode` needs
    /// (salt, algorithm; no secrets) into `out`, at most [`MAX_STATE_LEN`].
    pub begin_encode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            info: *const ImageInfo,
            out: *mut u8,
            out_cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Transform, checksum: starts reading an image whose `begin_encode` wrote `state`.
    /// May follow `finish_encode` on the same handle, or the `encode`s of an image that was given
    /// up in the middle, and may be called again.
    pub begin_decode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            info: *const ImageInfo,
            state: *const u8,
            state_len: usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Transform: largest output of `encode` for `in_len` bytes, at most twice that and
    /// [`MAX_GROWTH`]. Checksum: length of the tag, whatever `in_len` is, at most
    /// [`MAX_TAG_LEN`].
    pub bound: Option<unsafe extern "C" fn(handle: Handle, in_len: usize) -> usize>,
    /// Transform: `input` to `out`. Checksum: writes the tag of `input` to `out`.
    /// `input` may be empty. `input` and `out` never overlap.
    pub encode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            worker: Worker,
            chunk: *const ChunkInfo,
            input: *const u8,
            in_len: usize,
            out: *mut u8,
            out_cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Transform: `input` back to what `encode` was given; `out_cap` is exactly the
    /// largest length that can be right. Checksum: `input` is the frame without its
    /// tag, `out` holds the tag (`out_cap` bytes, read only), `out_len` is not written.
    pub decode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            worker: Worker,
            chunk: *const ChunkInfo,
            input: *const u8,
            in_len: usize,
            out: *mut u8,
            out_cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Transform, checksum: all `n_chunks` were encoded; writes a trailer for
    /// `finish_decode` (whole-image digest or tag), at most [`MAX_STATE_LEN`].
    pub finish_encode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            n_chunks: u64,
            out: *mut u8,
            out_cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Transform, checksum: all `n_chunks` were decoded; checks the trailer.
    pub finish_decode: Option<
        unsafe extern "C" fn(
            handle: Handle,
            n_chunks: u64,
            trailer: *const u8,
            trailer_len: usize,
            err: *mut Error,
        ) -> i32,
    >,

    /// Sink: opens the one image of this handle. Checks room for `expected_len`.
    pub sink_open:
        Option<unsafe extern "C" fn(handle: Handle, open: *const SinkOpen, err: *mut Error) -> i32>,
    /// Sink: stores all `len` bytes at `offset` or fails. Without `WRITE_ANYWHERE`
    /// each call continues where the last one ended.
    pub sink_write_at: Option<
        unsafe extern "C" fn(
            handle: Handle,
            offset: u64,
            data: *const u8,
            len: usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Sink: reads up to `cap` bytes at `offset`; `out_len` less than `cap` only at the end.
    pub sink_read_at: Option<
        unsafe extern "C" fn(
            handle: Handle,
            offset: u64,
            out: *mut u8,
            cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Sink: length of the image, bytes.
    pub sink_len:
        Option<unsafe extern "C" fn(handle: Handle, out_len: *mut u64, err: *mut Error) -> i32>,
    /// Sink: the image is complete, `len` bytes of which `raw_len` were chunks before
    /// the first stage: make it last and visible. Afterwards `read_at` works. See [`SINK_KEEP`].
    pub sink_commit: Option<
        unsafe extern "C" fn(handle: Handle, len: u64, raw_len: u64, err: *mut Error) -> i32,
    >,
    /// Sink: a text that `sink_open` for reading finds the committed image by, not
    /// NUL-terminated, at most [`MAX_STATE_LEN`] bytes.
    pub sink_locator: Option<
        unsafe extern "C" fn(
            handle: Handle,
            out: *mut c_char,
            out_cap: usize,
            out_len: *mut usize,
            err: *mut Error,
        ) -> i32,
    >,
    /// Sink: removes the image, committed or not. Nothing of it stays behind.
    pub sink_remove: Option<unsafe extern "C" fn(handle: Handle, err: *mut Error) -> i32>,
}

/// The type of [`ENTRY_SYMBOL`]: answers a table that lives as long as the process.
pub type EntryFn = unsafe extern "C" fn() -> *const StageTable;
