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

mod handle;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::{Mutex, PoisonError};

pub(crate) use handle::{Handle, Worker};

use super::TableRef;
use crate::abi::{self, StageTable, code};

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
