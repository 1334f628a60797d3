//! What becomes of the image while nobody is there: a restore that cannot be right is
//! refused, and works when the image is back.

use super::{bring_back, expect_parked, park};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Result, Rig, Snapshot, Victim, ensure};
use rustix::process::Signal;
use std::fs;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "parked",
        &[
            ("image_of_another_checkpoint", image_of_another_checkpoint),
            ("image_cut_short", image_cut_short),
            ("image_lost_for_good", image_lost_for_good),
        ],
    )
}

/// A parked target whose image is put aside, and what it was before.
struct Parked {
    rig: Rig,
    victim: Victim,
    before: Snapshot,
}

impl Parked {
    fn start() -> Result<Self> {
        let rig = Rig::new()?;
        let victim = Victim::start("memory", &["size=8M", "threads=2"])?;
        let before = Snapshot::take(victim.pid())?;
        park(&rig, victim.pid())?;
        Ok(Self {
            rig,
            victim,
            before,
        })
    }

    fn image(&self) -> std::path::PathBuf {
        self.rig.image(self.victim.pid())
    }

    fn aside(&self) -> std::path::PathBuf {
        self.rig.dir().join("aside")
    }

    /// Refused with `code`, and held as before.
    fn refused(&self, args: &[&str], code: i32) -> Result {
        let pid = self.victim.pid();
        self.rig.restore(pid).args(args).run()?.expect(code)?;
        expect_parked(pid)
    }

    /// The image is back: so is the target.
    fn comes_back(mut self) -> Result {
        let pid = self.victim.pid();
        fs::rename(self.aside(), self.image())?;
        bring_back(&self.rig, pid)?;
        self.before.still(pid, Allow::default())?;
        self.victim.verify()?;
        self.victim.quit()
    }
}

/// Whole, valid, and another target's.
fn image_of_another_checkpoint() -> Result {
    let (parked, other) = (Parked::start()?, Parked::start()?);
    fs::rename(parked.image(), parked.aside())?;
    fs::copy(other.image(), parked.image())?;
    parked.refused(&[], 12)?;
    parked.comes_back()?;
    bring_back(&other.rig, other.victim.pid()).map(drop)
}

/// Half of it is there, without an end: it may still be on its way. No proof that the
/// bytes are lost, whatever `--on-corrupt` says.
fn image_cut_short() -> Result {
    let parked = Parked::start()?;
    fs::rename(parked.image(), parked.aside())?;
    fs::copy(parked.aside(), parked.image())?;
    let file = fs::File::options().write(true).open(parked.image())?;
    file.set_len(file.metadata()?.len() / 2)?;
    parked.refused(&[], 12)?;
    parked.refused(&["--on-corrupt", "hold"], 12)?;
    parked.comes_back()
}

/// Nobody has the image any more: the target stays held, for whoever knows better, and
/// ends when it is ended.
fn image_lost_for_good() -> Result {
    let mut parked = Parked::start()?;
    fs::remove_file(parked.image())?;
    parked.refused(&[], 12)?;
    parked.victim.signal(Signal::KILL)?;
    parked.victim.exit_status()?;
    let finished = parked.rig.recover(parked.victim.pid()).run()?;
    ensure(matches!(finished.code, Some(5 | 9)), || {
        finished.to_string()
    })?;
    parked.rig.expect_clean()
}
