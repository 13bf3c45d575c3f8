//! What drives, servers and resources have in common: they belong to users, who can set some of
//! their keys, may have only a limited number of them, and get refusals for invalid requests.
//!
//! ```text
//! refusal   why a request is not carried out
//! keys      what may stand in an object   ->  stored_file   the file that stores it
//! quota     what a user may have              rate          how often something may happen
//! ```
//!
//! No network, and no knowledge of drives or servers. `openhosting-server` and `openhosting-vm` are
//! based on it. Start reading at `refusal`.

mod counters;
mod keys;
mod quota;
mod rate;
mod refusal;
pub mod stored_file;

pub use self::counters::Counters;
pub use self::keys::{check_length, one_of, put, put_label, put_or_unset, set, unknown};
pub use self::quota::{Amounts, Grant, QuotaFigures, QuotaKind, QuotaLimits, Quotas};
pub use self::rate::Limiter;
pub use self::rate::Rate;
pub use self::refusal::Refusal;
pub use self::stored_file::{sync_parent, unless_missing};
