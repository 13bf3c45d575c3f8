//! Creates exactly one drive, even if the answer is lost and it is unknown whether the drive was
//! created. Every create request carries a random token in a `user:` key. If the outcome is
//! unclear, the client looks for the token among its drives before it sends another create request
//! (docs/dev/faults.md, 3.3).

use std::time::Duration;

use super::retry::{Attempts, Next, Operation, is_about_input};
use crate::drive::DriveId;
use crate::failure::Failure;

/// Key of the token on a drive.
pub const TOKEN_KEY: &str = "user:oh-token";

/// Seconds to wait before each look for the token, a minute in total: the endpoint may need that
/// long to finish a request whose answer was lost.
const LOOKS_S: [u64; 6] = [0, 2, 4, 8, 16, 30];
/// How many of these looks a resumed run makes: half a minute in total. The run that sent the
/// create request has ended and its connection is closed, so only the endpoint's own processing
/// time is left to wait for.
const RESUME_LOOKS: usize = 5;
/// Give up after this many create requests with an unclear outcome: the first one, and one
/// repetition (docs/dev/faults.md, 3.3). Before each further one, a minute of looks would pass.
const POSTS_MAX: u32 = 2;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateStep {
    /// Wait, then request the drive, with the same token as before.
    Post {
        /// How long to wait first.
        after: Duration,
    },
    /// Request the drive at once, and leave out the optional keys from now on: the endpoint may have
    /// refused one of them.
    PostWithout,
    /// Wait, then look for the token among our drives.
    Look {
        /// How long to wait first.
        after: Duration,
    },
    /// This drive is ours: an earlier attempt made it.
    Adopt(DriveId),
    /// More than one drive could be ours: stop, and destroy none of them.
    Doubt(Vec<DriveId>),
    /// Stop; the last failure is the reason.
    GiveUp {
        /// Whether the reason is that the outage lasted too long.
        is_outage: bool,
    },
}

/// The state machine that creates one drive. Outages may last as long as [`Attempts`] allows, over
/// all of its requests together. A look for the token that fails is repeated, and does not count as
/// one of the looks in `LOOKS_S`.
#[derive(Clone, Debug)]
pub struct Creation {
    attempts: Attempts,
    /// Whether the requests have keys that the drive can do without.
    has_optional: bool,
    unclear_posts: u32,
    looks: usize,
    looks_max: usize,
}

impl Creation {
    /// Starts with attempts of which none was made yet. The first step is to request the drive, with
    /// keys that it can do without if `has_optional`.
    pub fn new(attempts: Attempts, has_optional: bool) -> Self {
        Self {
            attempts,
            has_optional,
            unclear_posts: 0,
            looks: 0,
            looks_max: LOOKS_S.len(),
        }
    }

    /// Starts for a resumed transfer. The earlier run may have sent a create request with the same
    /// token, and its drive may appear late, so the token is looked for first.
    pub fn resume(&mut self) -> CreateStep {
        self.unclear_posts += 1;
        self.looks_max = RESUME_LOOKS;
        self.look_again()
    }

    /// The create request failed. `is_known` as for [`Attempts::failed`].
    pub fn post_failed(
        &mut self,
        failure: &Failure,
        is_known: bool,
        now: Duration,
        rng: &mut fastrand::Rng,
    ) -> CreateStep {
        let attempts = &mut self.attempts;
        match attempts.failed(Operation::Create, failure, is_known, now, rng) {
            Next::Again(after) => CreateStep::Post { after },
            // A drive without them is better than none. The refusal is an answer, so this request
            // created nothing, and the next one takes its place. If the refusal was about something
            // else, such as the name, the next one is refused as well.
            Next::Refused if self.has_optional && is_about_input(failure) => {
                self.has_optional = false;
                CreateStep::PostWithout
            }
            Next::Refused => CreateStep::GiveUp { is_outage: false },
            Next::GaveUp => CreateStep::GiveUp { is_outage: true },
            Next::Unclear => {
                self.unclear_posts += 1;
                self.looks = 0;
                self.looks_max = LOOKS_S.len();
                self.look_again()
            }
        }
    }

    /// A look succeeded: `found` are the drives that have our token, `alike` those with the same
    /// name and size and no token at all. A cloud that drops `user:` keys would return our drive
    /// among the latter.
    pub fn looked(&mut self, found: &[DriveId], alike: &[DriveId]) -> CreateStep {
        self.attempts.answered();
        match (found, self.looks < self.looks_max) {
            ([one], _) => CreateStep::Adopt(*one),
            ([], true) => self.look_again(),
            ([], false) if !alike.is_empty() => CreateStep::Doubt(alike.to_vec()),
            ([], false) if self.unclear_posts < POSTS_MAX => CreateStep::Post {
                after: Duration::ZERO,
            },
            ([], false) => CreateStep::GiveUp { is_outage: false },
            (several, _) => CreateStep::Doubt(several.to_vec()),
        }
    }

    /// A look failed. `is_known` as for [`Attempts::failed`].
    pub fn look_failed(
        &mut self,
        failure: &Failure,
        is_known: bool,
        now: Duration,
        rng: &mut fastrand::Rng,
    ) -> CreateStep {
        let attempts = &mut self.attempts;
        match attempts.failed(Operation::Read, failure, is_known, now, rng) {
            Next::Again(after) => CreateStep::Look { after },
            Next::GaveUp => CreateStep::GiveUp { is_outage: true },
            // The API answers this request for any valid user. So it was refused by something else,
            // or for a user who could not have created a drive.
            Next::Refused | Next::Unclear => CreateStep::GiveUp { is_outage: false },
        }
    }

    /// When to give up if no request is answered before; `None` while nothing fails.
    pub fn gives_up_at(&self) -> Option<Duration> {
        self.attempts.gives_up_at()
    }

    fn look_again(&mut self) -> CreateStep {
        let after = Duration::from_secs(LOOKS_S[self.looks.min(LOOKS_S.len() - 1)]);
        self.looks += 1;
        CreateStep::Look { after }
    }
}

#[cfg(test)]
mod tests {
    use super::super::retry::DOUBTFUL_ATTEMPTS;
    use super::*;
    use crate::failure::Refusal;
    use crate::wire::ErrorType;

    const S: Duration = Duration::from_secs(1);
    const GIVE_UP: CreateStep = CreateStep::GiveUp { is_outage: false };

    fn begun() -> Creation {
        Creation::new(Attempts::new(900 * S), false)
    }

    fn lost() -> Failure {
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

    /// Answers every look with no drives and returns the step after the last look.
    fn look_in_vain(creation: &mut Creation, first: CreateStep) -> CreateStep {
        let (step, waited) = look_until(creation, first);
        assert_eq!(waited, Duration::from_secs(60));
        step
    }

    /// As [`look_in_vain`], and returns the time it took as well.
    fn look_until(creation: &mut Creation, first: CreateStep) -> (CreateStep, Duration) {
        let mut step = first;
        let mut waited = Duration::ZERO;
        while let CreateStep::Look { after } = step {
            waited += after;
            step = creation.looked(&[], &[]);
        }
        (step, waited)
    }

    #[test]
    fn a_drive_whose_create_answer_was_lost_is_found_and_adopted() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = begun();
        let step = creation.post_failed(&lost(), true, S, &mut rng);
        let after = Duration::ZERO;
        assert_eq!(step, CreateStep::Look { after });
        assert!(matches!(creation.looked(&[], &[]), CreateStep::Look { .. }));
        let id = DriveId::random();
        assert_eq!(creation.looked(&[id], &[]), CreateStep::Adopt(id));
    }

    #[test]
    fn create_is_repeated_once_after_a_minute_of_searching() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = begun();
        let first = creation.post_failed(&lost(), true, S, &mut rng);
        let after = Duration::ZERO;
        let step = look_in_vain(&mut creation, first);
        assert_eq!(step, CreateStep::Post { after });
        let second = creation.post_failed(&refused(502), true, S, &mut rng);
        assert_eq!(look_in_vain(&mut creation, second), GIVE_UP);
    }

    #[test]
    fn a_resumed_run_searches_for_the_drive_before_it_creates_one() {
        let mut creation = begun();
        let first = creation.resume();
        let (step, waited) = look_until(&mut creation, first);
        assert!(matches!(step, CreateStep::Post { .. }));
        assert_eq!(waited, Duration::from_secs(30));
        let mut rng = fastrand::Rng::with_seed(1);
        let first = creation.post_failed(&lost(), true, S, &mut rng);
        assert_eq!(look_in_vain(&mut creation, first), GIVE_UP);
        let mut creation = begun();
        creation.resume();
        let mut rng = fastrand::Rng::with_seed(1);
        let step = creation.look_failed(&lost(), true, S, &mut rng);
        assert!(
            matches!(step, CreateStep::Look { .. }),
            "a look that failed is no leave to ask: {step:?}"
        );
    }

    #[test]
    fn creating_stops_if_it_is_unclear_whether_a_drive_exists() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (a, b) = (DriveId::random(), DriveId::random());
        let mut creation = begun();
        creation.post_failed(&lost(), true, S, &mut rng);
        assert_eq!(creation.looked(&[a, b], &[]), CreateStep::Doubt(vec![a, b]));
        // On a cloud that drops the token, one drive looks like ours.
        let mut creation = begun();
        let mut step = creation.post_failed(&lost(), true, S, &mut rng);
        while matches!(step, CreateStep::Look { .. }) {
            step = creation.looked(&[], &[a]);
        }
        assert_eq!(step, CreateStep::Doubt(vec![a]));
    }

    #[test]
    fn creating_gives_up_soon_on_a_web_site() {
        let mut rng = fastrand::Rng::with_seed(1);
        let page = Failure::NotApi("an HTML page".into());
        let mut creation = begun();
        let mut step = creation.post_failed(&page, false, S, &mut rng);
        let mut looks = 0;
        while matches!(step, CreateStep::Look { .. }) {
            looks += 1;
            step = creation.look_failed(&page, false, S, &mut rng);
        }
        assert_eq!((looks, step), (DOUBTFUL_ATTEMPTS, GIVE_UP));
    }

    #[test]
    fn creating_survives_an_outage_in_every_step() {
        // The create's answer was lost and then the endpoint is gone: the looks and the next create
        // share one outage, and failed looks do not count.
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = begun();
        let mut now = S;
        assert_eq!(creation.gives_up_at(), None);
        let mut step = creation.post_failed(&refused(502), true, now, &mut rng);
        assert_eq!(creation.gives_up_at(), Some(901 * S));
        while let CreateStep::Look { after } = step {
            now += after;
            step = creation.look_failed(&Failure::Connect("refused".into()), true, now, &mut rng);
        }
        assert_eq!(step, CreateStep::GiveUp { is_outage: true });
        assert_eq!(now, 901 * S);
        // The endpoint is back after ten minutes: the looks begin then, and find the drive.
        let mut creation = begun();
        creation.post_failed(&refused(502), true, S, &mut rng);
        creation.look_failed(&refused(502), true, 600 * S, &mut rng);
        assert!(matches!(creation.looked(&[], &[]), CreateStep::Look { .. }));
        let id = DriveId::random();
        assert_eq!(creation.looked(&[id], &[]), CreateStep::Adopt(id));
    }

    #[test]
    fn only_a_refusal_of_the_input_is_repeated_without_optional_keys() {
        let mut rng = fastrand::Rng::with_seed(1);
        let of = |status, error| match refused(status) {
            Failure::Refused(refusal) => Failure::Refused(Refusal {
                error: Some(error),
                ..refusal
            }),
            other => other,
        };
        let with = || Creation::new(Attempts::new(900 * S), true);
        let mut creation = with();
        let usage = of(400, ErrorType::Usage);
        let step = creation.post_failed(&usage, true, S, &mut rng);
        assert_eq!(step, CreateStep::PostWithout);
        let step = creation.post_failed(&usage, true, S, &mut rng);
        assert_eq!(step, GIVE_UP, "only once");
        for (status, error) in [
            (401, ErrorType::Auth),
            (402, ErrorType::Billing),
            (404, ErrorType::Missing),
            (405, ErrorType::Method),
            (507, ErrorType::Full),
        ] {
            let step = with().post_failed(&of(status, error), true, S, &mut rng);
            assert_eq!(step, GIVE_UP, "{error:?}");
        }
        let step = with().post_failed(&refused(400), true, S, &mut rng);
        assert_eq!(step, GIVE_UP, "not an answer of the API");
        let step = begun().post_failed(&usage, true, S, &mut rng);
        assert_eq!(step, GIVE_UP, "nothing to leave out");
    }

    #[test]
    fn a_clear_refusal_of_create_starts_no_search() {
        let mut rng = fastrand::Rng::with_seed(1);
        let step = begun().post_failed(&refused(402), true, S, &mut rng);
        assert_eq!(step, GIVE_UP);
        let mut creation = begun();
        let failure = Failure::Connect("refused".into());
        let (mut now, mut step) = (S, CreateStep::Post { after: S });
        while let CreateStep::Post { after } = step {
            now += after;
            step = creation.post_failed(&failure, false, now, &mut rng);
        }
        assert_eq!(step, CreateStep::GiveUp { is_outage: true });
        assert_eq!(now, 902 * S);
    }
}
