//! A drive as people name it: by its UUID, or by its name.

use std::convert::Infallible;
use std::str::FromStr;

use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::error::Result;
use crate::transfer::{Patience, find_drive, look_at_drive};

/// Which drive is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// The one with this UUID. What looks like one is one.
    Id(DriveId),
    /// The only one of this name.
    Name(String),
}

impl FromStr for Named {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let id = text.parse().ok().map(Self::Id);
        Ok(id.unwrap_or_else(|| Self::Name(text.to_owned())))
    }
}

impl Named {
    /// The UUID, if that is known without a question.
    pub(super) fn id(&self) -> Option<DriveId> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Name(_) => None,
        }
    }

    /// The UUID; looked for if it is not known.
    ///
    /// # Errors
    /// What the endpoint says; [`NotFound`](crate::ErrorKind::NotFound) if there is no
    /// such name, [`Usage`](crate::ErrorKind::Usage) if several drives have it.
    pub(super) async fn find(&self, client: &Client, patience: &Patience) -> Result<DriveId> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => Ok(find_drive(client, name, patience).await?.id),
        }
    }

    /// All that the endpoint tells of the drive.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub(super) async fn look(&self, client: &Client, patience: &Patience) -> Result<DriveInfo> {
        look_at_drive(client, self.find(client, patience).await?, patience).await
    }
}
