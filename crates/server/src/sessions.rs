//! Sessions of users on the web page. Each has a random token, in a cookie that scripts cannot read
//! and other sites cannot send.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::header::{COOKIE, HeaderMap, HeaderValue};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::auth::digest;
use openhosting_base::locks::lock;

const COOKIE_NAME: &str = "openhosting_session";
/// A session ends after this long without a request, and in any case after a working day.
const IDLE: Duration = Duration::from_secs(30 * 60);
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Maximum sessions of one user; another one ends the oldest. The number is a choice: a user has a
/// few browsers, and a program that logs in again and again cannot fill the memory.
const SESSIONS_MAX: usize = 16;

/// The sessions of the page.
pub(super) struct Sessions {
    is_tls: bool,
    /// By the digests of their tokens.
    sessions: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    user: Arc<str>,
    began: Instant,
    seen: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.began) > LIFE || now.duration_since(self.seen) > IDLE
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    pub(super) fn new(is_tls: bool) -> Self {
        Self {
            is_tls,
            sessions: Mutex::default(),
        }
    }

    /// Begins a session, and returns its cookie.
    pub(super) fn begin(&self, user: &Arc<str>, now: Instant) -> Option<HeaderValue> {
        let [a, b] = [(); 2].map(|()| Uuid::new_v4().simple().to_string());
        let token = Zeroizing::new(a + &b);
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| !session.is_over(now));
        let own = sessions.iter().filter(|(_, session)| session.user == *user);
        if own.clone().count() >= SESSIONS_MAX
            && let Some((&oldest, _)) = own.min_by_key(|(_, session)| session.seen)
        {
            sessions.remove(&oldest);
        }
        let session = Session {
            user: Arc::clone(user),
            began: now,
            seen: now,
        };
        sessions.insert(digest(token.as_bytes()), session);
        self.cookie(&token, LIFE)
    }

    /// The user whose session a request belongs to.
    pub(super) fn user(&self, headers: &HeaderMap, now: Instant) -> Option<Arc<str>> {
        let mut sessions = lock(&self.sessions);
        tokens(headers).find_map(|token| {
            let session = sessions.get_mut(&digest(token.as_bytes()))?;
            if session.is_over(now) {
                return None;
            }
            session.seen = now;
            Some(Arc::clone(&session.user))
        })
    }

    /// Ends the session of a request, and returns a cookie that replaces its own.
    pub(super) fn end(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut sessions = lock(&self.sessions);
        for token in tokens(headers) {
            sessions.remove(&digest(token.as_bytes()));
        }
        self.cookie("", Duration::ZERO)
    }

    fn cookie(&self, token: &str, life: Duration) -> Option<HeaderValue> {
        let secure = if self.is_tls { "; Secure" } else { "" };
        let life = life.as_secs();
        let cookie = Zeroizing::new(format!(
            "{COOKIE_NAME}={token}; Path=/ui; Max-Age={life}; HttpOnly; SameSite=Strict{secure}"
        ));
        let mut cookie = HeaderValue::from_str(&cookie).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }
}

/// The tokens in a request: another path or port may have set additional ones.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .filter(|(name, _)| *name == COOKIE_NAME)
        .map(|(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::super::origin::tests::headers;
    use super::*;

    fn asked_with(cookie: &HeaderValue) -> HeaderMap {
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
        headers(&[("cookie", &format!("other=1; {cookie}"))])
    }

    #[test]
    fn a_session_belongs_to_one_user_and_ends() {
        let all = Sessions::new(true);
        let now = Instant::now();
        let (a, b) = ("a".into(), "b".into());
        let cookie = all.begin(&a, now).unwrap();
        let text = cookie.to_str().unwrap();
        for part in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/ui"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!format!("{cookie:?}").contains(COOKIE_NAME));
        let other = all.begin(&b, now).unwrap();
        assert_eq!(all.user(&asked_with(&cookie), now), Some(a.clone()));
        assert_eq!(all.user(&asked_with(&other), now), Some(b));
        let guess = headers(&[("cookie", "openhosting_session=0123456789abcdef")]);
        assert_eq!(all.user(&guess, now), None);
        assert_eq!(all.user(&HeaderMap::new(), now), None);
        // With regular requests it lasts, but not for ever.
        let mut at = now;
        while at.duration_since(now) < LIFE - IDLE {
            at += IDLE;
            assert_eq!(all.user(&asked_with(&cookie), at), Some(a.clone()));
        }
        assert_eq!(all.user(&asked_with(&cookie), now + LIFE + IDLE), None);
        assert_eq!(all.user(&asked_with(&other), now + IDLE + IDLE), None);
        all.end(&asked_with(&cookie)).unwrap();
        assert_eq!(all.user(&asked_with(&cookie), at), None);
    }

    #[test]
    fn sessions_of_a_user_are_bounded() {
        let all = Sessions::new(false);
        let now = Instant::now();
        let user = "a".into();
        let cookies: Vec<_> = (0..SESSIONS_MAX as u64 + 5)
            .map(|i| all.begin(&user, now + Duration::from_secs(i)).unwrap())
            .collect();
        assert!(!cookies[0].to_str().unwrap().contains("Secure"));
        assert_eq!(lock(&all.sessions).len(), SESSIONS_MAX);
        let at = now + Duration::from_secs(60);
        assert_eq!(all.user(&asked_with(&cookies[4]), at), None);
        assert_eq!(all.user(&asked_with(&cookies[5]), at), Some(user));
    }
}
