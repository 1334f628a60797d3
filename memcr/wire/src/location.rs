//! Where a daemon listens: `PORT` or `PATH`, in one word.
//!
//! ```text
//!   9000       port 9000            leading digits that give a number above 0
//!   9000abc    port 9000            what stands behind them does not count
//!   70000      refused              a port, but there is none of this number
//!   0, x9000   a path               as everything else
//! ```

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a UNIX socket: 108 bytes with its NUL, on every architecture.
pub const MAX_SOCKET_PATH_LEN: usize = 107;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A TCP port; of the loopback interface unless the daemon was told otherwise.
    Port(u16),
    /// The path of a UNIX socket.
    Path(PathBuf),
}

/// A word that is neither a port nor the path of a socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// No word at all.
    #[error("the location is empty: it is the number of a TCP port, or the path of a UNIX socket")]
    Empty,
    /// Digits that are no port.
    #[error("{0} is not the number of a TCP port, which is in 1..=65535")]
    NoPort(String),
    /// Longer than the kernel takes.
    #[error(
        "the path has {len_bytes} bytes; that of a UNIX socket has at most {MAX_SOCKET_PATH_LEN}"
    )]
    TooLong {
        /// Bytes of the path.
        len_bytes: usize,
    },
    /// A NUL would end the path early.
    #[error("the path of a socket has no NUL in it")]
    Nul,
}

impl Location {
    /// Reads a word of a command line or a configuration.
    ///
    /// # Errors
    /// When it is neither a port nor a path that a socket can have.
    pub fn parse(word: &OsStr) -> Result<Self, LocationError> {
        let bytes = word.as_bytes();
        let n_digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        let digits = &bytes[..n_digits];
        if digits.iter().any(|digit| *digit != b'0') {
            return port(digits).map(Self::Port);
        }
        match bytes.len() {
            0 => Err(LocationError::Empty),
            len_bytes if len_bytes > MAX_SOCKET_PATH_LEN => {
                Err(LocationError::TooLong { len_bytes })
            }
            _ if bytes.contains(&0) => Err(LocationError::Nul),
            _ => Ok(Self::Path(PathBuf::from(word))),
        }
    }
}

fn port(digits: &[u8]) -> Result<u16, LocationError> {
    let text = String::from_utf8_lossy(digits);
    text.parse()
        .map_err(|_| LocationError::NoPort(text.chars().take(20).collect()))
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(word: &str) -> Result<Self, LocationError> {
        Self::parse(OsStr::new(word))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "TCP port {port}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn leading_digits_are_a_port() {
        for (word, port) in [
            ("1", 1),
            ("9000", 9000),
            ("65535", 65535),
            ("9000abc", 9000),
            ("0009000", 9000),
            ("80/x", 80),
        ] {
            assert_eq!(word.parse(), Ok(Location::Port(port)), "{word}");
        }
    }

    #[test]
    fn everything_else_is_a_path() {
        for word in [
            "/run/memcr.sock",
            "0",
            "000",
            "0x10",
            "x9000",
            "-9000",
            "+9",
            " 9",
            ".",
            "/9000",
        ] {
            assert_eq!(word.parse(), Ok(Location::Path(word.into())), "{word}");
        }
        let odd = OsStr::from_bytes(b"/run/\xff");
        assert_eq!(Location::parse(odd), Ok(Location::Path(odd.into())));
    }

    #[test]
    fn what_can_be_neither_is_told() {
        assert_eq!("".parse::<Location>(), Err(LocationError::Empty));
        assert_eq!(
            "65536".parse::<Location>(),
            Err(LocationError::NoPort("65536".into()))
        );
        let long = "9".repeat(1000).parse::<Location>().unwrap_err();
        assert!(long.to_string().len() < 100, "{long}");
        let path = "/".repeat(MAX_SOCKET_PATH_LEN);
        assert!(path.parse::<Location>().is_ok());
        assert_eq!(
            format!("{path}/").parse::<Location>(),
            Err(LocationError::TooLong { len_bytes: 108 })
        );
        assert_eq!("/a\0b".parse::<Location>(), Err(LocationError::Nul));
    }
}
