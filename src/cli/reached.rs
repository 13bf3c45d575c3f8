//! The endpoint of an upload or a publication: a cloud, or a server for a directory of this machine.

use std::num::NonZeroU32;
use std::path::Path;

use super::display::Display;
use super::local_server::Local;
use super::transfer_command::CommonArguments;
use super::{findings_file, quote};
use crate::api::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::findings::{Findings, GzipWrites};
use crate::transfer::Stop;

/// The prefix of the name of an endpoint that is a server for a directory.
pub(super) const LOCAL: &str = "local ";

/// Identifies the endpoint that serves `directory`, because its port is different each time.
pub(super) fn endpoint_name(directory: &Path) -> String {
    let path = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    format!("{LOCAL}{}", path.display())
}

/// An endpoint, and what earlier runs found out about it.
pub(super) struct Reached {
    pub(super) client: Client,
    pub(super) findings: Findings,
    local: Option<Local>,
}

impl CommonArguments {
    /// Reaches the configured endpoint, or a server that is started for the directory `local`. From
    /// then on, progress is shown. `stop` ends the wait for a key.
    ///
    /// # Errors
    /// Those of [`client`](Self::client), or of the server; [`ErrorKind::Rejected`] if the endpoint
    /// does not decompress gzip.
    pub(super) async fn reach(
        &self,
        local: Option<&Path>,
        display: &mut Display,
        stop: &mut Stop,
    ) -> Result<Reached> {
        let Some(directory) = local else {
            let client = self.client(stop).await?;
            display.begin(self.limit_rate);
            let findings = findings_of(&client, display);
            check_gzip(&findings)?;
            return Ok(Reached {
                client,
                findings,
                local: None,
            });
        };
        display.begin(self.limit_rate);
        let (local, client) = Local::start(directory, &self.config()).await?;
        Ok(Reached {
            client,
            findings: Findings::default(),
            local: Some(local),
        })
    }
}

impl Reached {
    /// Stores what the run learned about the endpoint, or stops the server.
    pub(super) async fn leave(self, display: &mut Display) {
        match self.local {
            Some(local) => local.stop().await,
            None => display.remember(&self.client),
        }
    }
}

/// The findings about the endpoint. Everything also works without them, so findings that cannot be
/// read are no reason to fail.
pub(super) fn findings_of(client: &Client, display: &mut Display) -> Findings {
    let findings = findings_file::load(&client.endpoint().to_string());
    let findings = findings.unwrap_or_else(|error| {
        display.notices([format!("{}; left out", error.chain())]);
        None
    });
    findings.unwrap_or_default()
}

/// How to use a drive in a directory.
pub(super) fn how_to_serve(directory: &Path) -> String {
    let directory = quote(&directory.to_string_lossy());
    format!("To list or download the drive, start: openhosting server --data {directory}")
}

/// Fails if the endpoint does not unpack gzip, because chunks of zeros are sent compressed at any
/// level.
fn check_gzip(findings: &Findings) -> Result<()> {
    match findings.gzip_writes.known() {
        Some(GzipWrites::Stored | GzipWrites::Refused(_)) => Err(Error::new(
            ErrorKind::Rejected,
            "The endpoint does not decompress gzip, as a probe found",
        )
        .hint_to("If that has changed, probe again with: openhosting probe")),
        Some(GzipWrites::Decoded) | None => Ok(()),
    }
}

/// The number of concurrent requests, at most as many as the endpoint is known to accept.
pub(super) fn jobs_for(jobs: NonZeroU32, findings: &Findings) -> NonZeroU32 {
    let most = findings.max_parallel_writes().and_then(NonZeroU32::new);
    most.map_or(jobs, |most| jobs.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::{Finding, ParallelWrites};

    #[test]
    fn findings_lower_jobs_and_never_raise_them() {
        let jobs = |jobs, accepted, busy_from| {
            let findings = Findings {
                parallel_writes: Finding::Known(ParallelWrites {
                    accepted,
                    busy_from,
                    loses_bytes: false,
                }),
                ..Findings::default()
            };
            jobs_for(NonZeroU32::new(jobs).unwrap(), &findings).get()
        };
        assert_eq!(jobs(4, 1, Some(2)), 1);
        assert_eq!(jobs(2, 3, Some(4)), 2);
        assert_eq!(jobs(16, 8, None), 16);
        let four = NonZeroU32::new(4).unwrap();
        assert_eq!(jobs_for(four, &Findings::default()), four);
    }

    #[test]
    fn an_endpoint_that_does_not_decompress_gzip_is_refused() {
        let mut findings = Findings::default();
        check_gzip(&findings).unwrap();
        findings.gzip_writes = Finding::Known(GzipWrites::Stored);
        assert_eq!(
            check_gzip(&findings).unwrap_err().kind(),
            ErrorKind::Rejected
        );
    }
}
