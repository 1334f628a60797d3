//! The shims: raw pointers of the host to references for the traits, and back.
//!
//! Each has the contract of its field in [`StageTable`](crate::abi::StageTable), which the
//! host keeps: handles and workers are those that this table made and are not destroyed,
//! buffers are as long as said and not shared against the rules, `err` is the host's.

use std::ffi::c_void;

use super::super::guard::{
    self, Shell, bytes, bytes_mut, caught, check_size, guard, guard_free, put, put_len,
};
use super::super::host::Host;
use super::{AsChecksum, AsTransform, Coder};
use crate::abi::{self, Handle, Worker, capability, code};
use crate::stage::{Checksum, Chunk, Encoded, Image, Result, StageError, Transform};

/// # Safety
/// That of [`crate::abi::StageTable::create`].
pub(super) unsafe extern "C" fn create<C: Coder>(
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
            params.check(C::INFO.params)?;
            let stage = C::create(&params, Host::from_table(host))?;
            put_len(out_handle, Shell::into_handle(stage))
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::destroy`].
pub(in super::super) unsafe extern "C" fn destroy<T>(handle: Handle) {
    if !handle.is_null() {
        // SAFETY: made by `Shell::into_handle` of the same T, not used afterwards.
        drop_caught(unsafe { Box::from_raw(handle.cast::<Shell<T>>()) });
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::worker_create`].
pub(super) unsafe extern "C" fn worker_create<C: Coder>(
    handle: Handle,
    out_worker: *mut Worker,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            let worker = Box::into_raw(Box::new(C::worker(stage)?));
            put_len(out_worker, worker.cast::<c_void>())
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::worker_destroy`].
pub(super) unsafe extern "C" fn worker_destroy<C: Coder>(_handle: Handle, worker: Worker) {
    if !worker.is_null() {
        // SAFETY: made by `worker_create` of the same C, not used afterwards.
        drop_caught(unsafe { Box::from_raw(worker.cast::<C::Worker>()) });
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::begin_encode`].
pub(super) unsafe extern "C" fn begin_encode<C: Coder>(
    handle: Handle,
    info: *const abi::ImageInfo,
    out: *mut u8,
    out_cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            let state = C::begin_encode(stage, &image(info)?)?;
            put("state", &state, out, out_cap, out_len)
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::begin_decode`].
pub(super) unsafe extern "C" fn begin_decode<C: Coder>(
    handle: Handle,
    info: *const abi::ImageInfo,
    state: *const u8,
    state_len: usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            C::begin_decode(stage, &image(info)?, bytes(state, state_len)?)?;
            Ok(code::OK)
        })
    }
}

/// Answers 0 after a panic: `encode` then answers PANIC, whatever buffer it gets.
///
/// # Safety
/// That of [`crate::abi::StageTable::bound`].
pub(super) unsafe extern "C" fn bound<C: Coder>(handle: Handle, in_len: usize) -> usize {
    let mut answer = 0;
    // SAFETY: the handle is used as the table's contract allows; there is no Error.
    unsafe {
        guard::<C::Stage>(handle, std::ptr::null_mut(), |stage| {
            answer = C::bound(stage, in_len);
            Ok(code::OK)
        });
    }
    answer
}

/// # Safety
/// That of [`crate::abi::StageTable::encode`].
pub(super) unsafe extern "C" fn encode<C: Coder>(
    handle: Handle,
    worker: Worker,
    chunk_info: *const abi::ChunkInfo,
    input: *const u8,
    in_len: usize,
    out: *mut u8,
    out_cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            let (input, out) = (bytes(input, in_len)?, bytes_mut(out, out_cap)?);
            match C::encode(
                stage,
                worker_of::<C>(worker)?,
                &chunk(chunk_info)?,
                input,
                out,
            )? {
                Encoded::Len(len) => put_len(out_len, within(len, out_cap)?),
                Encoded::Pass if C::INFO.capabilities & capability::COMPRESSES != 0 => {
                    Ok(code::PASS)
                }
                Encoded::Pass => Err(StageError::new(
                    code::INTERNAL,
                    "the stage passed a frame on but does not compress",
                )),
            }
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::decode`].
pub(super) unsafe extern "C" fn transform_decode<T: Transform>(
    handle: Handle,
    worker: Worker,
    chunk_info: *const abi::ChunkInfo,
    input: *const u8,
    in_len: usize,
    out: *mut u8,
    out_cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<T>(handle, err, |stage| {
            let (input, out) = (bytes(input, in_len)?, bytes_mut(out, out_cap)?);
            let worker = worker_of::<AsTransform<T>>(worker)?;
            let len = stage.decode(worker, &chunk(chunk_info)?, input, out)?;
            put_len(out_len, within(len, out_cap)?)
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::decode`] of a checksum: `tag` is only read.
pub(super) unsafe extern "C" fn checksum_decode<C: Checksum>(
    handle: Handle,
    worker: Worker,
    chunk_info: *const abi::ChunkInfo,
    input: *const u8,
    in_len: usize,
    tag: *mut u8,
    tag_len: usize,
    _out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C>(handle, err, |stage| {
            let (input, tag) = (bytes(input, in_len)?, bytes(tag, tag_len)?);
            if tag_len != stage.tag_len() {
                let message = format!(
                    "the tag has {tag_len} bytes, this stage writes {}",
                    stage.tag_len()
                );
                return Err(StageError::new(code::CORRUPT, message));
            }
            stage.check(
                worker_of::<AsChecksum<C>>(worker)?,
                &chunk(chunk_info)?,
                input,
                tag,
            )?;
            Ok(code::OK)
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::finish_encode`].
pub(super) unsafe extern "C" fn finish_encode<C: Coder>(
    handle: Handle,
    n_chunks: u64,
    out: *mut u8,
    out_cap: usize,
    out_len: *mut usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            let trailer = C::finish_encode(stage, n_chunks)?;
            put("trailer", &trailer, out, out_cap, out_len)
        })
    }
}

/// # Safety
/// That of [`crate::abi::StageTable::finish_decode`].
pub(super) unsafe extern "C" fn finish_decode<C: Coder>(
    handle: Handle,
    n_chunks: u64,
    trailer: *const u8,
    trailer_len: usize,
    err: *mut abi::Error,
) -> i32 {
    // SAFETY: every pointer is used as the table's contract allows.
    unsafe {
        guard::<C::Stage>(handle, err, |stage| {
            C::finish_decode(stage, n_chunks, bytes(trailer, trailer_len)?)?;
            Ok(code::OK)
        })
    }
}

/// Drops `value`. A Drop that panics has nobody to tell; the host goes on without.
fn drop_caught<V>(value: V) {
    let _ = caught(|| {
        drop(value);
        Ok(())
    });
}

/// A length that a stage says it wrote, if that can be true.
fn within(len: usize, cap: usize) -> Result<usize> {
    if len > cap {
        let message = format!("the stage says it wrote {len} bytes to a buffer of {cap}");
        return Err(StageError::new(code::INTERNAL, message));
    }
    Ok(len)
}

/// # Safety
/// `worker` is null or was made by `worker_create` of the same `C`, is not destroyed,
/// and is used by this thread only while the answer lives.
unsafe fn worker_of<'a, C: Coder>(worker: Worker) -> Result<&'a mut C::Worker> {
    // SAFETY: by the contract.
    unsafe { worker.cast::<C::Worker>().as_mut() }.ok_or_else(|| {
        StageError::new(
            code::INTERNAL,
            "the host called a stage without a worker context",
        )
    })
}

/// # Safety
/// `info` is null or leads to an `ImageInfo` as long as it says.
unsafe fn image(info: *const abi::ImageInfo) -> Result<Image> {
    // SAFETY: an ImageInfo begins with its size; the whole is read after its length was
    // checked.
    unsafe {
        check_size("ImageInfo", info.cast(), size_of::<abi::ImageInfo>())?;
        Ok(Image {
            page_size: (*info).page_size,
            id: (*info).image_id,
            max_chunk_len: (*info).max_chunk_len,
            expected_len: (*info).expected_len,
        })
    }
}

/// # Safety
/// `info` is null or leads to a `ChunkInfo` as long as it says, whose `aad` outlives the
/// answer.
unsafe fn chunk<'a>(info: *const abi::ChunkInfo) -> Result<Chunk<'a>> {
    // SAFETY: a ChunkInfo begins with its size; the whole is read after its length was
    // checked, and `aad` leads to `aad_len` bytes.
    unsafe {
        check_size("ChunkInfo", info.cast(), size_of::<abi::ChunkInfo>())?;
        let aad_len = usize::try_from((*info).aad_len).map_err(|_| {
            StageError::new(
                code::INTERNAL,
                "the host's associated data does not fit memory",
            )
        })?;
        Ok(Chunk {
            index: (*info).index,
            last: (*info).flags & abi::CHUNK_LAST != 0,
            address: (*info).address,
            raw_len: (*info).raw_len,
            aad: bytes((*info).aad, aad_len)?,
        })
    }
}
