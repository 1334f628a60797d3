//! Parts of file mappings.
//!
//! The file is filled by the rule keyed by offset, pages written through the mapping by
//! another seed keyed by address: a clean page and a copied one can be told apart.

use super::{Check, Setup};
use crate::fill::Rule;
use crate::region::Region;
use crate::sys::page_len;
use crate::talk::Wrong;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const READ: i32 = libc::PROT_READ;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Every third page is written.
const STEP: usize = 3;

/// A private mapping of a file with some pages copied on write.
#[derive(Clone, Copy)]
struct Cow {
    region: Region,
    clean: Rule,
    dirty: Rule,
}

impl Cow {
    fn make(setup: &Setup, file: &File) -> io::Result<Self> {
        let region = Region::map(
            setup.len,
            READ_WRITE,
            libc::MAP_PRIVATE,
            Some((file.as_fd(), 0)),
        )?;
        let dirty = Rule {
            seed: setup.rule.seed + 2000,
            ..setup.rule
        };
        region.every(1, STEP).for_each(|mut page| page.fill(dirty));
        Ok(Self {
            region,
            clean: setup.rule,
            dirty,
        })
    }

    fn check(&self) -> Result<u64, Wrong> {
        let mut scratch = vec![0; page_len()];
        let mut len_bytes = 0;
        for (i, page) in self.region.every(0, 1).enumerate() {
            let offset = (page.addr() - self.region.addr()) as u64;
            let (rule, key) = if i % STEP == 1 {
                (self.dirty, page.addr() as u64)
            } else {
                (self.clean, offset)
            };
            len_bytes += rule.check_with(key, page.addr(), page.bytes(), &mut scratch)?;
        }
        Ok(len_bytes)
    }
}

/// A new file under `dir`, filled by the rule keyed by offset.
fn make_file(setup: &Setup, name: &str) -> io::Result<(File, PathBuf)> {
    let path = setup.dir.join(format!("{name}-{}", std::process::id()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let mut bytes = vec![0; setup.len];
    setup.rule.fill(0, &mut bytes);
    file.write_all(&bytes)?;
    Ok((file, path))
}

pub(super) fn cow(setup: &Setup) -> io::Result<Check> {
    let part = Cow::make(setup, &make_file(setup, "cow")?.0)?;
    Ok(Box::new(move || part.check()))
}

/// Copied pages that may not be read at the moment.
pub(super) fn cow_hidden(setup: &Setup) -> io::Result<Check> {
    let part = Cow::make(setup, &make_file(setup, "hidden")?.0)?;
    part.region.protect(libc::PROT_NONE)?;
    Ok(Box::new(move || {
        part.region
            .protect(READ)
            .map_err(|err| super::failed("mprotect", &err))?;
        let outcome = part.check();
        part.region
            .protect(libc::PROT_NONE)
            .map_err(|err| super::failed("mprotect", &err))?;
        outcome
    }))
}

/// Pages that were only read: what `-f` drops.
pub(super) fn clean(setup: &Setup) -> io::Result<Check> {
    let file = make_file(setup, "clean")?.0;
    let region = Region::map(setup.len, READ, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))?;
    let rule = setup.rule;
    let check = move || rule.check(0, region.addr(), region.bytes());
    check().map_err(|wrong| io::Error::other(wrong.to_string()))?;
    Ok(Box::new(check))
}

/// A shared file mapping: its pages are the file's.
pub(super) fn shared(setup: &Setup) -> io::Result<Check> {
    let (file, path) = make_file(setup, "shared")?;
    let mut region = Region::map(
        setup.len,
        READ_WRITE,
        libc::MAP_SHARED,
        Some((file.as_fd(), 0)),
    )?;
    region.fill(setup.rule);
    let rule = setup.rule;
    Ok(Box::new(move || {
        let stored =
            std::fs::read(&path).map_err(|err| super::failed("read the shared file", &err))?;
        rule.check(region.addr() as u64, 0, &stored)?;
        region.check(rule)
    }))
}

/// The file has no name any more.
pub(super) fn deleted(setup: &Setup) -> io::Result<Check> {
    let (file, path) = make_file(setup, "deleted")?;
    let part = Cow::make(setup, &file)?;
    std::fs::remove_file(path)?;
    Ok(Box::new(move || part.check()))
}

/// A private mapping of a file that only exists in memory.
pub(super) fn memfd_cow(setup: &Setup) -> io::Result<Check> {
    let mut file = File::from(super::shared::make_memfd(setup.len)?);
    let mut bytes = vec![0; setup.len];
    setup.rule.fill(0, &mut bytes);
    file.write_all(&bytes)?;
    let part = Cow::make(setup, &file)?;
    Ok(Box::new(move || part.check()))
}

/// Mapped files whose names are traps for a parser of `/proc/PID/maps`.
pub(super) fn odd_names(setup: &Setup) -> io::Result<Check> {
    let base = setup.dir.join(format!("odd-{}", std::process::id()));
    let setup = Setup {
        len: 16 * page_len(),
        dir: base.clone(),
        rule: setup.rule,
    };
    let deep = (0..5).fold(base.clone(), |dir, _| dir.join("long".repeat(60)));
    std::fs::create_dir_all(&deep)?;
    let names = [
        "with space",
        "new\nline 0-0 rw-p",
        "gone (deleted)",
        "[heap]",
        "[anon:x]",
        "tab\tbed",
        "ünïcode",
        "\\012",
    ];
    let mut parts = names
        .iter()
        .map(|name| odd_name(&setup, &base, name))
        .collect::<io::Result<Vec<_>>>()?;
    parts.push(odd_name(&setup, &deep, "longer than 1 KiB")?);
    Ok(Box::new(move || parts.iter().map(Cow::check).sum()))
}

fn odd_name(setup: &Setup, dir: &Path, name: &str) -> io::Result<Cow> {
    // A full path can be too long for the kernel's names; go there by a short one.
    let setup = Setup {
        dir: dir.to_owned(),
        ..*setup
    };
    let (file, path) = make_file(&setup, name)?;
    let part = Cow::make(&setup, &file)?;
    if name.contains("deleted") {
        std::fs::remove_file(path)?;
    }
    Ok(part)
}
