//! What short commands print while they wait for the endpoint.

use std::time::Duration;

use super::exit::Notice;
use crate::amounts::duration;
use crate::api::ClientConfig;
use crate::monitor::{Event, Monitor, capital};
use crate::transfer::Patience;

/// Such a command gives up after this long: a restart of the endpoint takes less, and a user is
/// waiting for the answer.
const MAX_OUTAGE: Duration = Duration::from_secs(60);

/// The settings of the client of such a command.
pub(super) fn config() -> ClientConfig {
    ClientConfig {
        outage: MAX_OUTAGE,
        ..ClientConfig::default()
    }
}

/// The patience of such a command.
pub(super) fn patience() -> Patience {
    Patience::new(MAX_OUTAGE)
}

/// Prints waits on stderr, in the name of this command.
pub(super) struct WaitLines(pub(super) &'static str);

impl Monitor for WaitLines {
    fn event(&mut self, event: &Event) {
        if let Some(line) = line(event) {
            kind(event).say(self.0, &line);
        }
    }
}

/// The kind of the line for an event about waiting.
pub(super) fn kind(event: &Event) -> Notice {
    match event {
        Event::Waiting(_) => Notice::Warning,
        _ => Notice::Note,
    }
}

/// The line for an event about waiting; `None` for any other event.
pub(super) fn line(event: &Event) -> Option<String> {
    match event {
        Event::Waiting(waiting) => Some(waiting.to_string()),
        Event::WaitOver { who, time } => {
            let who = capital(who);
            Some(format!("{who} answers again, after {}", duration(*time)))
        }
        _ => None,
    }
}
