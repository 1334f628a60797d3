//! What `[daemon]` may say, and how it is told what it may not.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::cli::config::{Config, File, Origin, Places, parse};

fn file(section: &str) -> File {
    parse(Path::new("p.toml"), &format!("[daemon]\n{section}")).unwrap()
}

fn complaint(section: &str) -> String {
    parse(Path::new("p.toml"), &format!("[daemon]\n{section}"))
        .unwrap_err()
        .to_string()
}

fn loaded(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), &Places::default()).map_err(|error| {
        let error = error.to_string();
        error[error.find("p.toml").unwrap_or(0)..].to_owned()
    })
}

fn given(value: &str) -> Given<String> {
    Given {
        value: value.into(),
        origin: Origin::Flag("-g".into()),
    }
}

#[test]
fn every_key_is_understood() {
    let text = "listen = ['/run/m.sock', '9000', 9001]\ngroup = 'memcr'\nothers = true\n\
        tcp_address = '::1'\ntcp_trust = 'all'\npipelines = ['small']\n\
        dirs = ['/var/tmp', '/x']\ncompress = false\nmax_checkpoints = 2\n\
        max_sessions = 7\ntimeout = 1.5\non_stop = 'restore'\nmetrics = '/run/m.prom'";
    let daemon = file(text).daemon.settled(&BTreeMap::<_, ()>::new());
    let listen: Vec<_> = daemon.listen.iter().map(|given| &given.value).collect();
    assert_eq!(listen, ["/run/m.sock", "9000", "9001"]);
    assert_eq!(daemon.listen[1].origin.to_string(), "p.toml:2:26");
    assert_eq!(daemon.group.unwrap().value, "memcr");
    assert_eq!(daemon.tcp_address.to_string(), "::1");
    assert_eq!(daemon.tcp_trust, TcpTrust::All);
    assert_eq!(daemon.pipelines, ["small"]);
    assert_eq!(
        daemon.dirs.unwrap(),
        [Path::new("/var/tmp"), Path::new("/x")]
    );
    assert!(daemon.others && !daemon.compress);
    assert_eq!((daemon.max_checkpoints, daemon.max_sessions), (2, 7));
    assert_eq!(daemon.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(daemon.on_stop, OnStop::Restore);
    assert_eq!(daemon.metrics.unwrap(), Path::new("/run/m.prom"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let long = format!("listen = ['/{}']", "x".repeat(107));
    for (section, want) in [
        (
            "port = 1",
            "p.toml:2:1: unknown key `port`, expected one of `listen`, `group`, `others`",
        ),
        (
            "listen = ['9000', 'memcr.sock']",
            "p.toml:2:19: listen: `memcr.sock` is neither a port, 1 to 65535, nor an absolute path",
        ),
        (
            "listen = ['9000x']",
            "p.toml:2:11: listen: `9000x` is neither",
        ),
        ("listen = [0]", "p.toml:2:11: listen: `0` is neither"),
        (
            "listen = ['65536']",
            "p.toml:2:11: listen: `65536` is neither",
        ),
        (
            "listen = ['@memcr']",
            "p.toml:2:11: listen: `@memcr` is neither",
        ),
        ("listen = ['']", "p.toml:2:11: listen: `` is neither"),
        (
            "listen = [\"/a\\u0000\"]",
            "p.toml:2:11: `listen` contains a NUL",
        ),
        (&long, "p.toml:2:11: listen: `/xxx"),
        (
            "listen = '9000'",
            "p.toml:2:10: invalid type: string \"9000\", expected a sequence",
        ),
        ("group = ['a']", "p.toml:2:9: `group` is a list; a text"),
        (
            "others = 'yes'",
            "p.toml:2:10: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "tcp_address = 'localhost'",
            "p.toml:2:15: tcp_address: `localhost` is no address, such as 127.0.0.1 or ::1",
        ),
        (
            "tcp_trust = 'none'",
            "p.toml:2:13: tcp_trust: `none` is none of uid, all",
        ),
        (
            "dirs = ['/a', 'b']",
            "p.toml:2:15: dirs: `b` is not an absolute path",
        ),
        (
            "max_checkpoints = 1025",
            "p.toml:2:19: max_checkpoints: `1025` is no number from 0 to 1024",
        ),
        (
            "max_sessions = 0",
            "p.toml:2:16: max_sessions: `0` is no number from 1 to 100000",
        ),
        (
            "timeout = -1",
            "p.toml:2:11: timeout: `-1` is no number of seconds from 0 to 86400",
        ),
        (
            "timeout = nan",
            "p.toml:2:11: timeout: `nan` is no number of seconds",
        ),
        (
            "timeout = '20'",
            "p.toml:2:11: timeout: `\"20\"` is no number of seconds",
        ),
        (
            "on_stop = 'die'",
            "p.toml:2:11: on_stop: `die` is none of hold, restore, kill",
        ),
        (
            "metrics = 'm'",
            "p.toml:2:11: metrics: `m` is not an absolute path",
        ),
    ] {
        let said = complaint(section);
        assert!(said.starts_with(want), "{section}: {said}");
    }
    assert!(complaint(&long).ends_with("has 108 bytes, the path of a socket at most 107"));
}

#[test]
fn the_built_in_copy_has_the_defaults() {
    let config = Config::load(None, &Places::default()).unwrap();
    let nothing = DaemonFile::default();
    let pipelines = &config.settings.pipelines;
    assert_eq!(
        config.settings.daemon.settled(pipelines),
        nothing.settled(pipelines)
    );
    assert!(
        config.settings.daemon.max_sessions.is_some(),
        "and says them"
    );
}

#[test]
fn files_are_merged_key_by_key() {
    let config = loaded("[daemon]\nothers = true\nlisten = [9000]\n").unwrap();
    let daemon = config.settings.daemon.settled(&config.settings.pipelines);
    assert!(daemon.others && daemon.compress);
    assert_eq!(daemon.listen.len(), 1);
    let over = file("timeout = 0\nothers = false").daemon;
    let base = file("timeout = 3\ncompress = false").daemon;
    let daemon = over.over(base).settled(&BTreeMap::<_, ()>::new());
    assert_eq!(
        (daemon.timeout, daemon.others, daemon.compress),
        (None, false, false)
    );
}

#[test]
fn clients_may_name_only_pipelines_that_there_are() {
    let text = "[pipelines]\nsmall = 'zstd,file'\nfast = 'lz4,file'\n[daemon]\n";
    let config = loaded(text).unwrap();
    let daemon = config.settings.daemon.settled(&config.settings.pipelines);
    assert_eq!(daemon.pipelines, ["fast", "small"]);
    let config = loaded(&format!("{text}pipelines = []")).unwrap();
    let daemon = config.settings.daemon.settled(&config.settings.pipelines);
    assert!(daemon.pipelines.is_empty());
    for (text, want) in [
        (
            format!("{text}pipelines = ['small', 'zstd,file']"),
            "p.toml:5:23: pipelines: no pipeline has the name `zstd,file`; [pipelines] has fast, small",
        ),
        (
            "[daemon]\npipelines = ['x']".to_owned(),
            "p.toml:2:14: pipelines: no pipeline has the name `x`; [pipelines] has none",
        ),
    ] {
        assert_eq!(loaded(&text).unwrap_err(), want);
    }
}

#[test]
fn groups_have_a_name_or_a_number() {
    assert_eq!(gid(&given("0")).unwrap(), 0);
    assert_eq!(gid(&given("4294967294")).unwrap(), 4_294_967_294);
    assert_eq!(gid(&given("root")).unwrap(), 0);
    for (name, want) in [
        (
            "4294967295",
            "-g: group: `4294967295` is no number of a group, 0 to 4294967294",
        ),
        (
            "99999999999",
            "-g: group: `99999999999` is no number of a group, 0 to 4294967294",
        ),
        (
            "no such group",
            "-g: group: there is no group `no such group`",
        ),
        ("", "-g: group: there is no group ``"),
        ("-1", "-g: group: there is no group `-1`"),
    ] {
        assert_eq!(gid(&given(name)).unwrap_err().to_string(), want);
    }
}
