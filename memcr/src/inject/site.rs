//! A `syscall` instruction in the target's own code.

use super::InjectError;
use crate::maps::vma::Vma;
use crate::sys::arch::SYSCALL_INSN;
use crate::sys::proc_mem::ProcMem;

/// Read at once while searching, bytes.
const WINDOW_LEN: u64 = 64 * 1024;

/// The address of such an instruction. Bytes that look like one are one: the processor
/// executes them from there, whatever the compiler meant them to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site(u64);

impl Site {
    /// Finds one: in the vdso, which every process has unless it was taken away, or in
    /// the code of a file (the C library has hundreds). Both are never dropped for good:
    /// code in other memory might be missing when the restore needs it.
    ///
    /// # Errors
    /// [`InjectError::NoSite`].
    pub fn find(pid: i32, vmas: &[Vma], memory: &ProcMem) -> Result<Self, InjectError> {
        let is_vdso = |vma: &&Vma| &*vma.name == b"[vdso]";
        let is_code =
            |vma: &&Vma| vma.is_file() && vma.perms.exec && vma.perms.read && !vma.perms.write;
        vmas.iter()
            .filter(is_vdso)
            .chain(vmas.iter().filter(is_code))
            .find_map(|vma| search(vma, memory))
            .map(Self)
            .ok_or(InjectError::NoSite(pid))
    }

    /// Its address in the target.
    pub(super) fn address(self) -> u64 {
        self.0
    }
}

fn search(vma: &Vma, memory: &ProcMem) -> Option<u64> {
    let mut window = vec![0; vma.len_bytes().min(WINDOW_LEN) as usize];
    let mut start = vma.start;
    while start < vma.end {
        let len = (vma.end - start).min(WINDOW_LEN);
        let bytes = &mut window[..len as usize];
        // A page that cannot be read (a file cut short) holds no code that can be run.
        if memory.read(start, bytes).is_ok()
            && let Some(offset) = bytes
                .windows(SYSCALL_INSN.len())
                .position(|insn| insn == SYSCALL_INSN)
        {
            return Some(start + offset as u64);
        }
        start += len;
    }
    None
}
