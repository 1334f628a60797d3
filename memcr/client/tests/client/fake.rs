//! A daemon that says what a test tells it to.
//!
//! It serves one connection after the other, each by the next of the functions it was
//! given, then closes it. Dropping it waits until all of them have been served, and panics
//! when one of them did.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use memcr_client::Location;
use serde_json::Value;

/// What to do with one connection.
pub(crate) type Serve = Box<dyn FnOnce(&mut UnixStream) + Send>;

/// A daemon at a path of its own.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn new(connections: Vec<Serve>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let thread = std::thread::spawn(move || {
            for serve in connections {
                serve(&mut listener.accept().unwrap().0);
            }
        });
        Self {
            dir,
            thread: Some(thread),
        }
    }

    /// One that answers one request in our own protocol.
    pub(crate) fn answering(serve: impl FnOnce(&mut UnixStream) + Send + 'static) -> Self {
        Self::new(vec![Box::new(serve)])
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) fn location(&self) -> Location {
        Location::Path(self.path())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let result = self.thread.take().map(JoinHandle::join);
        if let (Some(Err(panic)), false) = (result, std::thread::panicking()) {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The next line, which is a JSON object.
pub(crate) fn hear(stream: &mut UnixStream) -> Value {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    serde_json::from_slice(&line).unwrap()
}

/// Answers `request` with these fields.
pub(crate) fn say(stream: &mut UnixStream, request: &Value, mut answer: Value) {
    answer["memcr"] = 1.into();
    answer["id"] = request["id"].clone();
    stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
}

/// As a C memcr does: reads 8 bytes and answers a number.
pub(crate) fn old(numbers: Option<(i32, i32)>, code: i32) -> Serve {
    Box::new(move |stream| {
        let mut request = [0; 8];
        stream.read_exact(&mut request).unwrap();
        if let Some((command, pid)) = numbers {
            let want = [command.to_ne_bytes(), pid.to_ne_bytes()].concat();
            assert_eq!(request[..], want);
        }
        stream.write_all(&code.to_ne_bytes()).unwrap();
    })
}
