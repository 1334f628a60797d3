//! No flipped bit and no missing byte goes unnoticed, and no length is believed.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memcr::pipeline::{Cancel, OpenImage, Pipeline, PipelineError, StageSpec};
use memcr::sink::{ImageError, ImageReader, ReadImage, inspect};
use memcr_plugin_api::stage::StageError;

use crate::reseal::reseal;
use crate::support::{
    HUGE, Memory, PAGE, PLAIN, checkpoint, content, forget_keys, plans, spec, stages,
};

/// Length of the last part of an image, bytes.
const FOOTER_LEN: usize = 128;

/// An image file and its bytes.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    open: OpenImage,
}

/// An image of `n_pages` pages in two classes, one page in three of zeros.
fn image(stages: &str, kind: &str, n_pages: usize) -> Image {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let memory = Memory::default();
    let bytes = content(kind, n_pages);
    memory.put(0x10_0000, &bytes);
    memory.put(0x80_0000, &vec![0; PAGE]);
    let mut all = plans(PLAIN, 0x10_0000, bytes.len(), 2);
    all.extend(plans(HUGE, 0x80_0000, PAGE, 1));
    let spec = spec(&format!("{stages}disk:path={}", path.display()), 1);
    let open = checkpoint(&spec, &Arc::new(memory), &all).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    Image {
        _dir: dir,
        path,
        bytes,
        open,
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Its directory goes by itself; nobody else takes its key away.
        forget_keys(&self.open);
    }
}

impl Image {
    /// What the process that holds the target says of the image as it is now.
    fn verify(&self) -> Result<(), PipelineError> {
        self.open.verify(Cancel::new(), Arc::default()).map(drop)
    }

    /// What a process that knows only the file says.
    fn verify_cold(&self) -> Result<(), PipelineError> {
        let image = Pipeline::open_file(&self.path, stages(), &[])?;
        image.verify(Cancel::new(), Arc::default()).map(drop)
    }

    fn with_flip(&self, bit: usize, check: impl FnOnce()) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        let at = bit / 8;
        file.write_all_at(&[self.bytes[at] ^ 1 << (bit % 8)], at as u64)
            .unwrap();
        check();
        file.write_all_at(&self.bytes[at..=at], at as u64).unwrap();
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).unwrap();
    }
}

fn must_be_corrupt(image: &Image, bit: usize) {
    image.with_flip(bit, || {
        let error = image.verify().expect_err(&format!("bit {bit}"));
        assert!(error.is_corrupt(), "bit {bit}: {error}");
    });
}

/// Every bit of a whole image, with the last stage of each kind and with none.
#[test]
fn every_bit_of_a_tiny_image() {
    for stages in ["lz4,", "lz4,crc32,", "zstd,encrypt,"] {
        let image = image(stages, "text", 3);
        assert!(image.bytes.len() < 2000, "{}", image.bytes.len());
        image.verify().unwrap();
        (0..image.bytes.len() * 8).for_each(|bit| must_be_corrupt(&image, bit));
        image.verify().unwrap();
    }
}

/// Bits spread over larger images, without a checksum stage and with one. A prime step
/// meets every bit of a byte and every byte of a head.
#[test]
fn bits_all_over_an_image() {
    for stages in ["", "crc32,", "lz4,md5,encrypt,"] {
        let image = image(stages, "noise", 9);
        let step = (image.bytes.len() * 8 / 700) | 1;
        (0..image.bytes.len() * 8)
            .step_by(step)
            .for_each(|bit| must_be_corrupt(&image, bit));
    }
}

#[test]
fn an_image_that_is_cut_or_continued() {
    for stages in ["", "lz4,crc32,encrypt,"] {
        let image = image(stages, "text", 5);
        let n = image.bytes.len();
        let lens: BTreeSet<usize> = (0..n)
            .step_by(n / 150)
            .chain(n - 130..n)
            .chain(0..100)
            .collect();
        for len in lens {
            image.write(&image.bytes[..len]);
            assert!(image.verify().unwrap_err().is_corrupt(), "{len}");
            assert!(inspect(&image.path).is_err(), "{len}");
        }
        image.write(&[&image.bytes[..], b"x"].concat());
        assert!(image.verify().unwrap_err().is_corrupt());
        image.write(&image.bytes);
        image.verify().unwrap();
    }
}

/// The right image of another moment is not the one that was written.
#[test]
fn another_image_in_its_place() {
    let (one, other) = (image("lz4,", "text", 3), image("lz4,", "text", 3));
    one.write(&other.bytes);
    let error = one.verify().unwrap_err();
    assert!(
        matches!(error, PipelineError::Image(ImageError::Another { .. })) && !error.is_corrupt(),
        "{error}"
    );
    one.write(&one.bytes);
    one.verify().unwrap();
    one.write(&other.bytes);
    one.verify_cold().unwrap();
}

/// The error names the place.
#[test]
fn errors_name_the_place() {
    let image = image("", "noise", 4);
    let find = |tag: &[u8]| {
        image
            .bytes
            .windows(4)
            .position(|bytes| bytes == tag)
            .unwrap()
    };
    let chunk = find(b"CHNK");
    let cases = [
        (
            chunk + 5000,
            format!("chunk 0 (address 0x100000, offset {chunk}): its CRC is "),
        ),
        (40, "header (offset 0, 96 bytes): its CRC is ".into()),
        (
            find(b"PIPE") + 20,
            "pipeline description (offset 96, 16 bytes): its CRC is ".into(),
        ),
        (
            find(b"TGET") + 20,
            format!(
                "target identity (offset {}, 16 bytes): its CRC is ",
                find(b"TGET")
            ),
        ),
        (
            find(b"VMAS") + 20,
            format!(
                "VMA table (offset {}, 16 bytes): its CRC is ",
                find(b"VMAS")
            ),
        ),
        (
            find(b"INDX") + 50,
            format!("index (offset {}, 16 bytes): its CRC is ", find(b"INDX")),
        ),
        (
            image.bytes.len() - 1,
            format!(
                "footer (offset {}, 128 bytes): there is no valid end mark",
                find(b"FOOT")
            ),
        ),
    ];
    for (at, text) in cases {
        image.with_flip(at * 8, || {
            let error = image.verify().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("the image is corrupt: {text}")),
                "{error}"
            );
        });
    }
}

#[test]
fn what_is_no_image_is_called_so() {
    let image = image("", "text", 1);
    image.write(b"#!/bin/sh\n");
    assert!(matches!(
        inspect(&image.path),
        Err(ImageError::NotAnImage(_))
    ));
    image.write(&vec![b'x'; 5000]);
    assert_eq!(
        inspect(&image.path).unwrap_err().to_string(),
        "not a memcr image: it begins with `xxxxxxxx`"
    );
    let mut newer = image.bytes.clone();
    newer[8] = 2;
    reseal(&mut newer);
    image.write(&newer);
    let text = inspect(&image.path).unwrap_err().to_string();
    assert_eq!(
        text,
        "cannot read this image: its format is 2.0, this memcr reads 1.x"
    );
    newer[8] = 1;
    newer[16] = 4;
    reseal(&mut newer);
    image.write(&newer);
    assert!(
        inspect(&image.path)
            .unwrap_err()
            .to_string()
            .contains("needs features 0x4")
    );
    assert!(inspect(Path::new("/nowhere/at/all")).is_err());
    assert!(inspect(Path::new("/tmp")).is_err());
}

/// An adversary who computes CRCs: every field of every head, set to hostile values.
/// Reading ends with an error or, where the field does not matter, in success; it never
/// panics, hangs, or allocates what the field says.
#[test]
fn hostile_lengths_with_right_crcs() {
    let image = image("xor,", "text", 5);
    let tags: [&[u8]; 7] = [
        b"\x89MEM", b"PIPE", b"TGET", b"VMAS", b"CHNK", b"INDX", b"FOOT",
    ];
    let mut n_refused = 0;
    for tag in tags {
        let start = image
            .bytes
            .windows(4)
            .position(|bytes| bytes == tag)
            .unwrap();
        for at in start..(start + 130).min(image.bytes.len() - 8) {
            for value in [0, 1, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 1 << 63, 1 << 40] {
                let mut hostile = image.bytes.clone();
                hostile[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
                reseal(&mut hostile);
                n_refused += usize::from(ImageReader::open(Arc::new(hostile)).is_err());
            }
        }
    }
    assert!(n_refused > 3000, "{n_refused}");
}

/// An image with a hole before its footer, as a sparse file has one.
struct Stretched {
    bytes: Vec<u8>,
    len: u64,
}

impl ReadImage for Stretched {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, StageError> {
        let hole = self.len - self.bytes.len() as u64;
        let footer = self.len - FOOTER_LEN as u64;
        let offset = if offset < footer {
            offset
        } else {
            offset - hole
        };
        self.bytes.read_at(offset, out)
    }

    fn len(&self) -> Result<u64, StageError> {
        Ok(self.len)
    }
}

/// A file may be as long as it likes: that takes no memory.
#[test]
fn a_hole_is_no_room_for_chunks() {
    let mut bytes = image("", "text", 5).bytes.clone();
    let len = 4_u64 << 60;
    let footer = bytes.len() - FOOTER_LEN;
    bytes[footer + 24..][..8].copy_from_slice(&u64::to_le_bytes(len / 128));
    bytes[footer + 96..][..8].copy_from_slice(&u64::to_le_bytes(len));
    reseal(&mut bytes);
    let error = ImageReader::open(Arc::new(Stretched { bytes, len }));
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("do not fit into 1 index blocks"), "{error}");
}

/// The same behind the reader: heads and frames of chunks.
#[test]
fn hostile_chunks_with_right_crcs() {
    let image = image("xor,", "text", 5);
    let start = image
        .bytes
        .windows(4)
        .position(|bytes| bytes == b"CHNK")
        .unwrap();
    for at in start + 4..start + 96 {
        for value in [0u8, 1, 0x7f, 0xff] {
            let mut hostile = image.bytes.clone();
            if hostile[at] == value {
                continue;
            }
            hostile[at] = value;
            reseal(&mut hostile);
            image.write(&hostile);
            // Reserved bytes may be anything; a CRC field is rewritten by `reseal`.
            // What xor makes of another frame is another page: the CRC within tells.
            let free = matches!(at - start, 34 | 35 | 40..=47);
            assert_eq!(
                image.verify_cold().is_ok(),
                free,
                "byte {} = {value}",
                at - start
            );
        }
    }
}

/// With `encrypt`, right CRCs do not help: chunks may not change, move or be replaced.
#[test]
fn an_adversary_against_encryption() {
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let image = image(&format!("encrypt:key_file={},", key.display()), "noise", 4);
    let tags = image
        .bytes
        .windows(4)
        .enumerate()
        .filter(|(_, bytes)| bytes == b"CHNK");
    let starts: Vec<_> = tags.map(|(at, _)| at).collect();
    let len = starts[1] - starts[0];
    type Change<'a> = &'a dyn Fn(&mut [u8]);
    let changes: [Change<'_>; 4] = [
        &|bytes| bytes[starts[0] + 100] ^= 1,
        // The class of the pages.
        &|bytes| bytes[starts[0] + 6] ^= 1,
        // Where the pages belong: a run, not the first.
        &|bytes| bytes[starts[0] + 48 + 12] ^= 1,
        // Two frames change places.
        &|bytes| {
            let first = bytes[starts[0] + 64..starts[0] + len].to_vec();
            bytes.copy_within(starts[1] + 64..starts[1] + len, starts[0] + 64);
            bytes[starts[1] + 64..starts[1] + len].copy_from_slice(&first);
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut bytes = image.bytes.clone();
        change(&mut bytes);
        reseal(&mut bytes);
        image.write(&bytes);
        // Whoever holds the target knows the footer, whose digest changed with the CRCs …
        assert!(image.open.read_meta().unwrap_err().is_corrupt(), "{i}");
        // … and whoever has the key finds the chunk.
        assert!(image.verify_cold().unwrap_err().is_corrupt(), "{i}");
    }
    image.write(&image.bytes);
    image.verify_cold().unwrap();
}

/// A key that is not the image's is a matter of its own: the bytes are not lost.
#[test]
fn a_wrong_key_is_not_corruption() {
    let keys = tempfile::tempdir().unwrap();
    let path = |name: &str| keys.path().join(name).display().to_string();
    for (name, byte) in [("right", 7), ("wrong", 8)] {
        std::fs::write(path(name), [byte; 32]).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let image = image(
        &format!("lz4,encrypt:key_file={},", path("right")),
        "text",
        4,
    );
    std::fs::rename(path("right"), path("moved")).unwrap();
    let open = |key: &str| {
        let params = vec![("key_file".to_owned(), path(key))];
        let given = StageSpec {
            alias: "encrypt".into(),
            plugin: "encrypt".into(),
            params,
        };
        let image = Pipeline::open_file(&image.path, stages(), &[given])?;
        image.verify(Cancel::new(), Arc::default())
    };
    open("moved").unwrap();
    let error = open("wrong").unwrap_err();
    assert!(
        matches!(error, PipelineError::WrongKey { .. }) && !error.is_corrupt(),
        "{error}"
    );
}
