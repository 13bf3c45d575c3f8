//! Selects the server from which to download a file on the web.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::api::{Pin, WebUrl};
use crate::locks::lock;

/// The servers of one file. A redirector may select another mirror for each request, and the
/// validators of mirrors differ. So all requests go to the server that answered first, and to the
/// redirector again only when that server fails. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Mirrors(Arc<Mutex<Answered>>);

#[derive(Debug, Default)]
struct Answered {
    /// The server of the last answer, unless that is the URL of the image itself.
    current: Option<WebUrl>,
    /// The state of the file on each server. The states of two servers cannot be compared.
    pins: HashMap<String, Pin>,
}

/// The server of an answer, and the state of the file there.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) place: WebUrl,
    pub(super) pin: Pin,
}

impl Mirrors {
    /// The mirror to use instead of `image`, if any, and the state of the file on the server that
    /// is used.
    pub(super) fn current(&self, image: &WebUrl) -> (Option<WebUrl>, Option<Pin>) {
        let answered = self.answered();
        let place = answered.current.as_ref().unwrap_or(image);
        let pin = answered.pins.get(&place.server()).cloned();
        (answered.current.clone(), pin)
    }

    /// Reports that this mirror failed: the next request uses the URL of the image again.
    pub(super) fn leave(&self, mirror: &WebUrl) {
        let mut answered = self.answered();
        if answered.current.as_ref() == Some(mirror) {
            answered.current = None;
        }
    }

    /// Whether an answer is about the same file as earlier answers of its server. For a server that
    /// did not answer before, it is if the file has `size` bytes. If so, that server is used from
    /// now on.
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
