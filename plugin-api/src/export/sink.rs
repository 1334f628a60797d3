//! The shims of sinks.
//!
//! A [`Sink`] opens, commits and removes with `&mut self`, but takes writes and reads
//! from several threads with `&self`. A lock for many readers keeps both promises,
//! whatever the host does.

use std::ffi::c_char;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::coder::destroy;
use super::guard::{
    self, Shell, bytes, bytes_mut, check_size, guard, guard_free, put, put_len, text,
};
use super::host::Host;
use super::info::blank_table;
use crate::abi::{self, Handle, StageTable, code, kind};
use crate::sink::{NewImage, Sink};
use crate::stage::StageError;

/// The table of a sink.
pub(super) fn sink_table<S: Sink>() -> StageTable {
    StageTable {
        create: Some(create::<S>),
        destroy: Some(destroy::<Locked<S>>),
        sink_open: Some(sink_open::<S>),
        sink_write_at: Some(sink_write_at::<S>),
        sink_read_at: Some(sink_read_at::<S>),
        sink_len: Some(sink_len::<S>),
        sink_commit: Some(sink_commit::<S>),
        sink_locator: Some(sink_locator::<S>),
        sink_remove: Some(sink_remove::<S>),
        ..blank_table(kind::SINK, &S::INFO)
    }
}

struct Locked<S>(RwLock<S>);

impl<S> Locked<S> {
    // The lock is poisoned by a panic only, and after a panic the guard of the handle
    // lets nobody in; so its poison tells nothing new.
    fn shared(&self) -> RwLockReadGuard<'_, S> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, S> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// The shims. Each has the contract of its field in `StageTable`, which the host keeps:
// handles are those that this table made and are not destroyed, buffers are as long as
// said and not shared against the rules, `err` is the host's.

/// # Safety
/// That of [`StageTable::create`].
unsafe extern "C" fn create<S: Sink>(
    host: *const abi::Host,
    params: *const abi::KeyValue,
    n_params: usize,
    out_handle: *mut Handle,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard_free(err, || {
            let params = guard::params(params, n_params)?;
            params.check(S::INFO.params)?;
            let sink = S::create(&params, Host::from_table(host))?;
            put_len(out_handle, Shell::into_handle(Locked(RwLock::new(sink))))
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_open`].
unsafe extern "C" fn sink_open<S: Sink>(
    handle: Handle,
    open: *const abi::SinkOpen,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows; the whole SinkOpen
    // is read after its length was checked.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            check_size("SinkOpen", open.cast(), size_of::<abi::SinkOpen>())?;
            match (*open).mode {
                abi::SINK_WRITE => sink.alone().open_new(&NewImage {
                    id: (*open).image_id,
                    pid: (*open).pid,
                    expected_len: (*open).expected_len,
                    compressed: (*open).flags & abi::SINK_COMPRESSED != 0,
                    keep: (*open).flags & abi::SINK_KEEP != 0,
                })?,
                abi::SINK_READ => sink
                    .alone()
                    .open_existing(text("locator", (*open).locator)?)?,
                mode => {
                    let message =
                        format!("the host opens the sink in mode {mode}, which it does not know");
                    return Err(StageError::new(code::UNSUPPORTED, message));
                }
            }
            Ok(code::OK)
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_write_at`].
unsafe extern "C" fn sink_write_at<S: Sink>(
    handle: Handle,
    offset: u64,
    data: *const u8,
    len: usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            sink.shared().write_at(offset, bytes(data, len)?)?;
            Ok(code::OK)
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_read_at`].
unsafe extern "C" fn sink_read_at<S: Sink>(
    handle: Handle,
    offset: u64,
    out: *mut u8,
    cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            let len = sink.shared().read_at(offset, bytes_mut(out, cap)?)?;
            if len > cap {
                let message = format!("the sink says it read {len} bytes to a buffer of {cap}");
                return Err(StageError::new(code::INTERNAL, message));
            }
            put_len(out_len, len)
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_len`].
unsafe extern "C" fn sink_len<S: Sink>(
    handle: Handle,
    out_len: *mut u64,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe { guard::<Locked<S>>(handle, err, |sink| put_len(out_len, sink.shared().len()?)) }
}

/// # Safety
/// That of [`StageTable::sink_commit`].
unsafe extern "C" fn sink_commit<S: Sink>(
    handle: Handle,
    len: u64,
    raw_len: u64,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            sink.alone().commit(len, raw_len)?;
            Ok(code::OK)
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_locator`].
unsafe extern "C" fn sink_locator<S: Sink>(
    handle: Handle,
    out: *mut c_char,
    out_cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            let locator = sink.shared().locator()?;
            put("locator", locator.as_bytes(), out.cast(), out_cap, out_len)
        })
    }
}

/// # Safety
/// That of [`StageTable::sink_remove`].
unsafe extern "C" fn sink_remove<S: Sink>(handle: Handle, err: *mut abi::Error) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<Locked<S>>(handle, err, |sink| {
            sink.alone().remove()?;
            Ok(code::OK)
        })
    }
}
