//! How many requests may be in flight at once.

/// Answers in a row, per request in flight, before one more is tried.
const SUCCESSES_PER_STEP: u32 = 4;

/// Starts at the ceiling, since our own server and most links profit; falls to
/// half when the drive is busy or after an outage, and climbs by one again.
///
/// Some clouds of this family take one writer per drive (FAULTS 0.1) and answer
/// `409 busy` to a second one. Each such answer costs a chunk sent in vain, so
/// what was busy once is not tried again: the ceiling comes down for good.
#[derive(Clone, Debug)]
pub struct Concurrency {
    limit: u32,
    ceiling: u32,
    successes: u32,
}

impl Concurrency {
    /// At most `ceiling` requests in flight.
    pub fn new(ceiling: u32) -> Self {
        let ceiling = ceiling.max(1);
        Self {
            limit: ceiling,
            ceiling,
            successes: 0,
        }
    }

    /// How many there may be now.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// A request succeeded.
    pub fn succeeded(&mut self) {
        self.successes += 1;
        if self.limit < self.ceiling && self.successes >= SUCCESSES_PER_STEP * self.limit {
            self.limit += 1;
            self.successes = 0;
        }
    }

    /// The drive was busy. True if that may be due to our own other workers, and
    /// there are fewer now; false if there was one only.
    pub fn busy(&mut self) -> bool {
        if self.limit == 1 {
            return false;
        }
        self.limit /= 2;
        self.ceiling = self.limit;
        self.successes = 0;
        true
    }

    /// An outage ended: come back carefully.
    pub fn halve(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.successes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_goes_down_to_one_for_good() {
        let mut concurrency = Concurrency::new(8);
        assert!(concurrency.busy());
        assert!(concurrency.busy());
        assert!(concurrency.busy());
        assert_eq!(concurrency.limit(), 1);
        assert!(!concurrency.busy());
        for _ in 0..1000 {
            concurrency.succeeded();
        }
        assert_eq!(concurrency.limit(), 1);
    }

    #[test]
    fn after_an_outage_it_climbs_back() {
        let mut concurrency = Concurrency::new(4);
        concurrency.halve();
        concurrency.halve();
        concurrency.halve();
        assert_eq!(concurrency.limit(), 1);
        for _ in 0..1000 {
            concurrency.succeeded();
        }
        assert_eq!(concurrency.limit(), 4);
    }
}
