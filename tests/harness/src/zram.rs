//! A disk in compressed RAM, of one's own.
//!
//! `/sys/class/zram-control/hot_add` ─▶ zramN, `disksize` ─▶ … ─▶ `reset`, `hot_remove` on drop
//! (Documentation/admin-guide/blockdev/zram.rst). A program that is killed leaves it: N into
//! `hot_remove`.
//!
//! What the machine refuses (a container without the right to have one) is something that
//! it lacks, and no failure.

use crate::{Context, Result, Trouble};
use rustix::process::geteuid;
use std::fs::{self, File};
use std::io::Write;

const CONTROL: &str = "/sys/class/zram-control";

/// The device; gone on drop.
#[derive(Debug)]
pub struct Zram {
    number: u32,
    hot_remove: File,
}

impl Zram {
    /// A new one that takes in `len_bytes` and compresses them with lz4.
    ///
    /// # Errors
    /// `Skipped` where the machine has none, or not for this user.
    pub fn open(len_bytes: u64) -> Result<Self> {
        if !geteuid().is_root() {
            return Err(Trouble::Skipped("a zram device needs root".into()));
        }
        // Where devices cannot be removed none is to be made.
        let hot_remove = format!("{CONTROL}/hot_remove");
        let opened = File::options().write(true).open(&hot_remove);
        let hot_remove = refused(&hot_remove, opened)?;
        let hot_add = format!("{CONTROL}/hot_add");
        let number = refused(&hot_add, fs::read_to_string(&hot_add))?;
        let number = number.trim().parse().context(&hot_add)?;
        // From here on it goes when this does.
        let device = Self { number, hot_remove };
        device.set("comp_algorithm", "lz4")?;
        device.set("disksize", &len_bytes.to_string())?;
        Ok(device)
    }

    /// The block device.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/zram{}", self.number)
    }

    /// The file of one of its attributes.
    #[must_use]
    pub fn attribute(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `Skipped` where the kernel does not take it.
    pub fn set(&self, name: &str, value: &str) -> Result {
        let file = self.attribute(name);
        refused(&file, fs::write(&file, value))
    }
}

/// What this machine does not do, or not for us.
///
/// # Errors
/// `Skipped`.
pub fn refused<T>(what: &str, done: std::io::Result<T>) -> Result<T> {
    done.map_err(|error| Trouble::Skipped(format!("{what}: {error}")))
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = fs::write(self.attribute("reset"), "1");
        let number = self.number.to_string();
        if let Err(error) = self.hot_remove.write_all(number.as_bytes()) {
            eprintln!("{} is left: {error}", self.path());
        }
    }
}
