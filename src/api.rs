//! The client of the API: one method for each call, and one attempt for each method call.
//! The engine (`crates/engine`) decides what to do about a failure.

// Numbers from the network are checked before they are added: release builds wrap on overflow.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod ahead;
mod answer;
mod body;
mod buffers;
mod cause;
mod client;
mod delivery;
mod endpoint;
mod flow;
mod meter;
mod patience;
mod route;
mod trust;
mod web;

pub use body::Upload;
pub use client::{Client, ClientConfig, RawCall};
pub(crate) use delivery::Delivery;
pub use endpoint::Endpoint;
pub use flow::Flow;
pub(crate) use flow::TRICKLE_BYTES_MAX;
pub use meter::Meter;
pub use route::{Proxies, Route};
pub use trust::{Certificates, Identity};
pub use web::{Pin, Web, WebAnswer, WebUrl};
