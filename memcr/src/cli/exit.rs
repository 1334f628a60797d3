//! The exit codes: one enum, from which `--help`, the man page and README take them.

use std::fmt::Write as _;
use std::process::ExitCode;

/// How memcr ends. A script may rely on the numbers: they are never given a new meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done: after `-p` the target runs again, after `checkpoint` it is held.
    Ok = 0,
    /// Something that has no code of its own.
    Internal = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A stage cannot be found, loaded, configured or opened, or stages do not fit together.
    Plugin = 3,
    /// This target cannot be checkpointed; it was not touched.
    Refused = 4,
    /// There is no such process, or the one that was held has ended.
    NoProcess = 5,
    /// The kernel does not let this user do it.
    Permission = 6,
    /// The checkpoint failed and was undone: the target runs.
    Undone = 7,
    /// A signal or `--timeout` ended the checkpoint and it was undone: the target runs.
    Aborted = 8,
    /// The target exited or was killed while it was frozen or held.
    TargetGone = 9,
    /// The image came back wrong, so the target was killed rather than run on wrong memory.
    ImageCorrupt = 10,
    /// `inspect`, `verify`: the image is damaged, or is none.
    ImageInvalid = 11,
    /// The restore failed in another way; the message says what became of the target.
    RestoreFailed = 12,
    /// The process is held already, or another memcr works on it; nothing was touched.
    Held = 13,
    /// The process is not held; nothing was touched.
    NotHeld = 14,
    /// The daemon is ending, or has as much to do as it may have; or it cannot be reached.
    Unavailable = 15,
}

impl Exit {
    /// Every code, in the order of the numbers.
    pub const ALL: [Self; 16] = [
        Self::Ok,
        Self::Internal,
        Self::Usage,
        Self::Plugin,
        Self::Refused,
        Self::NoProcess,
        Self::Permission,
        Self::Undone,
        Self::Aborted,
        Self::TargetGone,
        Self::ImageCorrupt,
        Self::ImageInvalid,
        Self::RestoreFailed,
        Self::Held,
        Self::NotHeld,
        Self::Unavailable,
    ];

    /// The number that the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What the number says, for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done: after -p the target runs again, after checkpoint it is held",
            Self::Internal => "an error that has no code of its own",
            Self::Usage => "the command line or the configuration is wrong",
            Self::Plugin => {
                "a stage cannot be found, loaded, configured or opened, or stages do not fit together"
            }
            Self::Refused => "this target cannot be checkpointed; it was not touched",
            Self::NoProcess => "there is no such process, or the one that was held has ended",
            Self::Permission => "permission denied",
            Self::Undone => "the checkpoint failed and was undone: the target runs",
            Self::Aborted => {
                "a signal or --timeout ended the checkpoint, it was undone: the target runs"
            }
            Self::TargetGone => "the target exited or was killed while it was frozen or held",
            Self::ImageCorrupt => "the image came back wrong: the target was killed",
            Self::ImageInvalid => "inspect, verify: the image is damaged, or is none",
            Self::RestoreFailed => "the restore failed; the message says what became of the target",
            Self::Held => "the process is held already, or another memcr works on it",
            Self::NotHeld => "the process is not held",
            Self::Unavailable => "the daemon cannot be reached, or refuses work for now",
        }
    }

    /// The list under `--help` and in the man page.
    #[must_use]
    pub fn help_table() -> String {
        Self::ALL
            .iter()
            .fold(String::from("Exit codes:"), |mut text, exit| {
                // Writing to a String cannot fail.
                let _ = write!(text, "\n  {:>2}  {}", exit.code(), exit.meaning());
                text
            })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn numbers_are_dense_and_in_order() {
        for (n, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), n);
        }
    }

    #[test]
    fn readme_has_the_same_table() {
        let readme = include_str!("../../../README.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit.code(), exit.meaning());
            assert!(readme.contains(&row), "README.md lacks the row `{row}`");
        }
    }
}
