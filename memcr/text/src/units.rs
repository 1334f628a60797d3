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

/// `2026-11-29T21:52:45Z` of so many seconds after 1970: RFC 3339, in UTC.
///
/// Days are counted in years that begin in March, so that the day of a leap year comes last,
/// and in eras of 400 of them, after which the calendar repeats.
pub fn date(secs: u64) -> String {
    const ERA: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = secs / 86400 + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let (hours, minutes) = (secs / 3600 % 24, secs / 60 % 60);
    format!(
        "{:04}-{month:02}-{date:02}T{hours:02}:{minutes:02}:{:02}Z",
        era * 400 + year + later,
        secs % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (secs, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_987_972, "2026-11-29T21:32:52Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(secs), want);
        }
        assert!(date(u64::MAX).ends_with('Z'));
    }

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
