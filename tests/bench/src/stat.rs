//! A number that was measured several times.

use serde::Serialize;

/// Median and extremes. The unit is in the name of what holds it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Stat {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
}

impl Stat {
    /// Of some values; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        // The mean of the two in the middle, which are one and the same for odd numbers.
        let median = (values.get(n.checked_sub(1)? / 2)? + values.get(n / 2)?) / 2.0;
        Some(Self {
            median,
            min: *values.first()?,
            max: *values.last()?,
            n,
        })
    }

    /// `median (min–max)`.
    pub(crate) fn text(&self) -> String {
        let Self {
            median, min, max, ..
        } = *self;
        // One place more where whole numbers would hide the difference.
        let places = usize::from(median < 20.0);
        format!("{median:.places$} ({min:.places$}–{max:.places$})")
    }
}

/// Milliseconds between two moments.
pub(crate) fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// MiB in so many bytes.
pub(crate) fn mib(len_bytes: u64) -> f64 {
    // Below 2^52 bytes: exact.
    len_bytes as f64 / f64::from(1 << 20)
}

/// GiB in so many bytes.
pub(crate) fn gib(len_bytes: u64) -> f64 {
    mib(len_bytes) / 1024.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Stat;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Stat::of([9.0, 1.0, 4.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max, odd.n), (4.0, 1.0, 9.0, 3));
        assert_eq!(Stat::of([1.0, 2.0, 40.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Stat::of([]), None);
    }

    #[test]
    fn the_text_shows_the_spread() {
        let text = |values: [f64; 3]| Stat::of(values).unwrap().text();
        assert_eq!(text([104.4, 99.6, 120.0]), "104 (100–120)");
        assert_eq!(text([3.12, 2.0, 5.0]), "3.1 (2.0–5.0)");
    }
}
