//! Where the bytes of an image come from and go to. A sink plugin is both; a file and a
//! vector do for images that are only read, and for tests.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memcr_plugin_api::stage::StageError;

/// Takes the bytes of an image. Called from several threads at once.
pub trait WriteImage: Send + Sync {
    /// Stores all of `data` at `offset` bytes.
    ///
    /// # Errors
    /// When any byte was not stored.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StageError>;
}

/// Gives the bytes of an image. Called from several threads at once.
pub trait ReadImage: Send + Sync {
    /// Reads into `out` from `offset` bytes; less than `out.len()` only at the end.
    ///
    /// # Errors
    /// When the bytes cannot be had.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, StageError>;

    /// Length of the image, bytes.
    ///
    /// # Errors
    /// When it cannot be told.
    fn len(&self) -> Result<u64, StageError>;

    /// There is no byte.
    ///
    /// # Errors
    /// As [`ReadImage::len`].
    fn is_empty(&self) -> Result<bool, StageError> {
        self.len().map(|len| len == 0)
    }
}

/// An image file, opened without any plugin.
#[derive(Debug)]
pub struct FileImage {
    file: File,
}

impl FileImage {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it cannot be opened; the message names it.
    pub fn open(path: &Path) -> Result<Self, StageError> {
        let failed =
            |e: std::io::Error| StageError::io(format_args!("cannot open {}", path.display()), &e);
        // Without waiting: a FIFO that nobody writes would block the open for ever.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        // A directory opens but does not read, a FIFO has no places.
        if !file.metadata().map_err(failed)?.is_file() {
            let message = format!("{} is not a regular file", path.display());
            return Err(StageError::new(
                memcr_plugin_api::abi::code::INVALID_CONFIG,
                message,
            ));
        }
        Ok(Self { file })
    }
}

impl ReadImage for FileImage {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, StageError> {
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(StageError::io("read failed", &e)),
            }
        }
        Ok(done)
    }

    fn len(&self) -> Result<u64, StageError> {
        self.file
            .metadata()
            .map(|meta| meta.len())
            .map_err(|e| StageError::io("stat failed", &e))
    }
}

impl ReadImage for Vec<u8> {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, StageError> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.get(from..).unwrap_or_default();
        let n = there.len().min(out.len());
        out[..n].copy_from_slice(&there[..n]);
        Ok(n)
    }

    fn len(&self) -> Result<u64, StageError> {
        Ok(self.as_slice().len() as u64)
    }
}
