#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn causes_are_said_once() {
    let image = ImageError::Io {
        offset: 1,
        len_bytes: 2,
        source: memcr_plugin_api::stage::StageError::new(
            memcr_plugin_api::abi::code::IO,
            "disk on fire",
        ),
    };
    let failure =
        Failure::from(PipelineError::Image(image)).with_hint(Some("call the fire brigade"));
    assert_eq!(
        failure.message(),
        "memcr: cannot read 2 bytes at offset 1 of the image: disk on fire\nhint: call the fire brigade"
    );
    assert_eq!(failure.exit, Exit::Internal);
}

#[test]
fn no_name_gives_the_terminal_orders() {
    let failure = Failure::new(Exit::Plugin, "no stage `\u{1b}[2J`").with_hint(Some("a\rb"));
    assert_eq!(
        failure.message(),
        "memcr: no stage `\\u{1b}[2J`\nhint: a\\rb"
    );
}

#[test]
fn an_image_that_cannot_be_read_is_not_damaged() {
    use memcr_plugin_api::stage::StageError;
    let of = |kind: ErrorKind| {
        let open = || ImageError::Open(StageError::io("cannot open x", &kind.into()));
        let image = Failure::from(open()).exit;
        assert_eq!(image, Failure::from(PipelineError::Image(open())).exit);
        image
    };
    assert_eq!(of(ErrorKind::NotFound), Exit::Internal);
    assert_eq!(of(ErrorKind::PermissionDenied), Exit::Permission);
    assert_eq!(of(ErrorKind::Other), Exit::Internal);
    let damaged = ImageError::Unsupported("version 9".into());
    assert_eq!(Failure::from(damaged).exit, Exit::ImageInvalid);
}

#[test]
fn a_wrong_key_is_said_once() {
    let source = memcr_plugin_api::stage::StageError::new(
        memcr_plugin_api::abi::code::WRONG_KEY,
        "wrong key: the image was encrypted with another one",
    );
    let error = PipelineError::WrongKey {
        stage: "encrypt".into(),
        source: Box::new(source),
    };
    assert_eq!(
        Failure::from(error).message(),
        "memcr: stage `encrypt`: wrong key: the image was encrypted with another one"
    );
}

#[test]
fn a_limit_that_cannot_be_lifted_is_named() {
    let hint = |errno| {
        let limit = GuardError::Limit(std::io::Error::from_raw_os_error(errno));
        let source = Box::new(StepError::Guard(limit));
        let failure = Failure::from(CheckpointError::Undone { pid: 1, source });
        failure.hint().map(str::to_owned)
    };
    let said = hint(libc::EPERM).unwrap();
    assert!(said.contains("CAP_SYS_RESOURCE") && said.contains("RLIMIT_NOFILE"));
    assert_eq!(hint(libc::ESRCH), None);
}

#[test]
fn causes_are_linked() {
    let read = ConfigError::Read {
        path: "/x".into(),
        source: std::io::Error::other("gone"),
    };
    assert_eq!(
        Failure::from(read).message(),
        "memcr: cannot read the configuration /x: gone"
    );
}
