//! Sick sinks: images in files of a directory, with one fault at a time.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::super::{Conformance, Loaded};
use super::quietly;
use crate::Host;
use crate::abi::{capability, code};
use crate::sink::{NewImage, Sink};
use crate::stage::{ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads};

const HEALTHY: u32 = 0;
const KEEPS_WITHOUT_COMMIT: u32 = 1;
const REMOVES_NOTHING: u32 = 2;
const LEAVES_A_NOTE: u32 = 3;
const FORGETS_AT_DESTROY: u32 = 4;
const READS_SHORT: u32 = 5;
const LOSES_AN_ODD_WRITE: u32 = 6;
const WRONG_LEN: u32 = 7;
const CALLS_MISSING_IO: u32 = 8;
const FINDS_ANYTHING: u32 = 9;
const FAILS_BEYOND_THE_END: u32 = 10;
const HAS_ONE_NAME: u32 = 11;

struct Sick<const FAULT: u32> {
    dir: PathBuf,
    open: Option<(PathBuf, File)>,
    committed: bool,
    n_writes: AtomicU64,
}

impl<const FAULT: u32> Sink for Sick<FAULT> {
    const INFO: StageInfo = StageInfo {
        name: "sick_sink",
        version: "1",
        summary: "has one fault",
        threads: Threads::Parallel,
        capabilities: capability::WRITE_ANYWHERE | capability::READ_BEFORE_COMMIT,
        params: &[ParamSpec {
            name: "dir",
            kind: ParamKind::Path,
            default: None,
            required: true,
            recorded: false,
            help: "where images are kept",
        }],
    };

    fn create(params: &Params, _: Host) -> Result<Self> {
        let dir = params.get("dir").unwrap_or_default().into();
        let n_writes = AtomicU64::new(0);
        Ok(Self {
            dir,
            open: None,
            committed: false,
            n_writes,
        })
    }

    fn open_new(&mut self, image: &NewImage) -> Result<()> {
        let name = match FAULT {
            HAS_ONE_NAME => "image".to_owned(),
            _ => format!("image-{}", image.id[0]),
        };
        let path = self.dir.join(name);
        let mut options = File::options();
        options.read(true).write(true);
        let file = match FAULT {
            HAS_ONE_NAME => options.create(true).truncate(true).open(&path),
            _ => options.create_new(true).open(&path),
        };
        let file = file.map_err(|error| StageError::io("cannot make the image", &error))?;
        if FAULT == LEAVES_A_NOTE {
            fs::write(self.dir.join("note"), "seen").unwrap();
        }
        self.open = Some((path, file));
        Ok(())
    }

    fn open_existing(&mut self, locator: &str) -> Result<()> {
        let path = PathBuf::from(locator);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(_) if FAULT == FINDS_ANYTHING => File::open("/dev/null").unwrap(),
            Err(error) if error.kind() == ErrorKind::NotFound && FAULT != CALLS_MISSING_IO => {
                return Err(StageError::new(
                    code::NOT_FOUND,
                    format!("there is no image {locator}"),
                ));
            }
            Err(error) => return Err(StageError::new(code::IO, error.to_string())),
        };
        (self.open, self.committed) = (Some((path, file)), true);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if FAULT == LOSES_AN_ODD_WRITE && self.n_writes.fetch_add(1, Relaxed) == 3 {
            return Ok(());
        }
        let done = self.file()?.write_all_at(data, offset);
        done.map_err(|error| StageError::io("cannot write the image", &error))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let len = self.len()?;
        if FAULT == FAILS_BEYOND_THE_END && offset > len {
            return Err(StageError::new(
                code::IO,
                format!("{offset} is beyond {len} bytes"),
            ));
        }
        let there = usize::try_from(len.saturating_sub(offset)).unwrap();
        let mut wanted = out.len().min(there);
        if FAULT == READS_SHORT {
            wanted = wanted.min(65_536);
        }
        let done = self.file()?.read_exact_at(&mut out[..wanted], offset);
        done.map_err(|error| StageError::io("cannot read the image", &error))?;
        Ok(wanted)
    }

    fn len(&self) -> Result<u64> {
        let meta = self.file()?.metadata();
        let len = meta
            .map_err(|error| StageError::io("cannot stat the image", &error))?
            .len();
        Ok(if FAULT == WRONG_LEN {
            len.next_multiple_of(4096)
        } else {
            len
        })
    }

    fn commit(&mut self, _: u64, _: u64) -> Result<()> {
        self.committed = FAULT != FORGETS_AT_DESTROY;
        Ok(())
    }

    fn locator(&self) -> Result<String> {
        self.file()?;
        let path = self
            .open
            .as_ref()
            .map(|(path, _)| path.display().to_string());
        Ok(path.unwrap_or_default())
    }

    fn remove(&mut self) -> Result<()> {
        if FAULT != REMOVES_NOTHING
            && let Some((path, _)) = self.open.take()
        {
            fs::remove_file(path).unwrap();
        }
        Ok(())
    }
}

impl<const FAULT: u32> Sick<FAULT> {
    fn file(&self) -> Result<&File> {
        let open = self.open.as_ref().map(|(_, file)| file);
        open.ok_or_else(|| StageError::new(code::INTERNAL, "no image is open"))
    }
}

impl<const FAULT: u32> Drop for Sick<FAULT> {
    fn drop(&mut self) {
        if let (Some((path, _)), false) = (&self.open, self.committed)
            && !matches!(FAULT, KEEPS_WITHOUT_COMMIT | REMOVES_NOTHING)
        {
            fs::remove_file(path).unwrap();
        }
    }
}

fn suite<const FAULT: u32>() -> Conformance {
    Conformance::new(Loaded::of(|cell| cell.sink::<Sick<FAULT>>())).dir_param("dir")
}

#[test]
fn nothing_is_wrong_with_a_healthy_sink() {
    suite::<HEALTHY>().run();
}

macro_rules! finds {
    ($($name:ident: $fault:ident, $words:literal;)*) => {$(
        #[test]
        fn $name() {
            let problems = quietly(|| suite::<$fault>().problems());
            assert!(problems.iter().any(|problem| problem.contains($words)), "{problems:#?}");
        }
    )*};
}

finds! {
    an_image_that_stays_without_commit: KEEPS_WITHOUT_COMMIT, "still there after destroy without commit";
    an_image_that_stays_when_removed: REMOVES_NOTHING, "still there after sink_remove";
    a_file_beside_the_image: LEAVES_A_NOTE, "note behind";
    an_image_that_goes_though_committed: FORGETS_AT_DESTROY, "sink_open by locator failed with code -11";
    a_read_that_stops_early: READS_SHORT, "65536 bytes came";
    a_write_that_is_lost: LOSES_AN_ODD_WRITE, "before commit at 0";
    a_wrong_length: WRONG_LEN, "sink_len before commit is";
    a_missing_image_by_another_name: CALLS_MISSING_IO, "answers -3, not NOT_FOUND";
    an_image_that_nobody_wrote: FINDS_ANYTHING, "found an image by the locator";
    an_image_that_takes_the_place_of_another: HAS_ONE_NAME, "takes the place of another one";
    an_error_beyond_the_end: FAILS_BEYOND_THE_END, "is beyond";
}
