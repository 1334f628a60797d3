//! The shims of transforms and checksums.
//!
//! Both kinds share every function but `decode`, which means something else for a
//! checksum: there `out` is the tag and only read. What they share is written once,
//! for [`Coder`]; [`AsTransform`] and [`AsChecksum`] say how each trait is one.

mod shims;

use std::marker::PhantomData;

pub(super) use shims::destroy;
use shims::{
    begin_decode, begin_encode, bound, checksum_decode, create, encode, finish_decode,
    finish_encode, transform_decode, worker_create, worker_destroy,
};

use super::host::Host;
use super::info::blank_table;
use crate::abi::{StageTable, code, kind};
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
