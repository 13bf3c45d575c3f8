//! Decides how large one request may be. A chunk is sent in one request where that works, and in
//! smaller pieces where it does not:
//!
//! - **The endpoint refuses the size** (413): from now on requests have at most half of the refused
//!   size, at once and for every chunk. This limit never grows back, and is worth remembering for
//!   the next run.
//! - **Requests of a size keep breaking** and none succeeds: requests are halved. This may also be
//!   the beginning of an outage, so the limit grows back: it doubles after a number of successful
//!   requests, and that number doubles each time the larger size failed again.
//!
//! A limit counts bytes on the wire, as proxies and connections do. If the body is tiny already and
//! is still refused, the limit counts the bytes of the drive that it stands for, because then
//! something decompresses the body in order to count it.

use crate::chunk::RequestSize;
use crate::failure::Failure;

/// Minimum bytes of a request. Below this, a request costs more than its body.
pub const PIECE_BYTES_MIN: u64 = 16 * 1024;
/// How a chunk is divided that several requests share: the maximum number of pieces, and their
/// minimum average length in bytes on the wire. Both limit the number of requests, because
/// each request costs a round trip. The values are choices.
const SHARED_PIECES_MAX: u64 = 16;
const SHARED_BYTES_MIN: u64 = 256 * 1024;
/// The length of such a piece is a multiple of this, in bytes of the drive. Any multiple of a file
/// system's block will do.
const SHARED_ALIGN: u64 = 64 * 1024;
/// Whole chunks are divided after this many consecutive broken requests. A single one is an
/// accident.
const BREAKS_MIN: u32 = 2;
/// How many requests have to succeed before a larger size is tried: at first, and at most. Each
/// trial that fails costs a request and doubles the number. So if a size never works, the cost of
/// trials falls to one request in a thousand.
const GOOD_MIN: u32 = 4;
const GOOD_MAX: u32 = 1024;

/// A limit of half this size, in bytes on the wire, or in bytes of the drive if there are hardly
/// any on the wire. `None` if the size is already the smallest.
fn halved(size: RequestSize, least: u64) -> Option<RequestSize> {
    let half = |bytes: u64| (bytes / 2).max(least);
    match (size.body > least, size.range > least) {
        (true, _) => Some(RequestSize {
            body: half(size.body),
            ..RequestSize::ANY
        }),
        (false, true) => Some(RequestSize {
            range: half(size.range),
            ..RequestSize::ANY
        }),
        (false, false) => None,
    }
}

fn doubled(size: RequestSize) -> RequestSize {
    RequestSize {
        body: size.body.saturating_mul(2),
        range: size.range.saturating_mul(2),
    }
}

/// The limits at the start of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PiecesConfig {
    /// The largest request, as known of the endpoint or as requested by the user.
    pub most: RequestSize,
    /// Minimum bytes of a request.
    pub least_bytes: u64,
    /// Bytes per second that all requests together may move, if that is limited.
    pub rate: Option<u64>,
}

impl Default for PiecesConfig {
    fn default() -> Self {
        Self {
            most: RequestSize::ANY,
            least_bytes: PIECE_BYTES_MIN,
            rate: None,
        }
    }
}

/// What one attempt at a chunk may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request.
    pub most: RequestSize,
    /// Whether each write should open a new connection. Set where connections break early, so that
    /// one that was used before is likely to break.
    pub is_alone: bool,
    /// Bytes on the wire for each piece of a chunk that several requests share; `u64::MAX` if
    /// requests may not share a chunk.
    pub shared_bytes: u64,
}

impl Limits {
    /// No limit.
    pub const NONE: Self = Self {
        most: RequestSize::ANY,
        is_alone: false,
        shared_bytes: u64::MAX,
    };

    /// Whether several requests may share a chunk.
    pub fn is_shared(&self) -> bool {
        self.shared_bytes < u64::MAX
    }

    /// Bytes of the drive for each piece of a chunk of this size; `u64::MAX` if dividing the chunk
    /// is not worthwhile.
    pub fn piece_of(&self, chunk: RequestSize) -> u64 {
        let piece = self.shared_bytes.max(SHARED_BYTES_MIN);
        let pieces = (chunk.body.saturating_add(piece / 2) / piece).min(SHARED_PIECES_MAX);
        match pieces {
            0 | 1 => u64::MAX,
            pieces => chunk.range.div_ceil(pieces).next_multiple_of(SHARED_ALIGN),
        }
    }

    /// Maximum bytes of a read.
    pub fn read_bytes_max(&self) -> u64 {
        self.most.body.min(self.most.range)
    }
}

/// The outcome of the requests of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Bytes of the chunk that were confirmed or received, and need not be transferred again.
    pub advanced_bytes: u64,
    /// Requests that succeeded.
    pub confirmed: u32,
    /// The largest body that succeeded.
    pub largest_body: u64,
    /// The size of the request that failed.
    pub failed: Option<RequestSize>,
}

impl Requests {
    /// The same outcome for an attempt whose received bytes are not stored.
    #[must_use]
    pub fn without_progress(self) -> Self {
        Self {
            advanced_bytes: 0,
            ..self
        }
    }

    /// Counts a successful request, whose bytes need not be transferred again.
    pub fn confirm(&mut self, size: RequestSize) {
        self.advanced_bytes += size.range;
        self.confirmed += 1;
        self.largest_body = self.largest_body.max(size.body);
    }
}

/// What a failure implies for the size of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The failure has nothing to do with the size.
    Unrelated,
    /// The request was larger than requests may be from now on.
    TooLarge,
    /// The endpoint refused the size, and no smaller request is possible.
    Hopeless,
}

/// Decides how large requests may be, as the head of this file describes.
#[derive(Clone, Debug)]
pub struct Pieces {
    config: PiecesConfig,
    /// The limit that is set because larger requests break. It can grow back.
    fragile: Option<RequestSize>,
    /// The size that broke before there was such a limit.
    whole: RequestSize,
    /// Requests that broke since one of similar size succeeded: the smallest size, and their
    /// number.
    broken: Option<(RequestSize, u32)>,
    /// Successful requests since the limit changed, and how many of them are needed before a larger
    /// size is tried.
    good: u32,
    good_wanted: u32,
    has_grown: bool,
    /// The largest body that was confirmed.
    accepted: u64,
    /// The smallest body that was refused for its size.
    refused: Option<u64>,
    /// Whether the endpoint refused even the smallest request.
    is_hopeless: bool,
}

impl Pieces {
    /// At the start of a transfer.
    pub fn new(config: PiecesConfig) -> Self {
        Self {
            config,
            fragile: None,
            whole: RequestSize::ANY,
            broken: None,
            good: 0,
            good_wanted: GOOD_MIN,
            has_grown: false,
            accepted: 0,
            refused: None,
            is_hopeless: false,
        }
    }

    /// The limits for the next attempt.
    pub fn limits(&self) -> Limits {
        Limits {
            most: self.most(),
            is_alone: self.fragile.is_some(),
            ..Limits::NONE
        }
    }

    /// The smallest body in bytes that was refused for its size.
    pub fn smallest_refused(&self) -> Option<u64> {
        self.refused
    }

    /// The smallest body in bytes that the endpoint refused for its size, and the largest that has
    /// been allowed since. `None` if a later run must not rely on it: because a body as large was
    /// accepted, or even the smallest was refused.
    pub fn refused(&self) -> Option<(u64, u64)> {
        let refused = self.refused.filter(|refused| self.accepted < *refused)?;
        (!self.is_hopeless).then(|| (refused, self.config.most.body.max(self.accepted)))
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self, requests: &Requests) {
        if requests.confirmed == 0 {
            return;
        }
        self.accepted = self.accepted.max(requests.largest_body);
        if let Some((broken, _)) = self.broken
            && requests.largest_body >= broken.body / 2
        {
            self.broken = None;
        }
        self.good = self.good.saturating_add(requests.confirmed);
        if let Some(limit) = self.fragile
            && self.good >= self.good_wanted
        {
            let larger = doubled(limit);
            self.fragile = (!self.whole.fits(larger)).then_some(larger);
            self.good = 0;
            self.has_grown = true;
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self, requests: &Requests, failure: &Failure) -> Verdict {
        self.succeeded(requests);
        let Some(size) = requests.failed else {
            return Verdict::Unrelated;
        };
        if failure.is_about_size() {
            return self.refuse(size);
        }
        // If other requests of this attempt succeeded before, the failure is an accident.
        match requests.confirmed == 0 && may_be_about_size(failure) {
            true => self.breaks(size),
            false => Verdict::Unrelated,
        }
    }

    fn refuse(&mut self, size: RequestSize) -> Verdict {
        if size.body > self.config.least_bytes {
            let refused = self.refused.unwrap_or(u64::MAX);
            self.refused = Some(refused.min(size.body));
        }
        // A request that was sent before the limit fell gives no new information.
        if size.fits(self.config.most) {
            let Some(smaller) = halved(size, self.config.least_bytes) else {
                self.is_hopeless = true;
                return Verdict::Hopeless;
            };
            self.config.most = self.config.most.min(smaller);
        }
        Verdict::TooLarge
    }

    fn breaks(&mut self, size: RequestSize) -> Verdict {
        let smaller = halved(size, self.config.least_bytes);
        let Some(smaller) = smaller.filter(|_| size.fits(self.most())) else {
            return Verdict::Unrelated;
        };
        let (least, times) = match self.broken {
            Some((least, times)) => (least.min(size), times + 1),
            None => (size, 1),
        };
        if self.fragile.is_none() && times < BREAKS_MIN {
            self.broken = Some((least, times));
            return Verdict::Unrelated;
        }
        // Of several sizes that broke, the smallest counts.
        let smaller = halved(least, self.config.least_bytes).unwrap_or(smaller);
        if self.fragile.is_none() {
            self.whole = least;
        }
        if std::mem::take(&mut self.has_grown) {
            self.good_wanted = (self.good_wanted * 2).min(GOOD_MAX);
        }
        self.fragile = Some(self.fragile.unwrap_or(RequestSize::ANY).min(smaller));
        (self.broken, self.good) = (None, 0);
        Verdict::TooLarge
    }

    fn most(&self) -> RequestSize {
        self.config
            .most
            .min(self.fragile.unwrap_or(RequestSize::ANY))
    }
}

/// Whether a smaller request might succeed: the connection broke too early, or something in between
/// timed out, or the answer was cut short.
fn may_be_about_size(failure: &Failure) -> bool {
    match failure {
        Failure::Broken(_) | Failure::Stalled(_) | Failure::WrongLength(_) => true,
        Failure::Refused(refusal) => matches!(refusal.status, 408 | 502 | 504),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::Refusal;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    fn broken() -> Failure {
        Failure::Broken("reset".into())
    }

    fn refused(status: u16) -> Failure {
        Failure::Refused(Refusal {
            status,
            error: None,
            message: String::new(),
            retry_after: None,
        })
    }

    fn failing(size: RequestSize) -> Requests {
        Requests {
            failed: Some(size),
            ..Requests::default()
        }
    }

    fn confirmed(bytes: u64) -> Requests {
        let mut requests = Requests::default();
        requests.confirm(RequestSize::plain(bytes));
        requests
    }

    fn pieces() -> Pieces {
        Pieces::new(PiecesConfig::default())
    }

    fn body(pieces: &Pieces) -> u64 {
        pieces.limits().most.body
    }

    #[test]
    fn two_consecutive_breaks_halve_the_size() {
        let mut pieces = pieces();
        let chunk = RequestSize::plain(5 * MIB);
        assert_eq!(
            pieces.failed(&failing(chunk), &broken()),
            Verdict::Unrelated
        );
        pieces.succeeded(&confirmed(5 * MIB));
        assert_eq!(
            pieces.failed(&failing(chunk), &broken()),
            Verdict::Unrelated
        );
        assert_eq!(pieces.limits(), Limits::NONE);
        assert_eq!(pieces.failed(&failing(chunk), &broken()), Verdict::TooLarge);
        assert_eq!(body(&pieces), 5 * MIB / 2);
        assert!(pieces.limits().is_alone);
        // The other requests that were in flight were sent before the limit changed.
        for _ in 0..9 {
            assert_eq!(
                pieces.failed(&failing(chunk), &broken()),
                Verdict::Unrelated
            );
        }
        assert_eq!(body(&pieces), 5 * MIB / 2);
    }

    #[test]
    fn a_much_smaller_success_does_not_excuse_breaks() {
        let mut pieces = pieces();
        let chunk = RequestSize::plain(5 * MIB);
        pieces.failed(&failing(chunk), &broken());
        pieces.succeeded(&confirmed(100 * KIB));
        assert_eq!(pieces.failed(&failing(chunk), &broken()), Verdict::TooLarge);
    }

    #[test]
    fn a_break_after_a_success_in_the_same_chunk_does_not_halve_the_size() {
        let mut pieces = pieces();
        for _ in 0..20 {
            let requests = Requests {
                failed: Some(RequestSize::plain(MIB)),
                ..confirmed(MIB)
            };
            assert_eq!(pieces.failed(&requests, &broken()), Verdict::Unrelated);
        }
        assert_eq!(pieces.limits(), Limits::NONE);
    }

    #[test]
    fn other_failures_say_nothing_about_the_size() {
        let mut pieces = pieces();
        let others = [
            refused(429),
            refused(503),
            refused(500),
            refused(409),
            Failure::Connect("refused".into()),
        ];
        for failure in others.iter().cycle().take(50) {
            let verdict = pieces.failed(&failing(RequestSize::plain(MIB)), failure);
            assert_eq!(verdict, Verdict::Unrelated);
        }
        assert_eq!(pieces.limits(), Limits::NONE);
    }

    #[test]
    fn a_refused_size_halves_at_once_and_does_not_grow_back() {
        let mut pieces = pieces();
        let chunk = failing(RequestSize::plain(5 * MIB));
        for _ in 0..4 {
            // All four requests in flight are refused; only the first lowers the limit.
            assert_eq!(pieces.failed(&chunk, &refused(413)), Verdict::TooLarge);
        }
        assert_eq!(body(&pieces), 5 * MIB / 2);
        let half = failing(RequestSize::plain(5 * MIB / 2));
        assert_eq!(pieces.failed(&half, &refused(413)), Verdict::TooLarge);
        for _ in 0..10_000 {
            pieces.succeeded(&confirmed(MIB));
        }
        assert_eq!(body(&pieces), 5 * MIB / 4);
        assert!(!pieces.limits().is_alone);
        assert_eq!(pieces.refused(), Some((5 * MIB / 2, 5 * MIB / 4)));
    }

    #[test]
    fn a_refusal_at_the_minimum_size_is_final() {
        let mut pieces = pieces();
        let mut size = RequestSize::plain(5 * MIB);
        let mut tries = 0;
        while pieces.failed(&failing(size), &refused(413)) != Verdict::Hopeless {
            size = RequestSize::plain(size.body.min(body(&pieces)));
            tries += 1;
            assert!(tries < 12);
        }
        assert_eq!(size.body, PIECE_BYTES_MIN);
        assert_eq!(pieces.refused(), None);
    }

    #[test]
    fn a_refused_tiny_body_limits_the_decompressed_size() {
        let mut pieces = pieces();
        let zeros = RequestSize {
            body: 5 * KIB,
            range: 5 * MIB,
        };
        assert_eq!(
            pieces.failed(&failing(zeros), &refused(413)),
            Verdict::TooLarge
        );
        assert_eq!(pieces.limits().most.range, 5 * MIB / 2);
        assert_eq!(body(&pieces), u64::MAX);
        assert_eq!(pieces.refused(), None);
    }

    #[test]
    fn a_refusal_of_an_accepted_size_is_not_recorded_as_a_limit() {
        let mut pieces = pieces();
        pieces.succeeded(&confirmed(5 * MIB));
        let chunk = failing(RequestSize::plain(5 * MIB));
        assert_eq!(pieces.failed(&chunk, &refused(413)), Verdict::TooLarge);
        assert_eq!(pieces.refused(), None);
    }

    #[test]
    fn a_known_size_limit_applies_from_the_start() {
        let pieces = Pieces::new(PiecesConfig {
            most: RequestSize {
                body: MIB,
                ..RequestSize::ANY
            },
            ..PiecesConfig::default()
        });
        assert_eq!(body(&pieces), MIB);
        assert_eq!(pieces.refused(), None);
    }

    /// A transfer over connections that break when more than `lives` bytes went over them.
    fn play(lives: u64, chunk: u64, total: u64) -> (u64, u64) {
        let mut pieces = pieces();
        let (mut sent, mut wire) = (0, 0);
        while sent < total {
            let mut requests = Requests::default();
            let mut left = chunk;
            while left > 0 {
                let size = RequestSize::plain(left.min(body(&pieces)));
                if size.body > lives {
                    wire += lives;
                    requests.failed = Some(size);
                    break;
                }
                wire += size.body;
                left -= size.body;
                requests.confirm(size);
            }
            sent += requests.advanced_bytes;
            match requests.failed {
                Some(_) => _ = pieces.failed(&requests, &broken()),
                None => pieces.succeeded(&requests),
            }
        }
        (sent, wire)
    }

    #[test]
    fn a_chunk_is_divided_if_its_requests_take_long() {
        let piece_of = |shared_bytes, body, range| {
            let limits = Limits {
                shared_bytes,
                ..Limits::NONE
            };
            limits.piece_of(RequestSize { body, range })
        };
        // The speed is unknown, or the request takes no longer than one and a half pieces.
        assert_eq!(piece_of(u64::MAX, 4 * MIB, 4 * MIB), u64::MAX);
        assert_eq!(piece_of(3 * MIB, 4 * MIB, 4 * MIB), u64::MAX);
        assert_eq!(piece_of(2 * MIB, 4 * MIB, 4 * MIB), 2 * MIB);
        assert_eq!(piece_of(MIB, 4 * MIB, 8 * MIB), 2 * MIB);
        // No piece is too small, and there are not too many.
        assert_eq!(piece_of(0, 4 * MIB, 4 * MIB), 256 * KIB);
        assert_eq!(piece_of(0, 256 * KIB, 4 * MIB), u64::MAX);
        assert_eq!(piece_of(0, 64 * MIB, 64 * MIB), 4 * MIB);
        assert_eq!(piece_of(MIB, 3 * MIB, 3 * MIB + 5), MIB + 64 * KIB);
    }

    proptest! {
        /// However long connections live, few bytes are sent in vain.
        #[test]
        fn halving_wastes_few_bytes(lives in 17 * KIB..8 * MIB, chunk in 64 * KIB..6 * MIB) {
            let (sent, wire) = play(lives, chunk, 256 * MIB);
            // Two whole chunks, one request for each halving, and later trials of a larger size.
            let searched = (2 + 9) * lives;
            prop_assert!(wire - sent <= searched + sent / 4, "{} of {}", wire - sent, sent);
        }

        /// Soon after an outage, requests are as large as before.
        #[test]
        fn requests_regain_their_size_after_an_outage(breaks in 0..40_u32, chunk in 64 * KIB..6 * MIB) {
            let mut pieces = pieces();
            for _ in 0..breaks {
                let size = RequestSize::plain(chunk).min(pieces.limits().most);
                pieces.failed(&failing(size), &broken());
            }
            let mut requests = 0;
            while pieces.limits() != Limits::NONE {
                pieces.succeeded(&confirmed(chunk.min(body(&pieces))));
                requests += 1;
                prop_assert!(requests <= 10 * GOOD_MIN);
            }
        }

        /// No sequence of events makes a piece smaller than the minimum.
        #[test]
        fn no_piece_is_below_the_minimum(events in proptest::collection::vec((0..4_u8, 1..9 * MIB), 0..200)) {
            let mut pieces = pieces();
            for (event, bytes) in events {
                let size = RequestSize::plain(bytes).min(pieces.limits().most);
                match event {
                    0 => _ = pieces.failed(&failing(size), &refused(413)),
                    1 => pieces.succeeded(&confirmed(size.body)),
                    _ => _ = pieces.failed(&failing(size), &broken()),
                }
                prop_assert!(body(&pieces) >= PIECE_BYTES_MIN);
            }
        }
    }
}
