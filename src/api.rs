//! The client of the API: one method per call, one attempt each. What to do
//! about a failure is decided elsewhere, in [`policy`](crate::policy).

// What comes from the network is bounded before it is added up: release builds wrap.
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

pub use body::{Upload, UploadBody};
pub use client::{Client, ClientConfig, RawCall};
pub(crate) use delivery::Delivery;
pub use endpoint::Endpoint;
pub use flow::Flow;
pub use meter::Meter;
pub use route::{Proxies, Route};
pub use trust::{Certificates, Identity};
pub use web::{Pin, Web, WebAnswer, WebUrl};
