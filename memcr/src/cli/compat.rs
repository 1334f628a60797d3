//! What the C memcr's command line allows beyond what clap understands.
//!
//! Its `-z` and `-e` take an optional value: `-z`, `-zlz4`, `-z lz4`, `-zc` are all
//! right. clap reads `-zc` as "compress with the algorithm c", so clusters are taken
//! apart before it sees them:
//!
//! ```text
//! -nzc    → -nz -c           `c` is no algorithm, but a flag
//! -nzLZ4  → -nzLZ4           a value, in any letter case
//! -zd/tmp → -z -d/tmp        the rest belongs to -d
//! -zxz    → -zxz             neither: clap says which values there are
//! ```
//!
//! A next word that begins with `-` is never a value, any other always is: that is
//! clap's own rule, and `-z -p 1` as well as `-z gzip` do what one expects.

use std::ffi::{OsStr, OsString};
use std::num::IntErrorKind::{NegOverflow, PosOverflow};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use super::args::{self, Job};

/// The words of the command line with every cluster that hides an optional value taken
/// apart.
#[must_use]
pub fn split_clusters(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let words: Vec<OsString> = words.into_iter().collect();
    // Without one nobody has to know which flags there are.
    if !words.iter().any(|word| is_cluster(word)) {
        return words;
    }
    let mut command = args::command();
    command.build();
    let shorts = Shorts::of(&command);
    let mut out = Vec::new();
    let mut only_operands = false;
    for word in words {
        only_operands |= word == "--";
        if only_operands {
            out.push(word);
        } else {
            shorts.split(&word, &mut out);
        }
    }
    out
}

/// Whether `word` may be several short flags, or one with its value.
fn is_cluster(word: &OsStr) -> bool {
    matches!(word.as_bytes(), [b'-', first, _, ..] if *first != b'-')
}

/// The id of a process, as `-p` takes it.
///
/// # Errors
/// When it is no number, or one that the kernel gives to no process.
pub fn pid(text: &str) -> Result<u32, String> {
    let outside = || format!("{text} is not in 1..={}", i32::MAX);
    match text.parse::<i32>() {
        Ok(pid) if pid > 0 => Ok(pid.unsigned_abs()),
        Ok(_) => Err(outside()),
        Err(error) if matches!(error.kind(), PosOverflow | NegOverflow) => Err(outside()),
        Err(_) => Err("not the number of a process".into()),
    }
}

/// A length of time in seconds, as `--timeout` takes it.
///
/// # Errors
/// When it is no number above 0, or too large for a clock.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| String::from("not a number of seconds"))?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if time.is_zero() => Err("must be more than 0".into()),
        Ok(time) => Ok(time),
        Err(_) => Err("not a length of time".into()),
    }
}

/// Says which flags were given that change nothing, to whom wants to know (`-v`).
pub(super) fn say_without_effect(job: &Job) {
    for flag in without_effect(job) {
        tracing::info!("{flag} changes nothing: the channel to the target has no name");
    }
}

/// The flags given that steer the C memcr's socket to its parasite. Ours has a channel
/// without a name, so there is nothing to steer.
#[must_use]
pub fn without_effect(job: &Job) -> Vec<&'static str> {
    [
        (job.parasite_socket_dir.is_some(), "--parasite-socket-dir"),
        (job.parasite_socket_gid.is_some(), "--parasite-socket-gid"),
        (job.parasite_socket_netns, "--parasite-socket-netns"),
    ]
    .into_iter()
    .filter_map(|(given, flag)| given.then_some(flag))
    .collect()
}

/// How a short flag takes a value.
enum Takes {
    Nothing,
    AValue,
    /// One of these, or none.
    Maybe(Vec<String>),
}

/// The short flags, as the definition of the command line has them.
struct Shorts(Vec<(u8, Takes)>);

impl Shorts {
    fn of(command: &clap::Command) -> Self {
        let takes = |arg: &clap::Arg| {
            if !arg.get_action().takes_values() {
                return Takes::Nothing;
            }
            match arg.get_num_args() {
                Some(range) if range.min_values() == 0 => Takes::Maybe(
                    arg.get_possible_values()
                        .iter()
                        .map(|v| v.get_name().to_owned())
                        .collect(),
                ),
                _ => Takes::AValue,
            }
        };
        let short = |arg: &clap::Arg| arg.get_short().and_then(|c| u8::try_from(c).ok());
        Self(
            command
                .get_arguments()
                .filter_map(|arg| Some((short(arg)?, takes(arg))))
                .collect(),
        )
    }

    fn split(&self, word: &OsStr, out: &mut Vec<OsString>) {
        let bytes = word.as_bytes();
        let cluster = match bytes {
            [b'-', rest @ ..] if !rest.is_empty() && rest[0] != b'-' => rest,
            _ => return out.push(word.to_owned()),
        };
        let mut begin = 0;
        for end in self.cuts(cluster).unwrap_or_default() {
            out.push(dashed(&cluster[begin..end]));
            begin = end;
        }
        out.push(dashed(&cluster[begin..]));
    }

    /// Where to cut: behind every optional value that was left out in front of another
    /// flag. `None` if this is no cluster of known flags.
    fn cuts(&self, cluster: &[u8]) -> Option<Vec<usize>> {
        let mut cuts = Vec::new();
        for (at, letter) in cluster.iter().enumerate() {
            let rest = &cluster[at + 1..];
            match &self.0.iter().find(|(short, _)| short == letter)?.1 {
                Takes::Nothing => {}
                Takes::AValue => return Some(cuts),
                Takes::Maybe(_) if rest.is_empty() || rest[0] == b'=' => return Some(cuts),
                Takes::Maybe(values)
                    if values
                        .iter()
                        .any(|v| rest.eq_ignore_ascii_case(v.as_bytes())) =>
                {
                    return Some(cuts);
                }
                Takes::Maybe(_) => cuts.push(at + 1),
            }
        }
        Some(cuts)
    }
}

fn dashed(letters: &[u8]) -> OsString {
    OsString::from_vec([b"-", letters].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::args::{Args, Cipher, Compression};
    use clap::Parser;

    fn split(line: &str) -> String {
        let words = split_clusters(line.split(' ').map(OsString::from));
        words
            .iter()
            .map(|w| w.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn job(line: &str) -> Job {
        Args::try_parse_from(split_clusters(line.split(' ').map(OsString::from)))
            .unwrap()
            .job
    }

    #[test]
    fn clusters_are_cut_where_a_value_was_left_out() {
        for (line, want) in [
            ("memcr -zc", "memcr -z -c"),
            ("memcr -nzce", "memcr -nz -ce"),
            ("memcr -zeaes-192-cbc", "memcr -z -eaes-192-cbc"),
            ("memcr -zezstd", "memcr -zezstd"),
            ("memcr -zLZ4", "memcr -zLZ4"),
            ("memcr -z=lz4", "memcr -z=lz4"),
            ("memcr -zd/tmp", "memcr -z -d/tmp"),
            ("memcr -zp 1", "memcr -z -p 1"),
            ("memcr -dzc", "memcr -dzc"),
            ("memcr -zxz", "memcr -zxz"),
            ("memcr -- -zc", "memcr -- -zc"),
            ("memcr - --zc", "memcr - --zc"),
        ] {
            assert_eq!(split(line), want);
        }
    }

    #[test]
    fn every_spelling_of_compress_means_the_same() {
        for (line, want) in [
            ("memcr -p 1 -z", Compression::Lz4),
            ("memcr -z -p 1", Compression::Lz4),
            ("memcr -zp 1", Compression::Lz4),
            ("memcr -p1 -z lz4", Compression::Lz4),
            ("memcr -p1 -zlz4", Compression::Lz4),
            ("memcr -p1 -z ZSTD", Compression::Zstd),
            ("memcr -p1 -nzZstd", Compression::Zstd),
            ("memcr -p1 --compress", Compression::Lz4),
            ("memcr -p1 --compress=zstd", Compression::Zstd),
            ("memcr -p1 --compress zstd", Compression::Zstd),
            ("memcr --compress --pid 1", Compression::Lz4),
        ] {
            let job = job(line);
            assert_eq!((job.compress, job.pid), (Some(want), Some(1)), "{line}");
        }
    }

    #[test]
    fn every_spelling_of_encrypt_means_the_same() {
        for (line, want) in [
            ("memcr -p 1 -e", Cipher::Aes128Cbc),
            ("memcr -ecp 1", Cipher::Aes128Cbc),
            ("memcr -p1 -e AES-256-CBC", Cipher::Aes256Cbc),
            ("memcr -p1 -zceaes-192-cbc", Cipher::Aes192Cbc),
            ("memcr -p1 --encrypt=aes-256-cbc", Cipher::Aes256Cbc),
        ] {
            assert_eq!(job(line).encrypt, Some(want), "{line}");
        }
    }

    #[test]
    fn words_that_are_no_text_come_through() {
        let odd = OsString::from_vec(vec![b'-', b'z', 0xff]);
        assert_eq!(split_clusters([odd.clone()]), [odd]);
    }

    #[test]
    fn seconds_are_above_nothing() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "1e300", "", "5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
