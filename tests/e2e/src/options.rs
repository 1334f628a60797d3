//! The command line of the C memcr, and the numbers that are printed.

use crate::common::{Rig, expect_freed, hold, unharmed};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Context, Memcr, Result, Snapshot, Victim, ensure, proc, require};
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "options",
        &[
            ("no_wait", no_wait),
            ("end_of_input_is_enter", end_of_input_is_enter),
            ("default_pipeline_with_dir", default_pipeline_with_dir),
            ("old_words", old_words),
            ("proc_mem", proc_mem),
            ("rss_file", rss_file),
            ("json", json),
            ("quiet", quiet),
            ("inspect_and_verify", inspect_and_verify),
            ("closed_output", closed_output),
            ("the_image_takes_no_memory", the_image_takes_no_memory),
            (
                "short_timeout_does_not_end_the_hold",
                short_timeout_does_not_end_the_hold,
            ),
        ],
    )
}

fn no_wait() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    rig.memcr(victim.pid()).cycle()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn end_of_input_is_enter() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    rig.memcr(victim.pid()).hold()?.end_of_input()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn default_pipeline_with_dir() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(
        &rig,
        &victim,
        Memcr::on(victim.pid()).arg("-d").arg(rig.dir()),
    )?;
    expect_freed(&before, victim.pid(), 8 << 10)?;
    held.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Every way in which downstream scripts are known to write the options.
fn old_words() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    let lines: &[&[&str]] = &[
        &["-z"],
        &["-zlz4"],
        &["-z", "LZ4"],
        &["-z", "zstd"],
        &["--compress=zstd"],
        &["--compress", "lz4"],
        &["-zc"],
        &["-c", "-z"],
        &["-e"],
        &["-e", "aes-192-cbc"],
        &["--encrypt=aes-256-cbc"],
        &["-zce"],
        &["-m", "-z"],
        &["-f"],
        &["-S", "/run", "-G", "0", "-N"],
        &["--parasite-socket-dir", "/run"],
    ];
    for line in lines {
        let memcr = Memcr::on(victim.pid())
            .arg("-n")
            .arg("-d")
            .arg(rig.dir())
            .args(*line);
        memcr.run()?.expect(0)?;
        victim.verify()?;
        rig.expect_clean()?;
    }
    unharmed(
        &rig,
        &mut victim,
        &before,
        Allow {
            less_rss: true,
            ..Allow::default()
        },
    )
}

fn proc_mem() -> Result {
    let rig = Rig::new()?;
    let parts = "parts=anon,prot_none,prot_read,file_cow,file_hidden,holes";
    let mut victim = Victim::start(
        "maps",
        &[parts, "threads=2", &format!("dir={}", rig.dir_text())],
    )?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()).arg("-m"))?;
    expect_freed(&before, victim.pid(), 24 << 10)?;
    held.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Clean file pages go and come back by themselves, also when the file was replaced or
/// deleted meanwhile.
fn rss_file() -> Result {
    let rig = Rig::new()?;
    let parts = "parts=anon,file_clean,file_cow,file_deleted,memfd_cow";
    let mut victim = Victim::start(
        "maps",
        &[parts, "threads=2", &format!("dir={}", rig.dir_text())],
    )?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()).arg("-f"))?;
    // 8 MiB of anonymous memory and 8 MiB of clean pages, at least.
    expect_freed(&before, victim.pid(), 16 << 10)?;
    let clean = rig.dir().join(format!("clean-{}", victim.pid()));
    let cow = rig.dir().join(format!("cow-{}", victim.pid()));
    std::fs::rename(&cow, &clean)?;
    std::fs::write(&cow, "another file of that name")?;
    held.release()?;
    let allow = Allow {
        less_rss: true,
        facts: &["maps ", "smaps "],
        threads: false,
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    victim.verify()?;
    rig.expect_clean()?;
    victim.quit()
}

/// One object with the numbers that the issue of this program promises.
fn json() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=32M", "content=text"])?;
    let rss = proc::rss_kib(victim.pid())? << 10;
    let finished = rig.memcr(victim.pid()).args(["-n", "--json"]).run()?;
    finished.expect(0)?;
    let object = finished.json()?;
    let text = object.to_string();
    ensure(object["ok"] == true, || {
        format!("`ok` is not true in {text}")
    })?;
    let number =
        |name: &str| find(&object, name).ok_or_else(|| format!("no number `{name}` in {text}"));
    let raw = number("raw_bytes")?;
    let stored = number("image_bytes")?;
    let near = (f64::from(32 << 20))..(rss as f64 * 1.01);
    ensure(near.contains(&raw), || {
        format!("raw_bytes {raw} is not in {near:?}")
    })?;
    ensure(stored * 2.0 < raw, || {
        format!("{stored} bytes stored of {raw}: text is compressible")
    })?;
    victim.verify()?;
    victim.quit()
}

/// A number of that name anywhere in the object.
fn find(value: &serde_json::Value, name: &str) -> Option<f64> {
    match value {
        serde_json::Value::Object(map) => map
            .get(name)
            .and_then(serde_json::Value::as_f64)
            .or_else(|| map.values().find_map(|v| find(v, name))),
        _ => None,
    }
}

fn quiet() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let finished = rig.memcr(victim.pid()).args(["-n", "-q"]).run()?;
    finished.expect(0)?;
    ensure(finished.err.is_empty(), || {
        format!("-q is not quiet: {}", finished.err)
    })?;
    victim.verify()?;
    victim.quit()
}

fn inspect_and_verify() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    let image = rig.image(victim.pid());
    let inspect = Memcr::new().arg("inspect").arg(&image).run()?;
    inspect.expect(0)?;
    for word in ["lz4", "crc32", &victim.pid().to_string()] {
        ensure(inspect.out.contains(word), || {
            format!("no `{word}` in\n{inspect}")
        })?;
    }
    Memcr::new()
        .args(["inspect", "--json"])
        .arg(&image)
        .run()?
        .json()?;
    Memcr::new().arg("verify").arg(&image).run()?.expect(0)?;
    held.release()?;
    Memcr::new().arg("verify").arg(&image).run()?.expect(1)?;
    victim.verify()?;
    victim.quit()
}

/// Nobody reads what memcr prints: no reason to leave a target frozen or dead.
fn closed_output() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    let script = "\"$0\" \"$@\" 2>&1 | true; exit ${PIPESTATUS[0]}";
    let memcr = rig
        .memcr(victim.pid())
        .args(["-n", "-v"])
        .via(&["bash", "-c", script]);
    let finished = memcr.run()?;
    // 128 and more: a signal.
    ensure(matches!(finished.code, Some(0..100)), || {
        format!("memcr died\n{finished}")
    })?;
    until("the target to run", || {
        proc::state(victim.pid(), victim.pid()) == Some('S')
    })?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The limit is one of the checkpoint, not of the time that the user takes.
fn short_timeout_does_not_end_the_hold() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=1M"])?;
    let mut clock = Victim::start("blocked", &["ms=2500", "calls=nanosleep"])?;
    let held = rig.memcr(victim.pid()).args(["--timeout", "1"]).hold()?;
    // Two and a half seconds, on somebody else's clock.
    clock.ask_lines("result")?;
    ensure(rig.image(victim.pid()).exists(), || {
        "the image is gone before Enter".into()
    })?;
    held.release()?;
    victim.verify()?;
    victim.quit()
}

/// Saved memory is saved: the image is on the disk, not in the page cache, be it read again.
fn the_image_takes_no_memory() -> Result {
    takes_no_memory(&[])?;
    takes_no_memory(&["--verify"])
}

fn takes_no_memory(flags: &[&str]) -> Result {
    require("fincore")?;
    let rig = Rig::with("file")?;
    let mut victim = Victim::start("memory", &["size=64M", "content=random"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()).args(flags))?;
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(rig.image(victim.pid()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let cached: u64 = text.parse().context(format!("fincore said `{text}`"))?;
    ensure(cached < 4 << 20, || {
        format!("{cached} bytes of the image are in the page cache, with {flags:?}")
    })?;
    held.release()?;
    victim.verify()?;
    victim.quit()
}
