//! The points when they are compiled in.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

use super::POINTS;
use super::orders::{Action, Order, Orders};

/// The variable with the orders.
const VARIABLE: &str = "MEMCR_FAULT";

/// How often each point was passed, in the order of [`POINTS`].
static PASSED: [AtomicU64; POINTS.len()] = [const { AtomicU64::new(0) }; POINTS.len()];

/// A place where a test may strike; see the head of the module.
///
/// # Errors
/// What `fail:ERRNO` asks for.
pub fn point(name: &'static str) -> io::Result<()> {
    let Some(index) = POINTS.iter().position(|(known, _)| *known == name) else {
        return Err(io::Error::other(format!(
            "no fault point is called `{name}`"
        )));
    };
    let n = PASSED[index].fetch_add(1, Ordering::SeqCst) + 1;
    orders()
        .orders
        .iter()
        .filter(|order| order.strikes(name, n))
        .try_for_each(Order::carry_out)
}

/// Reads the orders at the start of the program and prints the counts at its end.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Reads the variable; with `list` or a mistake in it the program ends here.
    #[must_use]
    pub fn begin() -> Self {
        if std::env::var_os(VARIABLE).is_some_and(|text| text == "list") {
            POINTS
                .iter()
                .for_each(|(name, what)| println!("{name} {what}"));
            std::process::exit(0);
        }
        orders();
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if orders().count {
            for ((name, _), passed) in POINTS.iter().zip(&PASSED) {
                eprintln!("{name} {}", passed.load(Ordering::SeqCst));
            }
        }
    }
}

fn orders() -> &'static Orders {
    static ORDERS: OnceLock<Orders> = OnceLock::new();
    ORDERS.get_or_init(|| {
        let text = std::env::var_os(VARIABLE).unwrap_or_default();
        Orders::parse(&text.to_string_lossy()).unwrap_or_else(|what| {
            eprintln!("{VARIABLE}: {what}");
            std::process::exit(2)
        })
    })
}

impl Order {
    fn carry_out(&self) -> io::Result<()> {
        match self.action {
            // To this very thread, so that nothing more is done behind the point: a
            // signal to the process may be taken by another thread first.
            Action::Kill => Ok(raise(Signal::SIGKILL)?),
            Action::Stop => Ok(raise(Signal::SIGSTOP)?),
            Action::Abort => std::process::abort(),
            Action::Fail(errno) => Err(errno.into()),
            Action::Delay(millis) => {
                std::thread::sleep(Duration::from_millis(millis));
                Ok(())
            }
        }
    }
}
