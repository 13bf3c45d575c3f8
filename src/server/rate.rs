//! So many requests in a time, for each user or address on its own.
//!
//! Of each key one moment is known: when it would be back where it began (GCRA, as
//! networks do it). Whoever asks evenly is never refused; whoever was silent for the
//! whole time may ask so many times at once. Of the crates that do it none tells
//! whether one more would be allowed without taking it, which is what wrong keys
//! need: they count, right ones only look.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::hosted::lock;
use crate::error::{Error, ErrorKind};

/// So many at most are known of at once: more are not held back. A key is known
/// only until it is back where it began.
const KEYS_MAX: usize = 64 * 1024;
/// Not worth looking for what can go.
const KEYS_FEW: usize = 1024;

/// A number per second, minute or hour: `20/s`, `60/m`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    number: NonZeroU32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

impl Rate {
    /// Of wrong keys, where nothing else is said: 60 in a minute.
    pub(super) const WRONG_KEYS: Self = Self {
        number: NonZeroU32::MIN.saturating_add(59),
        unit: Unit::Minute,
    };
}

impl Unit {
    fn letter(self) -> char {
        match self {
            Self::Second => 's',
            Self::Minute => 'm',
            Self::Hour => 'h',
        }
    }

    fn time(self) -> Duration {
        match self {
            Self::Second => Duration::from_secs(1),
            Self::Minute => Duration::from_secs(60),
            Self::Hour => Duration::from_secs(3600),
        }
    }
}

impl FromStr for Rate {
    type Err = Error;

    /// Reads `NUMBER/UNIT`; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let what = format!("Rate {text:?} is not a whole number from 1 on, and /s, /m or /h");
            Error::new(ErrorKind::Usage, what)
        };
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let is_digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number = is_digits.then(|| number.parse().ok()).flatten();
        let units = [Unit::Second, Unit::Minute, Unit::Hour];
        let unit = units.into_iter().find(|u| unit == u.letter().to_string());
        match (number, unit) {
            (Some(number), Some(unit)) => Ok(Self { number, unit }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.unit.letter())
    }
}

/// Holds each key to a [`Rate`].
#[derive(Debug)]
pub(super) struct Limiter<K> {
    /// What one takes.
    step: Duration,
    /// What may be taken in advance.
    ahead: Duration,
    keys: Mutex<Keys<K>>,
}

#[derive(Debug)]
struct Keys<K> {
    /// When each is back where it began.
    back_at: HashMap<K, Instant>,
    /// How many there may be before those that are back are forgotten.
    forget_at: usize,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(super) fn new(rate: Rate) -> Self {
        let step = rate.unit.time() / rate.number.get();
        Self {
            step,
            ahead: rate.unit.time() - step,
            keys: Mutex::new(Keys {
                back_at: HashMap::new(),
                forget_at: KEYS_FEW,
            }),
        }
    }

    /// How long until one more is allowed; zero if it is now. Takes nothing.
    pub(super) fn wait(&self, key: &K, now: Instant) -> Duration {
        let keys = lock(&self.keys);
        let back_at = keys.back_at.get(key).copied().unwrap_or(now);
        back_at
            .saturating_duration_since(now)
            .saturating_sub(self.ahead)
    }

    /// Takes one, or tells how long to wait for it.
    pub(super) fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let wait = self.wait(&key, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        let mut keys = lock(&self.keys);
        if keys.back_at.len() >= keys.forget_at {
            keys.back_at.retain(|_, back_at| *back_at > now);
            keys.forget_at = (2 * keys.back_at.len()).clamp(KEYS_FEW, KEYS_MAX);
        }
        if keys.back_at.len() < KEYS_MAX || keys.back_at.contains_key(&key) {
            let back_at = keys.back_at.entry(key).or_insert(now);
            *back_at = (*back_at).max(now) + self.step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_printed() {
        for text in ["20/s", "1/m", "4294967295/h"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "20",
            "0/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "20/d",
            "4294967296/s",
            "/s",
            "1/",
        ] {
            let error = bad.parse::<Rate>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn no_more_than_the_rate_and_a_burst_get_through() {
        let limiter = Limiter::new("10/s".parse().unwrap());
        let begin = Instant::now();
        let mut random = fastrand::Rng::with_seed(1);
        let mut now = begin;
        let mut let_through = 0;
        for _ in 0..5000 {
            now += Duration::from_millis(random.u64(..40));
            let wait = limiter.wait(&"a", now);
            match limiter.take("a", now) {
                Ok(()) => let_through += 1,
                Err(told) => {
                    assert_eq!(told, wait);
                    // Just then one more is allowed, and not before.
                    let soon = now + wait;
                    assert!(limiter.wait(&"a", soon).is_zero());
                    assert!(!limiter.wait(&"a", soon - Duration::from_nanos(1)).is_zero());
                }
            }
        }
        let seconds = (now - begin).as_secs_f64();
        let most = 10.0 * seconds + 10.0;
        assert!(
            (most - 12.0..=most).contains(&f64::from(let_through)),
            "{let_through}"
        );
        // Others are not held back by it.
        assert_eq!(limiter.take("b", now), Ok(()));
    }

    #[test]
    fn what_is_known_is_bounded_and_forgotten() {
        let limiter = Limiter::new("1/m".parse().unwrap());
        let now = Instant::now();
        for key in 0..KEYS_MAX + 1000 {
            limiter.take(key, now).unwrap();
        }
        assert_eq!(lock(&limiter.keys).back_at.len(), KEYS_MAX);
        assert!(limiter.take(0, now).is_err());
        assert!(limiter.take(KEYS_MAX + 5, now).is_ok());
        limiter.take(0, now + Duration::from_secs(61)).unwrap();
        assert_eq!(lock(&limiter.keys).back_at.len(), 1);
    }
}
