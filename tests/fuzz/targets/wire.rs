//! What a client sends, which may be anything, in whatever segments it comes: what is read
//! depends on the bytes alone, within bounded memory, and can be said again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memcr_wire::limit::MAX_LINE_LEN;
use memcr_wire::{Answer, Ask, Incoming, LegacyRequest, Reader, Request};

fuzz_target!(|bytes: &[u8]| {
    let whole = read([bytes]);
    assert_eq!(whole, read(bytes.chunks(1)), "byte by byte");
    assert_eq!(whole, read(segments(bytes)), "in segments");
    let _ = Answer::parse(bytes);
});

/// Everything that comes out of these segments, and then at the end of the connection.
fn read<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut reader = Reader::new();
    let mut out = Vec::new();
    for segment in segments {
        reader.push(segment);
        out.extend(reader.by_ref().map(checked));
        // Twice: a vector that grows may double.
        let bound = 2 * (MAX_LINE_LEN + segment.len());
        assert!(reader.capacity() <= bound, "{} bytes", reader.capacity());
    }
    reader.end();
    out.extend(reader.by_ref().map(checked));
    assert!(reader.is_done() && reader.is_empty(), "something is left");
    out
}

/// What came out, as text. A request can be said again, and is then the same.
fn checked(incoming: Incoming) -> String {
    match &incoming {
        Incoming::Legacy(Ok(request)) => {
            let again = request.encode().expect("it came as bytes");
            assert_eq!(LegacyRequest::decode(&again), Ok(Some(request.clone())));
        }
        Incoming::Own(Ok(request)) => {
            let line = request.to_line().expect("it came in a line");
            let again = Request::parse(&line).expect("it is one that we made");
            assert_eq!(timeless(again.ask), timeless(request.ask.clone()));
        }
        _ => {}
    }
    format!("{incoming:?}")
}

/// Without what is a fraction, whose last bit JSON may change.
fn timeless(mut ask: Ask) -> Ask {
    if let Ask::Checkpoint { timeout, .. } | Ask::Restore { timeout, .. } = &mut ask {
        *timeout = None;
    }
    ask
}

/// Cut at places that look random and are the same for the same bytes.
fn segments(bytes: &[u8]) -> Vec<&[u8]> {
    let mut random = crc32fast::hash(bytes);
    let mut rest = bytes;
    let mut segments = Vec::new();
    while !rest.is_empty() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Short ones and long ones alike.
        let len = (random >> 8) as usize >> (random % 24);
        let (segment, after) = rest.split_at(len.clamp(1, rest.len()));
        segments.push(segment);
        rest = after;
    }
    segments
}
