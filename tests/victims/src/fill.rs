//! The rule that fills memory: the content of a page follows from seed and key.
//!
//! The key of a page is its address (or its offset in a file), so that a page that
//! comes back at another place is as wrong as one with a flipped bit.
//!
//! | content   | pages                                                            |
//! |-----------|------------------------------------------------------------------|
//! | `dense`   | structs, words and random, no page of zeros: what is resident before is resident after |
//! | `heap`    | 29 % zero, 49 % 64-byte structs of pointers and small ints, 22 % random: what the heaps of long-running programs look like |
//! | `pointer` | structs only                                                     |
//! | `text`    | words                                                            |
//! | `random`  | incompressible                                                   |
//! | `zero`    | written, but zero                                                |

use crate::talk::Wrong;

/// What pages contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Dense,
    Heap,
    Pointer,
    Text,
    Random,
    Zero,
}

impl Content {
    /// By name; ends the victim on an unknown one.
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "dense" => Self::Dense,
            "heap" => Self::Heap,
            "pointer" => Self::Pointer,
            "text" => Self::Text,
            "random" => Self::Random,
            "zero" => Self::Zero,
            _ => crate::talk::die(&format!("unknown content `{name}`")),
        }
    }
}

/// A rule: one seed, one content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) content: Content,
    pub(crate) seed: u64,
}

impl Rule {
    /// Writes the page with `key` to `out`.
    pub(crate) fn page(self, key: u64, out: &mut [u8]) {
        let mut rng = Rng::new(self.seed, key);
        match self.content {
            Content::Zero => out.fill(0),
            Content::Random => random(&mut rng, out),
            Content::Text => text(&mut rng, out),
            Content::Pointer => structs(&mut rng, key, out),
            Content::Dense => match rng.next() % 10 {
                0..6 => structs(&mut rng, key, out),
                6..8 => text(&mut rng, out),
                _ => random(&mut rng, out),
            },
            Content::Heap => match rng.next() % 100 {
                0..29 => out.fill(0),
                29..78 => structs(&mut rng, key, out),
                _ => random(&mut rng, out),
            },
        }
    }

    /// Fills `bytes`, which begin at `key`, page by page.
    pub(crate) fn fill(self, key: u64, bytes: &mut [u8]) {
        let page_len = crate::sys::page_len();
        for (i, page) in bytes.chunks_mut(page_len).enumerate() {
            self.page(key + (i * page_len) as u64, page);
        }
    }

    /// Checks `bytes`, which begin at `key` and lie at `addr`. `scratch` is one page.
    ///
    /// # Errors
    /// The first byte that differs.
    pub(crate) fn check_with(
        self,
        key: u64,
        addr: usize,
        bytes: &[u8],
        scratch: &mut [u8],
    ) -> Result<u64, Wrong> {
        let page_len = scratch.len();
        for (i, page) in bytes.chunks(page_len).enumerate() {
            let want = &mut scratch[..page.len()];
            self.page(key + (i * page_len) as u64, want);
            if page != want {
                return Err(difference(addr + i * page_len, page, want));
            }
        }
        Ok(bytes.len() as u64)
    }

    /// [`Rule::check_with`] with scratch memory of its own.
    ///
    /// # Errors
    /// The first byte that differs.
    pub(crate) fn check(self, key: u64, addr: usize, bytes: &[u8]) -> Result<u64, Wrong> {
        self.check_with(key, addr, bytes, &mut vec![0; crate::sys::page_len()])
    }
}

fn difference(addr: usize, got: &[u8], want: &[u8]) -> Wrong {
    let at = got.iter().zip(want).position(|(g, w)| g != w).unwrap_or(0);
    let n_wrong = got.iter().zip(want).filter(|(g, w)| g != w).count();
    let zeros = if got.iter().all(|&b| b == 0) {
        ", the page is all zero"
    } else {
        ""
    };
    let what = format!(
        "want {:#04x} got {:#04x}, {n_wrong} bytes of its page differ{zeros}",
        want[at], got[at]
    );
    Wrong {
        addr: addr + at,
        what,
    }
}

/// splitmix64: small, fast, and good enough that no stage finds a pattern.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64, key: u64) -> Self {
        let mut rng = Self(seed ^ key.rotate_left(32));
        rng.0 = rng.next() ^ key;
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn random(rng: &mut Rng, out: &mut [u8]) {
    for word in out.chunks_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes()[..word.len()]);
    }
}

/// A type word that repeats, a pointer anywhere near and one to a page nearby, small
/// numbers, gaps. lz4 packs them 3.5:1, and a heap with its zeros and random bytes 2.8:1.
fn structs(rng: &mut Rng, key: u64, out: &mut [u8]) {
    for item in out.chunks_mut(64) {
        let near = |r: u64| key.wrapping_add((r % (1 << 24)) & !15);
        let (a, b) = (rng.next(), rng.next());
        let words = [
            near(a),
            0x5555_0000_1000,
            0,
            b % 100,
            (b >> 8) % 4096,
            key.wrapping_add(a >> 60 << 12),
            0,
            (b >> 32) % 2,
        ];
        for (word, place) in words.iter().zip(item.chunks_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes()[..place.len()]);
        }
    }
}

const WORDS: [&str; 16] = [
    "memory ", "of ", "a ", "live ", "process ", "is ", "taken ", "away ", "and ", "given ",
    "back ", "later ", "page ", "by ", "the ", "\n",
];

fn text(rng: &mut Rng, out: &mut [u8]) {
    let mut at = 0;
    while at < out.len() {
        let word = WORDS[(rng.next() % 16) as usize].as_bytes();
        let n = word.len().min(out.len() - at);
        out[at..at + n].copy_from_slice(&word[..n]);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAP: Rule = Rule {
        content: Content::Heap,
        seed: 7,
    };

    #[test]
    fn a_filled_range_checks() {
        let mut bytes = vec![0; 64 * 4096 + 100];
        HEAP.fill(0x1000, &mut bytes);
        assert_eq!(
            HEAP.check(0x1000, 0x1000, &bytes).unwrap(),
            bytes.len() as u64
        );
    }

    #[test]
    fn one_flipped_bit_is_named() {
        for content in [
            Content::Dense,
            Content::Heap,
            Content::Pointer,
            Content::Text,
            Content::Random,
            Content::Zero,
        ] {
            let rule = Rule { content, seed: 1 };
            let mut bytes = vec![0; 8 * 4096];
            rule.fill(0, &mut bytes);
            bytes[5 * 4096 + 123] ^= 0x10;
            assert_eq!(
                rule.check(0, 0x7000, &bytes).unwrap_err().addr,
                0x7000 + 5 * 4096 + 123
            );
        }
    }

    #[test]
    fn swapped_pages_are_noticed() {
        let rule = Rule {
            content: Content::Pointer,
            seed: 1,
        };
        let mut bytes = vec![0; 2 * 4096];
        rule.fill(0, &mut bytes);
        bytes.rotate_left(4096);
        assert!(rule.check(0, 0, &bytes).is_err());
    }

    #[test]
    fn a_heap_has_the_stated_mixture() {
        let mut page = vec![0; 4096];
        let zero = (0..10_000u64)
            .filter(|i| {
                HEAP.page(i * 4096, &mut page);
                page.iter().all(|&b| b == 0)
            })
            .count();
        assert!(
            (2700..3100).contains(&zero),
            "{zero} of 10000 pages are zero"
        );
    }
}
