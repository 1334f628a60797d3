//! What a stage logs reaches the host; a shorter host is one without a log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::{CStr, c_char};
use std::mem::offset_of;
use std::sync::Mutex;

use super::super::Host;
use crate::abi;

static LOGGED: Mutex<Vec<(u32, String)>> = Mutex::new(Vec::new());

/// # Safety
/// `message` is NUL-terminated.
unsafe extern "C" fn log(level: u32, message: *const c_char) {
    // SAFETY: by the contract.
    let message = unsafe { CStr::from_ptr(message) };
    let line = (level, message.to_str().unwrap().to_owned());
    LOGGED.lock().unwrap().push(line);
}

fn table(struct_size: usize) -> abi::Host {
    abi::Host {
        struct_size: struct_size as u32,
        abi_version: abi::ABI_VERSION,
        log: Some(log),
    }
}

#[test]
fn lines_reach_the_host_with_their_level() {
    let table = table(size_of::<abi::Host>());
    // SAFETY: a table of this test, as long as it says.
    let host = unsafe { Host::from_table(&raw const table) };
    host.error("no key");
    host.warn(format_args!("slow: {} s", 3));
    host.info("a NUL \0 inside");
    host.debug("");
    let expected = [
        (1, "no key"),
        (2, "slow: 3 s"),
        (3, "a NUL  inside"),
        (4, ""),
    ];
    let logged = LOGGED.lock().unwrap();
    let logged: Vec<_> = logged.iter().map(|(n, line)| (*n, line.as_str())).collect();
    assert_eq!(logged, expected);
}

#[test]
fn a_host_that_ends_before_its_log_has_none() {
    let table = table(offset_of!(abi::Host, log));
    for table in [&raw const table, std::ptr::null()] {
        // SAFETY: null, or a table at least as long as it says.
        let host = unsafe { Host::from_table(table) };
        host.error("nobody hears this");
        assert_eq!(format!("{host:?}"), format!("{:?}", Host::none()));
    }
}
