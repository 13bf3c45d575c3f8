//! Sizes and times for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A size in bytes with at most four digits and a binary unit, such as `2.0 GiB`.
pub(super) fn size(bytes: u64) -> String {
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

/// A time as one short word, such as `119s`, `12m`, `47h` or `3d`.
pub(super) fn short_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The present time in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The time since `then_ms`, as [`short_time`].
pub(super) fn age(then_ms: u64, now_ms: u64) -> String {
    short_time(Duration::from_millis(now_ms.saturating_sub(then_ms)))
}

/// A time that counts down, such as `14m50s`.
pub(super) fn countdown(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => short_time(time),
    }
}

/// A time that has passed, such as `0.4 s`, `28 s` or `12 min 5 s`.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
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
    fn times_are_short() {
        for (seconds, short, long) in [
            (0, "0s", "0.0 s"),
            (28, "28s", "28 s"),
            (119, "119s", "1 min 59 s"),
            (7199, "119m", "1 h 59 min"),
            (7200, "2h", "2 h 0 min"),
            (172_800, "2d", "48 h 0 min"),
        ] {
            assert_eq!(short_time(Duration::from_secs(seconds)), short);
            assert_eq!(time(Duration::from_secs(seconds)), long);
        }
        for (seconds, shown) in [(0, "0s"), (59, "59s"), (890, "14m50s"), (3600, "60m")] {
            assert_eq!(countdown(Duration::from_secs(seconds)), shown);
        }
    }
}
