//! The protocol of the C memcr, versions 1 and 2: one request per connection, and one
//! number for an answer, which gives no reason.

use memcr_wire::legacy::Version;
use memcr_wire::{Code, Command, Compress, LegacyRequest, Location};

use crate::client::{Deadline, Patience, connected, is_gone};
use crate::error::ClientError;
use crate::socket;

/// Asks in version 1.
///
/// # Errors
/// When there was no answer. An answer that is not OK is none.
pub fn v1(
    location: &Location,
    patience: Patience,
    command: Command,
    pid: i32,
) -> Result<Code, ClientError> {
    ask(location, patience, &LegacyRequest::v1(command, pid))
}

/// Asks in version 2, which knows a directory and a compression.
///
/// # Errors
/// As [`v1`], and when the directory cannot be said.
pub fn v2(
    location: &Location,
    patience: Patience,
    command: Command,
    pid: i32,
    dir: Option<&[u8]>,
    compress: Option<Compress>,
) -> Result<Code, ClientError> {
    let request = LegacyRequest {
        version: Version::V2,
        command,
        pid,
        dir: dir.map(<[u8]>::to_vec),
        compress,
    };
    ask(location, patience, &request)
}

/// Connects, asks, and waits for the answer.
///
/// # Errors
/// As [`v2`].
pub fn ask(
    location: &Location,
    patience: Patience,
    request: &LegacyRequest,
) -> Result<Code, ClientError> {
    let bytes = request.encode().map_err(ClientError::Unsayable)?;
    let socket = connected(location, patience.connect)?;
    match socket::send_all(&socket, &bytes) {
        // Who closes early may have answered.
        Err(error) if !is_gone(&error) => return Err(ClientError::Send(error)),
        _ => {}
    }
    let deadline = Deadline::after(patience.answer);
    let mut answer = [0; 4];
    let mut n_received = 0;
    while n_received < answer.len() {
        n_received += deadline.receive(&socket, &mut answer[n_received..])?;
    }
    Code::from_bytes(answer).map_err(ClientError::UnknownCode)
}
