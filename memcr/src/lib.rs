//! memcr takes the memory of a live process away and gives it back.
//!
//! It freezes the process, sends its pages through a pipeline of stage plugins
//! (compress, checksum, encrypt) into a sink (file, tmpfs), drops them from RAM, holds
//! the process, and later brings every byte back: same pid, same threads, same
//! descriptors, same mappings. The target cannot tell, except by the clock.
//!
//! ```text
//! checkpoint   cli, daemon → freeze → maps → pages ═chunks⇒ pipeline(encode) ═frames⇒ sink → commit
//!                  → inject(guard) → freeze(arm) → inject(drop) → hold, or park and leave
//!              (an image that takes RAM is dropped from as it grows: checkpoint::as_stored)
//! restore      cli, daemon → sink(open, check) ═frames⇒ pipeline(decode) ═chunks⇒ pages(populate)
//!                  → inject(take the guard down) → release
//! ```
//!
//! # Invariants
//!
//! 1. **Never wrong memory.** No thread of the target runs on bytes that are not its
//!    own. From the first drop to the last populate the target is armed (it stops itself
//!    should we die) and guarded (a touch of missing memory waits); where the kernel has
//!    no guard it is told to kill the target should we die (PTRACE_O_EXITKILL).
//! 2. **Drop only what is safe**: after the sink has its bytes where another memcr finds
//!    them and can give them back, the guard stands over it, and the journal tells how to
//!    finish. Pages that others share, or that could not be put back or guarded, stay.
//! 3. **A failed checkpoint costs the target nothing.** What was dropped when it fails, if
//!    anything, is put back from the image. memcr kills a target only when its bytes are
//!    provably lost, says so, and exits non-zero.
//! 4. **Nothing left behind**: after a restore the target has the mappings, protections,
//!    descriptors, signal state and registers that it had; image, journal and keys are gone.
//! 5. **Nobody else gets in**: images are private to the user, plugins that another user
//!    can write are refused. Only the daemon listens, and only where it is told to; it learns
//!    from the kernel who asks, and does for a user what she could do herself with
//!    ptrace(2), for root and those whom root names more.
//! 6. **memcr stays small**: memory is bounded by the chunks in flight, not by the target.
//!
//! What can fail, and what takes time for reasons of its own (plugins, the sink's space,
//! threads, buffers), is done before the freeze.
//!
//! # Where things are
//!
//! | room | what it does |
//! |---|---|
//! | [`checkpoint`], [`restore`] | the two stories: one line per phase, one way back |
//! | [`cli`] | flags, configuration, messages for people |
//! | `daemon` | clients ask, it may: who may do what, a process for each session, many as one |
//! | [`fault`] | places where tests kill or fail memcr; not in a normal build |
//! | [`freeze`] | stops every thread, lets them go as if nothing had been |
//! | [`inject`] | system calls made by a frozen thread for us |
//! | [`maps`] | what is mapped, which pages go: functions on text and numbers |
//! | [`pages`] | reads, writes and drops pages |
//! | [`pipeline`] | finds and loads plugins, moves chunks through them on all CPUs |
//! | [`session`] | holds a target until it is restored or dies; the journal; adopting orphans |
//! | [`sink`] | the image format: writing, checking, reading back |
//! | [`sys`] | the only raw system calls; `sys::arch` the only code that knows the CPU |
//!
//! Beside this crate: `memcr/wire` (what daemon and clients say to each other),
//! `memcr/client` (the clients, which can touch no process), `memcr/text` (what both print),
//! `plugin-api` (the stable tables and the safe traits of stages),
//! `plugins` (the stages), `parasite` (the few instructions that run inside the target).
//!
//! What is promised when memcr dies, and how each promise is tested, is in
//! `docs/reliability.md`. Two decisions differ from what one might expect:
//!
//! * A chunk may span mappings. Thousands of small mappings then cost a read and a frame
//!   per chunk, not per mapping; see [`pages::ChunkPlan`].
//! * Pages are dropped as they are stored only where the image takes RAM; into a file they
//!   go after the commit. Early drops save RAM and nothing else, and cost something: with
//!   the first of them the target no longer runs on by itself should we die.

pub mod checkpoint;
pub mod cli;
mod daemon;
pub mod fault;
pub mod freeze;
pub mod inject;
pub mod maps;
pub mod pages;
pub mod pipeline;
pub mod restore;
pub mod session;
pub mod sink;
pub mod sys;
