//! Sizes and durations for people. All human texts use these functions.

use std::time::Duration;

/// A size in bytes with at most four digits and a binary unit, such as `2.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // A value that would be rounded to 1024 is shown in the next unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // Progress in a large disk is slow in its own unit, so it gets a decimal.
    let is_exact = value < 9.95 || (unit >= 2 && value < 99.95);
    let digits = usize::from(is_exact);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// The same with the exact number, for places where sizes are compared: `64 MiB (67108864 bytes)`.
pub fn exact_size(bytes: u64) -> String {
    match bytes {
        0..1024 => counted(bytes, "byte"),
        _ => format!("{} ({bytes} bytes)", size(bytes)),
    }
}

/// A number with what it counts, such as `1 chunk`, `2 chunks` or `3 retries`.
pub fn counted(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// A duration in one unit, for a narrow column: such as `119s`, `12m`, `47h` or `3d`.
pub fn short_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The time from `then_ms` to `now_ms`, as [`short_time`].
pub fn age(then_ms: u64, now_ms: u64) -> String {
    short_time(Duration::from_millis(now_ms.saturating_sub(then_ms)))
}

/// A duration in at most two units, such as `0.4s`, `42s`, `1m 21s`, `15m` or `1h 30m`.
pub fn duration(time: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let tenths = time.as_millis().saturating_add(50) / 100;
    if (1..10).contains(&tenths) {
        return format!("0.{tenths}s");
    }
    let seconds = time.saturating_add(Duration::from_millis(500)).as_secs();
    let (unit, name, part, part_name) = match seconds {
        0..MINUTE => return format!("{seconds}s"),
        MINUTE..HOUR => (MINUTE, 'm', 1, 's'),
        HOUR..DAY => (HOUR, 'h', MINUTE, 'm'),
        _ => (DAY, 'd', HOUR, 'h'),
    };
    match seconds % unit / part {
        0 => format!("{}{name}", seconds / unit),
        rest => format!("{}{name} {rest}{part_name}", seconds / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_1024_of_a_unit() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (320 << 10, "320 KiB"),
            (173_015_040, "165 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 31, "2.0 GiB"),
            ((1 << 30) * 25 / 2, "12.5 GiB"),
            (200 << 30, "200 GiB"),
            ((1 << 40) - 1, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        for shift in 0..64 {
            assert!(size(u64::MAX >> shift).len() <= 8, "{shift}");
        }
    }

    #[test]
    fn one_has_no_plural() {
        assert_eq!(exact_size(0), "0 bytes");
        assert_eq!(exact_size(1), "1 byte");
        assert_eq!(counted(1, "retry"), "1 retry");
        assert_eq!(counted(2, "retry"), "2 retries");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (ms, short, long) in [
            (0, "0s", "0s"),
            (40, "0s", "0s"),
            (420, "0s", "0.4s"),
            (28_400, "28s", "28s"),
            (59_600, "59s", "1m"),
            (81_000, "81s", "1m 21s"),
            (900_000, "15m", "15m"),
            (7_199_000, "119m", "1h 59m"),
            (7_200_000, "2h", "2h"),
            (176_400_000, "2d", "2d 1h"),
        ] {
            let time = Duration::from_millis(ms);
            assert_eq!((&*short_time(time), &*duration(time)), (short, long));
        }
    }
}
