//! One call into a plugin: the error it fills in, what it answers, the texts that go with
//! it, and the log it may write to.

use std::ffi::{CStr, CString, c_char};

use memcr_plugin_api::abi::{self, ABI_VERSION, code};
use memcr_plugin_api::stage::StageError;

type Result<T> = std::result::Result<T, StageError>;

/// What every plugin is told of its host. Lives as long as the process.
pub(super) static HOST: abi::Host = abi::Host {
    struct_size: size_of::<abi::Host>() as u32,
    abi_version: ABI_VERSION,
    log: Some(log),
};

/// Calls with an error to fill in, and turns a failure's code and texts into ours.
pub(super) fn call(name: &'static str, f: impl FnOnce(*mut abi::Error) -> i32) -> Result<i32> {
    let mut error = abi::Error {
        struct_size: size_of::<abi::Error>() as u32,
        sys_errno: 0,
        message: [0; 376],
        hint: [0; 128],
    };
    match f(&mut error) {
        answer @ (code::OK | code::PASS) => Ok(answer),
        code => {
            let (mut message, hint) = (bounded_text(&error.message), bounded_text(&error.hint));
            if message.is_empty() {
                message = format!("{name} failed with code {code} and no message");
            }
            Err(StageError {
                code,
                message,
                hint,
                sys_errno: error.sys_errno,
            })
        }
    }
}

/// The text up to the first NUL, or all of it: a plugin may forget the NUL.
fn bounded_text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars
        .iter()
        .take_while(|&&c| c != 0)
        .map(|&c| c.cast_unsigned_char())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `c_char` is signed on some machines and not on others.
trait CastUnsignedChar {
    fn cast_unsigned_char(self) -> u8;
}

impl CastUnsignedChar for c_char {
    #[allow(clippy::unnecessary_cast, reason = "c_char is u8 on arm")]
    fn cast_unsigned_char(self) -> u8 {
        self as u8
    }
}

pub(super) fn within(name: &str, len: usize, cap: usize) -> Result<usize> {
    if len > cap {
        return Err(defect(format!(
            "{name} says it wrote {len} bytes into a buffer of {cap}"
        )));
    }
    Ok(len)
}

/// Of a call that has nothing to pass over: OK is the only answer that is none of a failure.
pub(super) fn done(name: &str, answer: i32) -> Result<()> {
    match answer {
        code::OK => Ok(()),
        other => Err(defect(format!(
            "{name} answers {other}, which is not a code for it"
        ))),
    }
}

/// A required function: `table::describe` saw that it is there.
pub(super) fn needed<F>(function: Option<F>) -> Result<F> {
    function.ok_or_else(|| defect("it lacks the function for this step".into()))
}

pub(super) fn defect(message: String) -> StageError {
    StageError::new(code::INTERNAL, message).hint("this is a defect of the plugin")
}

pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        StageError::new(
            code::INVALID_CONFIG,
            format!("`{}` holds a NUL", text.escape_debug()),
        )
    })
}

/// A line of a plugin for our log.
unsafe extern "C" fn log(level: u32, message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: not null, and NUL-terminated as the header demands of the plugin.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    // A subscriber that panics must not unwind into the plugin: the line is lost.
    let _ = std::panic::catch_unwind(|| match level {
        1 => tracing::error!(target: "memcr::stage", "{message}"),
        2 => tracing::warn!(target: "memcr::stage", "{message}"),
        3 => tracing::info!(target: "memcr::stage", "{message}"),
        _ => tracing::debug!(target: "memcr::stage", "{message}"),
    });
}
