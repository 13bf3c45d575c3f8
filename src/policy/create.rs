//! Creating exactly one drive, though a lost answer does not tell whether there
//! is one. Every create carries a random token in a `user:` key; when it is
//! unclear what happened, the token is looked for among our drives before
//! anything is asked for again (FAULTS 3.3).

use std::time::Duration;

use super::retry::{Attempts, Class, Operation, classify};
use crate::drive::DriveId;
use crate::failure::Failure;

/// Key of the token on a drive.
pub const TOKEN_KEY: &str = "user:oh-token";

/// Waits before each look for the token, a minute in all: the endpoint may be
/// slow to finish what its answer did not tell.
const LOOKS_S: [u64; 6] = [0, 2, 4, 8, 16, 30];
/// Creates that may end unclear before we give up.
const POSTS_MAX: u32 = 2;
/// Looks that may be answered by something that is not the API.
const STRANGE_LOOKS_MAX: u32 = 3;
/// Tries while it is certain that nothing was made.
const CLEAR_ATTEMPTS: u32 = 4;

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
    GiveUp,
}

/// The course of creating one drive.
#[derive(Clone, Debug)]
pub struct Creation {
    clear: Attempts,
    unclear_posts: u32,
    looks: usize,
    /// Looks whose answer was not from the API.
    strange_looks: u32,
}

impl Default for Creation {
    fn default() -> Self {
        Self::new()
    }
}

impl Creation {
    /// Begins; the first step is to ask for the drive.
    pub fn new() -> Self {
        Self {
            clear: Attempts::at_most(CLEAR_ATTEMPTS),
            unclear_posts: 0,
            looks: 0,
            strange_looks: 0,
        }
    }

    /// An earlier run may have asked with the same token, and its drive may come
    /// late: it is looked for as after an answer that was lost.
    pub fn resume(&mut self) -> CreateStep {
        self.unclear_posts += 1;
        self.look_again()
    }

    /// Asking failed.
    pub fn post_failed(&mut self, failure: &Failure, rng: &mut fastrand::Rng) -> CreateStep {
        if classify(Operation::Create, failure) == Class::Ambiguous {
            self.unclear_posts += 1;
            self.looks = 0;
            return self.look_again();
        }
        match self.clear.failed(Operation::Create, failure, rng) {
            Some(after) => CreateStep::Post { after },
            None => CreateStep::GiveUp,
        }
    }

    /// Looking succeeded: `found` are the drives that bear our token, `alike`
    /// those of the same name and size that bear no token at all, as they would
    /// on a cloud that drops `user:` keys.
    pub fn looked(&mut self, found: &[DriveId], alike: &[DriveId]) -> CreateStep {
        match (found, self.looks < LOOKS_S.len()) {
            ([one], _) => CreateStep::Adopt(*one),
            ([], true) => self.look_again(),
            ([], false) if !alike.is_empty() => CreateStep::Doubt(alike.to_vec()),
            ([], false) if self.unclear_posts < POSTS_MAX => CreateStep::Post {
                after: Duration::ZERO,
            },
            ([], false) => CreateStep::GiveUp,
            (several, _) => CreateStep::Doubt(several.to_vec()),
        }
    }

    /// Looking failed as well.
    pub fn look_failed(&mut self, failure: &Failure) -> CreateStep {
        let class = classify(Operation::Read, failure);
        // A web site that answers everything made no drive.
        self.strange_looks += u32::from(class == Class::Doubtful);
        let is_strange = self.strange_looks >= STRANGE_LOOKS_MAX;
        if class == Class::Permanent || is_strange || self.looks >= LOOKS_S.len() {
            return CreateStep::GiveUp;
        }
        self.look_again()
    }

    fn look_again(&mut self) -> CreateStep {
        let after = Duration::from_secs(LOOKS_S[self.looks.min(LOOKS_S.len() - 1)]);
        self.looks += 1;
        CreateStep::Look { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Refusal;

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
        let mut step = first;
        let mut waited = Duration::ZERO;
        while let CreateStep::Look { after } = step {
            waited += after;
            step = creation.looked(&[], &[]);
        }
        assert_eq!(waited, Duration::from_secs(60));
        step
    }

    #[test]
    fn a_lost_answer_is_looked_for_and_adopted() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = Creation::new();
        let step = creation.post_failed(&lost(), &mut rng);
        let after = Duration::ZERO;
        assert_eq!(step, CreateStep::Look { after });
        assert!(matches!(creation.looked(&[], &[]), CreateStep::Look { .. }));
        let id = DriveId::random();
        assert_eq!(creation.looked(&[id], &[]), CreateStep::Adopt(id));
    }

    #[test]
    fn asked_for_again_only_after_a_minute_of_looking_and_only_once() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = Creation::new();
        let first = creation.post_failed(&lost(), &mut rng);
        let after = Duration::ZERO;
        let step = look_in_vain(&mut creation, first);
        assert_eq!(step, CreateStep::Post { after });
        let second = creation.post_failed(&refused(502), &mut rng);
        assert_eq!(look_in_vain(&mut creation, second), CreateStep::GiveUp);
    }

    #[test]
    fn a_run_that_takes_up_another_looks_as_long_before_it_asks() {
        let mut creation = Creation::new();
        let first = creation.resume();
        let step = look_in_vain(&mut creation, first);
        assert!(matches!(step, CreateStep::Post { .. }));
        let mut creation = Creation::new();
        creation.resume();
        let step = creation.look_failed(&lost());
        assert!(
            matches!(step, CreateStep::Look { .. }),
            "a look that failed is no leave to ask: {step:?}"
        );
    }

    #[test]
    fn doubt_stops() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (a, b) = (DriveId::random(), DriveId::random());
        let mut creation = Creation::new();
        creation.post_failed(&lost(), &mut rng);
        assert_eq!(creation.looked(&[a, b], &[]), CreateStep::Doubt(vec![a, b]));
        // A cloud that drops the token: one drive looks like ours.
        let mut creation = Creation::new();
        let mut step = creation.post_failed(&lost(), &mut rng);
        while matches!(step, CreateStep::Look { .. }) {
            step = creation.looked(&[], &[a]);
        }
        assert_eq!(step, CreateStep::Doubt(vec![a]));
    }

    #[test]
    fn a_web_site_in_the_place_of_the_api_is_not_looked_at_for_a_minute() {
        let mut rng = fastrand::Rng::with_seed(1);
        let page = Failure::NotApi("an HTML page".into());
        let mut creation = Creation::new();
        let mut step = creation.post_failed(&page, &mut rng);
        let mut looks = 0;
        while matches!(step, CreateStep::Look { .. }) {
            looks += 1;
            step = creation.look_failed(&page);
        }
        assert_eq!((looks, step), (STRANGE_LOOKS_MAX, CreateStep::GiveUp));
    }

    #[test]
    fn what_is_clear_is_not_looked_for() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut creation = Creation::new();
        assert_eq!(
            creation.post_failed(&refused(402), &mut rng),
            CreateStep::GiveUp
        );
        let mut creation = Creation::new();
        for _ in 1..CLEAR_ATTEMPTS {
            let step = creation.post_failed(&Failure::Connect("refused".into()), &mut rng);
            assert!(matches!(step, CreateStep::Post { .. }));
        }
        let step = creation.post_failed(&Failure::Connect("refused".into()), &mut rng);
        assert_eq!(step, CreateStep::GiveUp);
    }
}
