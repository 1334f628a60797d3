//! Text files of `/proc/PID` (proc(5)): read whole, cut into fields.

use std::fs;
use std::io;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};

/// Room for all that a file of a thread says: usually one call reads it all. The buffer
/// that `std::fs::read` begins with, for files whose length nobody knows, takes a dozen
/// calls to grow, for each of thousands of threads.
const USUAL_LEN: usize = 4096;

/// The thread ids of a process, ascending as the kernel lists them.
///
/// # Errors
/// ENOENT: no such process.
pub fn tids(pid: i32) -> io::Result<Vec<i32>> {
    numbers_in(&format!("/proc/{pid}/task"))
}

/// The ids of all processes that this `/proc` shows.
///
/// # Errors
/// When `/proc` is not readable.
pub fn pids() -> io::Result<Vec<i32>> {
    numbers_in("/proc")
}

/// The numbers of a process's descriptors.
///
/// # Errors
/// ENOENT: no such process; EACCES: not ours to look at.
pub fn descriptors(pid: i32) -> io::Result<Vec<i32>> {
    numbers_in(&format!("/proc/{pid}/fd"))
}

fn numbers_in(dir: &str) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// `/proc/PID/status` or `/proc/PID/task/TID/status`.
#[derive(Debug, Clone)]
pub struct Status(String);

impl Status {
    /// Of a process.
    ///
    /// # Errors
    /// ENOENT or ESRCH: gone.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        read_lossy(&format!("/proc/{pid}/status")).map(Self)
    }

    /// Of a thread.
    ///
    /// # Errors
    /// ENOENT or ESRCH: gone.
    pub fn of_thread(pid: i32, tid: i32) -> io::Result<Self> {
        read_lossy(&format!("/proc/{pid}/task/{tid}/status")).map(Self)
    }

    /// The text of a field, without its name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    }

    /// A field that is a number, in the unit the file uses (`kB` for memory).
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.split_whitespace().next()?.parse().ok()
    }

    /// A field that is a set of signals, bit N-1 for signal N.
    #[must_use]
    pub fn signals(&self, name: &str) -> u64 {
        self.field(name)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or(0)
    }

    /// The state's letter: R, S, D, T, t, Z, X …
    #[must_use]
    pub fn state(&self) -> char {
        self.field("State")
            .and_then(|text| text.chars().next())
            .unwrap_or('?')
    }
}

/// A process's parent, kernel-thread flag and start time, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Pid of the parent.
    pub parent: i32,
    /// A thread of the kernel (`PF_KTHREAD`).
    pub is_kernel_thread: bool,
    /// A thread of a process that runs in the kernel only (`PF_IO_WORKER`,
    /// `PF_USER_WORKER`): of io_uring, or of a vhost device.
    pub is_user_worker: bool,
    /// Start, in clock ticks since boot: with the pid and the boot id it names one process.
    pub start_time: u64,
    /// The CPU it last ran on.
    pub cpu: usize,
}

const PF_KTHREAD: u64 = 0x0020_0000;
const PF_IO_WORKER: u64 = 0x10;
const PF_USER_WORKER: u64 = 0x4000;

impl Stat {
    /// Of a process or of one of its threads (`PID` or `PID/task/TID`).
    ///
    /// # Errors
    /// ENOENT or ESRCH: gone; `InvalidData`: not the fields of proc_pid_stat(5).
    pub fn read(id: impl std::fmt::Display) -> io::Result<Self> {
        let text = read_lossy(&format!("/proc/{id}/stat"))?;
        parse_stat(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected fields in stat"))
    }
}

/// Where a process has its arguments and its environment: fields 48 to 51 of
/// proc_pid_stat(5). Empty ones are left out.
///
/// # Errors
/// ENOENT or ESRCH: gone.
pub fn argument_ranges(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let text = read_lossy(&format!("/proc/{pid}/stat"))?;
    let fields = text.rfind(')').map_or("", |end| &text[end + 1..]);
    let mut bounds = fields
        .split_whitespace()
        .skip(48 - 3)
        .map(|field| field.parse::<u64>().unwrap_or(0));
    let mut next = || Some((bounds.next()?, bounds.next()?));
    let ranges = [next(), next()].into_iter().flatten();
    Ok(ranges.filter(|(start, end)| start < end).collect())
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may hold any byte: fields begin behind the last one.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let flags: u64 = field(9)?.parse().ok()?;
    Some(Stat {
        parent: field(4)?.parse().ok()?,
        is_kernel_thread: flags & PF_KTHREAD != 0,
        is_user_worker: flags & (PF_IO_WORKER | PF_USER_WORKER) != 0,
        start_time: field(22)?.parse().ok()?,
        cpu: field(39)?.parse().ok()?,
    })
}

/// A call in which a thread is asleep, and from where it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the call.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Stack pointer.
    pub sp: u64,
    /// Program counter: behind the instruction that made it.
    pub pc: u64,
}

/// The call that a thread is asleep in (`/proc/PID/task/TID/syscall`,
/// proc_pid_syscall(5)). `None`: it runs, waits elsewhere in the kernel, or is gone.
#[must_use]
pub fn call_of(pid: i32, tid: i32) -> Option<Place> {
    parse_syscall(&read_lossy(&format!("/proc/{pid}/task/{tid}/syscall")).ok()?)
}

/// Number, six arguments, stack pointer, program counter.
fn parse_syscall(text: &str) -> Option<Place> {
    let mut words = text.split_whitespace();
    let nr = words.next()?.parse().ok()?;
    let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = next()?;
    }
    let (sp, pc) = (next()?, next()?);
    Some(Place { nr, args, sp, pc })
}

/// The boot's random id.
///
/// # Errors
/// When `/proc/sys` is not readable.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Resident memory of a process, bytes (`VmRSS`); 0 when it has none.
#[must_use]
pub fn rss_bytes(pid: i32) -> u64 {
    Status::of_process(pid)
        .ok()
        .and_then(|status| status.number("VmRSS"))
        .unwrap_or(0)
        * 1024
}

/// Reads a small file; bytes that are not UTF-8 (a process may name itself so) become
/// replacement characters.
///
/// # Errors
/// ENOENT or ESRCH: the process is gone; EACCES: not ours to look at.
pub fn read_lossy(path: &str) -> io::Result<String> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    while rustix::io::read(&file, spare_capacity(&mut bytes))? > 0 {
        bytes.reserve(1);
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) S 1 (b)) R 42 7 7 0 -1 2097152 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0 \
                    0 0 0 0 0 0 0 0 0 0 0 0 0 17 3 0 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!(
            stat,
            Stat {
                parent: 42,
                is_kernel_thread: true,
                is_user_worker: false,
                start_time: 12345,
                cpu: 3
            }
        );
    }

    #[test]
    fn the_line_of_a_sleeping_thread_is_read() {
        let call = parse_syscall("232 0x4 0x7ffd 0x20 0x3e8 0x0 0x0 0x7ffd5f10 0x7f01\n").unwrap();
        assert_eq!((call.nr, call.args), (232, [4, 0x7ffd, 0x20, 0x3e8, 0, 0]));
        assert_eq!((call.sp, call.pc), (0x7ffd_5f10, 0x7f01));
        assert_eq!(parse_syscall("running\n"), None);
        assert_eq!(parse_syscall("-1 0x7ffd5f10 0x7f01\n"), None);
    }

    #[test]
    fn our_own_status_has_what_is_asked_for() {
        let status = Status::of_process(std::process::id().cast_signed()).unwrap();
        assert!(status.number("VmRSS").unwrap() > 0);
        assert!("RSD".contains(status.state()));
        assert_eq!(status.field("VmRS"), None);
    }
}
