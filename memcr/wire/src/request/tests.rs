#![allow(clippy::unwrap_used)]
use super::*;

fn parse(line: &str) -> Result<Request, BadRequest> {
    Request::parse(line.as_bytes())
}

/// What is said of a line that is no request.
fn complaint(line: &str) -> String {
    let error = parse(line).unwrap_err().error;
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn checkpoint(subject: Subject, choice: Choice, timeout: Option<f64>) -> Ask {
    Ask::Checkpoint {
        subject,
        choice,
        timeout: timeout.map(Duration::from_secs_f64),
    }
}

#[test]
fn the_lines_of_the_specification_are_understood() {
    let choice = Choice {
        pipeline: Some("small".into()),
        dir: Some("/var/tmp".into()),
        compress: None,
        idle: true,
    };
    let lz4 = Choice {
        compress: Some(Compress::Lz4),
        ..Choice::default()
    };
    let tree = || Subject::Tree(4711);
    let cgroup = || Subject::Cgroup("/app.slice/x".into());
    for (line, want) in [
        (
            r#"{"memcr":1,"do":"checkpoint","pid":4711,"pipeline":"small","dir":"/var/tmp","idle":true,"timeout":20.5}"#,
            checkpoint(Subject::Pid(4711), choice, Some(20.5)),
        ),
        (
            r#"{"memcr":1,"do":"checkpoint","pid":4711,"compress":"lz4"}"#,
            checkpoint(Subject::Pid(4711), lz4, None),
        ),
        (
            r#"{"memcr":1,"do":"checkpoint","pid":4711,"idle":false}"#,
            checkpoint(Subject::Pid(4711), Choice::default(), None),
        ),
        (
            r#"{"memcr":1,"do":"checkpoint","tree":4711}"#,
            checkpoint(tree(), Choice::default(), None),
        ),
        (
            r#"{"memcr":1,"do":"checkpoint","cgroup":"/app.slice/x"}"#,
            checkpoint(cgroup(), Choice::default(), None),
        ),
        (
            r#"{"memcr":1,"do":"restore","pid":4711,"timeout":20}"#,
            Ask::Restore {
                subject: Subject::Pid(4711),
                timeout: Some(Duration::from_secs(20)),
            },
        ),
        (
            r#"{"memcr":1,"do":"restore","cgroup":"/app.slice/x"}"#,
            Ask::Restore {
                subject: cgroup(),
                timeout: None,
            },
        ),
        (
            r#"{"memcr":1,"do":"abort","tree":4711}"#,
            Ask::Abort { subject: tree() },
        ),
        (r#"{"memcr":1,"do":"status"}"#, Ask::Status { pid: None }),
        (
            r#"{"memcr":1,"do":"status","pid":4711}"#,
            Ask::Status { pid: Some(4711) },
        ),
        (r#"{"memcr":1,"do":"list"}"#, Ask::List),
        (" {\"do\" : \"stages\", \"memcr\":1 }\r\n", Ask::Stages),
    ] {
        let request = parse(line).unwrap();
        assert_eq!(request, Request::new(want), "{line}");
        let again = request.to_line().unwrap();
        assert_eq!(again.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Request::parse(&again).unwrap(), request, "{line}");
    }
}

#[test]
fn an_id_is_a_text_or_a_number() {
    for (id, want) in [
        ("7", Id::from(7)),
        (r#""seven""#, Id::from("seven")),
        (r#""""#, Id::from("")),
        (r#""\n""#, Id::from("\n")),
        (
            "-1.5",
            Id::Number(serde_json::Number::from_f64(-1.5).unwrap()),
        ),
    ] {
        let line = format!(r#"{{"memcr":1,"id":{id},"do":"list"}}"#);
        let request = parse(&line).unwrap();
        assert_eq!(request.id, Some(want));
        assert_eq!(
            Request::parse(&request.to_line().unwrap()).unwrap(),
            request
        );
    }
    let longest = "x".repeat(MAX_ID_LEN);
    assert!(parse(&format!(r#"{{"memcr":1,"id":"{longest}","do":"list"}}"#)).is_ok());
    for id in ["[]", "{}", "true", &format!("\"{longest}x\"")] {
        let bad = parse(&format!(r#"{{"memcr":1,"id":{id},"do":"list"}}"#)).unwrap_err();
        assert!(matches!(bad.error, RequestError::Id(_)), "{bad:?}");
        assert_eq!(bad.id, None);
    }
}

#[test]
fn null_is_as_if_the_key_were_not_there() {
    let line = r#"{"memcr":1,"id":null,"do":"status","pid":null,"tree":null}"#;
    assert_eq!(
        parse(line).unwrap(),
        Request::new(Ask::Status { pid: None })
    );
}

#[test]
fn who_asks_wrongly_is_answered_by_id() {
    for rest in [
        r#""do":"freeze""#,
        r#""do":"list","pid":1"#,
        r#""do":"checkpoint""#,
        r#""do":"list","more":{"deep":[1,2,{}]}"#,
        r#""more":1"#,
    ] {
        let bad = parse(&format!(r#"{{"memcr":1,"id":"me",{rest}}}"#)).unwrap_err();
        assert_eq!(bad.id, Some("me".into()), "{rest}");
    }
    // Also in a version whose other keys cannot be known.
    let bad = parse(r#"{"memcr":2,"id":9,"perform":{"a":[]}}"#).unwrap_err();
    assert_eq!(bad.id, Some(9.into()));
    assert!(matches!(bad.error, RequestError::Version(version) if version == "2"));
}

#[test]
fn mistakes_are_told_with_key_and_value() {
    let ask = |rest: &str| complaint(&format!(r#"{{"memcr":1,{rest}}}"#));
    for (rest, want) in [
        (
            r#""do":7"#,
            "`do` is one of checkpoint, restore, abort, status, list and stages, not 7",
        ),
        (r#""do":"List""#, "stages, not \"List\""),
        (r#""pid":7"#, "does not say what to `do`"),
        (
            r#""do":"checkpoint""#,
            "`checkpoint` needs one of `pid`, `tree` and `cgroup`, and has 0",
        ),
        (
            r#""do":"abort","pid":1,"tree":1"#,
            "`abort` needs one of `pid`, `tree` and `cgroup`, and has 2",
        ),
        (
            r#""do":"restore","pid":1,"tree":1,"cgroup":"/""#,
            "and has 3",
        ),
        (
            r#""do":"restore","pid":1,"dir":"/tmp""#,
            "`restore` takes no `dir`",
        ),
        (
            r#""do":"restore","pid":1,"compress":"lz4""#,
            "`restore` takes no `compress`",
        ),
        (
            r#""do":"restore","pid":1,"idle":true"#,
            "`restore` takes no `idle`",
        ),
        (
            r#""do":"checkpoint","pid":1,"idle":"yes""#,
            "`idle` is true or false, not \"yes\"",
        ),
        (
            r#""do":"checkpoint","pid":1,"idle":1"#,
            "`idle` is true or false, not 1",
        ),
        (
            r#""do":"abort","pid":1,"timeout":1"#,
            "`abort` takes no `timeout`",
        ),
        (r#""do":"status","tree":1"#, "`status` takes no `tree`"),
        (r#""do":"stages","pid":1"#, "`stages` takes no `pid`"),
        (
            r#""do":"abort","pid":0"#,
            "`pid` is a whole number in 1..=2147483647, not 0",
        ),
        (r#""do":"abort","pid":-4"#, "not -4"),
        (r#""do":"abort","pid":2147483648"#, "not 2147483648"),
        (r#""do":"abort","pid":1.5"#, "not 1.5"),
        (r#""do":"abort","pid":"1""#, "not \"1\""),
        (
            r#""do":"abort","tree":[1]"#,
            "`tree` is a whole number in 1..=2147483647, not a list",
        ),
        (
            r#""do":"abort","cgroup":"app""#,
            "`cgroup` is an absolute path of at most 4095 bytes without `..`, not \"app\"",
        ),
        (r#""do":"abort","cgroup":"/a/../b""#, "not \"/a/../b\""),
        (r#""do":"abort","cgroup":"/a\u0000b""#, "not \"/a\\0b\""),
        (
            r#""do":"checkpoint","pid":1,"dir":"tmp""#,
            "`dir` is an absolute path",
        ),
        (r#""do":"checkpoint","pid":1,"dir":true"#, "not true"),
        (
            r#""do":"checkpoint","pid":1,"pipeline":"lz4,file""#,
            "stages cannot be listed here: not \"lz4,file\"",
        ),
        (
            r#""do":"checkpoint","pid":1,"pipeline":"/x/y.so""#,
            "stages cannot be listed",
        ),
        (r#""do":"checkpoint","pid":1,"pipeline":"""#, "not \"\""),
        (
            r#""do":"checkpoint","pid":1,"compress":"LZ4""#,
            "`compress` is one of none, lz4 and zstd, not \"LZ4\"",
        ),
        (r#""do":"checkpoint","pid":1,"compress":1"#, "not 1"),
        (
            r#""do":"checkpoint","pid":1,"compress":"lz4","pipeline":"x""#,
            "exclude each other",
        ),
        (
            r#""do":"restore","pid":1,"timeout":0"#,
            "`timeout` is a number of seconds above 0 and at most 1000000000, not 0",
        ),
        (r#""do":"restore","pid":1,"timeout":-1"#, "not -1"),
        (r#""do":"restore","pid":1,"timeout":1e-12"#, "not 1e-12"),
        (
            r#""do":"restore","pid":1,"timeout":1e300"#,
            "above 0 and at most",
        ),
        (r#""do":"restore","pid":1,"timeout":"1""#, "not \"1\""),
        (
            r#""do":"list","more":1"#,
            "the request is not understood: unknown field `more`",
        ),
        (r#""do":"list","do":"list""#, "duplicate field `do`"),
    ] {
        let said = ask(rest);
        assert!(said.contains(want), "{rest}\n  {said}\n  {want}");
    }
}

#[test]
fn what_is_no_request_at_all_is_told() {
    for (line, want) in [
        ("", "not one JSON object in one line: EOF"),
        ("\n", "not one JSON object in one line"),
        ("{", "EOF while parsing an object"),
        ("{}{}", "trailing characters"),
        ("{\"memcr\":1", "EOF"),
        ("[1,\"list\"]", "the request is not a JSON object"),
        ("7", "the request is not a JSON object"),
        ("{}", "does not say its version: \"memcr\":1"),
        (
            r#"{"memcr":"1"}"#,
            "is in version \"1\" of the protocol; version 1 is spoken here",
        ),
        (r#"{"memcr":1.0,"do":"list"}"#, "version 1.0"),
        (
            r#"{"memcr":1,"id":1,"id":2,"do":"list"}"#,
            "duplicate field `id`",
        ),
        (
            r#"{"memcr":1,"id":1e999,"do":"list"}"#,
            "number out of range",
        ),
    ] {
        let said = complaint(line);
        assert!(said.contains(want), "{line}\n  {said}\n  {want}");
    }
    assert!(Request::parse(b"{\"memcr\":1,\"do\":\"li\xffst\"}").is_err());
    for key in ["id", "more"] {
        let deep = format!(r#"{{"memcr":1,"{key}":{}"#, "[".repeat(60_000));
        assert!(complaint(&deep).contains("EOF"));
    }
}

#[test]
fn an_error_is_short_and_harmless_whatever_it_quotes() {
    let evil = "\\u001b[2J".repeat(2000);
    for line in [
        format!(r#"{{"memcr":1,"{evil}":1}}"#),
        format!(r#"{{"memcr":1,"do":"{evil}"}}"#),
        format!(r#"{{"memcr":"{evil}"}}"#),
        format!(r#"{{"memcr":1,"do":"abort","cgroup":"{evil}"}}"#),
        format!(r#"{{"memcr":1,"id":"{evil}","do":"list"}}"#),
    ] {
        let said = complaint(&line);
        assert!(said.len() < 800, "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

#[test]
fn a_line_ends_somewhere() {
    let fits = |len: usize| {
        let line = r#"{"memcr":1,"do":"list"}"#;
        parse(&format!("{line}{}", " ".repeat(len - line.len())))
    };
    assert!(fits(MAX_LINE_LEN).is_ok());
    let bad = fits(MAX_LINE_LEN + 1).unwrap_err();
    assert!(matches!(bad.error, RequestError::TooLong));
}

#[test]
fn no_daemon_has_to_refuse_what_a_client_sends() {
    let both = Choice {
        pipeline: Some("small".into()),
        compress: Some(Compress::None),
        ..Choice::default()
    };
    let dir = |dir: &std::ffi::OsStr| Choice {
        dir: Some(dir.into()),
        ..Choice::default()
    };
    let not_text: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/\xff");
    let choices = [both, dir("tmp".as_ref()), dir(not_text)];
    let choices = choices.map(|choice| checkpoint(Subject::Pid(1), choice, None));
    let forever = Ask::Restore {
        subject: Subject::Pid(1),
        timeout: Some(Duration::MAX),
    };
    let nobody = Ask::Abort {
        subject: Subject::Tree(0),
    };
    for ask in choices.into_iter().chain([forever, nobody]) {
        assert!(Request::new(ask.clone()).to_line().is_err(), "{ask:?}");
    }
    let id = Some(Id::Text("x".repeat(MAX_ID_LEN + 1)));
    assert!(Request { id, ask: Ask::List }.to_line().is_err());
}

#[test]
fn subjects_have_a_name_in_answers() {
    for (subject, group, said) in [
        (Subject::Pid(7), None, "process 7"),
        (
            Subject::Tree(7),
            Some("tree:7"),
            "process 7 and its descendants",
        ),
        (
            Subject::Cgroup("/a\u{1b}".into()),
            Some("cgroup:/a\u{1b}"),
            "cgroup /a\\u{1b}",
        ),
        (
            Subject::Cgroup("/a//x/".into()),
            Some("cgroup:/a/x"),
            "cgroup /a//x/",
        ),
    ] {
        assert_eq!(subject.group().as_deref(), group);
        assert_eq!(subject.to_string(), said);
    }
}
