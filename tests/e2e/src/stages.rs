//! Every stage alone and in combination.

use crate::common::{Rig, cycle};
use crate::test;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Held, Memcr, Result, Snapshot, Victim, ensure, require};
use rustix::process::Signal;
use std::path::Path;

const COMPRESS: [&str; 3] = ["", "lz4,", "zstd,"];
const CHECKSUM: [&str; 3] = ["", "md5,", "crc32,"];
const ENCRYPT: [&str; 2] = ["", "encrypt,"];
const CIPHERS: [&str; 5] = [
    "aes-256-gcm",
    "chacha20-poly1305",
    "aes-128-cbc",
    "aes-192-cbc",
    "aes-256-cbc",
];

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = vec![
        test("stages::passthrough", || store("passthrough,file", &[])),
        test("stages::twice_the_same", || {
            store("passthrough,crc32,passthrough,file", &[])
        }),
        test("stages::checksum_behind_compression", || {
            store("lz4,crc32,file", &[])
        }),
        test("stages::checksum_behind_everything", || {
            store("lz4,encrypt,md5,file", &[])
        }),
        test("stages::aliases_of_the_configuration", || {
            store("compress,checksum,file", &[])
        }),
        test("stages::zstd_level_19", || {
            store("zstd,file", &["zstd.level=19"])
        }),
        test("stages::file_synced", || store("file", &["file.sync=true"])),
        test("stages::tmpfs_of_its_own", || {
            let is_best = shares_mounts_with_init() && has_huge_by_length();
            somewhere(
                &[],
                if is_best {
                    "/run/memcr/tmpfs"
                } else {
                    "/dev/shm"
                },
            )
        }),
        test("stages::tmpfs_for_everybody", || {
            somewhere(&["unshare", "-m"], "/dev/shm")
        }),
    ];
    for cipher in CIPHERS {
        let set = format!("encrypt.cipher={cipher}");
        trials.push(test(format!("stages::encrypt_{cipher}"), move || {
            store("lz4,encrypt,file", &[&set])
        }));
    }
    for workers in ["1", "2", "7"] {
        let name = format!("stages::workers_{workers}");
        trials.push(test(name, move || {
            with("lz4,md5,encrypt,file", &["--workers", workers])
        }));
    }
    for encrypt in ENCRYPT {
        for compress in COMPRESS {
            for checksum in CHECKSUM {
                // The order of the C memcr: checksum over raw data, compress, encrypt.
                let front = format!("{checksum}{compress}{encrypt}");
                let name = front.trim_end_matches(',').replace(',', "_");
                let name = if name.is_empty() {
                    "plain".into()
                } else {
                    name
                };
                let (file, tmpfs) = (format!("{front}file"), format!("{front}tmpfs"));
                trials.push(test(format!("stages::file_{name}"), move || {
                    store(&file, &[])
                }));
                trials.push(test(format!("stages::tmpfs_{name}"), move || {
                    in_memory(&tmpfs)
                }));
            }
        }
    }
    trials
}

/// One cycle through a pipeline that ends in `file`, with parameters.
fn store(pipeline: &str, set: &[&str]) -> Result {
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    with(pipeline, &args)
}

fn with(pipeline: &str, args: &[&str]) -> Result {
    let rig = Rig::with(pipeline)?;
    let mut victim = Victim::start("memory", &["size=12M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = crate::common::hold(&rig, &victim, rig.memcr(victim.pid()).args(args))?;
    crate::common::expect_freed(&before, victim.pid(), 12 << 10)?;
    held.release()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()?;
    victim.verify()?;
    // Once more with other bytes: nothing of the first image may come back.
    victim.ask("refill 77")?;
    cycle(&rig, &mut victim, Allow::default())?;
    victim.quit()
}

/// One cycle through a pipeline that ends in `tmpfs`, on a tmpfs that is there already.
fn in_memory(pipeline: &str) -> Result {
    require("root")?;
    let dir = tempfile::Builder::new()
        .prefix("memcr-e2e-")
        .tempdir_in("/dev/shm")?;
    let mut victim = Victim::start("memory", &["size=12M", "threads=2", "content=pointer"])?;
    let before = Snapshot::take(victim.pid())?;
    let set = format!("tmpfs.dir={}", dir.path().display());
    let memcr = Memcr::on(victim.pid()).args(["--pipeline", pipeline, "--set", &set]);
    // Storing raw pages in RAM saves nothing, which the sink refuses unless told.
    let memcr = if pipeline.contains("lz4") || pipeline.contains("zstd") {
        memcr
    } else {
        memcr.args(["--set", "tmpfs.allow_plain=true"])
    };
    let held = memcr.hold()?;
    crate::common::expect_freed(&before, victim.pid(), 12 << 10)?;
    held.release()?;
    before.still(victim.pid(), Allow::default())?;
    let left = std::fs::read_dir(dir.path())?.count();
    ensure(left == 0, || {
        format!("{left} files left behind in the tmpfs")
    })?;
    victim.verify()?;
    victim.quit()
}

fn shares_mounts_with_init() -> bool {
    let mounts = |pid| std::fs::read(format!("/proc/{pid}/mountinfo")).ok();
    mounts("self").is_some() && mounts("self") == mounts("1")
}

/// Since Linux 6.14, where it has any.
fn has_huge_by_length() -> bool {
    let has_any = Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|it| it.parse().unwrap_or(0));
    let version = (numbers.next(), numbers.next());
    has_any && version >= (Some(6), Some(14))
}

/// Where an image goes into a tmpfs and nobody says which: a memcr with the mounts of everybody
/// makes its own, one that has others (a service) must not, for nobody else would find it there.
fn somewhere(via: &[&str], dir: &str) -> Result {
    ["root", "mount"].into_iter().try_for_each(require)?;
    let mut victim = Victim::start("memory", &["size=12M", "threads=2", "content=pointer"])?;
    let pid = victim.pid();
    let before = Snapshot::take(pid)?;
    let image = Path::new(dir).join(format!("pages-{pid}.img"));
    let hold = || -> Result<Held> {
        let memcr = Memcr::on(pid).via(via);
        let held = memcr.args(["--pipeline", "lz4,tmpfs"]).hold()?;
        ensure(image.exists(), || {
            format!("{} is not there", image.display())
        })?;
        Ok(held)
    };
    hold()?.release()?;
    // Found again by a memcr that knows nothing but the journal.
    let held = hold()?;
    held.signal(Signal::KILL)?;
    held.finish()?;
    Memcr::recover(pid).run()?.expect(0)?;
    ensure(!image.exists(), || format!("{} is left", image.display()))?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    victim.quit()
}
