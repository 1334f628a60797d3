//! What is done with a mapping as a whole. The table of CORNER CASES in one match:
//! whatever is not plainly private memory of the target alone stays where it is.

use super::details::VmFlags;
use super::vma::Vma;

/// What the user and the pipeline allow beyond the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// Drop clean pages of private file mappings too (`-f`).
    pub drop_file_pages: bool,
    /// Take locked memory too.
    pub include_locked: bool,
    /// A stage of the pipeline encrypts: memory that its owner keeps out of core dumps
    /// may be written.
    pub encrypted: bool,
    /// Pages can be written whatever their protection (`/proc/PID/mem`): without this,
    /// pages that the target itself cannot write could not come back.
    pub override_protection: bool,
    /// A guard will stand over what is dropped. It cannot stand over copied pages of
    /// private file mappings (userfaultfd knows anonymous memory only), so these stay:
    /// a target without them would run on the file's bytes should we die.
    pub guarded: bool,
}

/// What is done with the pages of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// All of it stays.
    Leave(LeftBecause),
    /// Private pages without a file behind them: stored unless zero, and dropped.
    Anonymous,
    /// A private file mapping: copied-on-written pages are stored and dropped.
    PrivateFile,
    /// A file's code, which the target does not write: a copied page is where the kernel
    /// (uprobes) or a debugger has put a breakpoint. Such a page stays, so that whoever
    /// put it there can take it away meanwhile: brought back, it would be an instruction
    /// that nobody expects any more, and would end the target.
    FileCode,
}

/// Why a whole mapping, or some of its pages, stay in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftBecause {
    /// MAP_SHARED: dropping frees nothing, others see it.
    SharedMapping,
    /// Device memory, vdso and their like.
    Special,
    /// mlock(2), mlockall(2).
    Locked,
    /// Huge TLB pages.
    HugeTlb,
    /// A userfaultfd of the target's own watches it.
    Userfault,
    /// madvise(MADV_DONTDUMP) without an encrypting stage: it must not reach a disk.
    DontDump,
    /// A shadow stack: plain stores cannot restore it.
    ShadowStack,
    /// MAP_DROPPABLE: the kernel may take it away itself.
    Droppable,
    /// Shared with another process since a fork, or merged by KSM.
    ForkShared,
    /// Already in swap.
    Swapped,
    /// Not writable by the target, and the kernel lets nobody override that.
    Protected,
    /// A copied page of a file's code: somebody's breakpoint.
    Code,
    /// A guard region (MADV_GUARD_INSTALL): no page, and still not to be dropped.
    Guard,
    /// A clean page of a file.
    CleanFile,
    /// The kernel refused to drop it.
    DropRefused,
    /// A copied page of a private file mapping, over which no guard can stand.
    FileCopy,
    /// The kernel reads it of a process that stands still: its arguments and environment
    /// (`ps`), the rseq area of the thread that works for us.
    Needed,
}

impl LeftBecause {
    /// In words, for reports.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::SharedMapping => "shared mappings",
            Self::Special => "special mappings",
            Self::Locked => "locked in memory",
            Self::HugeTlb => "huge TLB pages",
            Self::Userfault => "under a userfaultfd of the target",
            Self::DontDump => "kept out of core dumps (not encrypted)",
            Self::ShadowStack => "shadow stacks",
            Self::Droppable => "droppable",
            Self::ForkShared => "shared with other processes",
            Self::Swapped => "in swap already",
            Self::Protected => "protected, and the kernel forbids to write there",
            Self::Code => "code with breakpoints",
            Self::Guard => "guard regions",
            Self::CleanFile => "clean file pages",
            Self::DropRefused => "not given back by the kernel",
            Self::FileCopy => "copied file pages (no guard can stand over them)",
            Self::Needed => "needed while held",
        }
    }
}

impl Policy {
    /// Decides for one mapping.
    #[must_use]
    pub fn treat(&self, vma: &Vma, flags: VmFlags) -> Treatment {
        match self.leave(vma, flags) {
            Some(reason) => Treatment::Leave(reason),
            None if vma.is_file() && vma.perms.exec && !vma.perms.write => Treatment::FileCode,
            None if vma.is_file() => Treatment::PrivateFile,
            None => Treatment::Anonymous,
        }
    }

    fn leave(&self, vma: &Vma, flags: VmFlags) -> Option<LeftBecause> {
        if vma.perms.shared {
            return Some(LeftBecause::SharedMapping);
        }
        if flags.special || is_kernels_own(&vma.name) {
            return Some(LeftBecause::Special);
        }
        let reasons = [
            (flags.hugetlb, LeftBecause::HugeTlb),
            (flags.userfault, LeftBecause::Userfault),
            (flags.shadow_stack, LeftBecause::ShadowStack),
            (flags.droppable, LeftBecause::Droppable),
            (flags.locked && !self.include_locked, LeftBecause::Locked),
            (flags.dont_dump && !self.encrypted, LeftBecause::DontDump),
            (
                !is_plain(vma) && !self.override_protection,
                LeftBecause::Protected,
            ),
        ];
        reasons
            .into_iter()
            .find_map(|(applies, reason)| applies.then_some(reason))
    }
}

/// Readable and writable: `process_vm_readv` and `process_vm_writev` work.
pub(super) fn is_plain(vma: &Vma) -> bool {
    vma.perms.read && vma.perms.write
}

/// Mappings that the kernel itself puts into every process.
fn is_kernels_own(name: &[u8]) -> bool {
    [
        &b"[vdso]"[..],
        b"[vvar",
        b"[vsyscall]",
        b"[uprobes]",
        b"[vectors]",
        b"[sigpage]",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::maps::vma;

    fn treat(policy: Policy, line: &str, flags: VmFlags) -> Treatment {
        policy.treat(&vma::parse(line.as_bytes()).unwrap()[0], flags)
    }

    #[test]
    fn private_memory_goes() {
        for name in ["", "[heap]", "[stack]", "[anon:arena]"] {
            let line = format!("1000-2000 rw-p 0 00:00 0 {name}");
            assert_eq!(
                treat(Policy::default(), &line, VmFlags::default()),
                Treatment::Anonymous,
                "{name}"
            );
        }
        let file = "1000-2000 rw-p 0 08:01 7 /lib/libc.so.6";
        assert_eq!(
            treat(Policy::default(), file, VmFlags::default()),
            Treatment::PrivateFile
        );
    }

    #[test]
    fn everything_else_stays_with_its_reason() {
        let private = "1000-2000 rw-p 0 00:00 0";
        let cases = [
            (
                "1000-2000 rw-s 0 00:00 0",
                VmFlags::default(),
                LeftBecause::SharedMapping,
            ),
            (
                "1000-2000 r-xp 0 00:00 0 [vdso]",
                VmFlags::default(),
                LeftBecause::Special,
            ),
            (
                "1000-2000 r--p 0 00:00 0 [vvar_vclock]",
                VmFlags::default(),
                LeftBecause::Special,
            ),
            (
                private,
                VmFlags {
                    special: true,
                    ..Default::default()
                },
                LeftBecause::Special,
            ),
            (
                private,
                VmFlags {
                    locked: true,
                    ..Default::default()
                },
                LeftBecause::Locked,
            ),
            (
                private,
                VmFlags {
                    hugetlb: true,
                    ..Default::default()
                },
                LeftBecause::HugeTlb,
            ),
            (
                private,
                VmFlags {
                    userfault: true,
                    ..Default::default()
                },
                LeftBecause::Userfault,
            ),
            (
                private,
                VmFlags {
                    dont_dump: true,
                    ..Default::default()
                },
                LeftBecause::DontDump,
            ),
            (
                private,
                VmFlags {
                    shadow_stack: true,
                    ..Default::default()
                },
                LeftBecause::ShadowStack,
            ),
            (
                private,
                VmFlags {
                    droppable: true,
                    ..Default::default()
                },
                LeftBecause::Droppable,
            ),
        ];
        for (line, flags, reason) in cases {
            assert_eq!(
                treat(Policy::default(), line, flags),
                Treatment::Leave(reason),
                "{line} {flags:?}"
            );
        }
    }

    #[test]
    fn locked_and_secret_memory_goes_when_allowed() {
        let private = "1000-2000 rw-p 0 00:00 0";
        let policy = Policy {
            include_locked: true,
            encrypted: true,
            ..Default::default()
        };
        let flags = VmFlags {
            locked: true,
            dont_dump: true,
            ..Default::default()
        };
        assert_eq!(treat(policy, private, flags), Treatment::Anonymous);
    }
}
