//! The protocol of the C memcr: bytes in, a number out, the connection closed.

use super::{Scene, small};
use crate::common::expect_private;
use crate::table;
use libtest_mimic::Trial;
use memcr_client::Location;
use memcr_harness::{Context, Daemon, Memcr, Result, Rig, Setup, Snapshot, Wire, ensure};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("v1_in_one_segment", || transcript(v1, false)),
            ("v1_byte_by_byte", || transcript(v1, true)),
            ("v2_in_one_segment", || transcript(v2, false)),
            ("v2_byte_by_byte", || transcript(v2, true)),
            ("v2_directory", v2_directory),
            ("v2_compression", v2_compression),
            ("old_half_closed", old_half_closed),
            ("old_malformed", || malformed(false)),
            ("old_malformed_byte_by_byte", || malformed(true)),
            ("old_and_more_behind", old_and_more_behind),
        ],
    )
}

const CHECKPOINT: i32 = 100;
const RESTORE: i32 = 101;
const V2: i32 = 102;
const DIR: i32 = 200;
const COMPRESS: i32 = 201;

const OK: i32 = 0;
const GENERAL: i32 = -1;
const INVALID_PID: i32 = -2;

fn numbers(numbers: &[i32]) -> Vec<u8> {
    let bytes = numbers.iter().map(|number| number.to_ne_bytes());
    bytes.flatten().collect()
}

/// A request as version 1 has it.
fn v1(command: i32, pid: i32) -> Vec<u8> {
    numbers(&[command, pid])
}

/// A request as version 2 has it, without options.
fn v2(command: i32, pid: i32) -> Vec<u8> {
    v2_with(command, pid, &[])
}

fn v2_with(command: i32, pid: i32, options: &[u8]) -> Vec<u8> {
    let body = [&numbers(&[command, pid]), options].concat();
    let len = i32::try_from(body.len()).unwrap_or(i32::MAX);
    [numbers(&[V2, len]), body].concat()
}

fn dir_option(dir: &str) -> Vec<u8> {
    [&numbers(&[DIR]), dir.as_bytes(), &[0]].concat()
}

/// Sends a request on a connection of its own, and answers the number: exactly four bytes,
/// and then the end.
fn answer(daemon: &Daemon, at: &Location, request: &[u8], slowly: bool) -> Result<i32> {
    let mut wire = Wire::open(at)?;
    match slowly {
        true => wire.send_slowly(request, daemon)?,
        false => wire.send(request)?,
    }
    code(&mut wire)
}

fn code(wire: &mut Wire) -> Result<i32> {
    let bytes = wire.rest()?;
    let code = bytes.as_slice().try_into().map(i32::from_ne_bytes);
    code.context(format!("answered {bytes:?}"))
}

fn expect(what: &str, got: i32, want: i32) -> Result {
    ensure(got == want, || {
        format!("{what}: answered {got}, want {want}")
    })
}

/// What every client of the C memcr relies on, over every kind of socket.
fn transcript(request: fn(i32, i32) -> Vec<u8>, slowly: bool) -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let mut scene = Scene::with(rig, daemon)?;
    for at in scene.daemon.locations() {
        conversation(&mut scene, &at, request, slowly).context(at)?;
    }
    scene.quit()
}

fn conversation(
    scene: &mut Scene,
    at: &Location,
    request: fn(i32, i32) -> Vec<u8>,
    slowly: bool,
) -> Result {
    let pid = scene.pid().cast_signed();
    let ask =
        |scene: &Scene, command, pid| answer(&scene.daemon, at, &request(command, pid), slowly);
    expect(
        "restore of one that runs",
        ask(scene, RESTORE, pid)?,
        INVALID_PID,
    )?;
    expect("checkpoint", ask(scene, CHECKPOINT, pid)?, OK)?;
    scene.expect_held()?;
    expect(
        "second checkpoint",
        ask(scene, CHECKPOINT, pid)?,
        INVALID_PID,
    )?;
    scene.expect_held()?;
    expect("restore", ask(scene, RESTORE, pid)?, OK)?;
    scene.expect_free()?;
    expect("second restore", ask(scene, RESTORE, pid)?, INVALID_PID)?;
    for (what, pid) in [
        ("0", 0),
        ("-1", -1),
        ("least", i32::MIN),
        ("most", i32::MAX),
    ] {
        for command in [CHECKPOINT, RESTORE] {
            let what = format!("{command} of pid {what}");
            expect(&what, ask(scene, command, pid)?, INVALID_PID)?;
        }
    }
    scene.expect_free()
}

/// The image lands where the client says, for its owner alone.
fn v2_directory() -> Result {
    let mut scene = Scene::new()?;
    let (pid, at) = (scene.pid(), scene.daemon.location());
    let elsewhere = scene.rig.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let option = dir_option(&elsewhere.display().to_string());
    let request = v2_with(CHECKPOINT, pid.cast_signed(), &option);
    expect(
        "checkpoint",
        answer(&scene.daemon, &at, &request, false)?,
        OK,
    )?;
    let image = elsewhere.join(format!("pages-{pid}.img"));
    expect_private(&image)?;
    ensure(!scene.rig.image(pid).exists(), || {
        "there is one at the usual place, too".into()
    })?;
    let listed = &scene.daemon.list()?[0]["image"];
    ensure(*listed == image.display().to_string(), || {
        format!("list says {listed}")
    })?;
    expect(
        "restore",
        answer(&scene.daemon, &at, &v2(RESTORE, pid.cast_signed()), false)?,
        OK,
    )?;
    ensure(!image.exists(), || "the image is left".into())?;
    scene.expect_free()?;
    let nowhere = v2_with(CHECKPOINT, pid.cast_signed(), &dir_option("/nonexistent/x"));
    expect(
        "nowhere",
        answer(&scene.daemon, &at, &nowhere, false)?,
        GENERAL,
    )?;
    let relative = v2_with(CHECKPOINT, pid.cast_signed(), &dir_option("tmp"));
    expect(
        "relative",
        answer(&scene.daemon, &at, &relative, false)?,
        GENERAL,
    )?;
    scene.expect_free()?;
    scene.quit()
}

/// Each compression that can be asked for is the one that is used.
fn v2_compression() -> Result {
    let mut scene = Scene::new()?;
    let (pid, at) = (scene.pid(), scene.daemon.location());
    for (number, stages) in [
        (0, "crc32,file"),
        (1, "lz4,crc32,file"),
        (2, "zstd,crc32,file"),
    ] {
        let option = numbers(&[COMPRESS, number]);
        let request = v2_with(CHECKPOINT, pid.cast_signed(), &option);
        expect(
            "checkpoint",
            answer(&scene.daemon, &at, &request, false)?,
            OK,
        )?;
        let listed = &scene.daemon.list()?[0]["pipeline"];
        ensure(listed == stages, || {
            format!("compression {number}: list says {listed}")
        })?;
        expect_image_of(&scene, stages)?;
        expect(
            "restore",
            answer(&scene.daemon, &at, &v2(RESTORE, pid.cast_signed()), false)?,
            OK,
        )?;
        scene.expect_free()?;
    }
    scene.quit()
}

/// The image itself says the same.
fn expect_image_of(scene: &Scene, stages: &str) -> Result {
    let image = scene.rig.image(scene.pid());
    let finished = Memcr::new().args(["inspect", "--json"]).arg(image).run()?;
    finished.expect(0)?;
    let names: Vec<String> = finished.json()?["pipeline"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|stage| stage["name"].as_str().map(str::to_owned))
        .collect();
    let want: Vec<&str> = stages.split(',').filter(|name| *name != "file").collect();
    let has_all = want
        .iter()
        .all(|stage| names.iter().any(|name| name == stage));
    ensure(has_all, || format!("want {want:?} in {finished}"))
}

/// A client may close its sending half at once.
fn old_half_closed() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid().cast_signed();
    for at in scene.daemon.locations() {
        for (command, request) in [(CHECKPOINT, v1 as fn(_, _) -> _), (RESTORE, v2)] {
            let mut wire = Wire::open(&at)?;
            wire.send(&request(command, pid))?;
            wire.half_close()?;
            expect("half-closed", code(&mut wire)?, OK)?;
        }
        scene.expect_free()?;
    }
    scene.quit()
}

/// What is no request is answered -1 as soon as that is known, and nothing is done.
fn malformed(slowly: bool) -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut scene = Scene::with(rig, daemon)?;
    let (pid, at) = (scene.pid().cast_signed(), scene.daemon.location());
    let long = "x".repeat(1024);
    let cases = [
        ("command 0", numbers(&[0, pid])),
        ("command 99", numbers(&[99, pid])),
        ("command 103", numbers(&[103, pid])),
        ("command -1", numbers(&[-1, pid])),
        ("text", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        ("size 7", numbers(&[V2, 7, CHECKPOINT, pid])),
        ("size 4097", numbers(&[V2, 4097, CHECKPOINT, pid])),
        ("size -8", numbers(&[V2, -8, CHECKPOINT, pid])),
        ("v2 in v2", numbers(&[V2, 8, V2, pid])),
        ("v2 command 0", numbers(&[V2, 8, 0, pid])),
        ("option 199", numbers(&[V2, 12, CHECKPOINT, pid, 199])),
        ("option 202", numbers(&[V2, 16, CHECKPOINT, pid, 202, 0])),
        (
            "compression 3",
            numbers(&[V2, 16, CHECKPOINT, pid, COMPRESS, 3]),
        ),
        (
            "compression -1",
            numbers(&[V2, 16, CHECKPOINT, pid, COMPRESS, -1]),
        ),
        (
            "half an option",
            [numbers(&[V2, 10, CHECKPOINT, pid]), vec![200, 0]].concat(),
        ),
        (
            "half a value",
            numbers(&[V2, 12, CHECKPOINT, pid, COMPRESS]),
        ),
        (
            "no NUL",
            v2_with(CHECKPOINT, pid, &[&numbers(&[DIR])[..], b"/tmp"].concat()),
        ),
        (
            "long",
            v2_with(CHECKPOINT, pid, &dir_option(&format!("/{long}"))),
        ),
    ];
    for (what, request) in cases {
        let got = answer(&scene.daemon, &at, &request, slowly).context(what)?;
        expect(what, got, GENERAL)?;
    }
    for (what, cut) in [("v1", v1(CHECKPOINT, pid)), ("v2", v2(CHECKPOINT, pid))] {
        for n in 1..cut.len() {
            let mut wire = scene.daemon.wire()?;
            wire.send(&cut[..n])?;
            wire.half_close()?;
            expect(&format!("{n} bytes of {what}"), code(&mut wire)?, GENERAL)?;
        }
    }
    scene.expect_free()?;
    scene.quit()
}

/// What a client sends behind its request is no second one, and does not cost it its
/// answer.
fn old_and_more_behind() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let mut victim = small()?;
    let (pid, before) = (victim.pid().cast_signed(), Snapshot::take(victim.pid())?);
    for at in daemon.locations() {
        let junk = vec![b'{'; 20_000];
        for command in [CHECKPOINT, RESTORE] {
            let request = [v1(command, pid), v1(RESTORE, pid), junk.clone()].concat();
            expect("with more", answer(&daemon, &at, &request, false)?, OK)?;
        }
        super::runs(&rig, &mut victim, &before, &[])?;
    }
    daemon.stop()?;
    victim.quit()
}
