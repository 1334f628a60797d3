//! The shims of transforms and checksums.
//!
//! Both kinds share every function but `decode`, which means something else for a
//! checksum: there `out` is the tag and only read. What they share is written once,
//! for [`Coder`]; [`AsTransform`] and [`AsChecksum`] say how each trait is one.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::guard::{
    self, Shell, bytes, bytes_mut, caught, check_size, guard, guard_free, put, put_len,
};
use super::host::Host;
use super::info::blank_table;
use crate::abi::{self, Handle, StageTable, Worker, capability, code, kind};
use crate::stage::{
    Checksum, Chunk, Encoded, Image, Params, Result, StageError, StageInfo, Transform,
};

/// The table of a transform.
pub(super) fn transform_table<T: Transform>() -> StageTable {
    StageTable {
        decode: Some(transform_decode::<T>),
        ..coder_table::<AsTransform<T>>(kind::TRANSFORM)
    }
}

/// The table of a checksum.
pub(super) fn checksum_table<C: Checksum>() -> StageTable {
    StageTable {
        decode: Some(checksum_decode::<C>),
        ..coder_table::<AsChecksum<C>>(kind::CHECKSUM)
    }
}

fn coder_table<C: Coder>(kind: u32) -> StageTable {
    StageTable {
        create: Some(create::<C>),
        destroy: Some(destroy::<C::Stage>),
        worker_create: Some(worker_create::<C>),
        worker_destroy: Some(worker_destroy::<C>),
        begin_encode: Some(begin_encode::<C>),
        begin_decode: Some(begin_decode::<C>),
        bound: Some(bound::<C>),
        encode: Some(encode::<C>),
        finish_encode: Some(finish_encode::<C>),
        finish_decode: Some(finish_decode::<C>),
        ..blank_table(kind, &C::INFO)
    }
}

/// What transforms and checksums have in common.
trait Coder: 'static {
    type Stage: Send + Sync + 'static;
    type Worker: Send + 'static;
    const INFO: StageInfo;
    fn create(params: &Params, host: Host) -> Result<Self::Stage>;
    fn worker(stage: &Self::Stage) -> Result<Self::Worker>;
    fn begin_encode(stage: &Self::Stage, image: &Image) -> Result<Vec<u8>>;
    fn begin_decode(stage: &Self::Stage, image: &Image, state: &[u8]) -> Result<()>;
    fn bound(stage: &Self::Stage, in_len: usize) -> usize;
    fn encode(
        stage: &Self::Stage,
        worker: &mut Self::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded>;
    fn finish_encode(stage: &Self::Stage, n_chunks: u64) -> Result<Vec<u8>>;
    fn finish_decode(stage: &Self::Stage, n_chunks: u64, trailer: &[u8]) -> Result<()>;
}

struct AsTransform<T>(PhantomData<T>);

impl<T: Transform> Coder for AsTransform<T> {
    type Stage = T;
    type Worker = T::Worker;
    const INFO: StageInfo = T::INFO;

    fn create(params: &Params, host: Host) -> Result<T> {
        T::create(params, host)
    }
    fn worker(stage: &T) -> Result<T::Worker> {
        stage.worker()
    }
    fn begin_encode(stage: &T, image: &Image) -> Result<Vec<u8>> {
        stage.begin_encode(image)
    }
    fn begin_decode(stage: &T, image: &Image, state: &[u8]) -> Result<()> {
        stage.begin_decode(image, state)
    }
    fn bound(stage: &T, in_len: usize) -> usize {
        stage.bound(in_len)
    }
    fn encode(
        stage: &T,
        worker: &mut T::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        stage.encode(worker, chunk, input, out)
    }
    fn finish_encode(stage: &T, n_chunks: u64) -> Result<Vec<u8>> {
        stage.finish_encode(n_chunks)
    }
    fn finish_decode(stage: &T, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        stage.finish_decode(n_chunks, trailer)
    }
}

struct AsChecksum<C>(PhantomData<C>);

impl<C: Checksum> Coder for AsChecksum<C> {
    type Stage = C;
    type Worker = C::Worker;
    const INFO: StageInfo = C::INFO;

    fn create(params: &Params, host: Host) -> Result<C> {
        C::create(params, host)
    }
    fn worker(stage: &C) -> Result<C::Worker> {
        stage.worker()
    }
    fn begin_encode(stage: &C, image: &Image) -> Result<Vec<u8>> {
        stage.begin_encode(image)
    }
    fn begin_decode(stage: &C, image: &Image, state: &[u8]) -> Result<()> {
        stage.begin_decode(image, state)
    }
    fn bound(stage: &C, _in_len: usize) -> usize {
        stage.tag_len()
    }
    fn encode(
        stage: &C,
        worker: &mut C::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        let (tag_len, cap) = (stage.tag_len(), out.len());
        let Some(tag) = out.get_mut(..tag_len) else {
            let message = format!("a tag has {tag_len} bytes, the host takes {cap}");
            return Err(StageError::new(code::BUFFER_TOO_SMALL, message));
        };
        stage.tag(worker, chunk, input, tag)?;
        Ok(Encoded::Len(tag_len))
    }
    fn finish_encode(stage: &C, n_chunks: u64) -> Result<Vec<u8>> {
        stage.finish_encode(n_chunks)
    }
    fn finish_decode(stage: &C, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        stage.finish_decode(n_chunks, trailer)
    }
}

// The shims. Each has the contract of its field in `StageTable`, which the host keeps:
// handles and workers are those that this table made and are not destroyed, buffers are
// as long as said and not shared against the rules, `err` is the host's.

/// # Safety
/// That of [`StageTable::create`].
unsafe extern "C" fn create<C: Coder>(
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
/// That of [`StageTable::destroy`].
pub(super) unsafe extern "C" fn destroy<T>(handle: Handle) {
    if !handle.is_null() {
        // SAFETY: made by `Shell::into_handle` of the same T, not used afterwards.
        drop_caught(unsafe { Box::from_raw(handle.cast::<Shell<T>>()) });
    }
}

/// # Safety
/// That of [`StageTable::worker_create`].
unsafe extern "C" fn worker_create<C: Coder>(
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
/// That of [`StageTable::worker_destroy`].
unsafe extern "C" fn worker_destroy<C: Coder>(_handle: Handle, worker: Worker) {
    if !worker.is_null() {
        // SAFETY: made by `worker_create` of the same C, not used afterwards.
        drop_caught(unsafe { Box::from_raw(worker.cast::<C::Worker>()) });
    }
}

/// # Safety
/// That of [`StageTable::begin_encode`].
unsafe extern "C" fn begin_encode<C: Coder>(
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
/// That of [`StageTable::begin_decode`].
unsafe extern "C" fn begin_decode<C: Coder>(
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
/// That of [`StageTable::bound`].
unsafe extern "C" fn bound<C: Coder>(handle: Handle, in_len: usize) -> usize {
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
/// That of [`StageTable::encode`].
unsafe extern "C" fn encode<C: Coder>(
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
/// That of [`StageTable::decode`].
unsafe extern "C" fn transform_decode<T: Transform>(
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
/// That of [`StageTable::decode`] of a checksum: `tag` is only read.
unsafe extern "C" fn checksum_decode<C: Checksum>(
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
/// That of [`StageTable::finish_encode`].
unsafe extern "C" fn finish_encode<C: Coder>(
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
/// That of [`StageTable::finish_decode`].
unsafe extern "C" fn finish_decode<C: Coder>(
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
