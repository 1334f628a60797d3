//! Sizes, contents, numbers of threads; and memcr itself stays small.

use crate::common::{Rig, expect_freed, expect_small, hold, round_trip};
use crate::test;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Result, Snapshot, Victim};

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for size in ["0", "4K", "8K", "252K", "1M", "1028K", "37M", "128M"] {
        let arg = format!("size={size}");
        trials.push(test(format!("sizes::{size}"), move || {
            round_trip("memory", &[&arg, "threads=1"], Allow::default())
        }));
    }
    for content in ["dense", "heap", "pointer", "text", "random", "zero"] {
        let arg = format!("content={content}");
        trials.push(test(format!("sizes::content_{content}"), move || {
            round_trip(
                "memory",
                &["size=24M", &arg],
                Allow {
                    less_rss: matches!(content, "zero" | "heap"),
                    ..Allow::default()
                },
            )
        }));
    }
    for threads in ["1", "50", "500"] {
        let arg = format!("threads={threads}");
        trials.push(test(format!("sizes::threads_{threads}"), move || {
            round_trip("memory", &["size=16M", &arg], Allow::default())
        }));
    }
    trials.push(test("sizes::grown_stack", || {
        round_trip("memory", &["size=1M", "stack=4M"], Allow::default())
    }));
    trials.push(test("sizes::heavy_1G_random", || big("random", "file")));
    trials.push(test("sizes::heavy_1G_heap", || {
        big("heap", "zstd,encrypt,file")
    }));
    trials
}

/// A gigabyte, and a look at memcr's own memory.
fn big(content: &str, pipeline: &str) -> Result {
    let rig = Rig::with(pipeline)?;
    let mut victim = Victim::start(
        "memory",
        &["size=1G", &format!("content={content}"), "threads=2"],
    )?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    // Zero pages were resident before, and are free now, like all others.
    expect_freed(&before, victim.pid(), 1 << 20)?;
    expect_small(&held)?;
    held.release()?;
    rig.expect_clean()?;
    // Zero pages come back when they are touched.
    before.still(
        victim.pid(),
        Allow {
            less_rss: content != "random",
            ..Allow::default()
        },
    )?;
    victim.verify()?;
    victim.quit()
}
