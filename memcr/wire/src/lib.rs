//! What memcr's daemon and its clients say to each other, as types and as bytes.
//!
//! Two protocols share one socket; the first byte of a connection tells them apart. The
//! old one (v1, v2) is that of the C memcr: one packed struct, one number back. Our own
//! is lines of JSON, and its answers carry reasons. `docs/protocol.md` has both for users.
//!
//! ```text
//!   client                                            daemon
//!   LegacyRequest ──encode──▶ 64 00 00 00 …  ─┐
//!                                             ├─▶ Reader ─▶ Incoming::Legacy │ Incoming::Own
//!   Request ──────to_line───▶ {"memcr":1,…}⏎ ─┘
//!   Code ◀────from_bytes──── 00 00 00 00  ◀──────to_bytes── Code
//!   Answer ◀──parse───────── {"memcr":1,…}⏎ ◀────to_line─── answer::{done, failed, addressed}
//! ```
//!
//! Nothing here reads, writes or waits: bytes come in as slices and go out as vectors.
//! Whatever the bytes are, reading them ends in a value or in an error that names what is
//! wrong, never in a panic, and takes no more memory than [`limit`] allows.

pub mod answer;
pub mod compress;
pub mod legacy;
pub mod limit;
pub mod location;
pub mod reader;
pub mod request;

mod key;
mod line;

pub use answer::{Answer, AnswerError, Reason};
pub use compress::Compress;
pub use key::Id;
pub use legacy::{Code, Command, LegacyRequest, Malformed};
pub use location::{Location, LocationError};
pub use reader::{Incoming, Protocol, Reader};
pub use request::{Ask, BadRequest, Choice, Request, RequestError, Subject};

/// Version of our own protocol: the value of the key `memcr` in every line.
pub const VERSION: u64 = 1;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PAGE: &str = include_str!("../../../docs/protocol.md");

    fn examples(mark: &str) -> impl Iterator<Item = &'static str> {
        PAGE.lines().filter_map(move |line| line.strip_prefix(mark))
    }

    #[test]
    fn the_examples_of_the_page_are_right() {
        let mut verbs: Vec<_> = examples("> {")
            .map(|rest| Request::parse(format!("{{{rest}").as_bytes()).unwrap())
            .map(|request| request.ask.verb())
            .collect();
        verbs.sort_unstable();
        verbs.dedup();
        let all = ["abort", "checkpoint", "list", "restore", "stages", "status"];
        assert_eq!(verbs, all);
        let answers = examples("< {").map(|rest| format!("{{{rest}"));
        for answer in answers {
            let answer = Answer::parse(answer.as_bytes()).unwrap();
            assert_eq!(answer.ok, answer.exit_code == 0);
            assert_eq!(
                answer.ok,
                answer.error.is_none() && answer.meaning.is_none()
            );
        }
    }

    #[test]
    fn the_bytes_of_the_page_are_right() {
        let byte = |word: &str| match word.len() {
            2 => u8::from_str_radix(word, 16).ok(),
            _ => None,
        };
        // A line of them begins with a number of four.
        let hex = |line: &str| -> Vec<u8> {
            let bytes: Vec<u8> = line.split_whitespace().map_while(byte).collect();
            if bytes.len() < 4 { Vec::new() } else { bytes }
        };
        let bytes: Vec<u8> = PAGE.lines().flat_map(hex).collect();
        let v1 = LegacyRequest::decode(&bytes).unwrap().unwrap();
        assert_eq!(v1, LegacyRequest::v1(Command::Checkpoint, 4711));
        let v2 = LegacyRequest::decode(&bytes[8..]).unwrap().unwrap();
        assert_eq!(v2.dir.as_deref(), Some(&b"/var"[..]));
        assert_eq!((v2.pid, v2.compress), (4711, Some(Compress::Zstd)));
        assert_eq!(bytes.len(), 8 + 8 + 25);
    }

    #[test]
    fn the_limits_of_the_page_are_right() {
        for (limit, said) in [
            (limit::MAX_LINE_LEN, "most 64 KiB with it"),
            (limit::MAX_ANSWER_LEN, "at most 16 MiB"),
            (limit::MAX_UNANSWERED, "at most 16 may wait"),
            (limit::MAX_ID_LEN, "a text of at most 256 bytes"),
            (limit::MAX_PATH_LEN, "at most 4095 bytes"),
        ] {
            assert!(PAGE.contains(said), "{said}");
            let number = said
                .split(|c: char| !c.is_ascii_digit())
                .find(|word| !word.is_empty());
            let unit = match said {
                _ if said.contains("KiB") => 1 << 10,
                _ if said.contains("MiB") => 1 << 20,
                _ => 1,
            };
            assert_eq!(limit, number.unwrap().parse::<usize>().unwrap() * unit);
        }
        for (time, said) in [
            (
                limit::FIRST_BYTE_WITHIN,
                "| from connecting to the first byte | 10 s |",
            ),
            (
                limit::REQUEST_WITHIN,
                "| from the first byte of a request to its last | 10 s |",
            ),
            (
                limit::IDLE_FOR,
                "| nothing under way on a connection of our own protocol | 60 s |",
            ),
            (
                limit::ANSWER_READ_WITHIN,
                "| an answer that the client does not read | 10 s |",
            ),
        ] {
            assert!(PAGE.contains(said), "{said}");
            assert!(said.contains(&format!("| {} s |", time.as_secs())));
        }
    }
}
