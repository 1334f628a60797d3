//! The orders of a test, from the text of the variable.

use nix::errno::Errno;

use super::POINTS;

/// What the variable says.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) orders: Vec<Order>,
    /// Print the counts at the end.
    pub(super) count: bool,
}

/// `NAME[@N[+]]=ACTION`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    name: &'static str,
    first: u64,
    /// Every time after the first one too.
    repeated: bool,
    pub(super) action: Action,
}

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Kill,
    Abort,
    Stop,
    Fail(Errno),
    /// Milliseconds.
    Delay(u64),
}

/// The errors that a test may ask for.
const ERRORS: &[(&str, Errno)] = &[
    ("EACCES", Errno::EACCES),
    ("EAGAIN", Errno::EAGAIN),
    ("EBUSY", Errno::EBUSY),
    ("EDQUOT", Errno::EDQUOT),
    ("EEXIST", Errno::EEXIST),
    ("EFAULT", Errno::EFAULT),
    ("EFBIG", Errno::EFBIG),
    ("EINTR", Errno::EINTR),
    ("EINVAL", Errno::EINVAL),
    ("EIO", Errno::EIO),
    ("EMFILE", Errno::EMFILE),
    ("ENOENT", Errno::ENOENT),
    ("ENOMEM", Errno::ENOMEM),
    ("ENOSPC", Errno::ENOSPC),
    ("ENOSYS", Errno::ENOSYS),
    ("EPERM", Errno::EPERM),
    ("EROFS", Errno::EROFS),
    ("ESRCH", Errno::ESRCH),
    ("ETIMEDOUT", Errno::ETIMEDOUT),
];

impl Orders {
    /// Reads the whole text; empty: no orders.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for word in text
            .split(';')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word {
                "count" => all.count = true,
                _ => all.orders.push(Order::parse(word)?),
            }
        }
        Ok(all)
    }
}

impl Order {
    fn parse(word: &str) -> Result<Self, String> {
        let (place, action) = word
            .split_once('=')
            .ok_or_else(|| format!("`{word}` is not NAME[@N[+]]=ACTION"))?;
        let (name, times) = place.split_once('@').unwrap_or((place, "1"));
        let known = POINTS.iter().find(|(known, _)| *known == name);
        let &(name, _) =
            known.ok_or_else(|| format!("no fault point is called `{name}`; see `list`"))?;
        let number = times.trim_end_matches('+');
        let first = number.parse().ok().filter(|n| *n > 0);
        Ok(Self {
            name,
            first: first.ok_or_else(|| format!("`{number}` in `{word}` is not a count from 1"))?,
            repeated: times.ends_with('+'),
            action: Action::parse(action)?,
        })
    }

    /// Whether it strikes when the point `name` is passed for the `n`-th time.
    pub(super) fn strikes(&self, name: &str, n: u64) -> bool {
        self.name == name && (n == self.first || self.repeated && n > self.first)
    }
}

impl Action {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kill" => Ok(Self::Kill),
            None if text == "abort" => Ok(Self::Abort),
            None if text == "stop" => Ok(Self::Stop),
            Some(("fail", name)) => errno(name).map(Self::Fail),
            Some(("delay", millis)) => millis
                .parse()
                .map(Self::Delay)
                .map_err(|_| format!("`{millis}` is not a number of milliseconds")),
            _ => Err(format!(
                "`{text}` is none of kill, abort, stop, fail:ERRNO, delay:MS"
            )),
        }
    }
}

fn errno(name: &str) -> Result<Errno, String> {
    let found = ERRORS.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, errno)| *errno)
        .ok_or_else(|| format!("no error is called `{name}` here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_documented() {
        let orders =
            Orders::parse("sink.write@3=kill; sink.read=fail:EIO;count").unwrap_or_default();
        let [first, second] = &orders.orders[..] else {
            panic!("{orders:?}");
        };
        assert!(orders.count);
        assert_eq!(
            (first.name, first.first, first.action),
            ("sink.write", 3, Action::Kill)
        );
        assert!(first.strikes("sink.write", 3) && !first.strikes("sink.write", 4));
        assert_eq!(second.action, Action::Fail(Errno::EIO));
        assert!(second.strikes("sink.read", 1) && !second.strikes("sink.write", 1));
    }

    #[test]
    fn plus_means_ever_after() {
        let order = Order::parse("sink.write@2+=delay:5");
        let Ok(order) = order else {
            panic!("{order:?}");
        };
        assert!(!order.strikes("sink.write", 1));
        assert!(order.strikes("sink.write", 2) && order.strikes("sink.write", 9));
        assert_eq!(order.action, Action::Delay(5));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, want) in [
            ("sink.write", "is not NAME"),
            ("sink.wrote=kill", "no fault point is called `sink.wrote`"),
            ("sink.write@0=kill", "not a count"),
            ("sink.write@x=kill", "not a count"),
            ("sink.write=die", "none of kill"),
            ("sink.write=fail:EWHAT", "no error is called"),
            ("sink.write=delay:soon", "milliseconds"),
        ] {
            let told = Orders::parse(text).err().unwrap_or_default();
            assert!(told.contains(want), "{text}: {told}");
        }
    }
}
