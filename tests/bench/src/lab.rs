//! Where the limits are measured: a process to read from, memory like its own, directories.

use std::path::PathBuf;

use memcr_harness::{Context, Result, Victim};

use crate::args::Args;
use crate::cycle::start_victim;
use crate::limits::PAGE;
use crate::limits::target::RemoteMemory;

/// What every measurement of a limit may use.
pub(crate) struct Lab {
    // Dropped with the lab; until then its memory is there to be read.
    _victim: Victim,
    /// The memory of a target.
    pub(crate) target: RemoteMemory,
    /// The bytes that are worth storing: the target's, without its pages of zeros; of a
    /// target that has no others, these.
    pub(crate) stored: Vec<u8>,
    /// A directory for each sink.
    pub(crate) tmpfs_dir: PathBuf,
    pub(crate) file_dir: PathBuf,
}

impl Lab {
    /// A lab with a target of `size_mib`.
    ///
    /// # Errors
    /// When the target cannot be started or read.
    pub(crate) fn open(size_mib: u64, args: &Args) -> Result<Self> {
        let mut victim = start_victim(size_mib, args.content())?;
        let addr = victim.ask("where")?;
        let addr = usize::from_str_radix(addr.trim_start_matches("0x"), 16)
            .context(format!("an address from `{addr}`"))?;
        let target = RemoteMemory {
            pid: victim.pid(),
            addr,
            len: (size_mib << 20) as usize,
        };
        let mut stored = vec![0; target.len];
        target.read(0, &mut stored)?;
        Ok(Self {
            _victim: victim,
            target,
            stored: without_zero_pages(&stored),
            tmpfs_dir: args.tmpfs_dir().to_owned(),
            file_dir: args.file_dir.clone(),
        })
    }
}

fn without_zero_pages(bytes: &[u8]) -> Vec<u8> {
    let pages = bytes.chunks(PAGE);
    let kept: Vec<&[u8]> = pages
        .filter(|page| page.iter().any(|byte| *byte != 0))
        .collect();
    if kept.is_empty() {
        return bytes.to_vec();
    }
    kept.concat()
}
