//! The exit codes: one enum, from which `--help` and the man page take them.

use std::process::ExitCode;

use memcr_client::{Answer, ClientError};

/// How memcr-client ends. A script may rely on the numbers, which are those of memcr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// Something that has no code of its own; in the old protocol: every failure.
    Other,
    /// The command line or the request is wrong.
    Usage,
    /// What the daemon says that memcr would end with.
    Daemon(u8),
    /// The daemon cannot be reached, refuses work for now, or has not answered in time.
    Unavailable,
}

impl Exit {
    /// Every code, in the order of the numbers; 3 stands for all that the daemon gives.
    pub(crate) const ALL: [Self; 5] = [
        Self::Done,
        Self::Other,
        Self::Usage,
        Self::Daemon(3),
        Self::Unavailable,
    ];

    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::Daemon(code) => code,
            Self::Unavailable => 15,
        }
    }

    /// The number in a table.
    pub(crate) fn shown(self) -> String {
        match self {
            Self::Daemon(_) => "3-14".into(),
            exit => exit.code().to_string(),
        }
    }

    /// What the number says, for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Other => "an error that has no code of its own",
            Self::Usage => "the command line or the request is wrong",
            Self::Daemon(_) => "as memcr, which has done it for the daemon; see memcr(1)",
            Self::Unavailable => {
                "the daemon cannot be reached, refuses work for now, or has not answered in time"
            }
        }
    }

    /// The list under `--help`.
    pub(crate) fn help_table() -> String {
        let lines = Self::ALL.map(|exit| format!("\n  {:>4}  {}", exit.shown(), exit.meaning()));
        format!("Exit codes:{}", lines.concat())
    }

    /// Of a number that the daemon gave, or that is the same in every program of memcr.
    pub(crate) fn of_code(code: u8) -> Self {
        let known = [Self::Done, Self::Other, Self::Usage, Self::Unavailable];
        let known = known.into_iter().find(|exit| exit.code() == code);
        known.unwrap_or(Self::Daemon(code))
    }
}

impl From<&Answer> for Exit {
    fn from(answer: &Answer) -> Self {
        Self::of_code(answer.exit_code)
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        Self::of_code(error.exit_code())
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
    fn numbers_lead_back() {
        for exit in Exit::ALL {
            assert_eq!(Exit::of_code(exit.code()), exit);
        }
        assert_eq!(Exit::of_code(13), Exit::Daemon(13));
    }
}
