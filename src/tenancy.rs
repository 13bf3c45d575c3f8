//! What drives, servers and resources have in common: they belong to users, who set keys
//! of them, may have only so many, and are refused what does not go.
//!
//! ```text
//! refusal   why a request is not carried out
//! keys      what may stand in an object   ->  kept   the file that stores it
//! quota     what a user may have          rate   how often something may happen
//! locks     locks of plain data
//! ```
//!
//! No network, and no knowledge of drives or servers. [`server`](crate::server) and `vm`
//! stand on it. Start reading at [`refusal`].

pub(crate) mod kept;
pub(crate) mod keys;
pub(crate) mod locks;
pub(crate) mod quota;
pub(crate) mod rate;
pub(crate) mod refusal;
