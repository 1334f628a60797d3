//! Clients that do not know the protocol, or do not keep to it: they hang up, say half of
//! what they want, rubbish, or nothing.

use super::client::{Guest, PATIENCE};
use super::tally::{Fair, Said};
use memcr_client::{Ask, Command, Subject, socket};
use memcr_wire::legacy::Version;
use memcr_wire::{Answer, Id, LegacyRequest, Request};
use rustix::net::{Shutdown, shutdown};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The daemon closes a connection on which nothing is said within 10 s; a busy machine
/// takes longer.
const CLOSED_WITHIN: Duration = Duration::from_secs(40);

/// What came before the end of a connection.
enum End {
    /// It was closed after so many bytes.
    Closed(Vec<u8>),
    /// It was not.
    Open,
    /// The storm was over first.
    Over,
}

/// Asks for something and does not wait for it.
pub(super) fn hang_up(guest: &mut Guest<'_>) {
    let bytes = some_request(guest);
    if let Some(socket) = begin(guest, "hang up", &bytes) {
        // Not synchronisation: any moment will do.
        std::thread::sleep(Duration::from_micros(guest.random.below(30_000)));
        drop(socket);
        guest.world.tally.did("hang up", "done");
    }
}

/// Says the beginning of a request; then hangs up, says that this was all, or waits.
pub(super) fn half(guest: &mut Guest<'_>) {
    const KIND: &str = "half a request";
    let bytes = some_request(guest);
    let n = 1 + guest.random.below(bytes.len() as u64 - 1) as usize;
    let life = guest.world.life();
    let Some(socket) = begin(guest, KIND, &bytes[..n]) else {
        return;
    };
    match guest.random.below(8) {
        0..4 => guest.world.tally.did(KIND, "hung up"),
        4..7 => {
            // Errors: it is closed already, as the end tells.
            let _ = shutdown(&socket, Shutdown::Write);
            note_end(guest, KIND, life, until_closed(guest, &socket));
        }
        _ => note_end(guest, KIND, life, until_closed(guest, &socket)),
    }
}

/// Bytes that are no request.
pub(super) fn rubbish(guest: &mut Guest<'_>) {
    const KIND: &str = "rubbish";
    let bytes = match guest.random.below(7) {
        0 => b"GET / HTTP/1.1\r\nHost: memcr\r\n\r\n".to_vec(),
        1 => vec![b'{'; 70 << 10],
        2 => {
            b"{\"memcr\":1,\"do\":\"checkpoint\",\"pid\":\"all\"}\n{\"memcr\":7}\n{}\n[]\n".to_vec()
        }
        3 => b"{\"memcr\":1,\"do\":\"restore\",\"pid\":-1,\"pid\":1}\n\xff\xfe\n".to_vec(),
        4 => [102_i32, 4096, 100]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect(),
        5 => [102_i32, 1 << 30, 101, 1]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect(),
        _ => {
            let len = 1 + guest.random.below(300);
            (0..len).map(|_| guest.random.below(256) as u8).collect()
        }
    };
    let life = guest.world.life();
    if let Some(socket) = begin(guest, KIND, &bytes) {
        // Errors: it is closed already, as the end tells.
        let _ = shutdown(&socket, Shutdown::Write);
        note_end(guest, KIND, life, until_closed(guest, &socket));
    }
}

/// Says nothing.
pub(super) fn silence(guest: &mut Guest<'_>) {
    const KIND: &str = "silence";
    let life = guest.world.life();
    if let Some(socket) = begin(guest, KIND, &[]) {
        note_end(guest, KIND, life, until_closed(guest, &socket));
    }
}

/// More requests at once than a connection may have under way: each has one answer.
pub(super) fn many_at_once(guest: &mut Guest<'_>) {
    const KIND: &str = "twenty at once";
    const N: u64 = 20;
    let mut bytes = Vec::new();
    for id in 0..N {
        let ask = match guest.random.below(4) {
            0 => Ask::Restore {
                subject: Subject::Pid(guest.pid()),
                timeout: None,
            },
            1 => guest.checkpoint_ask(),
            _ => Ask::Status {
                pid: Some(guest.pid()),
            },
        };
        bytes.extend(line(Some(Id::from(id)), ask));
    }
    let life = guest.world.life();
    let Some(socket) = begin(guest, KIND, &bytes) else {
        return;
    };
    // Errors: it is closed already, as the end tells.
    let _ = shutdown(&socket, Shutdown::Write);
    let deadline = Instant::now() + PATIENCE.answer.unwrap_or(CLOSED_WITHIN);
    let said = match until_closed_by(guest, &socket, deadline, false) {
        End::Closed(bytes) => all_answered(&bytes, N),
        End::Open | End::Over => Said::Nothing(CLOSED_WITHIN),
    };
    note(guest, KIND, life, &[0], &said);
}

/// 0 if each of `n` requests has one answer.
fn all_answered(bytes: &[u8], n: u64) -> Said {
    let mut missing: Vec<Id> = (0..n).map(Id::from).collect();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Ok(answer) = Answer::parse(line) else {
            return Said::Odd(format!("`{}`", String::from_utf8_lossy(line)));
        };
        let is_it = |id: &Id| answer.id.as_ref() == Some(id);
        match missing.iter().position(is_it) {
            Some(at) => drop(missing.swap_remove(at)),
            None => return Said::Odd(format!("a second answer to {:?}", answer.id)),
        }
    }
    match missing.is_empty() {
        true => Said::Code(0, String::new()),
        false => Said::Gone(format!("{} requests have no answer", missing.len())),
    }
}

/// Connects and says `bytes`, as far as the daemon listens.
fn begin(guest: &mut Guest<'_>, kind: &'static str, bytes: &[u8]) -> Option<OwnedFd> {
    let life = guest.world.life();
    let socket = match socket::open(&guest.location(), Some(PATIENCE.connect)) {
        Ok(socket) => socket,
        Err(error) => {
            note(
                guest,
                kind,
                life,
                &[],
                &Said::Gone(format!("connect: {error}")),
            );
            return None;
        }
    };
    // It may have heard enough already.
    let _ = socket::send_all(&socket, bytes);
    Some(socket)
}

fn until_closed(guest: &Guest<'_>, socket: &OwnedFd) -> End {
    until_closed_by(guest, socket, Instant::now() + CLOSED_WITHIN, true)
}

/// Reads until the daemon closes; `gives_up`: or the storm is over.
fn until_closed_by(guest: &Guest<'_>, socket: &OwnedFd, deadline: Instant, gives_up: bool) -> End {
    const LOOK: Duration = Duration::from_millis(100);
    let (mut bytes, mut segment) = (Vec::new(), [0; 16 << 10]);
    while Instant::now() < deadline {
        if gives_up && guest.world.is_over() {
            return End::Over;
        }
        match socket::receive(socket, &mut segment, Some(Instant::now() + LOOK)) {
            Ok(0) => return End::Closed(bytes),
            Ok(n) => bytes.extend_from_slice(&segment[..n]),
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            // What it had not read when it closed.
            Err(_) => return End::Closed(bytes),
        }
    }
    End::Open
}

/// Whatever was said was no request: it must not have been done.
fn note_end(guest: &Guest<'_>, kind: &'static str, life: u64, end: End) {
    let said = match end {
        End::Over => return guest.world.tally.did(kind, "over"),
        End::Open => Said::Nothing(CLOSED_WITHIN),
        End::Closed(bytes) => match *bytes {
            [] => return guest.world.tally.did(kind, "closed"),
            [b'{', ..] => own_refusals(&bytes),
            _ => match *bytes {
                [a, b, c, d] => Said::Code(i32::from_ne_bytes([a, b, c, d]), String::new()),
                _ => Said::Odd(format!("{bytes:x?}")),
            },
        },
    };
    note(guest, kind, life, &[2, -1, -2], &said);
}

/// The code of the last of some answers, each of which must be a refusal.
fn own_refusals(bytes: &[u8]) -> Said {
    let mut said = Said::Odd("nothing".into());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        said = match Answer::parse(line) {
            Ok(answer) if !answer.ok => Said::Code(answer.exit_code.into(), String::new()),
            _ => return Said::Odd(format!("`{}`", String::from_utf8_lossy(line))),
        };
    }
    said
}

fn note(guest: &Guest<'_>, kind: &'static str, life: u64, codes: &'static [i32], said: &Said) {
    let fair = Fair {
        codes,
        is_steady: guest.world.is_steady_since(life),
        lives: true,
    };
    guest.world.tally.answered(kind, said, fair);
}

/// The bytes of a request that would be a right one.
fn some_request(guest: &mut Guest<'_>) -> Vec<u8> {
    let pid = guest.pid();
    let old = |version, command| {
        let request = LegacyRequest {
            version,
            command,
            pid,
            dir: None,
            compress: None,
        };
        request.encode().unwrap_or_default()
    };
    match guest.random.below(6) {
        0 => old(Version::V1, Command::Checkpoint),
        1 => old(Version::V1, Command::Restore),
        2 => old(Version::V2, Command::Checkpoint),
        3 => line(
            None,
            Ask::Restore {
                subject: Subject::Pid(pid),
                timeout: None,
            },
        ),
        _ => line(None, guest.checkpoint_ask()),
    }
}

fn line(id: Option<Id>, ask: Ask) -> Vec<u8> {
    // Every request here can be said.
    Request { id, ask }.to_line().unwrap_or_default()
}
