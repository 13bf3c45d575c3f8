//! Every decision of a transfer, and nothing else. What is here is handed time,
//! chance and outcomes, and answers with what to do next: no I/O, no clock, no
//! async. A seeded simulator can play whole transfers through it.
//!
//! Time is a [`Duration`](std::time::Duration) since the transfer began; chance is a seeded
//! generator.
//!
//! Start at [`Engine`], which is one transfer as decisions only; [`classify`] says what is worth
//! another attempt, [`Breaker`] when to give up, [`Concurrency`] how many requests are in flight.

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
pub use concurrency::{Concurrency, Ticket};
pub use create::{CreateStep, Creation, TOKEN_KEY};
pub use engine::{Action, Body, Ending, Engine, EngineConfig, Outlook, READY_MAX};
pub use ledger::Ledger;
pub use level::{Choice, LevelConfig, LevelController, Wire};
pub use pieces::{Limits, PIECE_BYTES_MIN, Pieces, PiecesConfig, Requests, Verdict};
pub use rate::TokenBucket;
pub use retry::{Attempts, Class, Next, Operation, classify, classify_known};
pub use waits::{Told, Waits};
pub use zeros::Zeros;
