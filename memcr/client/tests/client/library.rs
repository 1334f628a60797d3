//! The Rust client against a daemon that says what it is told.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::fake::{Fake, hear, old, say};
use memcr_client::{
    Choice, Client, ClientError, Code, Command, Compress, Location, Patience, Subject, legacy,
};
use serde_json::json;

const SHORT: Duration = Duration::from_millis(50);

fn impatient() -> Patience {
    Patience {
        answer: Some(SHORT),
        ..Patience::default()
    }
}

#[test]
fn requests_go_out_and_answers_come_back() {
    let daemon = Fake::answering(|stream| {
        let request = hear(stream);
        assert_eq!(
            request,
            json!({"memcr": 1, "id": 1, "do": "checkpoint", "pid": 4711, "dir": "/var",
                   "compress": "zstd", "idle": true, "timeout": 2.5})
        );
        say(
            stream,
            &request,
            json!({"ok": true, "exit_code": 0, "checkpoint": {"pid": 4711}}),
        );
        let request = hear(stream);
        assert_eq!(
            request,
            json!({"memcr": 1, "id": 2, "do": "restore", "tree": 4711})
        );
        say(
            stream,
            &request,
            json!({"ok": true, "exit_code": 0, "outcome": "restored"}),
        );
    });
    let mut client = Client::connect(&daemon.location()).unwrap();
    let choice = Choice {
        pipeline: None,
        dir: Some("/var".into()),
        compress: Some(Compress::Zstd),
        idle: true,
    };
    let timeout = Some(Duration::from_millis(2500));
    let answer = client.checkpoint(Subject::Pid(4711), choice, timeout);
    assert_eq!(answer.unwrap().object["checkpoint"]["pid"], 4711);
    let answer = client.restore(Subject::Tree(4711), None);
    assert_eq!(answer.unwrap().object["outcome"], "restored");
}

#[test]
fn every_request_has_its_verb() {
    let daemon = Fake::answering(|stream| {
        for want in [
            json!({"do": "abort", "cgroup": "/x"}),
            json!({"do": "status"}),
            json!({"do": "status", "pid": 1}),
            json!({"do": "list"}),
            json!({"do": "stages"}),
        ] {
            let mut request = hear(stream);
            say(stream, &request, json!({"ok": true, "exit_code": 0}));
            let keys = request.as_object_mut().unwrap();
            keys.retain(|key, _| key != "memcr" && key != "id");
            assert_eq!(request, want);
        }
    });
    let mut client = Client::connect(&daemon.location()).unwrap();
    client.abort(Subject::Cgroup("/x".into())).unwrap();
    client.status(None).unwrap();
    client.status(Some(1)).unwrap();
    client.list().unwrap();
    client.stages().unwrap();
}

#[test]
fn what_was_not_done_is_an_error_with_its_reason() {
    let daemon = Fake::answering(|stream| {
        let request = hear(stream);
        let error =
            json!({"message": "held already", "causes": ["held already"], "hint": "restore it"});
        say(
            stream,
            &request,
            json!({"ok": false, "exit_code": 13, "meaning": "held", "error": error}),
        );
    });
    let mut client = Client::connect(&daemon.location()).unwrap();
    let error = client.restore(Subject::Pid(1), None).unwrap_err();
    assert_eq!(error.to_string(), "held already");
    assert_eq!((error.exit_code(), error.hint()), (13, Some("restore it")));
}

#[test]
fn a_wrong_request_is_not_sent() {
    let daemon = Fake::answering(|stream| assert_eq!(stream.read(&mut [0]).unwrap(), 0));
    let mut client = Client::connect(&daemon.location()).unwrap();
    let error = client.restore(Subject::Pid(-1), None).unwrap_err();
    assert!(matches!(error, ClientError::Request(_)));
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let daemon = Fake::answering(|stream| {
        let first = hear(stream);
        let second = hear(stream);
        say(stream, &first, json!({"ok": true, "exit_code": 0, "n": 1}));
        say(stream, &second, json!({"ok": true, "exit_code": 0, "n": 2}));
    });
    let mut client = Client::connect_with(&daemon.location(), impatient()).unwrap();
    let error = client.list().unwrap_err();
    assert!(matches!(error, ClientError::Late { waited } if waited == SHORT));
    assert_eq!(error.exit_code(), 15);
    client.set_patience(None);
    assert_eq!(client.list().unwrap().object["n"], 2);
}

#[test]
fn a_deadline_is_for_the_whole_answer() {
    let daemon = Fake::answering(|stream| {
        hear(stream);
        // A byte now and then keeps nobody waiting: ends when the client has hung up.
        while stream.write_all(b"{").is_ok() {
            std::thread::sleep(SHORT / 10);
        }
    });
    let begin = Instant::now();
    let mut client = Client::connect_with(&daemon.location(), impatient()).unwrap();
    assert!(matches!(
        client.list().unwrap_err(),
        ClientError::Late { .. }
    ));
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_answer_in_pieces_and_two_at_once_are_read() {
    let daemon = Fake::answering(|stream| {
        let request = hear(stream);
        let long = "x".repeat(100_000);
        say(
            stream,
            &request,
            json!({"ok": true, "exit_code": 0, "long": long}),
        );
        let stray = json!({"id": 77});
        let request = hear(stream);
        say(stream, &stray, json!({"ok": true, "exit_code": 0, "n": 1}));
        say(
            stream,
            &request,
            json!({"ok": true, "exit_code": 0, "n": 2}),
        );
    });
    let mut client = Client::connect(&daemon.location()).unwrap();
    let answer = client.list().unwrap();
    assert_eq!(answer.object["long"].as_str().unwrap().len(), 100_000);
    assert_eq!(client.list().unwrap().object["n"], 2);
}

#[test]
fn why_a_connection_is_refused_is_read() {
    let daemon = Fake::answering(|stream| {
        // Before the request is read, and without an id, which is not known yet.
        let answer = json!({"memcr": 1, "ok": false, "exit_code": 15,
                            "error": {"message": "too many connections"}});
        stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
    });
    let mut client = Client::connect(&daemon.location()).unwrap();
    let error = client.list().unwrap_err();
    assert_eq!(error.to_string(), "too many connections");
    assert_eq!(error.exit_code(), 15);
}

#[test]
fn a_daemon_that_goes_away_is_told_from_an_old_one() {
    let daemon = Fake::new(vec![
        Box::new(|stream| {
            hear(stream);
        }),
        old(None, -1),
        Box::new(|stream| {
            hear(stream);
            stream.write_all(b"{\"memcr\":1,").unwrap();
        }),
    ]);
    let ask = || {
        Client::connect(&daemon.location())
            .unwrap()
            .list()
            .unwrap_err()
    };
    assert!(matches!(ask(), ClientError::Closed));
    let error = ask();
    assert!(
        matches!(error, ClientError::OldDaemon { n_bytes: 4 }),
        "{error}"
    );
    assert!(error.may_be_old_daemon());
    assert!(matches!(ask(), ClientError::Closed));
}

#[test]
fn what_is_no_answer_is_told() {
    for bytes in [
        &b"hello\n"[..],
        b"{}\n",
        b"{\"memcr\":2,\"ok\":true,\"exit_code\":0}\n",
    ] {
        let daemon = Fake::answering(|stream| {
            hear(stream);
            stream.write_all(bytes).unwrap();
        });
        let mut client = Client::connect(&daemon.location()).unwrap();
        let error = client.list().unwrap_err();
        assert!(matches!(error, ClientError::Answer(_)), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}

#[test]
fn nobody_there_is_told_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nothing");
    let error = Client::connect(&Location::Path(path.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot connect to a daemon at {}", path.display())
    );
    assert_eq!(error.exit_code(), 15);
    assert!(!error.may_be_old_daemon());
}

#[test]
fn a_daemon_that_takes_no_connection_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    // Nobody accepts, so that sooner or later the queue is full.
    let _listener = UnixListener::bind(&path).unwrap();
    let patience = Patience {
        connect: SHORT,
        answer: Some(SHORT),
    };
    let location = Location::Path(path);
    let mut connected = Vec::new();
    let error = loop {
        match Client::connect_with(&location, patience) {
            Ok(client) => connected.push(client),
            Err(error) => break error,
        }
        assert!(connected.len() < 100_000, "the queue has no end");
    };
    let ClientError::Connect { source, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::TimedOut);
    // Who did connect and is not served has a deadline too.
    let late = connected[0].list().unwrap_err();
    assert!(matches!(late, ClientError::Late { .. }), "{late}");
}

#[test]
fn a_port_is_one_of_this_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = Location::Port(listener.local_addr().unwrap().port());
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&0_i32.to_ne_bytes()).unwrap();
        request
    });
    let code = legacy::v1(&location, Patience::default(), Command::Restore, 4711);
    assert_eq!(code.unwrap(), Code::Ok);
    let want = [101_i32.to_ne_bytes(), 4711_i32.to_ne_bytes()].concat();
    assert_eq!(daemon.join().unwrap()[..], want);
}

#[test]
fn the_old_protocol_is_spoken_to_the_byte() {
    let daemon = Fake::new(vec![
        old(Some((100, 4711)), -2),
        Box::new(|stream| {
            let mut request = [0; 8 + 8 + 9 + 8];
            stream.read_exact(&mut request).unwrap();
            let number = |n: i32| n.to_ne_bytes().to_vec();
            let want = [102, 25, 100, 4711, 200].map(number).concat();
            let rest = [201, 2].map(number).concat();
            assert_eq!(request[..], [&want[..], b"/var\0", &rest].concat());
            // In two segments.
            stream.write_all(&[255, 255]).unwrap();
            stream.write_all(&[255, 255]).unwrap();
        }),
    ]);
    let location = daemon.location();
    let patience = Patience::default();
    let code = legacy::v1(&location, patience, Command::Checkpoint, 4711);
    assert_eq!(code.unwrap(), Code::InvalidPid);
    let (dir, zstd) = (Some(&b"/var"[..]), Some(Compress::Zstd));
    let code = legacy::v2(&location, patience, Command::Checkpoint, 4711, dir, zstd);
    assert_eq!(code.unwrap(), Code::General);
}

#[test]
fn failures_of_the_old_protocol_are_told() {
    let daemon = Fake::new(vec![
        old(None, 7),
        Box::new(|stream| {
            stream.write_all(&[0, 0]).unwrap();
        }),
        Box::new(|stream| {
            // Until the client has hung up.
            let _ = stream.read_to_end(&mut Vec::new());
        }),
    ]);
    let ask = |patience| legacy::v1(&daemon.location(), patience, Command::Restore, 1).unwrap_err();
    assert!(matches!(
        ask(Patience::default()),
        ClientError::UnknownCode(7)
    ));
    assert!(matches!(ask(Patience::default()), ClientError::Closed));
    assert!(matches!(ask(impatient()), ClientError::Late { .. }));
    let nul = legacy::v2(
        &daemon.location(),
        Patience::default(),
        Command::Restore,
        1,
        Some(b"\0"),
        None,
    );
    assert_eq!(nul.unwrap_err().exit_code(), 2);
}
