//! The keys of one image, and the state blob that finds them again.
//!
//! ```text
//! state, 64 bytes                       master key, salt
//!  0  4  "menc"                              │ HKDF-SHA-256, info = "memcr encrypt 1", purpose,
//!  4  1  version, 1                          │                     cipher name, state[0..8], image id
//!  5  1  number of the suite                 ├─ "frame"   key of the cipher
//!  6  1  number of the key's source          ├─ "mac"     key of HMAC-SHA-256 (CBC suites only)
//!  7  1  zero                                ├─ "trailer" key of the trailer's HMAC
//!  8 32  salt, random                        └─ "check"   state[40..56]
//! 40 16  key check
//! 56  8  start of SHA-256 over state[0..56] and the image id
//! ```
//!
//! Every image has a salt of its own, so no two images share a key even if they share
//! the master key; within one image the chunk's index makes every nonce unique. The
//! digest has no key: it tells damage (anybody can see it) from a wrong key (only the
//! key check fails).

use std::sync::atomic::{AtomicU64, Ordering};

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Image, Result, StageError};
use openssl::hash::MessageDigest;
use openssl::md::Md;
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::sign::Signer;

use crate::locked::LockedKey;
use crate::master::{KeySource, MasterKey};
use crate::suite::{MAC_LEN, Suite};

/// Length of the state blob, bytes.
pub(crate) const STATE_LEN: usize = 64;
const MAGIC: &[u8; 4] = b"menc";
const VERSION: u8 = 1;
const PREFIX_LEN: usize = 8;
const SALT: std::ops::Range<usize> = 8..40;
const CHECK: std::ops::Range<usize> = 40..56;
const DIGEST: std::ops::Range<usize> = 56..64;

/// Numbers the keys of this process, so that a worker sees whether its context, keyed
/// for an earlier image, still fits.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// The keys of one image.
#[derive(Debug)]
pub(crate) struct ImageKeys {
    /// Cipher and MAC.
    pub(crate) suite: Suite,
    /// Unique in this process, never 0.
    pub(crate) generation: u64,
    /// Key of the cipher.
    pub(crate) frame: LockedKey,
    /// Key of the MAC; CBC suites only.
    pub(crate) mac: Option<PKey<Private>>,
    trailer: PKey<Private>,
}

impl ImageKeys {
    /// Fresh keys for a new image, and its state blob.
    pub(crate) fn generate(
        master: &MasterKey,
        suite: Suite,
        image: &Image,
    ) -> Result<(Self, [u8; STATE_LEN])> {
        let mut state = [0; STATE_LEN];
        state[..4].copy_from_slice(MAGIC);
        state[4..PREFIX_LEN].copy_from_slice(&[VERSION, suite as u8, master.source as u8, 0]);
        openssl::rand::rand_bytes(&mut state[SALT]).map_err(|e| internal("make a salt", &e))?;
        let derive = Derivation {
            master,
            suite,
            state,
            image_id: image.id,
        };
        derive.fill("check", &mut state[CHECK])?;
        let digest = digest(&state, image);
        state[DIGEST].copy_from_slice(&digest);
        Ok((Self::derive(&derive)?, state))
    }

    fn derive(derive: &Derivation<'_>) -> Result<Self> {
        let suite = derive.suite;
        Ok(Self {
            suite,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            frame: LockedKey::new(suite.key_len(), |key| derive.fill("frame", key))?,
            mac: if suite.is_aead() {
                None
            } else {
                Some(derive.hmac_key("mac")?)
            },
            trailer: derive.hmac_key("trailer")?,
        })
    }

    /// The tag over the number of chunks: nobody can add or remove chunks at the end.
    pub(crate) fn trailer(&self, n_chunks: u64) -> Result<[u8; MAC_LEN]> {
        let mut tag = [0; MAC_LEN];
        let mut signer = Signer::new(MessageDigest::sha256(), &self.trailer)
            .map_err(|e| internal("start a trailer", &e))?;
        signer
            .sign_oneshot(&mut tag, &n_chunks.to_le_bytes())
            .map_err(|e| internal("compute a trailer", &e))?;
        Ok(tag)
    }
}

/// The state blob of an image that is to be decoded: undamaged, and of a kind we know.
pub(crate) struct State {
    bytes: [u8; STATE_LEN],
    image_id: [u8; 16],
    suite: Suite,
    /// Where the image's key came from.
    pub(crate) source: KeySource,
}

impl State {
    pub(crate) fn parse(image: &Image, state: &[u8]) -> Result<Self> {
        let bytes: [u8; STATE_LEN] = state.try_into().map_err(|_| {
            corrupt(format!(
                "the state of stage encrypt is {} bytes long instead of {STATE_LEN}",
                state.len()
            ))
        })?;
        let (suite, source) = parse(&bytes, image)?;
        Ok(Self {
            bytes,
            image_id: image.id,
            suite,
            source,
        })
    }

    /// The keys of the image, if `master` is its master key.
    pub(crate) fn keys(&self, master: &MasterKey) -> Result<Option<ImageKeys>> {
        let derive = Derivation {
            master,
            suite: self.suite,
            state: self.bytes,
            image_id: self.image_id,
        };
        let mut check = [0; CHECK.end - CHECK.start];
        derive.fill("check", &mut check)?;
        let fits = openssl::memcmp::eq(&check, &self.bytes[CHECK]);
        fits.then(|| ImageKeys::derive(&derive)).transpose()
    }
}

/// What all keys of an image are derived from.
struct Derivation<'a> {
    master: &'a MasterKey,
    suite: Suite,
    state: [u8; STATE_LEN],
    image_id: [u8; 16],
}

impl Derivation<'_> {
    /// Key bytes for one purpose.
    fn fill(&self, purpose: &str, out: &mut [u8]) -> Result<()> {
        // Every part but the names has a fixed length, and names hold no NUL: two
        // different derivations never have the same info.
        let mut info = Vec::with_capacity(128);
        for name in ["memcr encrypt 1", purpose, self.suite.name()] {
            info.extend_from_slice(name.as_bytes());
            info.push(0);
        }
        info.extend_from_slice(&self.state[..PREFIX_LEN]);
        info.extend_from_slice(&self.image_id);
        hkdf(self.master.bytes(), &self.state[SALT], &info, out)
            .map_err(|e| internal("derive the keys of an image", &e))
    }

    fn hmac_key(&self, purpose: &str) -> Result<PKey<Private>> {
        let key = LockedKey::new(MAC_LEN, |key| self.fill(purpose, key))?;
        PKey::hmac(key.bytes()).map_err(|e| internal("set up HMAC", &e))
    }
}

fn hkdf(
    key: &[u8],
    salt: &[u8],
    info: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), openssl::error::ErrorStack> {
    let mut ctx = PkeyCtx::new_id(Id::HKDF)?;
    ctx.derive_init()?;
    ctx.set_hkdf_md(Md::sha256())?;
    ctx.set_hkdf_key(key)?;
    ctx.set_hkdf_salt(salt)?;
    ctx.add_hkdf_info(info)?;
    ctx.derive(Some(out)).map(drop)
}

/// Suite and key source of a state blob that is undamaged.
fn parse(state: &[u8; STATE_LEN], image: &Image) -> Result<(Suite, KeySource)> {
    if &state[..4] != MAGIC {
        return Err(corrupt(
            "the state of stage encrypt does not begin with its magic".into(),
        ));
    }
    if state[DIGEST] != digest(state, image) {
        return Err(corrupt(
            "the state of stage encrypt is damaged, or belongs to another image".into(),
        ));
    }
    // From here on the blob is what an encrypt stage wrote, maybe a newer one.
    match (state[4], Suite::numbered(state[5]), KeySource::numbered(state[6]), state[7]) {
        (VERSION, Some(suite), Some(source), 0) => Ok((suite, source)),
        (version, ..) => Err(StageError::new(
            code::UNSUPPORTED,
            format!(
                "the image was encrypted by stage encrypt of format {version}, suite {}, key source {}, flags {}: \
                 unknown to this one (format {VERSION})",
                state[5], state[6], state[7]
            ),
        )
        .hint("use the plugin of the memcr that made the image")),
    }
}

fn digest(state: &[u8; STATE_LEN], image: &Image) -> [u8; DIGEST.end - DIGEST.start] {
    let mut hash = openssl::sha::Sha256::new();
    hash.update(&state[..DIGEST.start]);
    hash.update(&image.id);
    let mut start = [0; DIGEST.end - DIGEST.start];
    start.copy_from_slice(&hash.finish()[..DIGEST.end - DIGEST.start]);
    start
}

/// Says which key is missing: `made_with` is the image's, `have` is ours.
pub(crate) fn wrong_key(made_with: KeySource, have: KeySource) -> StageError {
    match (made_with, have) {
        (KeySource::Ephemeral, _) => StageError::new(
            code::WRONG_KEY,
            "wrong key: the one that the keyring has for this image is another one",
        )
        .hint("the image itself is undamaged here"),
        (KeySource::Given, KeySource::Ephemeral) => StageError::new(
            code::NOT_FOUND,
            "the image was encrypted with a key that was given, and none is given",
        )
        .hint("set key_file, key_fd, credential or keyring of stage encrypt"),
        (KeySource::Given, KeySource::Given) => StageError::new(
            code::WRONG_KEY,
            "wrong key: the image was encrypted with another one",
        )
        .hint("check the key that is given; the image itself is undamaged here"),
    }
}

fn corrupt(message: String) -> StageError {
    StageError::new(code::CORRUPT, message)
}

/// A failure of OpenSSL that no input explains.
pub(crate) fn internal(what: &str, error: &openssl::error::ErrorStack) -> StageError {
    StageError::new(code::INTERNAL, format!("{what}: {error}"))
}
