#![allow(clippy::unwrap_used)]
use super::*;

/// What comes out of `bytes` in these segments, and then at the end of the connection.
fn read<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut reader = Reader::new();
    let mut out = Vec::new();
    for segment in segments {
        reader.push(segment);
        out.extend(reader.by_ref().map(|incoming| format!("{incoming:?}")));
        assert!(reader.pending().len() < MAX_LINE_LEN);
        assert!(reader.capacity() <= 2 * (MAX_LINE_LEN + segment.len()));
    }
    reader.end();
    out.extend(reader.by_ref().map(|incoming| format!("{incoming:?}")));
    assert!(reader.is_done() && reader.is_empty());
    out
}

/// What comes out of `bytes`, however they are cut.
fn read_any_way(bytes: &[u8]) -> Vec<String> {
    let whole = read([bytes]);
    assert_eq!(read(bytes.chunks(1)), whole);
    for len in [2, 3, 7, 64, 4096, 65535] {
        assert_eq!(read(bytes.chunks(len)), whole, "segments of {len}");
    }
    whole
}

fn line(len: usize) -> Vec<u8> {
    let mut line = br#"{"memcr":1,"do":"list"}"#.to_vec();
    line.resize(len - 1, b' ');
    line.push(b'\n');
    line
}

#[test]
fn a_request_of_the_old_protocol_is_the_only_one() {
    let v1 = [100_i32.to_ne_bytes(), 4711_i32.to_ne_bytes()].concat();
    for rest in [&b""[..], b"{\"memcr\":1,\"do\":\"list\"}\n", &v1] {
        let out = read_any_way(&[&v1[..], rest].concat());
        assert_eq!(out.len(), 1);
        assert!(out[0].contains("4711"), "{out:?}");
    }
}

#[test]
fn a_malformed_request_of_the_old_protocol_is_the_last() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\0", b"\n{}\n"] {
        let out = read_any_way(bytes);
        assert!(
            matches!(&out[..], [only] if only.starts_with("Legacy(Err(Command(")),
            "{out:?}"
        );
    }
}

#[test]
fn lines_come_out_one_by_one() {
    let bytes =
        b"{\"memcr\":1,\"id\":1,\"do\":\"list\"}\n\n{}\n{\"memcr\":1,\"id\":2,\"do\":\"stages\"}\n";
    let out = read_any_way(bytes);
    let good: Vec<_> = out.iter().map(|one| one.starts_with("Own(Ok(")).collect();
    assert_eq!(good, [true, false, false, true]);
    assert!(out[3].contains("Stages"), "{out:?}");
}

#[test]
fn what_is_begun_and_not_finished_is_told_at_the_end() {
    let v2 = [102_i32.to_ne_bytes(), 8_i32.to_ne_bytes()].concat();
    for (bytes, want) in [
        (&v2[..], "Legacy(Err(Unfinished))"),
        (&v2[..1], "Legacy(Err(Unfinished))"),
        (b"{", "Own(Err(BadRequest { id: None, error: Unfinished }))"),
        (b"", ""),
    ] {
        assert_eq!(read_any_way(bytes).concat(), want);
    }
}

#[test]
fn a_line_of_any_length_takes_bounded_memory() {
    let longest = line(MAX_LINE_LEN);
    let out = read_any_way(&[&longest[..], &longest].concat());
    assert!(out.len() == 2 && out[1].starts_with("Own(Ok("), "{out:?}");
    // One byte more, and nothing after it is read.
    let out = read_any_way(&[line(MAX_LINE_LEN + 1), line(100)].concat());
    assert_eq!(out, ["Own(Err(BadRequest { id: None, error: TooLong }))"]);
    let out = read_any_way(&vec![b'{'; 3 * MAX_LINE_LEN]);
    assert!(matches!(&out[..], [only] if only.contains("TooLong")));
}

#[test]
fn it_tells_how_far_it_is() {
    let mut reader = Reader::new();
    reader.push(b"");
    assert!(!reader.has_begun() && reader.is_empty() && reader.protocol().is_none());
    reader.push(b"{");
    assert!(reader.next().is_none());
    assert!(reader.has_begun() && !reader.is_empty() && !reader.is_done());
    assert_eq!(reader.protocol(), Some(Protocol::Own));
    reader.push(b"}\n");
    assert!(reader.next().is_some() && reader.next().is_none());
    assert!(reader.is_empty() && !reader.is_done());
    reader.end();
    reader.push(b"{}\n");
    assert!(reader.next().is_none() && reader.is_done());
}

#[test]
fn memory_is_given_back() {
    let mut reader = Reader::new();
    reader.push(&line(MAX_LINE_LEN).repeat(4));
    assert_eq!(reader.by_ref().count(), 4);
    assert!(reader.capacity() <= KEPT_LEN);
    reader.push(&[b' '; MAX_LINE_LEN]);
    assert_eq!(reader.by_ref().count(), 1);
    reader.push(&[b' '; 1_000_000]);
    assert!(reader.capacity() <= KEPT_LEN && reader.next().is_none());
}

#[test]
fn random_bytes_end_in_something() {
    // Xorshift: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    let first: [&[u8]; 5] = [
        b"{",
        &[100, 0, 0, 0],
        &[102, 0, 0, 0, 64, 0, 0, 0],
        b"{\"",
        b"",
    ];
    for round in 0..2000 {
        let mut bytes = first[round % first.len()].to_vec();
        (0..1 + round % 20).for_each(|_| bytes.extend(random()));
        let whole = read([&bytes[..]]);
        assert_eq!(read(bytes.chunks(1)), whole);
        assert!(!whole.is_empty());
    }
}
