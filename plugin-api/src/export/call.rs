//! The other end of the tables: calls into a plugin, for the conformance suite.
//!
//! Every call is watched. What breaks a rule of the interface, whatever the suite is
//! about to check, is noticed here:
//!
//! ```text
//!   canary │ out[..cap] │ canary     nothing written outside, nothing written to input
//!   out_len                          set on success only, at most cap
//!   err                              described when, and only when, the code is negative
//! ```

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use super::TableRef;
use crate::abi::{self, StageTable, capability, code};
use crate::sink::NewImage;
use crate::stage::Image;

/// Bytes on either side of a buffer that a plugin must leave alone.
const CANARY_LEN: usize = 4096;
const CANARY: u8 = 0xA5;

/// A failure as the plugin told it.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) code: i32,
    pub(crate) message: String,
}

/// What a call answers.
pub(crate) type Answer<T> = Result<T, Failed>;

/// A chunk as the suite makes it.
#[derive(Debug, Clone)]
pub(crate) struct ChunkArg {
    pub(crate) index: u64,
    pub(crate) last: bool,
    pub(crate) raw_len: u64,
    pub(crate) aad: Vec<u8>,
}

/// A plugin under test, and what was noticed about it.
pub struct Loaded {
    table: TableRef,
    noticed: Mutex<BTreeSet<String>>,
}

impl Loaded {
    /// A plugin by its table.
    ///
    /// # Safety
    /// `table` keeps the memory rules of the interface that no test can find out: its
    /// texts are NUL-terminated, its arrays as long as said, its functions what they
    /// claim. The tables of [`register_stage!`](crate::register_stage) do.
    #[must_use]
    pub unsafe fn new(table: &'static StageTable) -> Self {
        Self {
            table: TableRef(table),
            noticed: Mutex::default(),
        }
    }

    /// A stage of a test, through the table that `register_stage!` would make.
    #[cfg(test)]
    pub(crate) fn of(make: impl FnOnce(&'static super::TableCell) -> &'static StageTable) -> Self {
        let cell = Box::leak(Box::new(super::TableCell::new()));
        // SAFETY: `make` can get a table of a static lifetime from the cell only, whose
        // shims keep the rules whatever the trait's implementation does.
        unsafe { Self::new(make(cell)) }
    }

    pub(crate) fn table(&self) -> &'static StageTable {
        self.table.0
    }

    /// Notes a broken rule; the same one counts once.
    pub(crate) fn notice(&self, what: impl Into<String>) {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.insert(what.into());
    }

    pub(crate) fn noticed(&self) -> Vec<String> {
        let noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.iter().cloned().collect()
    }

    /// The text at `text`; `None` when it is null or not UTF-8.
    pub(crate) fn text(&self, text: *const c_char) -> Option<&'static str> {
        if text.is_null() {
            return None;
        }
        // SAFETY: not null; texts of a table are NUL-terminated and live as long as the
        // process, by the contract of `new`.
        unsafe { CStr::from_ptr(text) }.to_str().ok()
    }

    /// The parameter descriptions; the caller has checked their number and stride.
    pub(crate) fn params(&self) -> Vec<&'static abi::Param> {
        let table = self.table();
        let (base, stride) = (table.params.cast::<u8>(), table.param_size as usize);
        let at = |i: usize| base.wrapping_add(i * stride).cast::<abi::Param>();
        // SAFETY: `n_params` elements of `param_size` bytes, at least as long as ours, by
        // the contract of `new` and the caller's check.
        (0..table.n_params as usize)
            .filter_map(|i| unsafe { at(i).as_ref() })
            .collect()
    }

    pub(crate) fn create(&self, params: &[(String, String)]) -> Answer<Handle<'_>> {
        let texts: Vec<(CString, CString)> = params
            .iter()
            .map(|(key, value)| (c_text(key), c_text(value)))
            .collect();
        let pairs: Vec<abi::KeyValue> = texts
            .iter()
            .map(|(key, value)| abi::KeyValue {
                key: key.as_ptr(),
                value: value.as_ptr(),
            })
            .collect();
        let create = self.function("create", self.table().create)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `pairs` and the texts behind them live until after the call; the host
        // is a static.
        self.call("create", |err| unsafe {
            create(
                &raw const HOST,
                pairs.as_ptr(),
                pairs.len(),
                &raw mut raw,
                err,
            )
        })?;
        Ok(Handle { loaded: self, raw })
    }

    fn function<F>(&self, name: &str, function: Option<F>) -> Answer<F> {
        function.ok_or_else(|| Failed {
            code: code::INTERNAL,
            message: format!("the table has no function {name}"),
        })
    }

    /// Calls; looks at the code and at the description of a failure.
    fn call(&self, name: &str, call: impl FnOnce(*mut abi::Error) -> i32) -> Answer<i32> {
        let mut error = blank_error();
        let answer = call(&raw mut error);
        if answer >= 0 {
            if answer > code::PASS {
                self.notice(format!("{name} answered the unknown code {answer}"));
            }
            return Ok(answer);
        }
        let message = self.described(name, &error.message, "message");
        let _ = self.described(name, &error.hint, "hint");
        self.check_failure(name, answer, &message);
        Err(Failed {
            code: answer,
            message,
        })
    }

    fn check_failure(&self, name: &str, answer: i32, message: &str) {
        if answer < code::TIMED_OUT {
            self.notice(format!("{name} answered the unknown code {answer}"));
        }
        if answer == code::PANIC {
            self.notice(format!("{name} panicked: {message}"));
        }
        if message.is_empty() {
            self.notice(format!(
                "{name} failed with code {answer} and did not say why"
            ));
        }
        if message.ends_with('.') || message.contains('\n') {
            self.notice(format!(
                "{name} failed with a message that is not one line without a full stop: {message:?}"
            ));
        }
    }

    fn described(&self, name: &str, text: &[c_char], part: &str) -> String {
        // Bit for bit; c_char is signed on some architectures.
        let bytes: Vec<u8> = text.iter().map(|&c| c as u8).collect();
        let Ok(text) = CStr::from_bytes_until_nul(&bytes) else {
            self.notice(format!(
                "{name} failed with a {part} without a NUL at its end"
            ));
            return String::new();
        };
        text.to_str().map(str::to_owned).unwrap_or_else(|_| {
            self.notice(format!("{name} failed with a {part} that is not UTF-8"));
            text.to_string_lossy().into_owned()
        })
    }

    /// A call that writes to a buffer of `cap` bytes; `None` when it answered PASS.
    fn call_out(
        &self,
        name: &str,
        cap: usize,
        call: impl FnOnce(*mut u8, *mut usize, *mut abi::Error) -> i32,
    ) -> Answer<Option<Vec<u8>>> {
        let mut buffer = vec![CANARY; CANARY_LEN + cap + CANARY_LEN];
        // No buffer has this length, so what stays this was not written.
        let mut len = usize::MAX;
        // From the whole buffer, so that the pointer may lead to the canaries too.
        let out = buffer.as_mut_ptr().wrapping_add(CANARY_LEN);
        let answer = self.call(name, |err| call(out, &raw mut len, err));
        self.check_canaries(name, &buffer, cap);
        match answer {
            Ok(code::OK) if len > cap => {
                self.notice(format!(
                    "{name} says it wrote {len} bytes to a buffer of {cap}"
                ));
                Err(lied(name))
            }
            Ok(code::OK) => Ok(Some(buffer[CANARY_LEN..CANARY_LEN + len].to_vec())),
            Ok(_) => Ok(None),
            Err(failed) => {
                if len != usize::MAX {
                    self.notice(format!("{name} failed but wrote a length"));
                }
                Err(failed)
            }
        }
    }

    fn check_canaries(&self, name: &str, buffer: &[u8], cap: usize) {
        let whole = |canary: &[u8]| canary.iter().all(|&byte| byte == CANARY);
        if !whole(&buffer[..CANARY_LEN]) {
            self.notice(format!("{name} wrote before its buffer"));
        }
        if !whole(&buffer[CANARY_LEN + cap..]) {
            self.notice(format!("{name} wrote behind the end of its buffer"));
        }
    }

    fn check_unchanged(&self, name: &str, what: &str, before: &[u8], now: &[u8]) {
        if before != now {
            self.notice(format!("{name} changed its {what}"));
        }
    }
}

/// A handle of the plugin; destroyed when dropped.
pub(crate) struct Handle<'a> {
    loaded: &'a Loaded,
    raw: abi::Handle,
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
            flags: if image.compressed {
                abi::SINK_COMPRESSED
            } else {
                0
            },
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

/// A host whose log goes nowhere.
static HOST: abi::Host = abi::Host {
    struct_size: size_of::<abi::Host>() as u32,
    abi_version: abi::ABI_VERSION,
    log: Some(log_nowhere),
};

/// # Safety
/// None is needed: it touches nothing.
unsafe extern "C" fn log_nowhere(_level: u32, _message: *const c_char) {}

fn blank_error() -> abi::Error {
    abi::Error {
        struct_size: size_of::<abi::Error>() as u32,
        sys_errno: 0,
        message: [0; 376],
        hint: [0; 128],
    }
}

fn lied(name: &str) -> Failed {
    Failed {
        code: code::INTERNAL,
        message: format!("{name} broke the interface"),
    }
}

/// A text for C; the suite's own texts hold no NUL.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
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
