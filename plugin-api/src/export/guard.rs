//! What every shim has in common: the handle, the panic guard, texts and slices.
//!
//! ```text
//!   Handle ──▶ Shell<T> { stage: T, panicked }
//!                 │
//!    guard(shell, err, f):   panicked? ──yes──▶ PANIC
//!                            catch_unwind(f) ──▶ Ok(code) │ Err → abi::Error, code
//!                                            └─▶ panic: panicked = true, PANIC
//! ```

use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::abi::{self, code};
use crate::stage::{Params, Result, StageError};

/// What a [`abi::Handle`] of this crate leads to.
pub(super) struct Shell<T> {
    pub(super) stage: T,
    panicked: AtomicBool,
}

impl<T> Shell<T> {
    /// Puts a stage behind a handle.
    pub(super) fn into_handle(stage: T) -> abi::Handle {
        Box::into_raw(Box::new(Self {
            stage,
            panicked: AtomicBool::new(false),
        }))
        .cast::<c_void>()
    }

    /// The shell behind a handle.
    ///
    /// # Safety
    /// `handle` is null or was made by `into_handle` of the same `T` and is not
    /// destroyed before the answer was last used.
    pub(super) unsafe fn of<'a>(handle: abi::Handle) -> Option<&'a Self> {
        // SAFETY: by the contract it leads to a live Shell<T>; a shared reference suits
        // every number of threads, since T is Sync wherever it is used.
        unsafe { handle.cast::<Self>().as_ref() }
    }
}

/// Runs `f` on the stage of a handle and turns its answer into a code.
///
/// A panic ends in [`code::PANIC`]; from then on the handle answers nothing else, since
/// the stage may have been left half changed.
///
/// # Safety
/// As for [`Shell::of`] and [`write_error`].
pub(super) unsafe fn guard<T>(
    handle: abi::Handle,
    err: *mut abi::Error,
    f: impl FnOnce(&T) -> Result<i32>,
) -> i32 {
    // SAFETY: handed on from our own contract.
    let Some(shell) = (unsafe { Shell::<T>::of(handle) }) else {
        let error = StageError::new(code::INTERNAL, "the host called a stage without a handle");
        // SAFETY: handed on from our own contract.
        return unsafe { write_error(err, &error) };
    };
    let answer = if shell.panicked.load(Ordering::Acquire) {
        Err(StageError::new(
            code::PANIC,
            "the plugin panicked before and cannot be used any more",
        ))
    } else {
        caught(|| f(&shell.stage)).inspect_err(|error| {
            if error.code == code::PANIC {
                shell.panicked.store(true, Ordering::Release);
            }
        })
    };
    // SAFETY: handed on from our own contract.
    unsafe { finish(err, answer) }
}

/// `guard` for calls that have no handle yet.
///
/// # Safety
/// As for [`write_error`].
pub(super) unsafe fn guard_free(err: *mut abi::Error, f: impl FnOnce() -> Result<i32>) -> i32 {
    // SAFETY: handed on from our own contract.
    unsafe { finish(err, caught(f)) }
}

/// Runs `f`; a panic becomes an error with code [`code::PANIC`] and its message.
pub(super) fn caught<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    // Unwind safety: what a panic leaves half changed is a stage that is not called
    // again but to be dropped.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let message = format!("the plugin panicked: {}", panic_text(payload.as_ref()));
        // Dropping an unknown payload could panic again; a leak is the smaller harm.
        std::mem::forget(payload);
        Err(StageError::new(code::PANIC, message).hint("this is a defect of the plugin"))
    })
}

/// # Safety
/// As for [`write_error`].
unsafe fn finish(err: *mut abi::Error, answer: Result<i32>) -> i32 {
    match answer {
        Ok(code) => code,
        // SAFETY: handed on from our own contract.
        Err(error) => unsafe { write_error(err, &error) },
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// Describes `error` in the host's memory and answers its code.
///
/// # Safety
/// `err` is null or leads to memory that begins with its own size in bytes, is as long
/// as that, and that nobody else uses during the call.
pub(super) unsafe fn write_error(err: *mut abi::Error, error: &StageError) -> i32 {
    // A failure must not look like a success, whatever the author wrote.
    let code = if error.code < 0 {
        error.code
    } else {
        code::INTERNAL
    };
    if err.is_null() {
        return code;
    }
    // SAFETY: not null, and every Error is long enough for its own size.
    let size = unsafe { (&raw const (*err).struct_size).read() } as usize;
    let message = if error.message.is_empty() {
        "the plugin failed and did not say why"
    } else {
        &error.message
    };
    // SAFETY: each field is written only when it ends within the size that the host
    // gave; pointers are made without a reference to the whole, which may be shorter.
    unsafe {
        if size >= offset_of!(abi::Error, sys_errno) + size_of::<i32>() {
            (&raw mut (*err).sys_errno).write(error.sys_errno);
        }
        if size >= offset_of!(abi::Error, hint) {
            write_text((&raw mut (*err).message).cast(), 376, message);
        }
        if size >= size_of::<abi::Error>() {
            write_text((&raw mut (*err).hint).cast(), 128, &error.hint);
        }
    }
    code
}

/// Writes as much of `text` as fits, in whole characters, and a NUL.
///
/// # Safety
/// `to` leads to `cap` writable bytes; `cap` is not 0.
unsafe fn write_text(to: *mut u8, cap: usize, text: &str) {
    // SAFETY: by the contract; the bytes were initialised by the host that owns them,
    // and if not, they are only written.
    let out =
        unsafe { std::slice::from_raw_parts_mut(to.cast::<std::mem::MaybeUninit<u8>>(), cap) };
    let mut end = text.len().min(cap - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // A NUL inside the text would hide what follows it.
    let bytes = text.as_bytes()[..end]
        .iter()
        .map(|&byte| if byte == 0 { b'?' } else { byte });
    for (slot, byte) in out.iter_mut().zip(bytes.chain([0])) {
        slot.write(byte);
    }
}

/// The bytes at `data`; a null pointer is an empty slice.
///
/// # Safety
/// `data` is null or leads to `len` readable bytes that nobody writes while the answer
/// lives.
pub(super) unsafe fn bytes<'a>(data: *const u8, len: usize) -> Result<&'a [u8]> {
    match (data.is_null(), isize::try_from(len).is_ok()) {
        (_, false) => Err(too_long(len)),
        (true, _) if len == 0 => Ok(&[]),
        (true, _) => Err(StageError::new(
            code::INTERNAL,
            format!("the host gave no buffer of {len} bytes"),
        )),
        // SAFETY: not null, of a length a slice may have; the rest is our contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(data, len) }),
    }
}

/// The writable bytes at `data`; a null pointer is an empty slice.
///
/// # Safety
/// `data` is null or leads to `len` writable bytes that nobody else uses while the
/// answer lives.
pub(super) unsafe fn bytes_mut<'a>(data: *mut u8, len: usize) -> Result<&'a mut [u8]> {
    match (data.is_null(), isize::try_from(len).is_ok()) {
        (_, false) => Err(too_long(len)),
        (true, _) if len == 0 => Ok(&mut []),
        (true, _) => Err(StageError::new(
            code::INTERNAL,
            format!("the host gave no buffer of {len} bytes"),
        )),
        // SAFETY: not null, of a length a slice may have; the rest is our contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts_mut(data, len) }),
    }
}

fn too_long(len: usize) -> StageError {
    StageError::new(
        code::INTERNAL,
        format!("the host gave a buffer of {len} bytes, more than memory holds"),
    )
}

/// The text at `text`.
///
/// # Safety
/// `text` is null or NUL-terminated, and nobody writes it while the answer lives.
pub(super) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(StageError::new(
            code::INTERNAL,
            format!("the host gave no {what}"),
        ));
    }
    // SAFETY: not null; the rest is our contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| {
        StageError::new(
            code::INVALID_CONFIG,
            format!("{what} {text:?} is not UTF-8"),
        )
    })
}

/// The parameters at `pairs`.
///
/// # Safety
/// `pairs` is null or leads to `n` pairs of NUL-terminated texts.
pub(super) unsafe fn params(pairs: *const abi::KeyValue, n: usize) -> Result<Params> {
    if n == 0 {
        return Ok(Params::default());
    }
    if pairs.is_null() {
        return Err(StageError::new(
            code::INTERNAL,
            format!("the host gave no array of {n} parameters"),
        ));
    }
    let mut out = Vec::with_capacity(n.min(64));
    for i in 0..n {
        // SAFETY: i is below n, the length of the array by the contract.
        let pair = unsafe { &*pairs.add(i) };
        // SAFETY: by the contract both are NUL-terminated texts.
        out.push(unsafe {
            (
                text("parameter name", pair.key)?,
                text("parameter value", pair.value)?,
            )
        });
    }
    Ok(Params::new(out))
}

/// Checks that a struct of the host is as long as the first version of the ABI had it.
///
/// # Safety
/// `of` is null or leads to a `u32`.
pub(super) unsafe fn check_size(what: &str, of: *const u32, wanted: usize) -> Result<()> {
    // SAFETY: by the contract.
    let size = unsafe { of.as_ref() }.copied().unwrap_or(0) as usize;
    if size < wanted {
        let message = format!("the host's {what} has {size} bytes, at least {wanted} are needed");
        return Err(StageError::new(code::INTERNAL, message));
    }
    Ok(())
}

/// Copies `data` to a buffer of the host and tells its length.
///
/// # Safety
/// `out` leads to `cap` writable bytes or is null with `cap` 0; `out_len` leads to a
/// `usize` or is null.
pub(super) unsafe fn put(
    what: &str,
    data: &[u8],
    out: *mut u8,
    cap: usize,
    out_len: *mut usize,
) -> Result<i32> {
    if data.len() > cap {
        let message = format!("the {what} has {} bytes, the host takes {cap}", data.len());
        return Err(StageError::new(code::BUFFER_TOO_SMALL, message));
    }
    // SAFETY: by the contract.
    let out = unsafe { bytes_mut(out, cap)? };
    out[..data.len()].copy_from_slice(data);
    // SAFETY: by the contract.
    unsafe { put_len(out_len, data.len()) }
}

/// Tells the host a length.
///
/// # Safety
/// `to` leads to a writable `L` or is null.
pub(super) unsafe fn put_len<L>(to: *mut L, len: L) -> Result<i32> {
    if to.is_null() {
        return Err(StageError::new(
            code::INTERNAL,
            "the host gave no place for a length",
        ));
    }
    // SAFETY: not null; by the contract writable.
    unsafe { to.write(len) };
    Ok(code::OK)
}
