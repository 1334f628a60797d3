//! The kernel's key retention service (keyctl(2)): taking away what stages kept there.
//!
//! A stage may keep a secret of an image in the user keyring (user-keyring(7)) under the
//! description `memcr:IMAGE-ID:STAGE`. It goes with the image, whoever removes that; until the
//! image is finished it may expire, should nobody be left to do so.

use std::ffi::CStr;
use std::io;

use super::check;

// linux/keyctl.h; the libc crate has them for some targets only.
const SPEC_THREAD_KEYRING: libc::c_long = -1;
const SPEC_USER_KEYRING: libc::c_long = -4;
const GET_KEYRING_ID: libc::c_long = 0;
const DESCRIBE: libc::c_long = 6;
const LINK: libc::c_long = 8;
const UNLINK: libc::c_long = 9;
const READ: libc::c_long = 11;
const SET_TIMEOUT: libc::c_long = 15;
const INVALIDATE: libc::c_long = 21;

/// Longest description that the kernel takes is a page; ours are far shorter, and what
/// is cut off is no key of ours.
const DESCRIPTION_LEN: usize = 256;

/// Takes every key of the image away from the user keyring. None there: done.
///
/// # Errors
/// When a key is there and stays. A kernel without keyrings, or one that refuses them
/// to us, has kept nothing.
pub fn forget(image_id: &[u8; 16]) -> io::Result<()> {
    each(&prefix(image_id), remove)
}

/// Lets no key of the image expire: it is needed from now on, finished or not.
///
/// # Errors
/// As [`forget`], when a key stays as it is.
pub fn retain(image_id: &[u8; 16]) -> io::Result<()> {
    each(&prefix(image_id), |key| {
        keyctl([SET_TIMEOUT, key.into(), 0, 0]).map(drop)
    })
}

fn prefix(image_id: &[u8; 16]) -> String {
    let id: String = image_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("memcr:{id}:")
}

/// Does `what` to every key whose description begins with `prefix`.
fn each(prefix: &str, what: impl Fn(i32) -> io::Result<()>) -> io::Result<()> {
    let keys = match list() {
        Ok(keys) => keys,
        Err(error) if is_without(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    for key in keys {
        if describes(key, prefix) {
            result = result.and(what(key));
        }
    }
    result
}

/// Keeps a key as a stage does, and takes it away.
///
/// # Errors
/// ENOSYS, EPERM, EDQUOT.
pub fn probe() -> io::Result<()> {
    let description = format!("memcr:probe-{}:\0", super::gettid());
    // SAFETY: type and description are NUL-terminated, the payload is as long as said;
    // the kernel copies all three.
    let key = check(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            description.as_ptr(),
            b"probe".as_ptr(),
            5usize,
            SPEC_THREAD_KEYRING,
        )
    })?;
    let linked = keyctl([GET_KEYRING_ID, SPEC_USER_KEYRING, 1, 0])
        .and_then(|ring| keyctl([LINK, key, ring, 0]));
    keyctl([UNLINK, key, SPEC_THREAD_KEYRING, 0])?;
    linked?;
    each(description.trim_end_matches('\0'), remove)
}

/// Serial numbers of the keys in the user keyring.
fn list() -> io::Result<Vec<i32>> {
    let mut keys = vec![0i32; 64];
    loop {
        let room = size_of_val(keys.as_slice());
        let at = keys.as_mut_ptr() as libc::c_long;
        // The kernel writes at most `room` bytes there, and answers how many it has.
        let len = keyctl([READ, SPEC_USER_KEYRING, at, room as libc::c_long])?;
        // Never negative: `check` saw to it.
        let n = usize::try_from(len).unwrap_or(0) / size_of::<i32>();
        if n <= keys.len() {
            keys.truncate(n);
            return Ok(keys);
        }
        keys.resize(2 * n, 0);
    }
}

/// Whether a key has a description that begins so. One that is gone meanwhile has not.
fn describes(key: i32, prefix: &str) -> bool {
    // `type;uid;gid;perm;description` and a NUL
    let mut text = [0u8; DESCRIPTION_LEN];
    let at = text.as_mut_ptr() as libc::c_long;
    if keyctl([DESCRIBE, key.into(), at, text.len() as libc::c_long]).is_err() {
        return false;
    }
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    let description = text.to_bytes().splitn(5, |&byte| byte == b';').nth(4);
    description.is_some_and(|description| description.starts_with(prefix.as_bytes()))
}

/// Invalidates a key, which wipes it wherever it is linked; where that is not allowed,
/// or before Linux 3.5, takes it out of the keyring.
fn remove(key: i32) -> io::Result<()> {
    let key = key.into();
    let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ENOKEY);
    match keyctl([INVALIDATE, key, 0, 0]).or_else(|_| keyctl([UNLINK, key, SPEC_USER_KEYRING, 0])) {
        Err(error) if !gone(&error) && error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

fn is_without(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::ENOKEY)
    )
}

fn keyctl([operation, a, b, c]: [libc::c_long; 4]) -> io::Result<libc::c_long> {
    // SAFETY: the operations above take numbers, but for READ and DESCRIBE, whose third
    // and fourth arguments are address and length of a buffer that their callers own.
    check(unsafe { libc::syscall(libc::SYS_keyctl, operation, a, b, c, 0) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Puts a key into the user keyring, with the permissions that it gets by default.
    fn put(description: &str) {
        let description = format!("{description}\0");
        // SAFETY: as in `probe`.
        check(unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                description.as_ptr(),
                b"x".as_ptr(),
                1usize,
                SPEC_USER_KEYRING,
            )
        })
        .unwrap();
    }

    fn is_there(description: &str) -> bool {
        list()
            .unwrap()
            .iter()
            .any(|key| describes(*key, description))
    }

    /// Whether a key expires (proc_keys(5), fourth field).
    fn expires(description: &str) -> bool {
        let keys = std::fs::read_to_string("/proc/keys").unwrap();
        let line = keys
            .lines()
            .find(|line| line.contains(description))
            .unwrap();
        line.split_whitespace().nth(3) != Some("perm")
    }

    #[test]
    fn a_key_that_is_needed_does_not_expire() {
        if probe().is_err() {
            return;
        }
        let (id, name) = ([0xa3; 16], format!("memcr:{}:encrypt", "a3".repeat(16)));
        put(&name);
        for key in list()
            .unwrap()
            .into_iter()
            .filter(|key| describes(*key, &name))
        {
            keyctl([SET_TIMEOUT, key.into(), 3600, 0]).unwrap();
        }
        assert!(expires(&name));
        retain(&id).unwrap();
        assert!(!expires(&name));
        forget(&id).unwrap();
    }

    #[test]
    fn the_keys_of_one_image_go_and_no_others() {
        if let Err(error) = probe() {
            assert!(
                std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
                "required: keyring: {error}"
            );
            return eprintln!("skipped: no keyring: {error}");
        }
        let (one, other) = ([0xa1; 16], [0xa2; 16]);
        let name = |byte: &str, stage| format!("memcr:{}:{stage}", byte.repeat(16));
        put(&name("a1", "encrypt"));
        put(&name("a1", "third_party"));
        put(&name("a2", "encrypt"));
        forget(&one).unwrap();
        assert!(!is_there(&name("a1", "")));
        assert!(is_there(&name("a2", "encrypt")));
        forget(&one).unwrap();
        forget(&other).unwrap();
        // Whole names: there may be keys of images whose ids begin alike, and other probes.
        assert!(!is_there(&name("a2", "")));
        assert!(!is_there(&format!(
            "memcr:probe-{}",
            super::super::gettid()
        )));
    }
}
