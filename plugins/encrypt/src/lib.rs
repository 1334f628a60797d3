//! The `encrypt` stage of memcr: nobody reads or changes an image without its key.
//!
//! ```text
//!   key_file, …, nothing ───────▶ master::MasterKey      one per handle, locked in memory
//!                                   │  └ ephemeral ◀───▶ keyring: for another process
//!                                   │ HKDF, random salt
//!   state blob in the image ◀──▶ image_keys::ImageKeys   one per image and direction
//!                                      │ nonce from index and last
//!   chunk ────────────────────▶ frame::Worker            seal, open; one per thread
//! ```
//!
//! Encoding and decoding have keys of their own, because the host may read back chunks
//! of an image that is not finished yet.

mod frame;
mod image_keys;
mod keyring;
mod locked;
mod master;
mod suite;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, Image, ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads,
    Transform,
};

use frame::Worker;
use image_keys::{ImageKeys, State, wrong_key};
use linux_keyutils::KeyError;
use master::{KeySource, MasterKey};
use suite::Suite;

memcr_plugin_api::register_stage!(transform: Encrypt);
// An ephemeral key serves one handle only, by its nature; the suite tries a fresh one too.
memcr_plugin_api::conformance!(|suite| suite.file_param("key_file", &[7; 32]));

/// The stage.
#[derive(Debug)]
struct Encrypt {
    suite: Suite,
    master: MasterKey,
    host: Host,
    encoding: Slot,
    decoding: Slot,
}

impl Transform for Encrypt {
    type Worker = Worker;
    const INFO: StageInfo = StageInfo {
        name: "encrypt",
        version: env!("CARGO_PKG_VERSION"),
        summary: "encrypts and authenticates every chunk (AES-GCM, ChaCha20-Poly1305, AES-CBC with HMAC)",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS
            | capability::ENCRYPTS
            | capability::AUTHENTICATES,
        params: &[
            ParamSpec {
                name: "cipher",
                kind: ParamKind::Choice(suite::NAMES),
                default: Some(suite::AUTO),
                required: false,
                // Its state knows better.
                recorded: false,
                help: "auto is aes-256-gcm, or chacha20-poly1305 where the CPU has no AES; the image knows which",
            },
            ParamSpec {
                name: "key_file",
                kind: ParamKind::Path,
                default: None,
                required: false,
                // The path is no secret, and lets a restore find the key by itself.
                recorded: true,
                help: "file of 32 bytes or 64 hex digits, mode 0600; without any key the key is ephemeral",
            },
            ParamSpec {
                name: "key_fd",
                kind: ParamKind::Fd,
                default: None,
                required: false,
                recorded: false,
                help: "descriptor the key is read from, once, to its end; wins over the others",
            },
            ParamSpec {
                name: "credential",
                kind: ParamKind::Name,
                default: None,
                required: false,
                recorded: true,
                help: "name of a credential of the service that memcr runs in (systemd: LoadCredential=)",
            },
            ParamSpec {
                name: "keyring",
                kind: ParamKind::Name,
                default: None,
                required: false,
                recorded: true,
                help: "description of a key of type user in the session's or the user's kernel keyring",
            },
        ],
    };

    fn create(params: &Params, host: Host) -> Result<Self> {
        let suite = Suite::named(params.get("cipher").unwrap_or(suite::AUTO))?;
        let master = MasterKey::from_params(params)?;
        if !master.is_locked() {
            host.warn("encrypt: the key cannot be locked in memory and may be swapped out: raise RLIMIT_MEMLOCK");
        }
        let stage = Self {
            suite,
            master,
            host,
            encoding: Slot::default(),
            decoding: Slot::default(),
        };
        stage.try_out()?;
        Ok(stage)
    }

    fn worker(&self) -> Result<Worker> {
        Worker::new()
    }

    fn begin_encode(&self, image: &Image) -> Result<Vec<u8>> {
        check_chunk_len(image)?;
        let (keys, state) = ImageKeys::generate(&self.master, self.suite, image)?;
        self.keep(image);
        self.encoding.set(Some(keys));
        Ok(state.to_vec())
    }

    fn begin_decode(&self, image: &Image, state: &[u8]) -> Result<()> {
        // Emptied first: after a failure nothing decodes with the keys of another image.
        self.decoding.set(None);
        check_chunk_len(image)?;
        self.decoding.set(Some(self.find_keys(image, state)?));
        Ok(())
    }

    fn bound(&self, in_len: usize) -> usize {
        self.suite.frame_len(in_len)
    }

    fn encode(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        let keys = self.encoding.get("encode", "begin_encode")?;
        worker.seal(&keys, chunk, input, out).map(Encoded::Len)
    }

    fn decode(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let keys = self.decoding.get("decode", "begin_decode")?;
        worker.open(&keys, chunk, input, out)
    }

    fn finish_encode(&self, n_chunks: u64) -> Result<Vec<u8>> {
        let trailer = self
            .encoding
            .get("finish_encode", "begin_encode")?
            .trailer(n_chunks)?;
        // They are not needed again: reading back derives them anew.
        self.encoding.set(None);
        Ok(trailer.to_vec())
    }

    fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        let expected = self
            .decoding
            .get("finish_decode", "begin_decode")?
            .trailer(n_chunks)?;
        if trailer.len() == expected.len() && openssl::memcmp::eq(trailer, &expected) {
            return Ok(());
        }
        let message =
            format!("the trailer does not fit {n_chunks} chunks: chunks are missing or were added");
        Err(StageError::new(code::CORRUPT, message))
    }
}

impl Encrypt {
    /// Puts an ephemeral key where another process finds it. Without it a checkpoint
    /// and a restore by this process work all the same.
    fn keep(&self, image: &Image) {
        if self.master.source == KeySource::Ephemeral
            && let Err(error) = keyring::keep(&image.id, &self.master)
        {
            self.warn_not_kept(error);
        }
    }

    fn warn_not_kept(&self, error: KeyError) {
        self.host.warn(format_args!(
            "encrypt: the ephemeral key cannot be kept in the kernel keyring ({}): only this process can restore the image; set key_file for one that outlives it",
            keyring::text(error)
        ));
    }

    /// The keys of an image: with our master key, or with the ephemeral one of the
    /// process that made it.
    fn find_keys(&self, image: &Image, state: &[u8]) -> Result<ImageKeys> {
        let state = State::parse(image, state)?;
        if let Some(keys) = state.keys(&self.master)? {
            return Ok(keys);
        }
        if state.source == KeySource::Given {
            return Err(wrong_key(state.source, self.master.source));
        }
        let kept = keyring::fetch(&image.id)?;
        state
            .keys(&kept)?
            .ok_or_else(|| wrong_key(state.source, kept.source))
    }

    /// Encrypts and decrypts one chunk, so that an OpenSSL without the cipher (FIPS, a
    /// stripped build) fails while the target still runs.
    fn try_out(&self) -> Result<()> {
        let image = Image {
            page_size: 1,
            id: [0; 16],
            max_chunk_len: 1,
            expected_len: 1,
        };
        let chunk = Chunk {
            index: 0,
            last: true,
            address: 0,
            raw_len: 1,
            aad: &[],
        };
        let (keys, _) = ImageKeys::generate(&self.master, self.suite, &image)?;
        let (mut frame, mut back) = (vec![0; self.bound(1)], [0]);
        let mut worker = self.worker()?;
        worker
            .seal(&keys, &chunk, &[1], &mut frame)
            .and_then(|len| worker.open(&keys, &chunk, &frame[..len], &mut back))
            .map_err(|e| {
                let message = format!(
                    "OpenSSL cannot do {} here: {}",
                    self.suite.name(),
                    e.message
                );
                StageError::new(code::UNSUPPORTED, message).hint("choose another cipher")
            })?;
        Ok(())
    }
}

/// The keys in use for one direction; every chunk of every thread looks here.
#[derive(Debug, Default)]
struct Slot(RwLock<Option<Arc<ImageKeys>>>);

impl Slot {
    fn set(&self, keys: Option<ImageKeys>) {
        // A poisoned lock holds keys that were stored whole: nothing can panic in between.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys.map(Arc::new);
    }

    fn get(&self, called: &str, before: &str) -> Result<Arc<ImageKeys>> {
        let keys = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        keys.ok_or_else(|| {
            StageError::new(
                code::INTERNAL,
                format!("{called} was called before {before}"),
            )
        })
    }
}

fn check_chunk_len(image: &Image) -> Result<()> {
    if image.max_chunk_len <= frame::MAX_LEN as u64 {
        return Ok(());
    }
    let message = format!(
        "chunks of {} bytes are longer than encrypt can take ({})",
        image.max_chunk_len,
        frame::MAX_LEN
    );
    Err(StageError::new(code::UNSUPPORTED, message).hint("choose smaller chunks"))
}
