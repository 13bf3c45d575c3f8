//! Commands that messages print. They are complete, so that a pasted command reaches the same
//! endpoint as the same user.

use std::path::{Path, PathBuf};

use crate::drive::DriveId;
use crate::quoting::quote;

/// How the commands in messages reach the endpoint. The default adds no flags, which is right if
/// the environment or a default profile defines the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// Flags, quoted for a shell, each after a space.
    flags: String,
    /// The data directory, if the endpoint is a server within this program.
    local: Option<PathBuf>,
}

impl Commands {
    /// For an endpoint that is reached with these flags, which are quoted for a shell, each after a
    /// space.
    pub fn with_flags(flags: String) -> Self {
        Self { flags, local: None }
    }

    /// For a data directory with a server within this program.
    pub fn of_directory(directory: &Path) -> Self {
        Self {
            flags: String::new(),
            local: Some(directory.to_owned()),
        }
    }

    /// A call of the API: `words` are its flags, such as `-c`, and its path.
    pub(crate) fn call(&self, words: &str) -> String {
        let call = format!("openhosting{} {words}", self.flags);
        match &self.local {
            Some(directory) => format!(
                "{call}, to a server that is started with: openhosting-server --data {}",
                quote(&directory.to_string_lossy())
            ),
            None => call,
        }
    }

    /// The command that destroys a drive. For a data directory, no server is running at that time.
    pub(crate) fn removal(&self, drive: DriveId) -> String {
        match &self.local {
            Some(directory) => {
                let directory = quote(&directory.to_string_lossy());
                format!("rm {directory}/drives/{drive}.*")
            }
            None => format!("openhosting rm{} {drive}", self.flags),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_commands_use_the_endpoint_of_the_user() {
        let drive: DriveId = "0012e24a-6eae-4279-9912-3432f698cec8".parse().unwrap();
        let named = Commands::with_flags(" --profile 'a b'".into());
        assert_eq!(
            named.call("drives info"),
            "openhosting --profile 'a b' drives info"
        );
        assert_eq!(
            named.removal(drive),
            format!("openhosting rm --profile 'a b' {drive}")
        );
        let local = Commands::of_directory(Path::new("a b"));
        assert_eq!(local.removal(drive), format!("rm 'a b'/drives/{drive}.*"));
        assert!(
            local
                .call("drives info")
                .ends_with("openhosting-server --data 'a b'")
        );
    }
}
