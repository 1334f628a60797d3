//! Mode `execs`: a process that becomes itself again, and again.
//!
//! ```text
//!   fill ─ verify ─ poll stdin for `pause` ms ─ exec(generation + 1) ─ fill ─ …
//!                        └ verify, stat, quit
//! ```
//!
//! With `thread=1` a second thread calls exec, so that thread ids change hands as well.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::talk::{die, say, verdict};
use std::io;
use std::os::unix::process::CommandExt;

/// `pause=MS size=1M thread=0 generation=0`.
pub(crate) fn run_execs(opts: &Opts) -> io::Result<()> {
    let life = Life {
        generation: opts.number("generation", 0),
        pause: opts.number("pause", 5),
        len: opts.len("size", 1 << 20),
        by_thread: opts.flag("thread"),
    };
    opts.done();
    if life.generation == 0 {
        say("ready");
    }
    if !life.by_thread {
        life.live();
        return Ok(());
    }
    std::thread::spawn(move || life.live());
    loop {
        std::thread::park();
    }
}

struct Life {
    generation: u64,
    pause: u64,
    len: usize,
    by_thread: bool,
}

impl Life {
    /// One generation; does not return.
    fn live(&self) {
        let rule = Rule {
            content: Content::Random,
            seed: self.generation,
        };
        let Ok(mut region) = Region::anon(self.len) else {
            die("no memory");
        };
        region.fill(rule);
        if self.is_asked() {
            self.answer(region, rule);
        }
        if let Err(wrong) = region.check(rule) {
            die(&wrong.to_string());
        }
        let err = std::process::Command::new("/proc/self/exe")
            .arg("execs")
            .arg(format!("generation={}", self.generation + 1))
            .arg(format!("pause={}", self.pause))
            .arg(format!("size={}", self.len))
            .arg(format!("thread={}", u8::from(self.by_thread)))
            .exec();
        die(&format!("exec: {err}"));
    }

    /// Whether something stands on stdin before the pause is over.
    fn is_asked(&self) -> bool {
        let mut request = libc::pollfd {
            fd: 0,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one writable request.
        unsafe { libc::poll(&raw mut request, 1, self.pause as i32) == 1 }
    }

    /// One line, byte by byte: what is buffered here would be lost with the exec.
    fn answer(&self, region: Region, rule: Rule) {
        let mut line = Vec::new();
        let mut byte = 0u8;
        // SAFETY: one writable byte.
        while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } == 1 && byte != b'\n' {
            line.push(byte);
        }
        match line.as_slice() {
            b"verify" => say(&verdict(region.check(rule))),
            b"stat" => say(&format!("generation={}", self.generation)),
            _ => std::process::exit(0),
        }
    }
}
