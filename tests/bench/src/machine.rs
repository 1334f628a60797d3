//! What figures are worth nothing without: the machine they were measured on.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The machine, as far as it decides about times.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Model of the CPU.
    pub(crate) cpu: String,
    /// CPUs this process may use.
    pub(crate) n_cores: usize,
    /// RAM, MiB.
    pub(crate) ram_mib: u64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// A guest: page faults cost more than on the bare machine.
    pub(crate) is_virtual: bool,
    /// When the kernel uses huge pages by itself.
    pub(crate) huge_pages: String,
}

impl Machine {
    /// This machine. What it does not tell stays empty.
    pub(crate) fn here() -> Self {
        let cpuinfo = text("/proc/cpuinfo");
        let flags = value(&cpuinfo, "flags");
        let ram_kib = value(&text("/proc/meminfo"), "MemTotal");
        let ram_kib = ram_kib.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            cpu: value(&cpuinfo, "model name"),
            n_cores: crate::args::cores(),
            ram_mib: ram_kib / 1024_u64,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            is_virtual: flags.split(' ').any(|flag| flag == "hypervisor"),
            huge_pages: chosen(&text("/sys/kernel/mm/transparent_hugepage/enabled")),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            n_cores,
            ram_mib,
            kernel,
            is_virtual,
            huge_pages,
        } = self;
        let guest = if *is_virtual { ", a guest" } else { "" };
        write!(
            f,
            "{cpu}, {n_cores} cores{guest}, {ram_mib} MiB of RAM, Linux {kernel}, huge pages: {huge_pages}"
        )
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The first value of a file with lines `key: value`.
fn value(text: &str, key: &str) -> String {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    let found = pairs.find(|(name, _)| name.trim() == key);
    found.map_or("", |(_, value)| value.trim()).to_owned()
}

/// The word in brackets, as files in /sys mark the choice made.
fn chosen(text: &str) -> String {
    let word = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    word.map_or("", |(word, _)| word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{chosen, value};

    #[test]
    fn values_and_choices_are_found() {
        let text = "processor\t: 0\nmodel name\t: Fast One\n";
        assert_eq!(value(text, "model name"), "Fast One");
        assert_eq!(value(text, "flags"), "");
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "");
    }
}
