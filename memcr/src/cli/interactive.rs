//! The line from stdin that ends the waiting.
//!
//! One line is read and not a byte more: who drives memcr from a script may have put
//! something behind it, for the next program.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// How much of the line has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// Not all of it.
    Begun,
    /// All of it, or there is no more to come.
    Ended,
}

/// Takes what is there of the line. To be called when `input` is readable.
///
/// The end of the input counts as Enter, and so does an input that cannot be read (a
/// terminal that has hung up): nobody can press anything there any more, and the target
/// must not stay frozen for that.
pub(super) fn take(input: impl AsFd) -> Line {
    let mut byte = [0];
    match rustix::io::read(input, &mut byte) {
        Ok(1) if byte[0] != b'\n' => Line::Begun,
        Err(Errno::AGAIN | Errno::INTR) => Line::Begun,
        Ok(_) | Err(_) => Line::Ended,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Line, take};
    use std::io::{Read, Write};

    #[test]
    fn one_line_is_taken_and_nothing_behind_it() {
        let (mut input, mut output) = std::io::pipe().unwrap();
        output.write_all(b"no\nnext").unwrap();
        drop(output);
        let mut n_reads = 1;
        while take(&input) == Line::Begun {
            n_reads += 1;
        }
        assert_eq!(n_reads, 3);
        let mut left = String::new();
        input.read_to_string(&mut left).unwrap();
        assert_eq!(left, "next");
    }

    #[test]
    fn the_end_of_the_input_ends_the_line() {
        let (input, output) = std::io::pipe().unwrap();
        drop(output);
        assert_eq!(take(&input), Line::Ended);
    }

    #[test]
    fn an_input_that_cannot_be_read_ends_the_line() {
        let (_input, output) = std::io::pipe().unwrap();
        assert_eq!(take(&output), Line::Ended);
    }
}
