//! Sick checksums.

use super::super::{Conformance, Loaded};
use super::finds;
use crate::Host;
use crate::abi::{capability, code};
use crate::stage::{Checksum, Chunk, Params, Result, StageError, StageInfo, Threads};

const HEALTHY: u32 = 0;
const ORDER_BLIND: u32 = 1;
const START_ONLY: u32 = 2;
const LONG_TAG: u32 = 3;
const NO_CHECK: u32 = 4;

/// Adler-like sums: good enough to find one flipped bit.
struct Sick<const FAULT: u32>;

impl<const FAULT: u32> Checksum for Sick<FAULT> {
    type Worker = ();
    const INFO: StageInfo = StageInfo {
        name: "sick_sum",
        version: "1",
        summary: "has one fault",
        threads: Threads::PerHandle,
        capabilities: capability::INDEPENDENT_CHUNKS,
        params: &[],
    };

    fn create(_: &Params, _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn tag_len(&self) -> usize {
        if FAULT == LONG_TAG { 80 } else { 8 }
    }

    fn tag(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], tag: &mut [u8]) -> Result<()> {
        tag[..8].copy_from_slice(&sum::<FAULT>(input).to_le_bytes());
        Ok(())
    }

    fn check(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], tag: &[u8]) -> Result<()> {
        if FAULT == NO_CHECK || tag[..8] == sum::<FAULT>(input).to_le_bytes() {
            return Ok(());
        }
        Err(StageError::new(code::CORRUPT, "the sum does not fit"))
    }
}

fn sum<const FAULT: u32>(input: &[u8]) -> u64 {
    let input = match FAULT {
        START_ONLY => &input[..input.len().min(1000)],
        _ => input,
    };
    let step = |sum: u64, &byte: &u8| match FAULT {
        // Zeros at the end, or cut from it, change nothing.
        ORDER_BLIND => sum + u64::from(byte),
        _ => sum.rotate_left(7).wrapping_mul(31) + u64::from(byte) + 1,
    };
    input.iter().fold(1, step)
}

#[test]
fn nothing_is_wrong_with_a_healthy_checksum() {
    Conformance::new(Loaded::of(|cell| cell.checksum::<Sick<HEALTHY>>())).run();
}

#[test]
fn damage_that_a_checksum_does_not_see() {
    let plugin = Loaded::of(|cell| cell.checksum::<Sick<ORDER_BLIND>>());
    finds(
        "ORDER_BLIND",
        plugin,
        "did not notice 4096 zeros, themselves with",
    );
    let plugin = Loaded::of(|cell| cell.checksum::<Sick<START_ONLY>>());
    finds("START_ONLY", plugin, "themselves with bit");
    let plugin = Loaded::of(|cell| cell.checksum::<Sick<NO_CHECK>>());
    finds("NO_CHECK", plugin, "did not notice");
}

#[test]
fn a_tag_that_is_too_long() {
    let plugin = Loaded::of(|cell| cell.checksum::<Sick<LONG_TAG>>());
    finds(
        "LONG_TAG",
        plugin,
        "bound of a checksum must be one length in 1..=64",
    );
}
