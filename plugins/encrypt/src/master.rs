//! Where the master key comes from.
//!
//! ```text
//!   key_fd = N         read to its end, once           ┐
//!   key_file = PATH    32 bytes, or 64 hex digits      │
//!   credential = NAME  the same, from the service      ├─▶ MasterKey ──HKDF──▶ keys of one image
//!                      manager                         │
//!   keyring = NAME     the same, from the kernel       │
//!   none of them       made here, kept in the keyring  ┘
//! ```

use std::fs::File;
use std::io::Read;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Params, Result, StageError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use zeroize::Zeroizing;

use crate::keyring;
use crate::locked::LockedKey;

/// Length of a master key, bytes.
pub(crate) const KEY_LEN: usize = 32;
/// Room to read a key into: the longest form is 64 digits and a line end; what is longer
/// is refused without reading on.
pub(crate) const READ_LEN: usize = 128;

/// Where a key came from. The number is stored in images, so that a failure to decode
/// can say which key is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum KeySource {
    /// Made by the process that wrote the image.
    Ephemeral = 1,
    /// Given by the user, in whatever way.
    Given = 2,
}

impl KeySource {
    /// The source with this number in an image.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        [Self::Ephemeral, Self::Given]
            .into_iter()
            .find(|source| *source as u8 == number)
    }
}

/// The key that those of every image are derived from.
#[derive(Debug)]
pub(crate) struct MasterKey {
    /// Where it came from.
    pub(crate) source: KeySource,
    key: LockedKey,
}

impl MasterKey {
    /// The key that the parameters ask for. An image remembers all but `key_fd`, so a
    /// descriptor wins, being what overrides; then a file, which is the usual way to
    /// give the key of an image that came from somewhere else.
    pub(crate) fn from_params(params: &Params) -> Result<Self> {
        if let Some(fd) = params.parse::<i32>("key_fd")? {
            return Self::from_fd(fd);
        }
        if let Some(path) = params.get("key_file") {
            return Self::from_file(path);
        }
        if let Some(name) = params.get("credential") {
            return Self::from_credential(name);
        }
        match params.get("keyring") {
            Some(description) => keyring::given(description),
            None => Self::ephemeral(),
        }
    }

    /// Key bytes; [`KEY_LEN`] of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.key.bytes()
    }

    /// Whether its page cannot be swapped out.
    pub(crate) fn is_locked(&self) -> bool {
        self.key.is_locked()
    }

    fn ephemeral() -> Result<Self> {
        let key = LockedKey::new(KEY_LEN, |bytes| {
            openssl::rand::rand_priv_bytes(bytes)
                .map_err(|e| StageError::new(code::INTERNAL, format!("make an ephemeral key: {e}")))
        })?;
        Ok(Self {
            source: KeySource::Ephemeral,
            key,
        })
    }

    fn from_file(path: &str) -> Result<Self> {
        let what = format!("key file {path}");
        let (file, stat) = open(path, &what)?;
        check_file(&what, &stat, rustix::process::geteuid().as_raw())?;
        Self::read(&what, file)
    }

    /// What the service manager put into the service's own directory
    /// (systemd.exec(5), CREDENTIALS).
    fn from_credential(name: &str) -> Result<Self> {
        let dir = std::env::var("CREDENTIALS_DIRECTORY").ok();
        Self::from_credentials(dir.as_deref(), name)
    }

    pub(crate) fn from_credentials(dir: Option<&str>, name: &str) -> Result<Self> {
        let what = format!("credential {name}");
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            let message = format!("{what} is no name of a credential");
            return Err(StageError::new(code::INVALID_CONFIG, message));
        }
        let Some(dir) = dir else {
            let message = format!("{what} cannot be looked for: CREDENTIALS_DIRECTORY is not set");
            return Err(StageError::new(code::NOT_FOUND, message)
                .hint("only a service has credentials: LoadCredential= in its unit"));
        };
        let (file, mut stat) = open(&format!("{dir}/{name}"), &what)?;
        // The manager lets the service's user in by an access control list, whose mask
        // shows as what the group may do; the group is nobody's.
        stat.st_mode &= !0o040;
        check_file(&what, &stat, rustix::process::geteuid().as_raw())?;
        Self::read(&what, file)
    }

    fn from_fd(fd: i32) -> Result<Self> {
        let what = format!("key_fd {fd}");
        let own = duplicate(fd).map_err(|e| {
            StageError::io(format!("take {what}"), &e)
                .hint("open it in the shell that starts memcr: memcr ... 3< key, key_fd = 3")
        })?;
        Self::read(&what, own)
    }

    fn read(what: &str, mut from: impl Read) -> Result<Self> {
        let mut content = Zeroizing::new([0; READ_LEN]);
        let len = read_to_end(&mut from, &mut *content)
            .map_err(|e| StageError::io(format!("read {what}"), &e))?;
        Self::parse(KeySource::Given, what, &content[..len])
    }

    /// The key that `content` of the thing called `what` is.
    pub(crate) fn parse(source: KeySource, what: &str, content: &[u8]) -> Result<Self> {
        let key = LockedKey::new(KEY_LEN, |bytes| parse(what, content, bytes))?;
        Ok(Self { source, key })
    }
}

fn open(path: &str, what: &str) -> Result<(File, rustix::fs::Stat)> {
    // NONBLOCK: opening a FIFO that nobody writes must fail below, not hang here.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| StageError::io(format!("open {what}"), &e.into()))?;
    let stat =
        rustix::fs::fstat(&fd).map_err(|e| StageError::io(format!("stat {what}"), &e.into()))?;
    Ok((File::from(fd), stat))
}

/// Refuses a key that others may know or may have put there.
pub(crate) fn check_file(what: &str, stat: &rustix::fs::Stat, euid: u32) -> Result<()> {
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        let message = format!("{what} is not a regular file");
        return Err(StageError::new(code::INVALID_CONFIG, message)
            .hint("pass keys from pipes and devices by key_fd"));
    }
    if stat.st_mode & 0o077 != 0 {
        let message = format!(
            "{what} has mode {:04o}: others than its owner may use it",
            stat.st_mode & 0o7777
        );
        return Err(
            StageError::new(code::PERMISSION, message).hint("chmod 600, and think of a new key")
        );
    }
    if stat.st_uid != 0 && stat.st_uid != euid {
        let message = format!(
            "{what} belongs to uid {}, neither root nor the caller ({euid})",
            stat.st_uid
        );
        return Err(
            StageError::new(code::PERMISSION, message).hint("chown it to the user that runs memcr")
        );
    }
    Ok(())
}

/// A descriptor of our own for what number `fd` of this process refers to. Turning the
/// number itself into an owner would need unsafe code and a promise about the host's
/// descriptors; these two ways ask the kernel by number instead.
fn duplicate(fd: i32) -> std::io::Result<File> {
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    match pidfd.and_then(|own| rustix::process::pidfd_getfd(own, fd, PidfdGetfdFlags::empty())) {
        Ok(fd) => Ok(File::from(fd)),
        // Kernels before 5.6, or a seccomp filter: opens the file anew, which serves
        // pipes and files, though not sockets.
        Err(Errno::NOSYS | Errno::PERM) => File::open(format!("/proc/self/fd/{fd}")),
        Err(e) => Err(e.into()),
    }
}

/// Reads until the end or until `out` is full.
fn read_to_end(from: &mut impl Read, out: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match from.read(&mut out[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// `content` to a key: raw bytes, or hexadecimal digits with or without a line end.
/// Says only the length of what it refuses: the content may be almost a key.
fn parse(what: &str, content: &[u8], key: &mut [u8]) -> Result<()> {
    if content.len() == KEY_LEN {
        key.copy_from_slice(content);
        return Ok(());
    }
    let digits = content.strip_suffix(b"\n").unwrap_or(content);
    let pairs = digits.chunks_exact(2);
    if digits.len() == 2 * KEY_LEN && pairs.zip(key).all(|(pair, byte)| hex_byte(pair, byte)) {
        return Ok(());
    }
    let len = if content.len() == READ_LEN {
        format!("{READ_LEN} bytes or more")
    } else {
        format!("{} bytes", content.len())
    };
    let message = format!(
        "{what} holds {len} that are no key: it is {KEY_LEN} bytes, or 64 hexadecimal digits"
    );
    let hint = if content.is_empty() {
        "a key descriptor can be read once only; a key file must not be empty"
    } else {
        "make one: openssl rand -out FILE 32; chmod 600 FILE"
    };
    Err(StageError::new(code::INVALID_CONFIG, message).hint(hint))
}

fn hex_byte(pair: &[u8], byte: &mut u8) -> bool {
    let digit = |c: u8| (c as char).to_digit(16);
    let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
        return false;
    };
    // Both are below 16.
    *byte = (high << 4 | low) as u8;
    true
}
