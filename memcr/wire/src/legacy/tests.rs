#![allow(clippy::unwrap_used)]
use super::*;

fn numbers(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// A request of version 2 with this behind its header.
fn v2(body: &[u8]) -> Vec<u8> {
    [numbers(&[102, body.len() as i32]), body.to_vec()].concat()
}

fn decode(bytes: &[u8]) -> Result<LegacyRequest, Malformed> {
    LegacyRequest::decode(bytes).map(Option::unwrap)
}

fn request(dir: Option<&[u8]>, compress: Option<Compress>) -> LegacyRequest {
    LegacyRequest {
        version: Version::V2,
        command: Command::Checkpoint,
        pid: 4711,
        dir: dir.map(<[u8]>::to_vec),
        compress,
    }
}

#[test]
fn version_1_is_two_numbers() {
    for (number, command) in [(100, Command::Checkpoint), (101, Command::Restore)] {
        let request = LegacyRequest::v1(command, 4711);
        let bytes = numbers(&[number, 4711]);
        assert_eq!(request.encode().unwrap(), bytes);
        assert_eq!(decode(&bytes), Ok(request));
    }
}

#[test]
fn the_worked_example_is_right() {
    let request = request(Some(b"/var"), Some(Compress::Zstd));
    let dir = [&numbers(&[200])[..], b"/var\0"].concat();
    let body = [numbers(&[100, 4711]), dir, numbers(&[201, 2])].concat();
    assert_eq!(body.len(), 25);
    assert_eq!(request.encode().unwrap(), v2(&body));
    #[cfg(target_endian = "little")]
    assert_eq!(
        request.encode().unwrap()[..12],
        [0x66, 0, 0, 0, 0x19, 0, 0, 0, 0x64, 0, 0, 0]
    );
}

#[test]
fn every_request_of_version_2_leads_back() {
    let longest = vec![b'd'; MAX_DIR_LEN - 1];
    for dir in [
        None,
        Some(&b""[..]),
        Some(b"/tmp"),
        Some(b"/\xff"),
        Some(&longest),
    ] {
        for compress in [None, Some(Compress::None), Some(Compress::Zstd)] {
            let request = request(dir, compress);
            assert_eq!(decode(&request.encode().unwrap()), Ok(request));
        }
    }
}

#[test]
fn the_last_of_two_equal_options_counts() {
    let dirs = [&numbers(&[200])[..], b"/a\0", &numbers(&[200]), b"/b\0"].concat();
    let body = [numbers(&[100, 4711, 201, 1]), dirs, numbers(&[201, 0])].concat();
    assert_eq!(
        decode(&v2(&body)),
        Ok(request(Some(b"/b"), Some(Compress::None)))
    );
}

#[test]
fn a_pid_may_be_any_number() {
    for pid in [0, -1, i32::MIN, i32::MAX] {
        assert_eq!(decode(&numbers(&[101, pid])).unwrap().pid, pid);
        assert_eq!(decode(&v2(&numbers(&[101, pid]))).unwrap().pid, pid);
    }
}

#[test]
fn a_part_of_a_request_waits_for_the_rest() {
    let whole = request(Some(b"/tmp"), Some(Compress::Lz4))
        .encode()
        .unwrap();
    for len in 0..whole.len() {
        assert_eq!(LegacyRequest::decode(&whole[..len]), Ok(None), "{len}");
    }
    for len in 0..8 {
        assert_eq!(
            LegacyRequest::decode(&numbers(&[100, 1])[..len]),
            Ok(None),
            "{len}"
        );
    }
}

#[test]
fn what_stands_behind_a_request_does_not_count() {
    let whole = request(Some(b"/tmp"), None);
    let mut bytes = whole.encode().unwrap();
    bytes.extend_from_slice(&numbers(&[201, 99]));
    assert_eq!(decode(&bytes), Ok(whole));
}

#[test]
fn what_is_malformed_is_told_with_its_numbers() {
    let begin = numbers(&[100, 4711]);
    let with = |options: &[u8]| v2(&[&begin[..], options].concat());
    let option = |id: i32, value: &[u8]| with(&[&id.to_ne_bytes()[..], value].concat());
    let unended = [b'd'; MAX_DIR_LEN];
    for (bytes, want) in [
        (numbers(&[99]), Malformed::Command(99)),
        (numbers(&[0, 1]), Malformed::Command(0)),
        (numbers(&[102, 7]), Malformed::Size(7)),
        (numbers(&[102, 4097]), Malformed::Size(4097)),
        (numbers(&[102, -1]), Malformed::Size(-1)),
        (numbers(&[102, i32::MIN]), Malformed::Size(i32::MIN)),
        (v2(&numbers(&[102, 1])), Malformed::Nested(102)),
        (with(&[1]), Malformed::Cut),
        (option(202, &[]), Malformed::Option(202)),
        (option(0, &[]), Malformed::Option(0)),
        (option(201, &[]), Malformed::Cut),
        (option(201, &3_i32.to_ne_bytes()), Malformed::Compress(3)),
        (
            option(201, &(-1_i32).to_ne_bytes()),
            Malformed::Compress(-1),
        ),
        (option(200, b"/tmp"), Malformed::Dir),
        (option(200, b""), Malformed::Dir),
        (option(200, &[&unended[..], b"\0"].concat()), Malformed::Dir),
    ] {
        assert_eq!(decode(&bytes), Err(want), "{bytes:?}");
    }
}

#[test]
fn a_size_is_judged_before_its_bytes_are_there() {
    let header = numbers(&[102, 4097]);
    assert_eq!(LegacyRequest::decode(&header), Err(Malformed::Size(4097)));
    assert_eq!(LegacyRequest::decode(&numbers(&[102, 4096])), Ok(None));
}

#[test]
fn what_cannot_be_said_is_not_encoded() {
    let mut v1 = request(None, Some(Compress::None));
    v1.version = Version::V1;
    assert_eq!(v1.encode(), Err(Unsayable::Options));
    assert_eq!(request(Some(b"/a\0b"), None).encode(), Err(Unsayable::Nul));
    let long = [b'd'; MAX_DIR_LEN];
    assert_eq!(
        request(Some(&long), None).encode(),
        Err(Unsayable::Dir { len_bytes: 1024 })
    );
}

#[test]
fn answers_are_one_number() {
    for (code, number) in [(Code::Ok, 0), (Code::General, -1), (Code::InvalidPid, -2)] {
        let bytes = i32::to_ne_bytes(number);
        assert_eq!(code.to_bytes(), bytes);
        assert_eq!(Code::from_bytes(bytes), Ok(code));
    }
    assert_eq!(Code::from_bytes(7_i32.to_ne_bytes()), Err(7));
    assert_eq!(Code::from_bytes((-3_i32).to_ne_bytes()), Err(-3));
}
