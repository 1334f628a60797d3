//! The compressions that a client may choose, in both protocols.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How an image is compressed, where the client chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Not at all.
    None = 0,
    /// Fast.
    Lz4 = 1,
    /// Smaller.
    Zstd = 2,
}

impl Compress {
    /// Every compression, in the order of the numbers of v2.
    pub const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    /// The word for it, which is also the name of the stage, if there is one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The number for it in v2.
    #[must_use]
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The compression with this number in v2.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.number() == number)
    }
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compress {
    type Err = UnknownCompress;

    /// In lower case, as the protocol has it.
    fn from_str(word: &str) -> Result<Self, UnknownCompress> {
        let mut all = Self::ALL.into_iter();
        all.find(|each| each.name() == word).ok_or(UnknownCompress)
    }
}

/// A word that is no compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are the compressions none, lz4 and zstd")]
pub struct UnknownCompress;

#[cfg(test)]
mod tests {
    use super::Compress;

    #[test]
    fn words_and_numbers_lead_back() {
        for (number, compress) in (0..).zip(Compress::ALL) {
            assert_eq!(Compress::from_number(number), Some(compress));
            assert_eq!(compress.name().parse(), Ok(compress));
            assert_eq!(
                serde_json::to_value(compress).ok(),
                Some(compress.name().into())
            );
        }
        for number in [-1, 3, i32::MIN, i32::MAX] {
            assert_eq!(Compress::from_number(number), None);
        }
        assert!("LZ4".parse::<Compress>().is_err());
    }
}
