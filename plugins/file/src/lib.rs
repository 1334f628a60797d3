//! The `file` stage of memcr: keeps an image as `pages-PID.img` in a directory.
//!
//! Everything about the file itself is in `memcr-filestore`, which the sink `tmpfs`
//! shares; here are the parameters and what they mean.

#[cfg(test)]
mod tests;

use memcr_filestore::{Cache, Directory, ImageFile, Reserve, room};
use memcr_plugin_api::Host;
use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::sink::{NewImage, Sink};
use memcr_plugin_api::stage::{
    ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads,
};

memcr_plugin_api::register_stage!(sink: FileSink);
memcr_plugin_api::conformance!(|suite| suite.dir_param("dir"));

/// The directory that the C memcr uses, and that exists everywhere.
const DEFAULT_DIR: &str = "/tmp";

/// The sink.
#[derive(Debug)]
struct FileSink {
    dir: String,
    durable: bool,
    cache: Cache,
    host: Host,
    /// For an image that takes RAM, because `dir` does: `/tmp` is a tmpfs on many a machine.
    reserve: Option<Reserve>,
    image: Option<ImageFile>,
}

impl Sink for FileSink {
    const INFO: StageInfo = StageInfo {
        name: "file",
        version: env!("CARGO_PKG_VERSION"),
        summary: "keeps the image as DIR/pages-PID.img",
        threads: Threads::Parallel,
        capabilities: capability::WRITE_ANYWHERE | capability::READ_BEFORE_COMMIT,
        params: &[
            ParamSpec {
                name: "dir",
                kind: ParamKind::Path,
                default: Some(DEFAULT_DIR),
                required: false,
                recorded: false,
                help: "directory of the image",
            },
            ParamSpec {
                name: "sync",
                kind: ParamKind::Bool,
                // A target does not survive a loss of power, so its image need not.
                default: Some("false"),
                required: false,
                recorded: false,
                help: "the image survives a loss of power; costs time at the end of a checkpoint",
            },
            ParamSpec {
                name: "cache",
                kind: ParamKind::Choice(&["drop", "keep"]),
                // Memory that comes back as page cache was not saved.
                default: Some("drop"),
                required: false,
                recorded: false,
                help: "drop gives the page cache of the image back; keep leaves it there, for a restore soon after",
            },
        ],
    };

    fn create(params: &Params, host: Host) -> Result<Self> {
        let cache = match params.get("cache") {
            Some("keep") => Cache::Keep,
            _ => Cache::Drop,
        };
        Ok(Self {
            dir: params.get("dir").unwrap_or(DEFAULT_DIR).to_owned(),
            durable: params.parse("sync")?.unwrap_or(false),
            cache,
            host,
            reserve: None,
            image: None,
        })
    }

    fn open_new(&mut self, image: &NewImage) -> Result<()> {
        let dir = Directory::open(&self.dir)?;
        if let Some(free_len) = dir.free_len()? {
            room::check(dir.path(), free_len, image, self.host)?;
        }
        self.reserve = dir.medium()?.is_ram().then(Reserve::default);
        if let Some(reserve) = &self.reserve {
            reserve.check(image, self.host)?;
        }
        self.image = Some(ImageFile::create(dir, image, self.cache)?);
        Ok(())
    }

    fn open_existing(&mut self, locator: &str) -> Result<()> {
        self.image = Some(ImageFile::open(locator, self.cache)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let image = self.image()?;
        self.reserve
            .as_ref()
            .map_or(Ok(()), |reserve| reserve.write(data.len()))?;
        image.write_at(offset, data)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.image()?.read_at(offset, out)
    }

    fn len(&self) -> Result<u64> {
        self.image()?.len_bytes()
    }

    fn commit(&mut self, len: u64, _raw_len: u64) -> Result<()> {
        self.image
            .as_mut()
            .ok_or_else(not_open)?
            .commit(len, self.durable)
    }

    fn locator(&self) -> Result<String> {
        Ok(self.image()?.path())
    }

    fn remove(&mut self) -> Result<()> {
        // Gone is gone: the host may ask twice.
        self.image.take().map_or(Ok(()), ImageFile::remove)
    }
}

impl FileSink {
    fn image(&self) -> Result<&ImageFile> {
        self.image.as_ref().ok_or_else(not_open)
    }
}

fn not_open() -> StageError {
    StageError::new(code::INTERNAL, "no image is open in the sink file")
}
