//! Numbers for people.

/// `0 B`, `4.0 KiB`, `257.3 MiB`.
pub fn bytes(n: u64) -> String {
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

/// `0.7 ms`, `312 ms`, `4.21 s`.
pub fn millis(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// `12 s`, `5 min`, `3 h 20 min`, `2 d 4 h`.
pub fn age(secs: u64) -> String {
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
    fn bytes_have_a_unit_that_fits() {
        for (n, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(n), want);
        }
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (ms, want) in [
            (0.0, "0.0 ms"),
            (0.74, "0.7 ms"),
            (312.4, "312 ms"),
            (4210.0, "4.21 s"),
        ] {
            assert_eq!(millis(ms), want);
        }
    }

    #[test]
    fn ages_have_two_units_at_the_most() {
        for (secs, want) in [
            (0, "0 s"),
            (59, "59 s"),
            (3599, "59 min"),
            (3600, "1 h 0 min"),
            (86399, "23 h 59 min"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(age(secs), want);
        }
    }
}
