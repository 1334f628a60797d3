//! What either side may ask of the other's memory and patience.

use std::time::Duration;

/// A line from a client, its `\n` included. The longest sensible request has a directory
/// of 4 KiB; the rest is room for what later versions may say.
pub const MAX_LINE_LEN: usize = 64 << 10;

/// An answer, its `\n` included. A list of a thousand sessions has some 500 KiB.
pub const MAX_ANSWER_LEN: usize = 16 << 20;

/// Text in the `id` of a request, bytes.
pub const MAX_ID_LEN: usize = 256;

/// Name of a pipeline, bytes.
pub const MAX_NAME_LEN: usize = 256;

/// A directory or a cgroup in one of our own requests, bytes: `PATH_MAX` without its NUL.
pub const MAX_PATH_LEN: usize = 4095;

/// A `timeout`: some 31 years. More is a mistake, and would overflow clocks.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(1_000_000_000);

/// Requests of one connection that wait for their answers at the same time.
pub const MAX_UNANSWERED: usize = 16;

/// How long a client that has connected may say nothing.
pub const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(10);

/// How long a request may take from its first byte to its last.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// How long a connection of our own protocol stays open with nothing under way.
pub const IDLE_FOR: Duration = Duration::from_secs(60);

/// How long an answer waits for a client to read it.
pub const ANSWER_READ_WITHIN: Duration = Duration::from_secs(10);
