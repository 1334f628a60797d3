//! Checks of sinks: an image lasts when it was committed, and is gone when it was not or
//! when it was removed.

use super::Subject;
use super::content::random;
use super::scratch::Scratch;
use crate::abi::{MAX_STATE_LEN, capability, code, threads};
use crate::export::Handle;
use crate::sink::NewImage;

/// Length of the image that is written, bytes; odd, so that blocks do not fit.
const IMAGE_LEN: usize = 3 * 1024 * 1024 + 4321;

pub(super) fn check(subject: &Subject, dir: Option<&Scratch>) {
    let sink = SinkSuite { subject, dir };
    let image = random(IMAGE_LEN, 1);
    sink.keeps_what_was_committed(&image);
    sink.keeps_an_empty_image();
    sink.forgets_without_commit(&image);
    sink.removes_before_commit(&image);
    sink.keeps_one_beside_another();
    if subject.has(capability::KEEPS_UNFINISHED) {
        sink.keeps_what_was_written(&image);
    }
    sink.refuses_unknown_locators();
}

struct SinkSuite<'a> {
    subject: &'a Subject,
    dir: Option<&'a Scratch>,
}

impl SinkSuite<'_> {
    fn keeps_what_was_committed(&self, image: &[u8]) -> Option<()> {
        let subject = self.subject;
        let writer = self.open_new(1, image.len())?;
        self.write(&writer, image)?;
        if subject.has(capability::READ_BEFORE_COMMIT) {
            self.read_back(&writer, image, "before commit")?;
        }
        subject.expect(
            "sink_commit",
            writer.commit(image.len() as u64, image.len() as u64),
        )?;
        self.read_back(&writer, image, "after commit")?;
        let locator = self.locator(&writer)?;
        drop(writer);
        let reader = subject.create()?;
        subject.expect("sink_open by locator", reader.open_existing(&locator))?;
        self.read_back(&reader, image, "through a fresh handle")?;
        if self.locator(&reader)? != locator {
            subject.notice("sink_locator answers another text when the image was opened by one");
        }
        subject.expect("sink_remove", reader.remove())?;
        drop(reader);
        self.check_gone(&locator, "sink_remove")
    }

    fn keeps_an_empty_image(&self) -> Option<()> {
        let writer = self.open_new(2, 0)?;
        self.subject
            .expect("sink_commit of nothing", writer.commit(0, 0))?;
        self.read_back(&writer, &[], "that is empty")?;
        let locator = self.locator(&writer)?;
        self.subject.expect("sink_remove", writer.remove())?;
        drop(writer);
        self.check_gone(&locator, "sink_remove of an empty image")
    }

    fn forgets_without_commit(&self, image: &[u8]) -> Option<()> {
        let writer = self.open_new(3, image.len())?;
        self.write(&writer, image)?;
        // A sink may have no name for an image before it is committed.
        let locator = writer
            .locator(MAX_STATE_LEN)
            .ok()
            .and_then(|text| String::from_utf8(text).ok());
        drop(writer);
        match locator {
            Some(locator) => self.check_gone(&locator, "destroy without commit"),
            None => self.check_empty("destroy without commit"),
        }
    }

    /// An image to keep: from its first commit on it is found, as far as it was written,
    /// whatever becomes of its handle.
    fn keeps_what_was_written(&self, image: &[u8]) -> Option<()> {
        let subject = self.subject;
        let len = image.len() as u64;
        let begin = |n| {
            let writer = self.open(n, image.len(), true)?;
            let head = writer.write_at(0, &image[..4096]);
            subject.expect("sink_write_at of an image to keep", head)?;
            subject.expect("the first sink_commit", writer.commit(4096, 0))?;
            self.write(&writer, image)?;
            Some(writer)
        };
        let writer = begin(7)?;
        let locator = self.locator(&writer)?;
        drop(writer);
        let reader = subject.create()?;
        subject.expect("sink_open of what was kept", reader.open_existing(&locator))?;
        self.read_back(&reader, image, "that was kept, and never completed")?;
        subject.expect("sink_remove of what was kept", reader.remove())?;
        drop(reader);
        self.check_empty("sink_remove of what was kept")?;

        let writer = begin(8)?;
        subject.expect("the second sink_commit", writer.commit(len, len))?;
        self.read_back(&writer, image, "after its second commit")?;
        subject.expect("sink_remove", writer.remove())?;
        self.check_empty("sink_remove of an image that was committed twice")
    }

    fn removes_before_commit(&self, image: &[u8]) -> Option<()> {
        let writer = self.open_new(4, image.len())?;
        self.write(&writer, image)?;
        self.subject
            .expect("sink_remove before commit", writer.remove())?;
        self.check_empty("sink_remove before commit")?;
        drop(writer);
        self.check_empty("destroy after sink_remove")
    }

    /// A process with the pid of another one, or the same again: whoever comes later must
    /// not take away what the first may need.
    fn keeps_one_beside_another(&self) -> Option<()> {
        let (subject, images) = (self.subject, [random(5000, 5), random(6000, 6)]);
        let mut locators = Vec::new();
        for (n, image) in (5..).zip(&images) {
            let len = image.len() as u64;
            let writer = self.open_new(n, image.len())?;
            self.write(&writer, image)?;
            subject.expect("sink_commit of a second image", writer.commit(len, len))?;
            locators.push(self.locator(&writer)?);
        }
        if locators[0] == locators[1] {
            subject.notice("an image takes the place of another one of the same pid");
        }
        for (locator, image) in locators.iter().zip(&images) {
            let reader = subject.create()?;
            subject.expect("sink_open of one of two", reader.open_existing(locator))?;
            self.read_back(&reader, image, "of one of two images")?;
            subject.expect("sink_remove of one of two", reader.remove())?;
        }
        self.check_empty("sink_remove of both images")
    }

    fn refuses_unknown_locators(&self) -> Option<()> {
        for locator in [
            "",
            "no such image",
            "/proc/no such directory/image",
            "../../no such image",
        ] {
            let reader = self.subject.create()?;
            if reader.open_existing(locator).is_ok() {
                self.subject.notice(format!(
                    "sink_open found an image by the locator {locator:?}"
                ));
            }
        }
        Some(())
    }

    fn open_new(&self, n: u8, len: usize) -> Option<Handle<'_>> {
        self.open(n, len, false)
    }

    fn open(&self, n: u8, len: usize, keep: bool) -> Option<Handle<'_>> {
        let handle = self.subject.create()?;
        let image = NewImage {
            id: [n; 16],
            // Of a process that is there, as the target of a checkpoint is.
            pid: u64::from(std::process::id()),
            expected_len: len as u64,
            compressed: false,
            keep,
        };
        self.subject.expect("sink_open", handle.open_new(&image))?;
        Some(handle)
    }

    /// In order, or where the sink allows it from the back and from several threads.
    fn write(&self, sink: &Handle<'_>, image: &[u8]) -> Option<()> {
        const PIECE: usize = 100_001;
        let pieces: Vec<_> = (0..).step_by(PIECE).zip(image.chunks(PIECE)).collect();
        let write = |&(offset, piece): &(u64, &[u8])| {
            self.subject
                .expect("sink_write_at", sink.write_at(offset, piece))
        };
        if !self.subject.has(capability::WRITE_ANYWHERE) {
            return pieces.iter().try_for_each(write);
        }
        if self.subject.loaded.table().threads != threads::PARALLEL {
            return pieces.iter().rev().try_for_each(write);
        }
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|first| {
                    let mine = pieces.iter().skip(first).step_by(4).rev();
                    scope
                        .spawn(move || mine.copied().collect::<Vec<_>>().iter().try_for_each(write))
                })
                .collect();
            // `ok` of a panic of our own thread: it has already been told on stderr.
            writers
                .into_iter()
                .try_for_each(|writer| writer.join().ok().flatten())
        })
    }

    fn read_back(&self, sink: &Handle<'_>, image: &[u8], when: &str) -> Option<()> {
        let subject = self.subject;
        let len = subject.expect("sink_len", sink.len())?;
        if len != image.len() as u64 {
            subject.notice(format!(
                "sink_len {when} is {len}, written were {}",
                image.len()
            ));
        }
        let end = image.len();
        let ranges = [
            (0, end),
            (0, 1),
            (end / 2, 70_001),
            (end.saturating_sub(1), 1),
            (end.saturating_sub(9), 100),
            (end, 10),
            (end + 5000, 10),
        ];
        for (offset, cap) in ranges {
            let wanted = &image[offset.min(end)..(offset + cap).min(end)];
            let got = subject.expect(
                &format!("sink_read_at {when}"),
                sink.read_at(offset as u64, cap),
            )?;
            if got != wanted {
                subject.notice(format!("sink_read_at {when} at {offset} of {end} bytes: {} bytes came, not the {} written there", got.len(), wanted.len()));
            }
        }
        Some(())
    }

    fn locator(&self, sink: &Handle<'_>) -> Option<String> {
        let subject = self.subject;
        let text = subject.expect("sink_locator", sink.locator(MAX_STATE_LEN))?;
        for cap in [0, text.len().saturating_sub(1)] {
            if sink.locator(cap).is_ok() {
                subject.notice(format!("sink_locator fits {} bytes into {cap}", text.len()));
            }
        }
        match String::from_utf8(text) {
            Ok(locator) if !locator.is_empty() && !locator.contains('\0') => Some(locator),
            text => {
                subject.notice(format!("sink_locator answers {text:?}, which is no text"));
                None
            }
        }
    }

    fn check_gone(&self, locator: &str, after: &str) -> Option<()> {
        let reader = self.subject.create()?;
        match reader.open_existing(locator) {
            Ok(()) => self
                .subject
                .notice(format!("the image is still there after {after}")),
            Err(failed) if failed.code != code::NOT_FOUND => self.subject.notice(format!(
                "sink_open of a removed image answers {}, not NOT_FOUND: {}",
                failed.code, failed.message
            )),
            Err(_) => {}
        }
        drop(reader);
        self.check_empty(after)
    }

    fn check_empty(&self, after: &str) -> Option<()> {
        for entry in self.dir.map(Scratch::entries).into_iter().flatten() {
            self.subject
                .notice(format!("{after} leaves {entry} behind"));
        }
        Some(())
    }
}
