//! The `id` by which a client knows the answer to a request.

use std::fmt;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::limit::MAX_ID_LEN;
use crate::line::Scalar;

/// What a client calls a request: a text or a number, which its answer repeats.
///
/// Texts, and whole numbers of up to 64 bits, come back as they are; other numbers as
/// precisely as a double has them, and perhaps in other digits (`1e2` as `100.0`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A text of at most [`MAX_ID_LEN`] bytes.
    Text(String),
    /// A number.
    Number(Number),
}

impl Id {
    /// `None`: it is neither a number nor a text that is short enough.
    pub(crate) fn from_scalar(scalar: Scalar) -> Option<Self> {
        match scalar {
            Scalar::Text(text) if text.len() <= MAX_ID_LEN => Some(Self::Text(text)),
            Scalar::Number(number) => Some(Self::Number(number)),
            _ => None,
        }
    }

    pub(crate) fn to_scalar(&self) -> Scalar {
        match self {
            Self::Text(text) => Scalar::Text(text.clone()),
            Self::Number(number) => Scalar::Number(number.clone()),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let scalar = Scalar::deserialize(from)?;
        Self::from_scalar(scalar)
            .ok_or_else(|| D::Error::custom("the id is no number or short text"))
    }
}

impl From<u64> for Id {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for Id {
    /// For a log: a text may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => number.fmt(f),
        }
    }
}
