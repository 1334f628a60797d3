//! A stage that lies is found when the image is read back, before anything is dropped.

use std::sync::Arc;

use memcr::pipeline::{Cancel, OpenImage, PipelineError};

use crate::faults::told;
use crate::support::{Memory, PLAIN, checkpoint, content, plans, restore, spec, stages};

/// Six chunks of four pages; the fault strikes from the third on.
fn image(dir: &tempfile::TempDir, pipeline: &str) -> OpenImage {
    let memory = Memory::default();
    memory.put(0x10_0000, &content("text", 24));
    let plans = plans(PLAIN, 0x10_0000, 24 * 4096, 4);
    let path = dir.path().join("image");
    let spec = spec(&format!("{pipeline},disk:path={}", path.display()), 1);
    checkpoint(&spec, &Arc::new(memory), &plans).unwrap()
}

fn verify(image: &OpenImage) -> PipelineError {
    image.verify(Cancel::new(), Arc::default()).unwrap_err()
}

fn check(pipeline: &str, fault: &str, wanted: &str) {
    let faulty = format!("faulty:fault={fault}:at=2");
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir, &pipeline.replace("faulty", &faulty));
    let error = verify(&image);
    let text = told(&error);
    assert!(
        text.contains("chunk 2 (address 0x108000"),
        "{fault}: {text}"
    );
    assert!(text.contains("faulty"), "{fault}: {text}");
    assert!(text.contains(wanted), "{fault}: {text}");
    // What verify says a restore says too, and nothing wrong reaches the target.
    let into = Arc::new(Memory::default());
    assert_eq!(told(&restore(&image, &into).unwrap_err()), text);
    let right = content("text", 24);
    for (address, page) in into.pages() {
        let at = (address - 0x10_0000) as usize;
        assert!(page == right[at..at + 4096], "{fault}: page {address:#x}");
    }
    image.remove().unwrap();
}

#[test]
fn a_stage_that_encodes_something_else() {
    let wrong = "its pages are not those that were stored, though the image is as it was written: stage `faulty` got it wrong";
    check("faulty", "encode_wrong", wrong);
    let among =
        "though the image is as it was written: one of the stages `crc32`, `faulty` got it wrong";
    check("crc32,faulty,md5", "encode_wrong", among);
    check(
        "lz4,faulty",
        "encode_wrong",
        "one of the stages `lz4`, `faulty` got it wrong",
    );
    check(
        "encrypt,faulty",
        "encode_wrong",
        "one of the stages `encrypt`, `faulty` got it wrong",
    );
    check(
        "faulty",
        "encode_short",
        "its frame decodes to 16387 bytes, its head asks for 16388, though the image is as it was written: stage `faulty` got it wrong",
    );
    check(
        "faulty,lz4",
        "encode_short",
        "one of the stages `faulty`, `lz4` got it wrong",
    );
    check(
        "faulty",
        "encode_long",
        "a frame of 16389 bytes decodes to 16388 at the most",
    );
    check(
        "faulty,zstd",
        "encode_long",
        "a frame of 16389 bytes decodes to 16388 at the most",
    );
}

#[test]
fn a_stage_that_decodes_something_else() {
    check("faulty", "decode_wrong", "stage `faulty` got it wrong");
    check(
        "faulty,lz4",
        "decode_wrong",
        "one of the stages `faulty`, `lz4` got it wrong",
    );
    check("faulty", "decode_short", "its frame decodes to 16387 bytes");
    check(
        "faulty",
        "decode_long",
        "the stage says it wrote 16389 bytes to a buffer of 16388",
    );
}

/// The bytes may be as they were: another version of the stage may bring them back.
#[test]
fn a_lie_is_no_proof_that_the_bytes_are_lost() {
    let _ = stages();
    for fault in [
        "encode_wrong",
        "encode_short",
        "decode_wrong",
        "decode_short",
        "decode_long",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = image(&dir, &format!("faulty:fault={fault}"));
        assert!(!verify(&image).is_corrupt(), "{fault}");
    }
}

/// The CRC of the image comes first: what is damaged is no stage's doing.
#[test]
fn damage_is_not_blamed_on_a_stage() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir, "faulty:fault=decode_wrong");
    let path = dir.path().join("image");
    let mut bytes = std::fs::read(&path).unwrap();
    let chunk = bytes.windows(4).position(|tag| tag == b"CHNK").unwrap();
    bytes[chunk + 1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = verify(&image);
    assert!(
        error.is_corrupt() && !told(&error).contains("faulty"),
        "{error}"
    );
}

/// Where no stage changes the pages there is no CRC of them but that of the chunk, which is
/// made when the stages have seen them.
#[test]
fn a_checksum_that_changes_what_it_is_only_to_read() {
    let wanted = "it has changed the bytes that it was only to read";
    let dir = tempfile::tempdir().unwrap();
    let disk = format!("disk:path={}", dir.path().join("image").display());
    let memory = Memory::default();
    memory.put(0x10_0000, &content("text", 24));
    let memory = Arc::new(memory);
    let plans = plans(PLAIN, 0x10_0000, 24 * 4096, 4);
    for stages in ["tags_and_changes", "crc32,tags_and_changes,md5"] {
        let stored = checkpoint(&spec(&format!("{stages},{disk}"), 2), &memory, &plans);
        let text = told(&stored.err().unwrap());
        assert!(
            text.contains("stage `tags_and_changes`: encoding chunk"),
            "{text}"
        );
        assert!(text.contains(wanted), "{text}");
        assert!(dir.path().read_dir().unwrap().next().is_none());
    }
    for stages in ["checks_and_changes", "crc32,checks_and_changes,md5"] {
        let image = checkpoint(&spec(&format!("{stages},{disk}"), 2), &memory, &plans).unwrap();
        let into = Arc::new(Memory::default());
        let error = restore(&image, &into).unwrap_err();
        assert!(!error.is_corrupt(), "{error}");
        let text = told(&error);
        assert!(
            text.contains("stage `checks_and_changes`: decoding chunk"),
            "{text}"
        );
        assert!(text.contains(wanted), "{text}");
        assert!(into.pages().is_empty(), "wrong bytes reached the target");
        image.remove().unwrap();
    }
}
