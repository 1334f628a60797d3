//! The protocol of the C memcr, versions 1 and 2. Numbers are as the machine has them:
//! both ends are on one machine.
//!
//! ```text
//!   v1   │ i32 command │ i32 pid │                          8 bytes
//!   v2   │ i32 102     │ i32 size│ i32 command │ i32 pid │ options │     size: 8..=4096
//!          options, any number of them:
//!            │ i32 200 │ directory … NUL │                  at most 1024 bytes with its NUL
//!            │ i32 201 │ i32 compression │                  0 none, 1 lz4, 2 zstd
//!   answer │ i32 code │                                     0, -1, -2
//!
//!   command: 100 checkpoint, 101 restore
//! ```
//!
//! A worked example, on a little-endian machine: checkpoint process 4711 into `/var`,
//! with zstd.
//!
//! ```text
//!   66 00 00 00  19 00 00 00                    102, 25 bytes follow
//!   64 00 00 00  67 12 00 00                    100, 4711
//!   c8 00 00 00  2f 76 61 72 00                 200, "/var"
//!   c9 00 00 00  02 00 00 00                    201, 2
//! ```

use crate::compress::Compress;

/// First number of a request of version 2.
const V2: i32 = 102;
const OPTION_DIR: i32 = 200;
const OPTION_COMPRESS: i32 = 201;

/// Bytes of a request of version 1, and before the part of version 2 that has a size.
pub const HEADER_LEN: usize = 8;
/// The least and the most that a request of version 2 may say as its size.
pub const SIZES: std::ops::RangeInclusive<i32> = 8..=4096;
/// A directory, with its NUL.
pub const MAX_DIR_LEN: usize = 1024;

/// What the old protocol can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Take the memory away.
    Checkpoint = 100,
    /// Give it back; during a checkpoint: abort that.
    Restore = 101,
}

impl Command {
    fn from_number(number: i32) -> Option<Self> {
        let mut all = [Self::Checkpoint, Self::Restore].into_iter();
        all.find(|each| *each as i32 == number)
    }
}

/// Which of the two old protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Command and pid.
    V1,
    /// With options.
    V2,
}

/// A request of the old protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LegacyRequest {
    /// In which of the two it came, or is to go.
    pub version: Version,
    /// What to do.
    pub command: Command,
    /// To which process. Any number may stand here: the answer to one that is no pid
    /// (0, or below) is [`Code::InvalidPid`].
    pub pid: i32,
    /// Where the image is to be, without the NUL; only v2. Given twice, the last one counts.
    pub dir: Option<Vec<u8>>,
    /// How it is to be compressed; only v2. Given twice, the last one counts.
    pub compress: Option<Compress>,
}

/// Bytes that are no request of the old protocol. The answer to all of them is
/// [`Code::General`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither 100, 101 nor 102.
    #[error("unknown command {0}")]
    Command(i32),
    /// Behind the header of v2: neither 100 nor 101.
    #[error("unknown command {0} in a request of version 2")]
    Nested(i32),
    /// A size that no request has.
    #[error("a request of version 2 has 8 to 4096 bytes behind its header, not {0}")]
    Size(i32),
    /// Neither 200 nor 201.
    #[error("unknown option {0}")]
    Option(i32),
    /// A directory without its NUL within the request and within 1024 bytes.
    #[error("the directory has no end within {MAX_DIR_LEN} bytes")]
    Dir,
    /// A compression that is none.
    #[error("unknown compression {0}")]
    Compress(i32),
    /// The request ends in the middle of an option.
    #[error("the request ends within an option")]
    Cut,
    /// The connection ended in the middle of the request.
    #[error("the connection ended within the request")]
    Unfinished,
}

/// A request that the old protocol has no bytes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsayable {
    /// Version 1 has no options.
    #[error("version 1 of the protocol can say neither a directory nor a compression")]
    Options,
    /// A directory with a NUL in it.
    #[error("the directory has a NUL in it")]
    Nul,
    /// A directory that is too long.
    #[error("the directory has {len_bytes} bytes; the protocol takes at most {}", MAX_DIR_LEN - 1)]
    Dir {
        /// Bytes of the directory, without a NUL.
        len_bytes: usize,
    },
}

impl LegacyRequest {
    /// A request of version 1.
    #[must_use]
    pub fn v1(command: Command, pid: i32) -> Self {
        Self {
            version: Version::V1,
            command,
            pid,
            dir: None,
            compress: None,
        }
    }

    /// The bytes for it.
    ///
    /// # Errors
    /// When its version has none.
    pub fn encode(&self) -> Result<Vec<u8>, Unsayable> {
        let mut body = Vec::new();
        put(&mut body, self.command as i32);
        put(&mut body, self.pid);
        if self.version == Version::V1 {
            let has_options = self.dir.is_some() || self.compress.is_some();
            return if has_options {
                Err(Unsayable::Options)
            } else {
                Ok(body)
            };
        }
        if let Some(dir) = &self.dir {
            put(&mut body, OPTION_DIR);
            body.extend_from_slice(sayable(dir)?);
            body.push(0);
        }
        if let Some(compress) = self.compress {
            put(&mut body, OPTION_COMPRESS);
            put(&mut body, compress.number());
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        put(&mut bytes, V2);
        // At most 8 + 4 + 1024 + 8 bytes.
        put(&mut bytes, i32::try_from(body.len()).unwrap_or(i32::MAX));
        bytes.append(&mut body);
        Ok(bytes)
    }

    /// The request at the beginning of `bytes`, or `None` while a part of it is missing.
    /// What stands behind it does not count.
    ///
    /// # Errors
    /// When the bytes begin no request, whatever may follow them.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut header = Bytes(bytes);
        let Some(first) = header.number() else {
            return Ok(None);
        };
        let v1 = Command::from_number(first);
        if v1.is_none() && first != V2 {
            return Err(Malformed::Command(first));
        }
        let Some(second) = header.number() else {
            return Ok(None);
        };
        if let Some(command) = v1 {
            return Ok(Some(Self::v1(command, second)));
        }
        if !SIZES.contains(&second) {
            return Err(Malformed::Size(second));
        }
        let size = usize::try_from(second).unwrap_or(0);
        header.0.get(..size).map(Self::decode_v2).transpose()
    }

    fn decode_v2(body: &[u8]) -> Result<Self, Malformed> {
        let mut body = Bytes(body);
        let command = body.number().ok_or(Malformed::Cut)?;
        let mut request = Self {
            version: Version::V2,
            command: Command::from_number(command).ok_or(Malformed::Nested(command))?,
            pid: body.number().ok_or(Malformed::Cut)?,
            dir: None,
            compress: None,
        };
        while !body.0.is_empty() {
            match body.number().ok_or(Malformed::Cut)? {
                OPTION_DIR => request.dir = Some(body.text().ok_or(Malformed::Dir)?.to_vec()),
                OPTION_COMPRESS => {
                    let number = body.number().ok_or(Malformed::Cut)?;
                    let known = Compress::from_number(number);
                    request.compress = Some(known.ok_or(Malformed::Compress(number))?);
                }
                unknown => return Err(Malformed::Option(unknown)),
            }
        }
        Ok(request)
    }
}

/// How the old protocol answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// It did not work.
    General = -1,
    /// There is no such process; a checkpoint of one that is held or under way, a restore
    /// of one that is not.
    InvalidPid = -2,
}

impl Code {
    /// The bytes of the answer.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        (self as i32).to_ne_bytes()
    }

    /// The answer in these bytes.
    ///
    /// # Errors
    /// The number, when it is none of the three.
    pub fn from_bytes(bytes: [u8; 4]) -> Result<Self, i32> {
        let number = i32::from_ne_bytes(bytes);
        let mut all = [Self::Ok, Self::General, Self::InvalidPid].into_iter();
        all.find(|each| *each as i32 == number).ok_or(number)
    }
}

fn put(bytes: &mut Vec<u8>, number: i32) {
    bytes.extend_from_slice(&number.to_ne_bytes());
}

fn sayable(dir: &[u8]) -> Result<&[u8], Unsayable> {
    if dir.contains(&0) {
        return Err(Unsayable::Nul);
    }
    if dir.len() >= MAX_DIR_LEN {
        return Err(Unsayable::Dir {
            len_bytes: dir.len(),
        });
    }
    Ok(dir)
}

/// What is not read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn number(&mut self) -> Option<i32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i32::from_ne_bytes(*number))
    }

    /// Up to a NUL, which is read and left out.
    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().take(MAX_DIR_LEN).position(|b| *b == 0)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(text)
    }
}

#[cfg(test)]
mod tests;
