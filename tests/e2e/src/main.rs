//! End-to-end tests: memcr against targets that prove themselves.
//!
//! ```text
//!   memcr-e2e [FILTER]            `blocked::`, `undo::enospc`, …
//!   memcr-e2e --skip heavy        without the tests that take long or much memory
//!   MEMCR_TEST_REQUIRE=all        what cannot be tested here is a failure
//!   MEMCR_TEST_TIMES=1            how long each test took, on stderr
//! ```
//!
//! | module      | rows of the table of corner cases, and what else                    |
//! |-------------|---------------------------------------------------------------------|
//! | `machinery` | the tests' own eyes: a changed byte, an EINTR, a difference is seen |
//! | `stages`    | every stage alone and in combination                                |
//! | `options`   | the command line of the C memcr, and the numbers of `--json`        |
//! | `sizes`     | sizes, contents, numbers of threads; memcr itself stays small       |
//! | `mappings`  | 15, 17, 19–29, 32, 33                                               |
//! | `blocked`   | 7                                                                   |
//! | `signals`   | 5, 8, 9, 10                                                         |
//! | `registers` | 13, 14                                                              |
//! | `filters`   | seccomp: what passes a filter, and when                             |
//! | `races`     | 1, 2, 3, 6                                                          |
//! | `refusals`  | 4, 6, 11, 12, 16, 30, 36, and who may not                           |
//! | `undo`      | failures of every kind that must cost the target nothing            |
//! | `disk`      | a disk that takes no more                                           |
//! | `guard`     | the guard over dropped memory, and what holds without one            |
//! | `held`      | what happens while the target is held, also to the image            |
//! | `orphaned`  | memcr dies in the middle of a drop, and somebody continues the target |
//! | `parked`    | `checkpoint` and `restore` as two commands, nothing in between      |
//! | `idle`      | who goes first while a checkpoint stores, and while one restores      |
//! | `image`     | flipped bits, truncations                                           |
//! | `daemon`    | the daemon, its protocols, its clients; many processes as one       |
//! | `limits`    | 34, 35, 38, 40                                                      |
//! | `programs`  | 42: redis, CPython, Node, a JVM                                     |

mod as_stored;
mod blocked;
mod common;
mod daemon;
mod disk;
mod filters;
mod guard;
mod held;
mod idle;
mod image;
mod limits;
mod machinery;
mod mappings;
mod memory_group;
mod options;
mod orphaned;
mod parked;
mod programs;
mod races;
mod refusals;
mod registers;
mod signals;
mod sizes;
mod stages;
mod undo;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use memcr_harness::{Result, Trouble};
use std::time::Instant;

/// Tests wait more than they work: more at once than there are CPUs.
const TESTS_PER_CPU: usize = 2;

fn main() {
    let mut args = Arguments::from_args();
    let n_cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    args.test_threads = args.test_threads.or(Some(n_cpus * TESTS_PER_CPU));
    let all = [
        machinery::tests(),
        stages::tests(),
        options::tests(),
        sizes::tests(),
        mappings::tests(),
        blocked::tests(),
        signals::tests(),
        registers::tests(),
        filters::tests(),
        races::tests(),
        refusals::tests(),
        undo::tests(),
        disk::tests(),
        guard::tests(),
        held::tests(),
        orphaned::tests(),
        as_stored::tests(),
        parked::tests(),
        image::tests(),
        idle::tests(),
        daemon::tests(),
        limits::tests(),
        programs::tests(),
    ];
    libtest_mimic::run(&args, all.into_iter().flatten().collect()).exit();
}

/// A test by name.
fn test(name: impl Into<String>, run: impl FnOnce() -> Result + Send + 'static) -> Trial {
    let name = name.into();
    let title = name.clone();
    Trial::ignorable_test(name, move || {
        let begin = Instant::now();
        let outcome = run();
        if std::env::var_os("MEMCR_TEST_TIMES").is_some() {
            eprintln!("{:6} ms {title}", begin.elapsed().as_millis());
        }
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(Trouble::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Err(Trouble::Failed(what)) => Err(Failed::from(what)),
        }
    })
}

/// A line of a module's table: name and test.
type Row<'a> = (&'a str, fn() -> Result);

/// The tests of a module from its table.
fn table(module: &str, tests: &[Row]) -> Vec<Trial> {
    tests
        .iter()
        .map(|&(name, run)| test(format!("{module}::{name}"), run))
        .collect()
}
