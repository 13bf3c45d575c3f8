//! All decisions of a transfer. The code here is given time, randomness and outcomes as values, and
//! returns what to do next. It does no I/O, reads no clock and is not async, so a seeded simulator
//! can play whole transfers through it.
//!
//! Time is a [`Duration`](std::time::Duration) since the transfer began; chance is a seeded
//! generator.
//!
//! Start at [`Engine`], one transfer as decisions only. [`classify`] decides what is worth another
//! attempt, [`Breaker`] when to give up, [`Concurrency`] how many requests are in flight.

mod backoff;
mod breaker;
mod concurrency;
mod create;
mod engine;
mod ledger;
mod level;
mod pieces;
mod rate;
mod retry;
mod tail;
mod waits;
mod zeros;

use openhosting_base::{chunk, codec, drive, failure, plan, wire};

pub use backoff::Backoff;
pub use breaker::Breaker;
pub use concurrency::{Concurrency, Moved, Ticket};
pub use create::{CreateStep, Creation, TOKEN_KEY};
pub use engine::{Action, Ending, Engine, EngineConfig, FRESH_FOR, Outlook, Payload, READY_MAX};
pub use ledger::Ledger;
pub use level::{Choice, LevelConfig, LevelController, Took, Wire};
pub use pieces::{Limits, PIECE_BYTES_MIN, Pieces, PiecesConfig, Requests, Verdict};
pub use rate::TokenBucket;
pub use retry::{Attempts, Class, Next, Operation, classify, classify_known, is_about_input};
pub use waits::{Wait, Waits};
pub use zeros::Zeros;
