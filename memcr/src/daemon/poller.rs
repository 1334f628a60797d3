//! What the server waits for: epoll(7) with a name for every descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// How many events are taken at once.
const N_EVENTS: usize = 64;

/// Something that can become readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A listening socket, by its place in the list.
    Listener(u32),
    /// The signals that end the daemon.
    Signals,
    /// A connection, by its number.
    Connection(u64),
    /// What a child says, by its key.
    Link(u64),
    /// The end of a child.
    Child(u64),
    /// The end of a parked target, by its pid.
    Target(i32),
}

const NUMBER_BITS: u32 = 56;

impl Source {
    fn to_data(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener(at) => (0, at.into()),
            Self::Signals => (1, 0),
            Self::Connection(number) => (2, number),
            Self::Link(key) => (3, key),
            Self::Child(key) => (4, key),
            Self::Target(pid) => (5, pid.cast_unsigned().into()),
        };
        EventData::new_u64(kind << NUMBER_BITS | number)
    }

    fn from_data(data: EventData) -> Option<Self> {
        let data = data.u64();
        let number = data & ((1 << NUMBER_BITS) - 1);
        Some(match data >> NUMBER_BITS {
            0 => Self::Listener(number as u32),
            1 => Self::Signals,
            2 => Self::Connection(number),
            3 => Self::Link(number),
            4 => Self::Child(number),
            5 => Self::Target((number as u32).cast_signed()),
            _ => return None,
        })
    }
}

/// What happened to a source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Happened {
    pub(super) source: Source,
    /// The other end is gone altogether.
    pub(super) is_over: bool,
}

/// An epoll instance.
pub(super) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(N_EVENTS),
        })
    }

    /// Waits for `fd` to become readable from now on; closing it ends that.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn add(&self, fd: impl AsFd, source: Source) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, source.to_data(), EventFlags::IN)
    }

    /// Waits for room to write too, or not any more; `reads`: and for something to read.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn want(
        &self,
        fd: impl AsFd,
        source: Source,
        reads: bool,
        writes: bool,
    ) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, reads);
        flags.set(EventFlags::OUT, writes);
        Ok(epoll::modify(&self.epoll, fd, source.to_data(), flags)?)
    }

    /// Does not wait for `fd` any more.
    pub(super) fn remove(&self, fd: impl AsFd) {
        // It fails only where it was not waited for.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for the next things to happen, for `timeout` at the most.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<Vec<Happened>> {
        self.events.clear();
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = |event: &Event| {
            // They are packed: copied before they are looked at.
            let (data, flags) = (event.data, event.flags);
            Some(Happened {
                source: Source::from_data(data)?,
                is_over: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            })
        };
        Ok(self.events.iter().filter_map(happened).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_keep_their_names() {
        for source in [
            Source::Listener(3),
            Source::Signals,
            Source::Connection((1 << 50) + 7),
            Source::Link(9),
            Source::Child(10),
            Source::Target(i32::MAX),
        ] {
            assert_eq!(Source::from_data(source.to_data()), Some(source));
        }
        assert_eq!(Source::from_data(EventData::new_u64(u64::MAX)), None);
    }
}
