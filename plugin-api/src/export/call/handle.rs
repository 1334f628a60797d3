//! The calls on a handle, one function each.

use std::ptr;

use super::{Answer, ChunkArg, Loaded, c_text, lied};
use crate::abi::{self, capability, code};
use crate::sink::NewImage;
use crate::stage::Image;

/// A handle of the plugin; destroyed when dropped.
pub(crate) struct Handle<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) raw: abi::Handle,
}

// SAFETY: the interface lets calls on one handle come from different threads; the suite
// makes several at once only where the table's thread model allows it.
unsafe impl Send for Handle<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Handle<'_> {}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if let Some(destroy) = self.loaded.table().destroy {
            // SAFETY: made by `create`, used by nobody after this; its workers borrow
            // the handle and so are gone.
            unsafe { destroy(self.raw) }
        }
    }
}

/// A worker context of a handle; destroyed when dropped.
pub(crate) struct Worker<'a> {
    handle: &'a Handle<'a>,
    raw: abi::Worker,
}

// SAFETY: the interface ties a worker context to one thread at a time, not to one.
unsafe impl Send for Worker<'_> {}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(destroy) = self.handle.loaded.table().worker_destroy {
            // SAFETY: made by `worker_create` of this handle, which still lives.
            unsafe { destroy(self.handle.raw, self.raw) }
        }
    }
}

// In all functions below the handle and the worker are live, structs carry their sizes,
// and buffers are as long as said and live until after the call.
impl Handle<'_> {
    /// A null worker where the plugin needs none.
    pub(crate) fn worker(&self) -> Answer<Worker<'_>> {
        let mut raw = ptr::null_mut();
        if let Some(create) = self.loaded.table().worker_create {
            // SAFETY: see above.
            self.loaded.call("worker_create", |err| unsafe {
                create(self.raw, &raw mut raw, err)
            })?;
        }
        Ok(Worker { handle: self, raw })
    }

    pub(crate) fn begin_encode(&self, image: &Image) -> Answer<Vec<u8>> {
        let Some(begin) = self.loaded.table().begin_encode else {
            return Ok(Vec::new());
        };
        let info = image_info(image);
        // SAFETY: see above.
        let state =
            self.loaded
                .call_out("begin_encode", abi::MAX_STATE_LEN, |out, len, err| unsafe {
                    begin(self.raw, &raw const info, out, abi::MAX_STATE_LEN, len, err)
                })?;
        self.not_passed("begin_encode", state)
    }

    pub(crate) fn begin_decode(&self, image: &Image, state: &[u8]) -> Answer<()> {
        let Some(begin) = self.loaded.table().begin_decode else {
            return Ok(());
        };
        let info = image_info(image);
        // SAFETY: see above.
        self.plain("begin_decode", |err| unsafe {
            begin(self.raw, &raw const info, state.as_ptr(), state.len(), err)
        })
    }

    pub(crate) fn bound(&self, in_len: usize) -> usize {
        // SAFETY: see above.
        self.loaded
            .table()
            .bound
            .map_or(0, |bound| unsafe { bound(self.raw, in_len) })
    }

    /// `None`: the stage passed the frame over.
    pub(crate) fn encode(
        &self,
        worker: &mut Worker<'_>,
        chunk: &ChunkArg,
        input: &[u8],
        cap: usize,
    ) -> Answer<Option<Vec<u8>>> {
        let encode = self.loaded.function("encode", self.loaded.table().encode)?;
        let (info, mine) = (chunk_info(chunk), input.to_vec());
        // SAFETY: see above.
        let answer = self.loaded.call_out("encode", cap, |out, len, err| unsafe {
            let (at, n) = (mine.as_ptr(), mine.len());
            encode(
                self.raw,
                worker.raw,
                &raw const info,
                at,
                n,
                out,
                cap,
                len,
                err,
            )
        });
        self.loaded.check_unchanged("encode", "input", input, &mine);
        let compresses = self.loaded.table().capabilities & capability::COMPRESSES != 0;
        if matches!(answer, Ok(None)) && !compresses {
            self.loaded
                .notice("encode answered PASS, but the stage does not compress");
        }
        answer
    }

    pub(crate) fn decode(
        &self,
        worker: &mut Worker<'_>,
        chunk: &ChunkArg,
        input: &[u8],
        cap: usize,
    ) -> Answer<Vec<u8>> {
        let decode = self.loaded.function("decode", self.loaded.table().decode)?;
        let (info, mine) = (chunk_info(chunk), input.to_vec());
        // SAFETY: see above.
        let answer = self.loaded.call_out("decode", cap, |out, len, err| unsafe {
            let (at, n) = (mine.as_ptr(), mine.len());
            decode(
                self.raw,
                worker.raw,
                &raw const info,
                at,
                n,
                out,
                cap,
                len,
                err,
            )
        });
        self.loaded.check_unchanged("decode", "input", input, &mine);
        self.not_passed("decode", answer?)
    }

    /// `decode` of a checksum.
    pub(crate) fn check(
        &self,
        worker: &mut Worker<'_>,
        chunk: &ChunkArg,
        input: &[u8],
        tag: &[u8],
    ) -> Answer<()> {
        let decode = self.loaded.function("decode", self.loaded.table().decode)?;
        let (info, mine, mut my_tag) = (chunk_info(chunk), input.to_vec(), tag.to_vec());
        let mut len = usize::MAX;
        // SAFETY: see above.
        let answer = self.plain("decode", |err| unsafe {
            let (at, n, tag) = (mine.as_ptr(), mine.len(), my_tag.as_mut_ptr());
            decode(
                self.raw,
                worker.raw,
                &raw const info,
                at,
                n,
                tag,
                my_tag.len(),
                &raw mut len,
                err,
            )
        });
        self.loaded.check_unchanged("decode", "input", input, &mine);
        self.loaded.check_unchanged("decode", "tag", tag, &my_tag);
        answer
    }

    pub(crate) fn finish_encode(&self, n_chunks: u64) -> Answer<Vec<u8>> {
        let Some(finish) = self.loaded.table().finish_encode else {
            return Ok(Vec::new());
        };
        // SAFETY: see above.
        let trailer = self.loaded.call_out(
            "finish_encode",
            abi::MAX_STATE_LEN,
            |out, len, err| unsafe {
                finish(self.raw, n_chunks, out, abi::MAX_STATE_LEN, len, err)
            },
        )?;
        self.not_passed("finish_encode", trailer)
    }

    pub(crate) fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Answer<()> {
        let Some(finish) = self.loaded.table().finish_decode else {
            return Ok(());
        };
        // SAFETY: see above.
        self.plain("finish_decode", |err| unsafe {
            finish(self.raw, n_chunks, trailer.as_ptr(), trailer.len(), err)
        })
    }

    pub(crate) fn open_new(&self, image: &NewImage) -> Answer<()> {
        self.open(&abi::SinkOpen {
            struct_size: size_of::<abi::SinkOpen>() as u32,
            mode: abi::SINK_WRITE,
            image_id: image.id,
            pid: image.pid,
            expected_len: image.expected_len,
            flags: image.flags(),
            reserved: 0,
            locator: ptr::null(),
        })
    }

    pub(crate) fn open_existing(&self, locator: &str) -> Answer<()> {
        let locator = c_text(locator);
        self.open(&abi::SinkOpen {
            struct_size: size_of::<abi::SinkOpen>() as u32,
            mode: abi::SINK_READ,
            image_id: [0; 16],
            pid: 0,
            expected_len: 0,
            flags: 0,
            reserved: 0,
            locator: locator.as_ptr(),
        })
    }

    fn open(&self, how: &abi::SinkOpen) -> Answer<()> {
        let open = self
            .loaded
            .function("sink_open", self.loaded.table().sink_open)?;
        // SAFETY: see above.
        self.plain("sink_open", |err| unsafe { open(self.raw, how, err) })
    }

    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> Answer<()> {
        let write = self
            .loaded
            .function("sink_write_at", self.loaded.table().sink_write_at)?;
        // SAFETY: see above.
        self.plain("sink_write_at", |err| unsafe {
            write(self.raw, offset, data.as_ptr(), data.len(), err)
        })
    }

    pub(crate) fn read_at(&self, offset: u64, cap: usize) -> Answer<Vec<u8>> {
        let read = self
            .loaded
            .function("sink_read_at", self.loaded.table().sink_read_at)?;
        // SAFETY: see above.
        let bytes = self
            .loaded
            .call_out("sink_read_at", cap, |out, len, err| unsafe {
                read(self.raw, offset, out, cap, len, err)
            })?;
        self.not_passed("sink_read_at", bytes)
    }

    pub(crate) fn len(&self) -> Answer<u64> {
        let len = self
            .loaded
            .function("sink_len", self.loaded.table().sink_len)?;
        let mut answer = u64::MAX;
        // SAFETY: see above.
        self.plain("sink_len", |err| unsafe {
            len(self.raw, &raw mut answer, err)
        })?;
        Ok(answer)
    }

    pub(crate) fn commit(&self, len: u64, raw_len: u64) -> Answer<()> {
        let commit = self
            .loaded
            .function("sink_commit", self.loaded.table().sink_commit)?;
        // SAFETY: see above.
        self.plain("sink_commit", |err| unsafe {
            commit(self.raw, len, raw_len, err)
        })
    }

    pub(crate) fn locator(&self, cap: usize) -> Answer<Vec<u8>> {
        let locator = self
            .loaded
            .function("sink_locator", self.loaded.table().sink_locator)?;
        // SAFETY: see above.
        let text = self
            .loaded
            .call_out("sink_locator", cap, |out, len, err| unsafe {
                locator(self.raw, out.cast(), cap, len, err)
            })?;
        self.not_passed("sink_locator", text)
    }

    pub(crate) fn remove(&self) -> Answer<()> {
        let remove = self
            .loaded
            .function("sink_remove", self.loaded.table().sink_remove)?;
        // SAFETY: see above.
        self.plain("sink_remove", |err| unsafe { remove(self.raw, err) })
    }

    /// A call without output, which PASS is no answer to.
    fn plain(&self, name: &str, call: impl FnOnce(*mut abi::Error) -> i32) -> Answer<()> {
        let answer = self.loaded.call(name, call)?;
        let output = (answer == code::OK).then(Vec::new);
        self.not_passed(name, output).map(drop)
    }

    fn not_passed(&self, name: &str, output: Option<Vec<u8>>) -> Answer<Vec<u8>> {
        output.ok_or_else(|| {
            self.loaded
                .notice(format!("{name} answered PASS, which only encode may"));
            lied(name)
        })
    }
}

fn image_info(image: &Image) -> abi::ImageInfo {
    abi::ImageInfo {
        struct_size: size_of::<abi::ImageInfo>() as u32,
        page_size: image.page_size,
        image_id: image.id,
        max_chunk_len: image.max_chunk_len,
        expected_len: image.expected_len,
    }
}

/// Borrows `chunk.aad` by pointer: `chunk` must outlive the use.
fn chunk_info(chunk: &ChunkArg) -> abi::ChunkInfo {
    abi::ChunkInfo {
        struct_size: size_of::<abi::ChunkInfo>() as u32,
        flags: if chunk.last { abi::CHUNK_LAST } else { 0 },
        index: chunk.index,
        address: 0x7f00_0000_0000 + chunk.index * 0x10_0000,
        raw_len: chunk.raw_len,
        aad: chunk.aad.as_ptr(),
        aad_len: chunk.aad.len() as u64,
    }
}
