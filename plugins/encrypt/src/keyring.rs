//! Keys in the kernel's keyrings (keyrings(7)): ephemeral ones, so that they outlive us,
//! and such as the user put there.
//!
//! ```text
//!   begin_encode   keep ──▶ user keyring: `memcr:IMAGE-ID:encrypt`, expires in a day
//!   the host                      │ lets it not expire, once the image is committed
//!                                 │ this process dies
//!   begin_decode   fetch ◀────────┤ (in another process of the same user)
//!   the host                      └ takes it away with the image, finished or not
//! ```
//!
//! Only the host knows when an image is needed: when it is committed, or before it is finished,
//! because memory is given back while it is stored. Until then nobody may be left to take its
//! key away.
//!
//! The user keyring (user-keyring(7)), because two commands of one user share it whatever
//! their sessions are, and because it lasts as long as the machine runs. A session
//! keyring ends with the login or the service, a persistent one forgets after days.
//!
//! A new key is made in this thread's keyring and then linked: only there do we possess
//! it and may set its permissions whatever the session keyring leads to, and nobody sees
//! it before they are set.

use linux_keyutils::{
    Key, KeyError, KeyPermissionsBuilder, KeyRing, KeyRingIdentifier, Permission,
};
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};

use zeroize::Zeroizing;

use crate::master::{KeySource, MasterKey, READ_LEN};

/// How long the key of an image that is not finished is kept, seconds: longer than any
/// checkpoint, and a memcr that is killed meanwhile leaves nothing for ever.
const DRAFT_SECS: usize = 24 * 60 * 60;

/// Keeps `master` for an image that is being encoded.
pub(crate) fn keep(image_id: &[u8; 16], master: &MasterKey) -> std::result::Result<(), KeyError> {
    let thread = KeyRing::from_special_id(KeyRingIdentifier::Thread, true)?;
    let user = KeyRing::from_special_id(KeyRingIdentifier::User, true)?;
    let key = thread.add_key(&description(image_id), master.bytes())?;
    let kept = share(key, user);
    // What is linked nowhere is gone.
    let unlinked = thread.unlink_key(key);
    kept.and(unlinked)
}

/// Makes a new key one that this user's processes find, and nobody else: not even who
/// possesses it, for a session keyring may be another user's (su(1)).
fn share(key: Key, user: KeyRing) -> std::result::Result<(), KeyError> {
    let owner = Permission::all().difference(Permission::WRITE);
    key.set_perms(KeyPermissionsBuilder::builder().user(owner).build())?;
    key.set_timeout(DRAFT_SECS)?;
    user.link_key(key)
}

/// The ephemeral key of an image that another process, or another handle, made.
pub(crate) fn fetch(image_id: &[u8; 16]) -> Result<MasterKey> {
    let description = description(image_id);
    let found = KeyRing::from_special_id(KeyRingIdentifier::User, false)
        .and_then(|user| user.search(&description));
    match found {
        Ok(key) => read(key, &description, KeySource::Ephemeral),
        Err(error) if is_absent(error) => Err(StageError::new(
            code::NOT_FOUND,
            "the key of this image is gone: it was ephemeral, and the keyring does not have it",
        )
        .hint("only the user who made the image has it, if any; give a key of your own: key_file, credential or keyring")),
        Err(error) => Err(StageError::new(
            refusal(error),
            format!(
                "the key of this image was ephemeral, and the keyring cannot be asked for it: {}",
                text(error)
            ),
        )
        .hint("only the process that made the image has it; give a key of your own: key_file, credential or keyring")),
    }
}

/// The key that the user put into the session's or the user's keyring (keyctl(1)).
pub(crate) fn given(description: &str) -> Result<MasterKey> {
    let mut refused = None;
    for ring in [KeyRingIdentifier::Session, KeyRingIdentifier::User] {
        match KeyRing::from_special_id(ring, false).and_then(|ring| ring.search(description)) {
            Ok(key) => return read(key, description, KeySource::Given),
            Err(error) if is_absent(error) => {}
            Err(error) => refused = Some(error),
        }
    }
    let (code, why) = match refused {
        None => (code::NOT_FOUND, "no key of that name is there".into()),
        Some(error) => (code::PERMISSION, text(error)),
    };
    let message =
        format!("find the key `{description}` in the session's and the user's keyring: {why}");
    Err(StageError::new(code, message).hint("put it there: keyctl padd user NAME @u < key"))
}

/// What the kernel keeps under this description.
fn read(key: Key, description: &str, source: KeySource) -> Result<MasterKey> {
    let mut content = Zeroizing::new([0; READ_LEN]);
    let len = key.read(&mut *content).map_err(|error| {
        let message = format!(
            "read the key `{description}` of the keyring: {}",
            text(error)
        );
        StageError::new(code::PERMISSION, message)
            .hint("where the session has a keyring of its own: keyctl link @u @s")
    })?;
    // The length is the whole key's, however much of it there was room for.
    let content = &content[..len.min(READ_LEN)];
    MasterKey::parse(
        source,
        &format!("key `{description}` of the keyring"),
        content,
    )
}

/// A stage keeps secrets under the image's id and its own name; the host looks for the
/// first part.
fn description(image_id: &[u8; 16]) -> String {
    let id: String = image_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("memcr:{id}:encrypt")
}

fn is_absent(error: KeyError) -> bool {
    matches!(
        error,
        KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked
    )
}

fn refusal(error: KeyError) -> i32 {
    match error {
        KeyError::AccessDenied | KeyError::PermissionDenied => code::PERMISSION,
        _ => code::UNSUPPORTED,
    }
}

/// A failure of a keyring for people.
pub(crate) fn text(error: KeyError) -> String {
    match error {
        KeyError::Unknown(number) => std::io::Error::from_raw_os_error(number).to_string(),
        KeyError::QuotaExceeded => "the user's quota of keys is used up".into(),
        KeyError::PermissionDenied | KeyError::AccessDenied => "not permitted here".into(),
        other => format!("{other:?}"),
    }
}
