//! Rate limits, for each user or address separately.
//!
//! For each key, one time is stored: when its budget would be full again (GCRA, as used in
//! networks). A key that asks evenly is never refused, and one that was silent for the whole period
//! may use the whole budget at once. No existing crate offers what wrong secret keys need: to check
//! the limit, make an attempt and count its failure in one step.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use openhosting_base::error::{Error, ErrorKind};
use openhosting_base::locks::lock;

/// Maximum number of keys to remember; further keys are not limited. A key is forgotten when its
/// budget is full again.
const KEYS_MAX: usize = 64 * 1024;
/// With fewer keys than this, nothing needs to be forgotten.
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
    /// The default limit for wrong secret keys: 60 per minute.
    pub const WRONG_KEYS: Self = Self {
        number: NonZeroU32::MIN.saturating_add(59),
        unit: Unit::Minute,
    };
    /// The limit for attempts to see the screen of one server over VNC.
    pub const VNC_ATTEMPTS: Self = Self {
        number: NonZeroU32::MIN.saturating_add(19),
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

    /// Parses `NUMBER/UNIT`; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let what = format!("Rate {text:?} is not a whole number from 1 on, and /s, /m or /h");
            Error::new(ErrorKind::Usage, what).hint_to("Write it as in 20/s, 600/m or 10000/h")
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

/// Limits each key to a [`Rate`].
#[derive(Debug)]
pub struct Limiter<K> {
    /// The time that one use costs.
    step: Duration,
    /// The budget, as time.
    ahead: Duration,
    keys: Mutex<Keys<K>>,
}

#[derive(Debug)]
struct Keys<K> {
    /// When the budget of each key is full again.
    back_at: HashMap<K, Instant>,
    /// Forget keys with a full budget when there are this many.
    forget_at: usize,
}

impl<K: Hash + Eq> Limiter<K> {
    /// A limiter that allows `rate` for each key.
    pub fn new(rate: Rate) -> Self {
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

    /// Counts one use, or returns how long to wait for it.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        self.attempt(key, now, || None::<()>).map(|_| ())
    }

    /// Makes an attempt if one more failure is allowed, and counts it if it fails; otherwise
    /// returns how long to wait. Attempts are serialized, so that of many concurrent ones no more
    /// fail than allowed. `attempt` must be short, because all others wait for it.
    pub fn attempt<T>(
        &self,
        key: K,
        now: Instant,
        attempt: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>, Duration> {
        let mut keys = lock(&self.keys);
        let back_at = keys.back_at.get(&key).copied().unwrap_or(now);
        let wait = back_at.saturating_duration_since(now);
        let wait = wait.saturating_sub(self.ahead);
        if !wait.is_zero() {
            return Err(wait);
        }
        let done = attempt();
        if done.is_none() {
            self.count(&mut keys, key, now);
        }
        Ok(done)
    }

    fn count(&self, keys: &mut Keys<K>, key: K, now: Instant) {
        if keys.back_at.len() >= keys.forget_at {
            keys.back_at.retain(|_, back_at| *back_at > now);
            keys.forget_at = (2 * keys.back_at.len()).clamp(KEYS_FEW, KEYS_MAX);
        }
        if keys.back_at.len() < KEYS_MAX || keys.back_at.contains_key(&key) {
            let back_at = keys.back_at.entry(key).or_insert(now);
            *back_at = (*back_at).max(now) + self.step;
        }
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
            // A successful attempt does not count.
            let look = |now| limiter.attempt("a", now, || Some(())).map(|_| ());
            let looked = look(now);
            let taken = limiter.take("a", now);
            assert_eq!(taken, looked);
            match taken {
                Ok(()) => let_through += 1,
                Err(wait) => {
                    // One more is allowed at exactly this time, and not before.
                    let soon = now + wait;
                    assert_eq!(look(soon), Ok(()));
                    assert!(look(soon - Duration::from_nanos(1)).is_err());
                }
            }
        }
        let seconds = (now - begin).as_secs_f64();
        let most = 10.0 * seconds + 10.0;
        assert!(
            (most - 12.0..=most).contains(&f64::from(let_through)),
            "{let_through}"
        );
        // Other keys are not affected.
        assert_eq!(limiter.take("b", now), Ok(()));
    }

    #[test]
    fn remembered_keys_are_bounded_and_expire() {
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
