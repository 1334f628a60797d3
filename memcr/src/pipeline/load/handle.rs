//! Safe calls on the handle of a plugin.
//!
//! Every call takes the lock that the plugin's thread model asks for, lends the plugin
//! an [`abi::Error`] to fill in, and checks every length that comes back before a slice
//! is made of it.

use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memcr_plugin_api::abi::{self, ChunkInfo, ImageInfo, KeyValue, MAX_STATE_LEN, SinkOpen, code};
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Chunk, Encoded, Image, StageError};

use super::Plugin;
use super::call::{HOST, c_text, call, defect, done, needed, within};
use crate::fault;
use crate::pipeline::calls::{Watch, What};
use crate::pipeline::{StageDescription, ThreadModel};

type Result<T> = std::result::Result<T, StageError>;

/// An instance of a stage. Dropping it ends the instance, on the dropping thread.
pub(crate) struct Handle {
    plugin: Plugin,
    raw: abi::Handle,
    /// Held during every call when the thread model is PER_HANDLE.
    lock: Mutex<()>,
    /// The plugin panicked: its state is unknown, nothing but `destroy` may be called.
    dead: AtomicBool,
    watch: Watch,
}

// SAFETY: the header allows calls on a handle from any thread; how many at once is what
// `enter` keeps to. Everything else in here is Send and Sync.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// Scratch memory of one thread for one handle.
pub(crate) struct Worker {
    handle: Arc<Handle>,
    raw: abi::Worker,
}

// SAFETY: the header binds a worker context to one call at a time (kept by `&mut`), not
// to the thread that made it.
unsafe impl Send for Worker {}

impl Handle {
    /// Makes an instance from checked parameters. Its calls are known to `watch`.
    pub(crate) fn create(
        plugin: &Plugin,
        params: &[(String, String)],
        watch: Watch,
    ) -> Result<Self> {
        let texts = params
            .iter()
            .map(|(key, value)| Ok((c_text(key)?, c_text(value)?)))
            .collect::<Result<Vec<_>>>()?;
        let pairs: Vec<_> = texts
            .iter()
            .map(|(key, value)| KeyValue {
                key: key.as_ptr(),
                value: value.as_ptr(),
            })
            .collect();
        let mut raw = ptr::null_mut();
        let plugin = plugin.clone();
        let serial = serial_lock(&plugin, &watch);
        let create = needed(plugin.0.table.create)?;
        let under_way = watch.enter("create");
        // SAFETY: HOST is static, `pairs` and their texts live beyond the call, `raw` and
        // the error are ours to write.
        let answer = call("create", |err| unsafe {
            create(&HOST, pairs.as_ptr(), pairs.len(), &mut raw, err)
        })?;
        done("create", answer)?;
        drop((under_way, serial));
        Ok(Self {
            plugin,
            raw,
            lock: Mutex::new(()),
            dead: AtomicBool::new(false),
            watch,
        })
    }

    /// Another instance of the same plugin.
    pub(crate) fn another(&self, params: &[(String, String)]) -> Result<Self> {
        Self::create(&self.plugin, params, self.watch.clone())
    }

    pub(crate) fn description(&self) -> &StageDescription {
        self.plugin.description()
    }

    pub(crate) fn begin_encode(&self, image: &Image) -> Result<Vec<u8>> {
        let Some(f) = self.plugin.0.table.begin_encode else {
            return Ok(Vec::new());
        };
        let info = image_info(image);
        // SAFETY: handle is live, `info` and the buffer are lent for the call.
        self.answer_bytes("begin_encode", |out, cap, len, err| unsafe {
            f(self.raw, &info, out, cap, len, err)
        })
    }

    pub(crate) fn begin_decode(&self, image: &Image, state: &[u8]) -> Result<()> {
        let Some(f) = self.plugin.0.table.begin_decode else {
            return Ok(());
        };
        let info = image_info(image);
        // SAFETY: handle is live, `info` and `state` are lent for the call.
        self.enter("begin_decode", |err| unsafe {
            f(self.raw, &info, state.as_ptr(), state.len(), err)
        })
    }

    pub(crate) fn finish_encode(&self, n_chunks: u64) -> Result<Vec<u8>> {
        let Some(f) = self.plugin.0.table.finish_encode else {
            return Ok(Vec::new());
        };
        // SAFETY: handle is live, the buffer is lent for the call.
        self.answer_bytes("finish_encode", |out, cap, len, err| unsafe {
            f(self.raw, n_chunks, out, cap, len, err)
        })
    }

    pub(crate) fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        let Some(f) = self.plugin.0.table.finish_decode else {
            return Ok(());
        };
        // SAFETY: handle is live, `trailer` is lent for the call.
        self.enter("finish_decode", |err| unsafe {
            f(self.raw, n_chunks, trailer.as_ptr(), trailer.len(), err)
        })
    }

    /// Largest output for `in_len` bytes; of a checksum, the length of its tag.
    pub(crate) fn bound(&self, in_len: usize) -> Result<usize> {
        let f = needed(self.plugin.0.table.bound)?;
        let mut bound = 0;
        self.enter("bound", |_| {
            // SAFETY: handle is live.
            bound = unsafe { f(self.raw, in_len) };
            code::OK
        })?;
        Ok(bound)
    }

    /// Transform: `input` to `out`. The length that comes back is within `out`.
    pub(crate) fn encode(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        let f = needed(self.plugin.0.table.encode)?;
        let (info, mut len) = (chunk_info(chunk), 0usize);
        let (worker, cap) = (worker.raw, out.len());
        // SAFETY: handle and worker are live and belong together (`Worker` keeps its
        // handle); the slices are lent for the call and do not overlap, `out` being
        // borrowed exclusively.
        let passed = self.enter_coded(What::chunk("encode", chunk.index), |err| unsafe {
            f(
                self.raw,
                worker,
                &info,
                input.as_ptr(),
                input.len(),
                out.as_mut_ptr(),
                cap,
                &mut len,
                err,
            )
        })?;
        match passed {
            code::PASS if self.description().can(abi::capability::COMPRESSES) => Ok(Encoded::Pass),
            code::PASS => Err(defect(
                "encode answers PASS, which only a stage that compresses may do".into(),
            )),
            _ => within("encode", len, cap).map(Encoded::Len),
        }
    }

    /// Transform: `input` back into `out`. The length that comes back is within `out`.
    pub(crate) fn decode(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let f = needed(self.plugin.0.table.decode)?;
        let (info, mut len) = (chunk_info(chunk), 0usize);
        let (worker, cap) = (worker.raw, out.len());
        // SAFETY: as in `encode`.
        self.enter(What::chunk("decode", chunk.index), |err| unsafe {
            f(
                self.raw,
                worker,
                &info,
                input.as_ptr(),
                input.len(),
                out.as_mut_ptr(),
                cap,
                &mut len,
                err,
            )
        })?;
        within("decode", len, cap)
    }

    /// Checksum: writes the tag of `input`; `tag` has the length that `bound` answers.
    pub(crate) fn tag(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &mut [u8],
    ) -> Result<()> {
        match self.encode(worker, chunk, input, tag)? {
            Encoded::Len(len) if len == tag.len() => Ok(()),
            Encoded::Len(len) => Err(defect(format!(
                "encode wrote a tag of {len} bytes, not of {}",
                tag.len()
            ))),
            Encoded::Pass => Err(defect("a checksum answers PASS".into())),
        }
    }

    /// Checksum: checks `tag` against `input`.
    pub(crate) fn check(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &[u8],
    ) -> Result<()> {
        let f = needed(self.plugin.0.table.decode)?;
        let (info, mut len) = (chunk_info(chunk), 0usize);
        // A copy, so that a plugin that writes where it may only read harms nothing.
        let mut copy = [0u8; abi::MAX_TAG_LEN];
        let Some(lent) = copy.get_mut(..tag.len()) else {
            return Err(defect(format!(
                "its tag of {} bytes is longer than {}",
                tag.len(),
                abi::MAX_TAG_LEN
            )));
        };
        lent.copy_from_slice(tag);
        let (worker, out, cap) = (worker.raw, lent.as_mut_ptr(), tag.len());
        // SAFETY: as in `encode`; `out` leads to the tag.
        self.enter(What::chunk("decode", chunk.index), |err| unsafe {
            f(
                self.raw,
                worker,
                &info,
                input.as_ptr(),
                input.len(),
                out,
                cap,
                &mut len,
                err,
            )
        })
    }

    pub(crate) fn sink_open_new(&self, image: &NewImage) -> Result<()> {
        let open = SinkOpen {
            struct_size: size_of::<SinkOpen>() as u32,
            mode: abi::SINK_WRITE,
            image_id: image.id,
            pid: image.pid,
            expected_len: image.expected_len,
            flags: image.flags(),
            reserved: 0,
            locator: ptr::null(),
        };
        self.sink_open(&open)
    }

    pub(crate) fn sink_open_existing(&self, locator: &str) -> Result<()> {
        let locator = c_text(locator)?;
        let open = SinkOpen {
            struct_size: size_of::<SinkOpen>() as u32,
            mode: abi::SINK_READ,
            image_id: [0; 16],
            pid: 0,
            expected_len: 0,
            flags: 0,
            reserved: 0,
            locator: locator.as_ptr(),
        };
        self.sink_open(&open)
    }

    fn sink_open(&self, open: &SinkOpen) -> Result<()> {
        fault::point("sink.open").map_err(|e| StageError::io("cannot open the image", &e))?;
        let f = needed(self.plugin.0.table.sink_open)?;
        // SAFETY: handle is live, `open` and its text are lent for the call.
        self.enter("sink_open", |err| unsafe { f(self.raw, open, err) })
    }

    pub(crate) fn sink_write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        fault::point("sink.write").map_err(|e| StageError::io("cannot write", &e))?;
        let f = needed(self.plugin.0.table.sink_write_at)?;
        // SAFETY: handle is live, `data` is lent for the call.
        self.enter("sink_write_at", |err| unsafe {
            f(self.raw, offset, data.as_ptr(), data.len(), err)
        })
    }

    pub(crate) fn sink_read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        fault::point("sink.read").map_err(|e| StageError::io("cannot read", &e))?;
        let f = needed(self.plugin.0.table.sink_read_at)?;
        let (mut len, cap) = (0usize, out.len());
        // SAFETY: handle is live, `out` is lent for the call.
        self.enter("sink_read_at", |err| unsafe {
            f(self.raw, offset, out.as_mut_ptr(), cap, &mut len, err)
        })?;
        within("sink_read_at", len, cap)
    }

    pub(crate) fn sink_len(&self) -> Result<u64> {
        let f = needed(self.plugin.0.table.sink_len)?;
        let mut len = 0u64;
        // SAFETY: handle is live, `len` is lent for the call.
        self.enter("sink_len", |err| unsafe { f(self.raw, &mut len, err) })?;
        Ok(len)
    }

    pub(crate) fn sink_commit(&self, len: u64, raw_len: u64) -> Result<()> {
        fault::point("sink.commit").map_err(|e| StageError::io("cannot commit", &e))?;
        let f = needed(self.plugin.0.table.sink_commit)?;
        // SAFETY: handle is live.
        self.enter(What::write_out("sink_commit", len), |err| unsafe {
            f(self.raw, len, raw_len, err)
        })
    }

    pub(crate) fn sink_locator(&self) -> Result<String> {
        let f = needed(self.plugin.0.table.sink_locator)?;
        // SAFETY: handle is live, the buffer is lent for the call.
        let bytes = self.answer_bytes("sink_locator", |out, cap, len, err| unsafe {
            f(self.raw, out.cast::<c_char>(), cap, len, err)
        })?;
        String::from_utf8(bytes)
            .map_err(|_| defect("sink_locator answers text that is not UTF-8".into()))
    }

    pub(crate) fn sink_remove(&self) -> Result<()> {
        fault::point("sink.remove").map_err(|e| StageError::io("cannot remove", &e))?;
        let f = needed(self.plugin.0.table.sink_remove)?;
        // SAFETY: handle is live.
        self.enter("sink_remove", |err| unsafe { f(self.raw, err) })
    }

    /// A call that writes at most MAX_STATE_LEN bytes.
    fn answer_bytes(
        &self,
        name: &'static str,
        f: impl FnOnce(*mut u8, usize, *mut usize, *mut abi::Error) -> i32,
    ) -> Result<Vec<u8>> {
        let (mut out, mut len) = (vec![0u8; MAX_STATE_LEN], 0usize);
        self.enter(name, |err| f(out.as_mut_ptr(), out.len(), &mut len, err))?;
        out.truncate(within(name, len, MAX_STATE_LEN)?);
        Ok(out)
    }

    fn handle_lock(&self) -> Option<MutexGuard<'_, ()>> {
        let is_alone = self.description().threads == ThreadModel::PerHandle;
        is_alone.then(|| lock_watched(&self.lock, &self.watch))
    }

    fn enter(&self, what: impl Into<What>, f: impl FnOnce(*mut abi::Error) -> i32) -> Result<()> {
        let what = what.into();
        let answer = self.enter_coded(what, f)?;
        done(what.name, answer)
    }

    /// One call under the locks that the thread model asks for. Answers OK or PASS.
    fn enter_coded(
        &self,
        what: impl Into<What>,
        f: impl FnOnce(*mut abi::Error) -> i32,
    ) -> Result<i32> {
        let what = what.into();
        let _serial = serial_lock(&self.plugin, &self.watch);
        let _alone = self.handle_lock();
        let _under_way = self.watch.enter(what);
        if self.dead.load(Relaxed) {
            let message = format!(
                "{} is not called any more: the plugin panicked before",
                what.name
            );
            return Err(StageError::new(code::PANIC, message));
        }
        let answer = call(what.name, f);
        if matches!(&answer, Err(e) if e.code == code::PANIC) {
            self.dead.store(true, Relaxed);
        }
        answer
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _serial = serial_lock(&self.plugin, &self.watch);
        let _under_way = self.watch.enter("destroy");
        if let Some(destroy) = self.plugin.0.table.destroy {
            // SAFETY: handle is live until here, and its workers are gone: each keeps the
            // handle alive by an Arc.
            unsafe { destroy(self.raw) }
        }
    }
}

impl Worker {
    /// Makes the scratch memory of one thread.
    pub(crate) fn create(handle: &Arc<Handle>) -> Result<Self> {
        let mut raw = ptr::null_mut();
        if let Some(f) = handle.plugin.0.table.worker_create {
            // SAFETY: handle is live, `raw` is lent for the call.
            handle.enter("worker_create", |err| unsafe {
                f(handle.raw, &mut raw, err)
            })?;
        }
        Ok(Self {
            handle: Arc::clone(handle),
            raw,
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let handle = &self.handle;
        let _serial = serial_lock(&handle.plugin, &handle.watch);
        let _alone = handle.handle_lock();
        let _under_way = handle.watch.enter("worker_destroy");
        if let Some(f) = handle.plugin.0.table.worker_destroy {
            // SAFETY: made by worker_create of this handle, ended only here.
            unsafe { f(handle.raw, self.raw) }
        }
    }
}

fn serial_lock<'a>(plugin: &'a Plugin, watch: &Watch) -> Option<MutexGuard<'a, ()>> {
    let is_serial = plugin.0.description.threads == ThreadModel::Serial;
    is_serial.then(|| lock_watched(&plugin.0.serial, watch))
}

/// Waiting is known as a call: who holds the lock may be in another pipeline.
fn lock_watched<'a>(mutex: &'a Mutex<()>, watch: &Watch) -> MutexGuard<'a, ()> {
    let _waits = watch.enter(What::turn());
    lock(mutex)
}

/// The locks hold no data, so a panic of ours while one was held broke none.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn image_info(image: &Image) -> ImageInfo {
    ImageInfo {
        struct_size: size_of::<ImageInfo>() as u32,
        page_size: image.page_size,
        image_id: image.id,
        max_chunk_len: image.max_chunk_len,
        expected_len: image.expected_len,
    }
}

fn chunk_info(chunk: &Chunk<'_>) -> ChunkInfo {
    ChunkInfo {
        struct_size: size_of::<ChunkInfo>() as u32,
        flags: if chunk.last { abi::CHUNK_LAST } else { 0 },
        index: chunk.index,
        address: chunk.address,
        raw_len: chunk.raw_len,
        aad: chunk.aad.as_ptr(),
        aad_len: chunk.aad.len() as u64,
    }
}
