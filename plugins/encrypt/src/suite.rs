//! The ciphers by name, and which one fits this machine.

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};
use openssl::cipher::{Cipher, CipherRef};

/// Value of the parameter `cipher` that leaves the choice to [`Suite::named`].
pub(crate) const AUTO: &str = "auto";
/// Every value of the parameter `cipher`.
pub(crate) const NAMES: &[&str] = &[
    AUTO,
    "aes-256-gcm",
    "chacha20-poly1305",
    "aes-128-cbc",
    "aes-192-cbc",
    "aes-256-cbc",
];

/// Length of the tag of an AEAD suite, bytes.
pub(crate) const AEAD_TAG_LEN: usize = 16;
/// Block and initialisation vector of AES-CBC, bytes.
pub(crate) const BLOCK_LEN: usize = 16;
/// Length of the HMAC-SHA-256 tag of a CBC suite, bytes.
pub(crate) const MAC_LEN: usize = 32;

/// A cipher with its way to authenticate. The number is stored in images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Suite {
    Aes256Gcm = 1,
    ChaCha20Poly1305 = 2,
    Aes128Cbc = 3,
    Aes192Cbc = 4,
    Aes256Cbc = 5,
}

impl Suite {
    const ALL: [Self; 5] = [
        Self::Aes256Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes128Cbc,
        Self::Aes192Cbc,
        Self::Aes256Cbc,
    ];

    /// The suite of a value of the parameter `cipher`.
    pub(crate) fn named(name: &str) -> Result<Self> {
        if name == AUTO {
            // An unreadable /proc only costs speed: ChaCha20 is safe everywhere.
            return Ok(Self::fastest(
                &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            ));
        }
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == name)
            .ok_or_else(|| {
                StageError::new(
                    code::INVALID_CONFIG,
                    format!("cipher `{name}` is not known"),
                )
                .hint(format!("one of {}", NAMES.join(", ")))
            })
    }

    /// The suite with this number in an image.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }

    /// AES-GCM where the CPU has AES instructions; elsewhere ChaCha20-Poly1305, which is
    /// several times faster than AES in software and has no tables to leak through the cache.
    fn fastest(cpuinfo: &str) -> Self {
        if has_aes(cpuinfo) {
            Self::Aes256Gcm
        } else {
            Self::ChaCha20Poly1305
        }
    }

    /// Its value of the parameter `cipher`.
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Length of its encryption key, bytes.
    pub(crate) fn key_len(self) -> usize {
        match self {
            Self::Aes256Gcm | Self::ChaCha20Poly1305 | Self::Aes256Cbc => 32,
            Self::Aes192Cbc => 24,
            Self::Aes128Cbc => 16,
        }
    }

    /// The cipher authenticates by itself; the others need a MAC beside them.
    pub(crate) fn is_aead(self) -> bool {
        matches!(self, Self::Aes256Gcm | Self::ChaCha20Poly1305)
    }

    /// Length of the frame that `in_len` bytes become.
    pub(crate) fn frame_len(self, in_len: usize) -> usize {
        if self.is_aead() {
            return in_len.saturating_add(AEAD_TAG_LEN);
        }
        // PKCS #7 adds 1 to 16 bytes, so that the length can be told afterwards.
        let padded = (in_len / BLOCK_LEN)
            .saturating_add(1)
            .saturating_mul(BLOCK_LEN);
        padded.saturating_add(BLOCK_LEN + MAC_LEN)
    }

    /// The cipher in OpenSSL.
    pub(crate) fn cipher(self) -> &'static CipherRef {
        match self {
            Self::Aes256Gcm => Cipher::aes_256_gcm(),
            Self::ChaCha20Poly1305 => Cipher::chacha20_poly1305(),
            Self::Aes128Cbc => Cipher::aes_128_cbc(),
            Self::Aes192Cbc => Cipher::aes_192_cbc(),
            Self::Aes256Cbc => Cipher::aes_256_cbc(),
        }
    }
}

/// Whether `/proc/cpuinfo` names AES instructions: `aes` among x86 `flags` and ARM
/// `Features`, `zkne` or `zvkned` within the RISC-V `isa` string. Read from text and not
/// asked from the compiler, so that one function serves every architecture.
fn has_aes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(key, value)| match key.trim() {
            "flags" | "Features" => value.split_whitespace().any(|word| word == "aes"),
            "isa" => value
                .trim()
                .split('_')
                .any(|word| word == "zkne" || word == "zvkned"),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_and_numbers_find_their_suite() {
        for suite in Suite::ALL {
            assert_eq!(Suite::named(suite.name()).unwrap(), suite);
            assert_eq!(Suite::numbered(suite as u8), Some(suite));
            assert_eq!(suite.cipher().key_length(), suite.key_len(), "{suite:?}");
        }
        assert_eq!(Suite::numbered(0), None);
        assert_eq!(
            Suite::named("rot13").unwrap_err().code,
            code::INVALID_CONFIG
        );
    }

    #[test]
    fn auto_follows_the_cpu() {
        let cases = [
            ("flags\t\t: fpu vme aes avx\n", Suite::Aes256Gcm),
            ("flags\t\t: fpu vaes_like avx\n", Suite::ChaCha20Poly1305),
            ("Features\t: half thumb aes pmull\n", Suite::Aes256Gcm),
            ("Features\t: half thumb neon\n", Suite::ChaCha20Poly1305),
            ("isa\t\t: rv64imafdcv_zkne_zknd\n", Suite::Aes256Gcm),
            ("isa\t\t: rv64imafdc_zicsr\n", Suite::ChaCha20Poly1305),
            ("model name\t: aes\n", Suite::ChaCha20Poly1305),
            ("", Suite::ChaCha20Poly1305),
        ];
        for (cpuinfo, suite) in cases {
            assert_eq!(Suite::fastest(cpuinfo), suite, "{cpuinfo}");
        }
        assert!(Suite::named(AUTO).unwrap().is_aead());
    }
}
