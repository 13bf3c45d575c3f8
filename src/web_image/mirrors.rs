//! Which of several servers a file on the web is fetched from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::api::{Pin, WebUrl};
use crate::locks::lock;

/// The servers of one file. A redirector may name another mirror for each request, and
/// their validators differ, so all requests go to the server that answered first, and back
/// to the redirector only when that one fails. Clones share what they know.
#[derive(Clone, Debug, Default)]
pub(super) struct Mirrors(Arc<Mutex<Answered>>);

#[derive(Debug, Default)]
struct Answered {
    /// Where the last answer came from, unless that is the URL of the image itself.
    current: Option<WebUrl>,
    /// The state of the file on each server. Those of two servers cannot be compared.
    pins: HashMap<String, Pin>,
}

/// What an answer says: where it came from, and the state of the file there.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) place: WebUrl,
    pub(super) pin: Pin,
}

impl Mirrors {
    /// The mirror to ask in place of `image`, and the state of the file on the server that
    /// is asked.
    pub(super) fn current(&self, image: &WebUrl) -> (Option<WebUrl>, Option<Pin>) {
        let answered = self.answered();
        let place = answered.current.as_ref().unwrap_or(image);
        let pin = answered.pins.get(&place.server()).cloned();
        (answered.current.clone(), pin)
    }

    /// This mirror failed: the next request asks the URL of the image again.
    pub(super) fn leave(&self, mirror: &WebUrl) {
        let mut answered = self.answered();
        if answered.current.as_ref() == Some(mirror) {
            answered.current = None;
        }
    }

    /// Whether an answer is of the file that its server had before; of a server that did not
    /// answer before, whether the file has `size` bytes. Then that server is asked from now on.
    pub(super) fn accept(&self, image: &WebUrl, known: Known, size: Option<u64>) -> bool {
        let mut answered = self.answered();
        let server = known.place.server();
        let is_same = match answered.pins.get(&server) {
            Some(pin) => pin.fits(&known.pin),
            None => known.pin.size.is_none() || size.is_none() || known.pin.size == size,
        };
        if is_same {
            answered.current = (known.place != *image).then_some(known.place);
            answered.pins.entry(server).or_insert(known.pin);
        }
        is_same
    }

    fn answered(&self) -> MutexGuard<'_, Answered> {
        lock(&self.0)
    }
}
