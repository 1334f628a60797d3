//! A request as it stands in its line: keys and values, before anything is known of how
//! they go together.
//!
//! Values are kept as [`Scalar`]s, so that an error can name the key and the value. Lists
//! and objects are skipped without being kept: a hostile line costs no memory beyond its
//! own length.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// Every key of a request.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memcr: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<Scalar>,
    #[serde(default, rename = "do", skip_serializing_if = "Option::is_none")]
    pub(crate) verb: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pipeline: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dir: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compress: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Scalar>,
}

/// What can be known of any request, whatever else it holds: of one that is refused, and
/// of one in a later version of the protocol.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Head {
    #[serde(default)]
    pub(crate) memcr: Option<Scalar>,
    #[serde(default)]
    pub(crate) id: Option<Scalar>,
}

/// A value without parts. `null` is as if the key were not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Text(String),
    Number(Number),
    Truth(bool),
    /// None of these: the word says what it is.
    Other(&'static str),
}

impl fmt::Display for Scalar {
    /// As an error shows it: short, and harmless on a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Self::Text(text) if text.chars().nth(SHOWN).is_none() => write!(f, "{text:?}"),
            Self::Text(text) => {
                let head: String = text.chars().take(SHOWN).collect();
                write!(f, "{head:?}... ({} bytes)", text.len())
            }
            Self::Number(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyScalar)
    }
}

struct AnyScalar;

impl<'de> Visitor<'de> for AnyScalar {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
        let number = Number::from_f64(number).map(Scalar::Number);
        Ok(number.unwrap_or(Scalar::Other("a number without a value")))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Scalar, E> {
        Ok(Scalar::Truth(truth))
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an object"))
    }
}
