//! The safe traits of transforms and checksums, and what every stage has in common.

use std::fmt;

use crate::abi;

/// Whether `name` is one that a stage or a parameter may have: `[a-z0-9_]+`, at most
/// [`abi::MAX_NAME_LEN`] bytes. Names travel in file names, configuration keys and `a,b` lists.
#[must_use]
pub const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !matches!(bytes[i], b'a'..=b'z' | b'0'..=b'9' | b'_') {
            return false;
        }
        i += 1;
    }
    0 < i && i <= abi::MAX_NAME_LEN
}

/// A failure of a stage: what failed, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageError {
    /// One of [`abi::code`], negative.
    pub code: i32,
    /// What failed, to what, with its numbers; lower case, no full stop.
    pub message: String,
    /// What the user can do, or empty.
    pub hint: String,
    /// `errno` behind the failure, or 0.
    pub sys_errno: i32,
}

/// What a stage answers.
pub type Result<T> = std::result::Result<T, StageError>;

impl StageError {
    /// A failure with a code of [`abi::code`] and a message.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
            sys_errno: 0,
        }
    }

    /// A failure of an operation on a file: code [`abi::code::IO`], or
    /// [`abi::code::NO_SPACE`], [`abi::code::PERMISSION`], [`abi::code::NOT_FOUND`]
    /// where `errno` says so; the message ends with the system's text.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        // ENOSPC, EDQUOT and EFBIG have std kinds of their own since Rust 1.83.
        let code = match error.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => abi::code::NO_SPACE,
            std::io::ErrorKind::PermissionDenied => abi::code::PERMISSION,
            std::io::ErrorKind::NotFound => abi::code::NOT_FOUND,
            _ => abi::code::IO,
        };
        Self {
            code,
            message: format!("{what}: {error}"),
            hint: String::new(),
            sys_errno: error.raw_os_error().unwrap_or(0),
        }
    }

    /// The same failure with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StageError {}

/// What the host may do with a stage at the same time; see [`abi::threads`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Threads {
    /// One call into the plugin at a time.
    Serial = abi::threads::SERIAL,
    /// One call at a time on one handle.
    PerHandle = abi::threads::PER_HANDLE,
    /// Any calls at once, each thread with a worker of its own.
    Parallel = abi::threads::PARALLEL,
}

/// The kind and limits of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Any text.
    String,
    /// A name under which something is found, a key for one: any text. Like a path it says
    /// where, not how, and may be another one when an image is read.
    Name,
    /// An integer within limits, both included.
    Integer {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// A length in bytes within limits, both included.
    Size {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path.
    Path,
    /// A number of an open descriptor.
    Fd,
}

/// A parameter that a stage understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamSpec {
    /// Key in `pipeline.toml` and `--set`.
    pub name: &'static str,
    /// Kind and limits.
    pub kind: ParamKind,
    /// Value when the user gives none.
    pub default: Option<&'static str>,
    /// The user must give a value.
    pub required: bool,
    /// Needed to read an image back: the value is stored in the image. Never a secret.
    pub recorded: bool,
    /// One line for `--stage-help`.
    pub help: &'static str,
}

impl ParamSpec {
    /// Checks a value against kind and limits.
    ///
    /// # Errors
    /// [`abi::code::INVALID_CONFIG`] naming key, value and what is allowed.
    pub fn check(&self, value: &str) -> Result<()> {
        let wrong = |allowed: String| {
            let message = format!(
                "parameter `{}` has the value `{value}`, allowed is {allowed}",
                self.name
            );
            Err(StageError::new(abi::code::INVALID_CONFIG, message))
        };
        let within =
            |min: i64, max: i64| value.parse().is_ok_and(|n: i64| (min..=max).contains(&n));
        match self.kind {
            ParamKind::Integer { min, max } if !within(min, max) => {
                wrong(format!("an integer in {min}..={max}"))
            }
            ParamKind::Size { min, max } if !within(min, max) => {
                wrong(format!("a number of bytes in {min}..={max}"))
            }
            ParamKind::Bool if !matches!(value, "true" | "false") => wrong("true or false".into()),
            ParamKind::Choice(words) if !words.contains(&value) => {
                wrong(format!("one of {}", words.join(", ")))
            }
            ParamKind::Fd if !within(0, i64::from(i32::MAX)) => {
                wrong("the number of an open descriptor".into())
            }
            ParamKind::Path if value.is_empty() => wrong("a path".into()),
            _ => Ok(()),
        }
    }
}

/// What a stage says of itself.
#[derive(Debug, Clone, Copy)]
pub struct StageInfo {
    /// Name, `[a-z0-9_]+`, at most 32 bytes.
    pub name: &'static str,
    /// The plugin's own version, usually `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// One line for `--stages`.
    pub summary: &'static str,
    /// Thread model.
    pub threads: Threads,
    /// Or-ed bits of [`abi::capability`].
    pub capabilities: u64,
    /// Parameters.
    pub params: &'static [ParamSpec],
}

/// The parameters of one stage, checked by the host: every one that has a value or a default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    pairs: Vec<(String, String)>,
}

impl Params {
    /// Parameters from pairs of key and value; used by the host side and by tests.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self {
            pairs: pairs
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        }
    }

    /// Checks every pair against `specs`: the host has done so too, but a stage that is
    /// called by something else must not meet values it cannot handle.
    ///
    /// # Errors
    /// [`abi::code::INVALID_CONFIG`] naming the key that is unknown, missing or has a
    /// value out of its limits.
    pub fn check(&self, specs: &[ParamSpec]) -> Result<()> {
        for (key, value) in &self.pairs {
            let Some(spec) = specs.iter().find(|spec| spec.name == key) else {
                let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
                let known = if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                };
                return Err(StageError::new(
                    abi::code::INVALID_CONFIG,
                    format!("unknown parameter `{key}`"),
                )
                .hint(format!("known parameters: {known}")));
            };
            spec.check(value)?;
        }
        match specs
            .iter()
            .find(|spec| spec.required && self.get(spec.name).is_none())
        {
            None => Ok(()),
            Some(spec) => {
                let message = format!("parameter `{}` is missing: {}", spec.name, spec.help);
                Err(StageError::new(abi::code::INVALID_CONFIG, message))
            }
        }
    }

    /// The value of `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// The value of `name`, parsed; `Ok(None)` if there is none.
    ///
    /// # Errors
    /// [`abi::code::INVALID_CONFIG`] naming key and value.
    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                StageError::new(
                    abi::code::INVALID_CONFIG,
                    format!("parameter `{name}` has the unusable value `{text}`"),
                )
            }),
        }
    }
}

/// The image that is about to be encoded or decoded; see [`abi::ImageInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Page size of the target, bytes.
    pub page_size: u32,
    /// Random, unique per image.
    pub id: [u8; 16],
    /// Longest frame that enters the first stage, bytes.
    pub max_chunk_len: u64,
    /// Length of all chunks before the first stage, bytes.
    pub expected_len: u64,
}

/// The chunk that a frame belongs to; see [`abi::ChunkInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Position in the image, dense from 0.
    pub index: u64,
    /// No chunk follows this one.
    pub last: bool,
    /// Address of its first page in the target.
    pub address: u64,
    /// Length before the first stage, bytes.
    pub raw_len: u64,
    /// Data to authenticate beside the frame.
    pub aad: &'a [u8],
}

/// What `encode` of a transform did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// So many bytes of `out` were written.
    Len(usize),
    /// The output would not be smaller; only for stages that declare
    /// [`abi::capability::COMPRESSES`].
    Pass,
}

/// A stage that changes the bytes of frames: compression, encryption.
pub trait Transform: Sized + Send + Sync + 'static {
    /// Scratch memory of one thread; `()` if none is needed.
    type Worker: Send + 'static;
    /// What the stage says of itself.
    const INFO: StageInfo;

    /// Makes a stage from checked parameters. Log with [`crate::Host`].
    ///
    /// # Errors
    /// Anything that would make the stage unusable later: it must fail here, while
    /// the target still runs.
    fn create(params: &Params, host: crate::Host) -> Result<Self>;
    /// Makes the scratch memory of one thread, allocated and touched.
    ///
    /// # Errors
    /// When it cannot be had.
    fn worker(&self) -> Result<Self::Worker>;
    /// Starts an image; the answer is stored in it for `begin_decode` (no secrets).
    ///
    /// # Errors
    /// When the stage cannot encode.
    fn begin_encode(&self, _image: &Image) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// Starts reading an image; may be called again, and after `finish_encode`.
    ///
    /// # Errors
    /// When `state` is not of this stage or its key is missing or wrong.
    fn begin_decode(&self, _image: &Image, _state: &[u8]) -> Result<()> {
        Ok(())
    }
    /// Largest output of `encode` for `in_len` bytes.
    fn bound(&self, in_len: usize) -> usize;
    /// `input` (may be empty) to `out`.
    ///
    /// # Errors
    /// When the frame cannot be encoded.
    fn encode(
        &self,
        worker: &mut Self::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded>;
    /// `input` back to what `encode` was given; answers the length written to `out`.
    ///
    /// # Errors
    /// [`abi::code::CORRUPT`] when the bytes are provably not those that were encoded.
    fn decode(
        &self,
        worker: &mut Self::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize>;
    /// All chunks were encoded; the answer is stored in the image for `finish_decode`.
    ///
    /// # Errors
    /// When the image cannot be finished.
    fn finish_encode(&self, _n_chunks: u64) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// All chunks were decoded.
    ///
    /// # Errors
    /// [`abi::code::CORRUPT`] when the trailer does not fit the chunks.
    fn finish_decode(&self, _n_chunks: u64, _trailer: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A stage that leaves the bytes and appends a tag of fixed length to each frame.
pub trait Checksum: Sized + Send + Sync + 'static {
    /// Scratch memory of one thread; `()` if none is needed.
    type Worker: Send + 'static;
    /// What the stage says of itself.
    const INFO: StageInfo;

    /// See [`Transform::create`].
    ///
    /// # Errors
    /// When the stage would be unusable later.
    fn create(params: &Params, host: crate::Host) -> Result<Self>;
    /// See [`Transform::worker`].
    ///
    /// # Errors
    /// When it cannot be had.
    fn worker(&self) -> Result<Self::Worker>;
    /// See [`Transform::begin_encode`].
    ///
    /// # Errors
    /// When the stage cannot encode.
    fn begin_encode(&self, _image: &Image) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// See [`Transform::begin_decode`].
    ///
    /// # Errors
    /// When `state` is not of this stage.
    fn begin_decode(&self, _image: &Image, _state: &[u8]) -> Result<()> {
        Ok(())
    }
    /// Length of the tag, bytes, at most [`abi::MAX_TAG_LEN`].
    fn tag_len(&self) -> usize;
    /// Writes the tag of `input` (may be empty) to `tag`, exactly `tag_len` long.
    ///
    /// # Errors
    /// When it cannot be computed.
    fn tag(
        &self,
        worker: &mut Self::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &mut [u8],
    ) -> Result<()>;
    /// Checks `tag` against `input`.
    ///
    /// # Errors
    /// [`abi::code::CORRUPT`] when they do not fit.
    fn check(
        &self,
        worker: &mut Self::Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &[u8],
    ) -> Result<()>;
    /// See [`Transform::finish_encode`].
    ///
    /// # Errors
    /// When the image cannot be finished.
    fn finish_encode(&self, _n_chunks: u64) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// See [`Transform::finish_decode`].
    ///
    /// # Errors
    /// [`abi::code::CORRUPT`] when the trailer does not fit the chunks.
    fn finish_decode(&self, _n_chunks: u64, _trailer: &[u8]) -> Result<()> {
        Ok(())
    }
}
