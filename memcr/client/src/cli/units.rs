//! Numbers for people.

/// `0 B`, `4.0 KiB`, `257.3 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    // Precise enough: one digit behind the point is shown.
    #[allow(clippy::cast_precision_loss)]
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `12 s`, `5 min`, `3 h 20 min`, `2 d 4 h`.
pub(super) fn age(secs: u64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86400);
    match secs {
        ..60 => format!("{secs} s"),
        60..3600 => format!("{minutes} min"),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_that_fit() {
        for (n, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            (1 << 20, "1.0 MiB"),
        ] {
            assert_eq!(bytes(n), want);
        }
        for (secs, want) in [
            (59, "59 s"),
            (3599, "59 min"),
            (86399, "23 h 59 min"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(age(secs), want);
        }
    }
}
