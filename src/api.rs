//! The client of the API: one method per call, one attempt each. What to do
//! about a failure is decided elsewhere, in [`policy`](crate::policy).

mod answer;
mod body;
mod client;
mod endpoint;
mod meter;
mod patience;
mod trust;
mod web;

pub use body::{Upload, UploadBody};
pub use client::{Client, ClientConfig, RawCall};
pub use endpoint::Endpoint;
pub use meter::Meter;
pub use trust::Certificates;
pub use web::{Pin, Web, WebAnswer, WebUrl};
