//! Mode `maps`: mappings of every kind, each one a part that proves itself.
//!
//! Options: `parts=NAME,NAME… size=8M seed=1 content=dense dir=DIR threads=0`.
//!
//! A part that this machine cannot make is announced as `skip NAME: reason` before
//! `ready`; the harness decides whether that is acceptable.

mod anon;
mod file;
mod shared;
mod special;

use crate::crew::{Crew, Work};
use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::regs::Level;
use crate::talk::{Victim, Wrong, say, serve};
use std::io;
use std::path::PathBuf;

/// What parts are made from.
pub(crate) struct Setup {
    pub(crate) rule: Rule,
    /// Bytes per part, roughly.
    pub(crate) len: usize,
    /// Where files may be made.
    pub(crate) dir: PathBuf,
}

/// Checks one part.
pub(crate) type Check = Box<dyn FnMut() -> Result<u64, Wrong>>;
type Make = fn(&Setup) -> io::Result<Check>;

const PARTS: &[(&str, Make)] = &[
    // These fork: first, while there are no threads.
    ("forkshared", shared::fork_shared),
    ("forkpartly", shared::fork_partly),
    ("anon", anon::plain),
    ("named", anon::named),
    ("prot_none", anon::prot_none),
    ("prot_read", anon::prot_read),
    ("jit", anon::jit),
    ("thp", anon::thp),
    ("thp_askew", anon::thp_askew),
    ("thp_holes", anon::thp_holes),
    ("paged_out", anon::paged_out),
    ("holes", anon::holes),
    ("many", anon::many),
    ("sixty_thousand", anon::sixty_thousand),
    ("dev_zero", anon::dev_zero),
    ("grows_down", anon::grows_down),
    ("reserve", anon::reserve),
    ("sparse", anon::sparse),
    ("brk", anon::brk),
    ("zero_read", anon::zero_read),
    ("dontdump", anon::dont_dump),
    ("wipeonfork", anon::wipe_on_fork),
    ("dontfork", anon::dont_fork),
    ("mergeable", anon::mergeable),
    ("locked", special::locked),
    ("onfault", special::locked_on_fault),
    ("guard", special::guard),
    ("sealed", special::sealed),
    ("droppable", special::droppable),
    ("secret", special::secret),
    ("hugetlb", special::hugetlb),
    ("uffd", special::own_userfaultfd),
    ("shared", shared::anon),
    ("memfd", shared::memfd),
    ("shm", shared::sysv),
    ("file_cow", file::cow),
    ("file_hidden", file::cow_hidden),
    ("file_clean", file::clean),
    ("file_shared", file::shared),
    ("file_deleted", file::deleted),
    ("memfd_cow", file::memfd_cow),
    ("odd_names", file::odd_names),
    // Locks what was made before.
    ("lockall", special::lock_all),
];

/// Runs the mode.
///
/// # Errors
/// When a part fails for a reason other than a lack of support.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let wanted = opts.text("parts", "anon");
    let setup = Setup {
        rule: Rule {
            content: Content::parse(&opts.text("content", "dense")),
            seed: opts.number("seed", 1),
        },
        len: opts.len("size", 8 << 20),
        dir: PathBuf::from(opts.text("dir", "/tmp")),
    };
    let n_threads = opts.len("threads", 0);
    opts.done();
    let parts = make(&wanted, &setup)?;
    let crew = Crew::start(
        n_threads,
        Work {
            level: Level::best(),
            n_spins: 20_000,
            nap_us: 1000,
        },
    )?;
    serve(&mut Maps { parts, crew });
    Ok(())
}

/// Makes the parts named in `wanted`, in the order of the table.
fn make(wanted: &str, setup: &Setup) -> io::Result<Vec<(&'static str, Check)>> {
    let wanted: Vec<&str> = wanted.split(',').collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|w| PARTS.iter().all(|(name, _)| name != *w))
    {
        return Err(io::Error::other(format!("unknown part `{unknown}`")));
    }
    let mut parts = Vec::new();
    for (name, make) in PARTS.iter().filter(|(name, _)| wanted.contains(name)) {
        match make(setup) {
            Ok(check) => parts.push((*name, check)),
            Err(err) if unsupported(&err) => say(&format!("skip {name}: {err}")),
            Err(err) => return Err(io::Error::other(format!("part {name}: {err}"))),
        }
    }
    Ok(parts)
}

/// Whether the kernel says "I do not have that" (ENOMEM: no huge page left).
fn unsupported(err: &io::Error) -> bool {
    let codes = [
        libc::EINVAL,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::EPERM,
        libc::ENOMEM,
        libc::ENOENT,
    ];
    err.raw_os_error().is_some_and(|code| codes.contains(&code))
}

struct Maps {
    parts: Vec<(&'static str, Check)>,
    crew: Crew,
}

impl Victim for Maps {
    fn verify(&mut self) -> Result<u64, Wrong> {
        let mut len_bytes = 0;
        for (name, check) in &mut self.parts {
            len_bytes += check().map_err(|w| Wrong {
                addr: w.addr,
                what: format!("part {name}: {}", w.what),
            })?;
        }
        self.crew.progress()?;
        Ok(len_bytes)
    }

    fn command(&mut self, word: &str, rest: &str) -> Option<String> {
        let (_, check) = self
            .parts
            .iter_mut()
            .find(|(name, _)| word == "part" && *name == rest)?;
        Some(crate::talk::verdict(check()))
    }
}

/// Turns an I/O error of a check into a finding.
pub(crate) fn failed(what: &str, err: &io::Error) -> Wrong {
    Wrong::state(format!("{what}: {err}"))
}
