//! Creating exactly one drive, though a lost answer does not tell whether there
//! is one. Every create carries a random token in a `user:` key; when it is
//! unclear what happened, the token is looked for among our drives before
//! anything is asked for again (docs/dev/faults.md, 3.3).

use std::time::Duration;

use super::retry::{Attempts, Next, Operation};
use crate::drive::DriveId;
use crate::failure::Failure;

/// Key of the token on a drive.
pub const TOKEN_KEY: &str = "user:oh-token";

/// Waits before each look for the token, a minute in all: the endpoint may be
/// slow to finish what its answer did not tell.
const LOOKS_S: [u64; 6] = [0, 2, 4, 8, 16, 30];
/// How many of these looks a run makes that takes up another: half a minute. The
/// one that asked is gone and its connection with it, so what is left is the
/// endpoint's own time.
const RESUME_LOOKS: usize = 5;
/// Creates that may end unclear before we give up.
const POSTS_MAX: u32 = 2;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateStep {
    /// Wait, then ask for the drive, with the same token as before.
    Post {
        /// How long to wait first.
        after: Duration,
    },
    /// Wait, then look for the token among our drives.
    Look {
        /// How long to wait first.
        after: Duration,
    },
    /// This drive is ours: an earlier attempt made it.
    Adopt(DriveId),
    /// More than one drive may be the one: stop, and destroy nothing.
    Doubt(Vec<DriveId>),
    /// Stop: the last failure tells why.
    GiveUp {
        /// Whether the outage is what is too long.
        is_outage: bool,
    },
}

/// The course of creating one drive. An outage is borne as long as the attempts say,
/// over all that is asked; looks that fail do not count as looks.
#[derive(Clone, Debug)]
pub struct Creation {
    attempts: Attempts,
    unclear_posts: u32,
    looks: usize,
    looks_max: usize,
}

impl Creation {
    /// Begins, with attempts of which none was made; the first step is to ask for the
    /// drive.
    pub fn new(attempts: Attempts) -> Self {
        Self {
            attempts,
            unclear_posts: 0,
            looks: 0,
            looks_max: LOOKS_S.len(),
        }
    }

    /// An earlier run may have asked with the same token, and its drive may come
    /// late: it is looked for before anything is asked.
    pub fn resume(&mut self) -> CreateStep {
        self.unclear_posts += 1;
        self.looks_max = RESUME_LOOKS;
        self.look_again()
    }

    /// Asking failed. `is_known` as of [`Attempts::failed`].
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

    /// Looking succeeded: `found` are the drives that bear our token, `alike`
    /// those of the same name and size that bear no token at all, as they would
    /// on a cloud that drops `user:` keys.
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

    /// Looking failed as well. `is_known` as of [`Attempts::failed`].
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
            // A web site that answers everything made no drive.
            Next::Refused | Next::Unclear => CreateStep::GiveUp { is_outage: false },
        }
    }

    /// When it ends if nothing is answered until then; `None` while nothing fails.
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

    const S: Duration = Duration::from_secs(1);
    const GIVE_UP: CreateStep = CreateStep::GiveUp { is_outage: false };

    fn begun() -> Creation {
        Creation::new(Attempts::new(900 * S))
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

    /// Answers every look with nothing and returns what follows the last one.
    fn look_in_vain(creation: &mut Creation, first: CreateStep) -> CreateStep {
        let (step, waited) = look_until(creation, first);
        assert_eq!(waited, Duration::from_secs(60));
        step
    }

    /// Likewise, with the time it took.
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
    fn a_lost_answer_is_looked_for_and_adopted() {
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
    fn asked_for_again_only_after_a_minute_of_looking_and_only_once() {
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
    fn a_run_that_takes_up_another_looks_before_it_asks() {
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
    fn doubt_stops() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (a, b) = (DriveId::random(), DriveId::random());
        let mut creation = begun();
        creation.post_failed(&lost(), true, S, &mut rng);
        assert_eq!(creation.looked(&[a, b], &[]), CreateStep::Doubt(vec![a, b]));
        // A cloud that drops the token: one drive looks like ours.
        let mut creation = begun();
        let mut step = creation.post_failed(&lost(), true, S, &mut rng);
        while matches!(step, CreateStep::Look { .. }) {
            step = creation.looked(&[], &[a]);
        }
        assert_eq!(step, CreateStep::Doubt(vec![a]));
    }

    #[test]
    fn a_web_site_in_the_place_of_the_api_is_not_looked_at_for_long() {
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
    fn an_outage_is_borne_whatever_is_being_asked() {
        // The answer was lost and then nobody answers: the look, and the create after
        // it, share one outage, and no look that failed counts.
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = begun();
        let mut now = S;
        let mut step = creation.post_failed(&refused(502), true, now, &mut rng);
        while let CreateStep::Look { after } = step {
            now += after;
            step = creation.look_failed(&Failure::Connect("refused".into()), true, now, &mut rng);
        }
        assert_eq!(step, CreateStep::GiveUp { is_outage: true });
        assert_eq!(now, 901 * S);
        // It is back after ten minutes: the looks begin then, and the drive is found.
        let mut creation = begun();
        creation.post_failed(&refused(502), true, S, &mut rng);
        creation.look_failed(&refused(502), true, 600 * S, &mut rng);
        assert!(matches!(creation.looked(&[], &[]), CreateStep::Look { .. }));
        let id = DriveId::random();
        assert_eq!(creation.looked(&[id], &[]), CreateStep::Adopt(id));
    }

    #[test]
    fn what_is_clear_is_not_looked_for() {
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
