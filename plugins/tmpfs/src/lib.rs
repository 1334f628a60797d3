//! The `tmpfs` stage of memcr: keeps an image in RAM, smaller than what it saves.
//!
//! ```text
//!   create      parameters
//!   open_new    plain memory? ─▶ refuse        a tmpfs? room in it? RAM for it (unless kept)?
//!   write_at    every 32 MiB: is there RAM left?
//!   commit      smaller than the memory it holds? else refuse
//!   remove      the file, and a tmpfs of ours that became empty
//! ```
//!
//! The file itself is that of `memcr-filestore`, as in the sink `file`.

mod mount;
#[cfg(test)]
mod tests;

use memcr_filestore::{Cache, Directory, ImageFile, Medium, Reserve, room};
use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::sink::{NewImage, Sink};
use memcr_plugin_api::stage::{
    ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads,
};
use memcr_plugin_api::{Host, ram};

use mount::{MountOptions, OwnMount};

memcr_plugin_api::register_stage!(sink: TmpfsSink);
memcr_plugin_api::conformance!(|suite| suite
    .param("allow_plain", "true")
    .dir_param("dir")
    .dir_under(SHARED_DIR));

/// A tmpfs on every Linux with a C library (shm_open needs it), and anybody may write
/// to it: it works for root and others alike.
const SHARED_DIR: &str = "/dev/shm";
/// Where root mounts its own: /run is gone after a reboot, as the image is.
const OWN_DIR: &str = "/run/memcr/tmpfs";
/// An image shorter than this is not worth a refusal, bytes: most of it is headers and
/// tables, and it may stand for any amount of zeros, which were never stored.
const SMALL_IMAGE: u64 = 1 << 20;

/// The sink.
#[derive(Debug)]
struct TmpfsSink {
    place: Place,
    allow_plain: bool,
    host: Host,
    reserve: Reserve,
    /// A commit is to come before the image is complete.
    keeps: bool,
    // In this order: an open image keeps its tmpfs busy.
    image: Option<ImageFile>,
    own: Option<OwnMount>,
}

/// Where images go.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Into a directory of a tmpfs that is there.
    There(String),
    /// Into a tmpfs of ours at this path.
    Own(String, MountOptions),
    /// Nobody has said so: into one of ours if it has huge pages of any length and everybody else
    /// finds it; else into the one that is there for everybody.
    Best,
}

impl Sink for TmpfsSink {
    const INFO: StageInfo = StageInfo {
        name: "tmpfs",
        version: env!("CARGO_PKG_VERSION"),
        summary: "keeps the image in RAM, as a file of a tmpfs; wants compression before it",
        threads: Threads::Parallel,
        capabilities: capability::WRITE_ANYWHERE
            | capability::READ_BEFORE_COMMIT
            | capability::IN_MEMORY
            | capability::KEEPS_UNFINISHED,
        params: PARAMS,
    };

    fn create(params: &Params, host: Host) -> Result<Self> {
        Ok(Self {
            place: place(params)?,
            allow_plain: params.parse("allow_plain")?.unwrap_or(false),
            host,
            reserve: Reserve::default(),
            keeps: false,
            image: None,
            own: None,
        })
    }

    fn open_new(&mut self, image: &NewImage) -> Result<()> {
        if !image.compressed && !self.allow_plain {
            let message =
                "tmpfs would take as much memory as it saves: nothing before it compresses";
            return Err(StageError::new(code::INVALID_CONFIG, message)
                .hint("put lz4 or zstd before it, or set tmpfs.allow_plain=true"));
        }
        let dir = self.open_dir()?;
        check_tmpfs(&dir)?;
        if let Some(free_len) = dir.free_len()? {
            room::check(dir.path(), free_len, image, self.host)?;
        }
        // One to keep takes the place of memory that is given back meanwhile, if it is smaller.
        if image.keep && image.compressed {
            self.warn_of_the_way_back(image);
        } else {
            self.reserve.check(image, self.host)?;
        }
        self.keeps = image.keep;
        // Nothing to drop from the page cache: on a tmpfs it is the file.
        self.image = Some(ImageFile::create(dir, image, Cache::Keep)?);
        Ok(())
    }

    fn open_existing(&mut self, locator: &str) -> Result<()> {
        let image = ImageFile::open(locator, Cache::Keep)?;
        if mount::is_ours(image.dir())? {
            self.own = Some(OwnMount::adopt(image.dir(), self.host));
        }
        self.image = Some(image);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let image = self.image()?;
        self.reserve.write(data.len())?;
        image.write_at(offset, data)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.image()?.read_at(offset, out)
    }

    fn len(&self) -> Result<u64> {
        self.image()?.len_bytes()
    }

    fn commit(&mut self, len: u64, raw_len: u64) -> Result<()> {
        if std::mem::take(&mut self.keeps) {
            return self.image.as_mut().ok_or_else(not_open)?.keep();
        }
        if len >= raw_len && len > SMALL_IMAGE && !self.allow_plain {
            let message = format!(
                "the image takes {len} bytes of RAM to save {raw_len}: this memory does not compress"
            );
            return Err(StageError::new(code::NO_SPACE, message)
                .hint("keep it with the sink file, or set tmpfs.allow_plain=true"));
        }
        // Not durable: nothing on a tmpfs is.
        self.image.as_mut().ok_or_else(not_open)?.commit(len, false)
    }

    fn locator(&self) -> Result<String> {
        Ok(self.image()?.path())
    }

    fn remove(&mut self) -> Result<()> {
        self.image.take().map_or(Ok(()), ImageFile::remove)?;
        self.own.take().map_or(Ok(()), OwnMount::release)
    }
}

const PARAMS: &[ParamSpec] = &[
    ParamSpec {
        name: "dir",
        kind: ParamKind::Path,
        default: None,
        required: false,
        recorded: false,
        help: "directory of the image, on a tmpfs; default /run/memcr/tmpfs with mount, else /dev/shm",
    },
    ParamSpec {
        name: "allow_plain",
        kind: ParamKind::Bool,
        default: Some("false"),
        required: false,
        recorded: false,
        help: "keep an image that is not compressed, or not smaller than the memory it holds",
    },
    ParamSpec {
        name: "mount",
        kind: ParamKind::Bool,
        default: None,
        required: false,
        recorded: false,
        help: "mount a tmpfs of mode 0700 at dir if none of ours is there, unmount it after the last image; needs root; default true where dir is not set, everybody sees what we mount, and the kernel has huge pages by length (6.14)",
    },
    ParamSpec {
        name: "size",
        kind: ParamKind::Size {
            min: 1 << 20,
            max: i64::MAX,
        },
        default: None,
        required: false,
        recorded: false,
        help: "with mount: most that all its images may take together; default half of the RAM",
    },
    ParamSpec {
        name: "huge",
        kind: ParamKind::Choice(&["never", "within_size", "always", "advise"]),
        default: None,
        required: false,
        recorded: false,
        help: "with mount: when to use huge pages; default within_size since Linux 6.14, before always",
    },
];

impl TmpfsSink {
    /// The directory of a new image.
    fn open_dir(&mut self) -> Result<Directory> {
        match &self.place {
            Place::There(dir) => return Directory::open(dir),
            Place::Own(dir, options) => {
                let (own, dir) = OwnMount::ensure(dir, options, self.host)?;
                // Kept from here on: if opening the image fails, dropping the sink unmounts.
                self.own = Some(own);
                return Ok(dir);
            }
            Place::Best => {}
        }
        if mount::is_seen_by_all() && mount::huge_by_length() {
            match OwnMount::ensure(OWN_DIR, &MountOptions::default(), self.host) {
                Ok((own, dir)) => {
                    self.own = Some(own);
                    return Ok(dir);
                }
                Err(error) => self.host.debug(format_args!("{error}: {SHARED_DIR} it is")),
            }
        }
        Directory::open(SHARED_DIR)
    }

    /// A target comes back while its image is still there. Where there is no room for both it
    /// stays held, until somebody makes some.
    fn warn_of_the_way_back(&self, image: &NewImage) {
        // Who has no pid that fits has none of this machine.
        let pid = u32::try_from(image.pid).unwrap_or_default();
        let free_len = ram::available_beside(pid);
        if room::usual_len(image) > free_len {
            self.host.warn(format_args!(
                "{} of RAM are free beside the target: if the image of its {} takes more, it can only be restored when there is room for both",
                room::mib(free_len),
                room::mib(image.expected_len)
            ));
        }
    }

    fn image(&self) -> Result<&ImageFile> {
        self.image.as_ref().ok_or_else(not_open)
    }
}

fn place(params: &Params) -> Result<Place> {
    let dir = params.get("dir").map(str::to_owned);
    let options = MountOptions {
        size: params.parse("size")?,
        huge: params.get("huge").map(str::to_owned),
    };
    let mounts = params.parse("mount")?;
    if mounts == Some(true) {
        return Ok(Place::Own(dir.unwrap_or(OWN_DIR.into()), options));
    }
    // Without a mount they would mean nothing.
    for (name, given) in [
        ("size", options.size.is_some()),
        ("huge", options.huge.is_some()),
    ] {
        if given {
            let message =
                format!("parameter `{name}` of tmpfs is for a tmpfs that it mounts itself");
            return Err(StageError::new(code::INVALID_CONFIG, message)
                .hint("set tmpfs.mount=true, or leave it out"));
        }
    }
    Ok(match (dir, mounts) {
        (Some(dir), _) => Place::There(dir),
        (None, Some(_)) => Place::There(SHARED_DIR.into()),
        (None, None) => Place::Best,
    })
}

fn check_tmpfs(dir: &Directory) -> Result<()> {
    let what = match dir.medium()? {
        Medium::Tmpfs => return Ok(()),
        Medium::Ramfs => "is a ramfs, which has no limit and would take all of the RAM".to_owned(),
        Medium::Other(other) => format!("is not on a tmpfs (its file system is {other:#x})"),
    };
    Err(
        StageError::new(code::INVALID_CONFIG, format!("{} {what}", dir.path()))
            .hint("set `dir` to a tmpfs, set tmpfs.mount=true, or use the sink file"),
    )
}

fn not_open() -> StageError {
    StageError::new(code::INTERNAL, "no image is open in the sink tmpfs")
}
