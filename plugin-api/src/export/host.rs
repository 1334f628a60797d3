//! What a plugin gets from the host.

use std::ffi::{CString, c_char};
use std::fmt::Display;
use std::mem::{offset_of, size_of};

use crate::abi;

type LogFn = unsafe extern "C" fn(level: u32, message: *const c_char);

/// What the host offers to a stage: its log. Cheap to copy, usable from any thread.
///
/// `Host::default()` belongs to no host and logs nowhere: for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    // Copied out of the table: an older host's table may be shorter than ours, so no
    // reference to it as a whole may exist.
    log: Option<LogFn>,
}

impl Host {
    /// A host that logs nowhere; the same as `default()`.
    #[must_use]
    pub const fn none() -> Self {
        Self { log: None }
    }

    /// Takes from the host's table what this version knows of it.
    ///
    /// # Safety
    /// `table` is null or leads to a table that begins with its own size in bytes, is
    /// as long as it says, and whose functions may be called as long as the process
    /// lives.
    pub(super) unsafe fn from_table(table: *const abi::Host) -> Self {
        const LOG_END: usize = offset_of!(abi::Host, log) + size_of::<Option<LogFn>>();
        if table.is_null() {
            return Self::none();
        }
        // SAFETY: not null, and every table is long enough for its own size.
        let size = unsafe { (&raw const (*table).struct_size).read() };
        if (size as usize) < LOG_END {
            return Self::none();
        }
        // SAFETY: the table is long enough for this field, as just checked.
        let log = unsafe { (&raw const (*table).log).read() };
        Self { log }
    }

    /// Something failed, and a call will answer so.
    pub fn error(self, message: impl Display) {
        self.log(1, &message);
    }

    /// Something is not as the user may expect.
    pub fn warn(self, message: impl Display) {
        self.log(2, &message);
    }

    /// Something worth knowing at `-v`.
    pub fn info(self, message: impl Display) {
        self.log(3, &message);
    }

    /// Something worth knowing when the plugin itself is examined.
    pub fn debug(self, message: impl Display) {
        self.log(4, &message);
    }

    fn log(self, level: u32, message: &dyn Display) {
        let Some(log) = self.log else { return };
        let mut bytes = message.to_string().into_bytes();
        // A NUL inside would end the line early for every reader in C.
        bytes.retain(|&byte| byte != 0);
        let Ok(line) = CString::new(bytes) else {
            return;
        };
        // SAFETY: the host's log takes any level and a NUL-terminated text that it does
        // not keep, from any thread; `line` lives until after the call.
        unsafe { log(level, line.as_ptr()) }
    }
}
