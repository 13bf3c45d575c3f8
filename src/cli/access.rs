//! The endpoint and the credentials of the user: from flags, the environment and the config file,
//! with this priority.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::config::{ConfigFile, Profile, Reference};
use super::proxies::{self, FromEnvironment};
use super::{candidates, command_line, environment, help, prompt, quote, remedies, secret_files};
use crate::api::{Certificates, Client, ClientConfig, Endpoint, Identity, Route, Web};
use crate::commands::Commands;
use crate::credentials::Credentials;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::{Patience, Stop, WebConfig};

/// The variable that selects a profile if no flag does.
const PROFILE_VARIABLE: &str = "OPENHOSTING_PROFILE";

/// The variables with the credentials.
const AUTH_VARIABLES: [&str; 2] = ["OHAUTH", "EHAUTH"];

/// The hint if the endpoint or the credentials are not defined anywhere.
const NOTHING_CONFIGURED: &str = "Or run \"openhosting login\"; to try it without an account, run \"openhosting server\", or: openhosting upload --local DIR IMAGE";

/// The flags of all tools that reach a cloud.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct Access {
    /// Use this endpoint instead of OHURI
    #[arg(long, value_name = "URI")]
    endpoint: Option<String>,

    /// Use this profile of the config file
    ///
    /// It takes precedence over OHURI and OHAUTH. Without this flag, OHURI and OHAUTH come first, and
    /// then the profile that OPENHOSTING_PROFILE names, or the default profile. The credentials of a
    /// profile are sent to another endpoint only if this flag names the profile.
    #[arg(long, value_name = "NAME", add = candidates::profiles())]
    profile: Option<String>,

    /// Trust only the certificates in FILE (PEM) at the endpoint
    ///
    /// For the image URLs of upload and publish, they are trusted in addition to the usual ones.
    #[arg(long, value_name = "FILE", add = candidates::files(), hide_short_help = true, help_heading = help::ENDPOINT)]
    cacert: Option<PathBuf>,

    /// Present this client certificate (PEM)
    #[arg(long, value_name = "FILE", add = candidates::files(), hide_short_help = true, help_heading = help::ENDPOINT)]
    cert: Option<PathBuf>,

    /// Use the private key in FILE (PEM) [default: the FILE of --cert]
    #[arg(long, value_name = "FILE", add = candidates::files(), requires = "cert", hide_short_help = true, help_heading = help::ENDPOINT)]
    key: Option<PathBuf>,
}

/// A profile that was selected.
struct ChosenProfile {
    profile: Profile,
    /// The config file that contains it.
    config: PathBuf,
    /// Whether a flag selected it. Then it has priority over the environment.
    is_named: bool,
}

/// The endpoint, the credentials and the certificates to use.
pub(super) struct ResolvedAccess {
    endpoint: Endpoint,
    credentials: CredentialSource,
    /// Where the endpoint is defined, for messages.
    endpoint_from: String,
    certificates: Option<Certificates>,
    identity: Option<Identity>,
    /// Commands for messages.
    commands: Commands,
}

/// Where the credentials are.
enum CredentialSource {
    /// They were in this variable of the environment.
    Environment(Zeroizing<String>, String),
    /// The profile with this name refers to them.
    Profile(String, Reference),
}

impl Access {
    /// The files that these flags name, with their names in messages.
    pub(super) fn files(&self) -> Vec<(&'static str, &Path)> {
        let all = [
            ("file of --cacert", &self.cacert),
            ("file of --cert", &self.cert),
            ("file of --key", &self.key),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(what, path)| Some((what, path.as_deref()?)))
            .collect()
    }

    /// Creates a client of the endpoint. If the key must be asked for, or a command prints the
    /// credentials, this may wait for a person. `stop` ends that wait.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if endpoint or credentials are not defined anywhere, or are invalid.
    pub(super) async fn client(&self, config: ClientConfig, stop: &mut Stop) -> Result<Client> {
        self.resolve()?.client(config, stop).await
    }

    /// Parses these flags among the words of a command, which may be incomplete.
    pub(super) fn of_words(words: &[OsString]) -> Self {
        let value = |flag: &str| {
            let at = |(index, word): (usize, &OsString)| match word.to_str()?.strip_prefix(flag)? {
                "" => words.get(index + 1).cloned(),
                value => Some(value.strip_prefix('=')?.into()),
            };
            words.iter().enumerate().rev().find_map(at)
        };
        let text = |flag| Some(value(flag)?.to_string_lossy().into_owned());
        let file = |flag| value(flag).map(PathBuf::from);
        Self {
            endpoint: text("--endpoint"),
            profile: text("--profile"),
            cacert: file("--cacert"),
            cert: file("--cert"),
            key: file("--key"),
        }
    }

    /// Creates a client of the endpoint, unless that requires a person, because the key must be
    /// asked for or a command prints it.
    pub(super) async fn quiet_client(&self, config: ClientConfig) -> Option<Client> {
        let resolved = self.resolve().ok()?;
        let is_quiet = match &resolved.credentials {
            CredentialSource::Environment(text, _) => Credentials::split(text).1.is_some(),
            CredentialSource::Profile(_, Reference::Command(_)) => false,
            CredentialSource::Profile(name, reference) => {
                let text = reference.fetch(name).await.ok()?;
                Credentials::split(&text).1.is_some()
            }
        };
        if !is_quiet {
            return None;
        }
        resolved.client(config, &mut Stop::never()).await.ok()
    }

    /// Combines flags, environment and profile. Credentials that are stored elsewhere are not read.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub(super) fn resolve(&self) -> Result<ResolvedAccess> {
        let uri = environment::variable_named(&["OHURI", "EHURI"])?;
        let auth = environment::variable_named(&AUTH_VARIABLES)?
            .map(|(text, variable)| (Zeroizing::new(text), variable));
        // If everything is defined elsewhere, the config is not even read, so it may be invalid.
        let is_complete = (self.endpoint.is_some() || uri.is_some()) && auth.is_some();
        let chosen = match self.profile.is_none() && is_complete {
            true => None,
            false => self.chosen()?,
        };
        let mut resolved = resolve(self, chosen, uri, auth)?;
        if command_line::is_one_program() {
            command_line::imply(self.implied(&resolved));
            remedies::access_is(self.given());
        }
        resolved.commands = Commands::with_flags(self.given());
        if !resolved.endpoint.is_loopback() {
            proxies::check_proxies()?;
        }
        Ok(resolved)
    }

    /// The certificates of the flag.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if they cannot be read, [`ErrorKind::Usage`] if they cannot be used.
    pub(super) fn certificates(&self) -> Result<Option<Certificates>> {
        self.cacert.as_deref().map(certificates).transpose()
    }

    /// The flags that select what the environment selected: a profile that is not the default, or an
    /// endpoint other than that of the default profile. Without them, a printed command that is
    /// pasted into another shell would reach another cloud.
    fn implied(&self, resolved: &ResolvedAccess) -> String {
        if self.profile.is_some() {
            return String::new();
        }
        let default = default_profile();
        match &resolved.credentials {
            CredentialSource::Profile(name, _)
                if default.as_ref().is_none_or(|default| default.name != *name) =>
            {
                format!(" --profile {}", quote(name))
            }
            CredentialSource::Environment(..) if self.endpoint.is_none() => {
                let endpoint = default.and_then(|default| default.endpoint);
                let is_other = endpoint.is_some_and(|endpoint| {
                    endpoint.parse::<Endpoint>().ok().as_ref() != Some(&resolved.endpoint)
                });
                match is_other {
                    true => format!(" --endpoint {}", quote(&resolved.endpoint.to_string())),
                    false => String::new(),
                }
            }
            _ => String::new(),
        }
    }

    /// The flags that were given, and those that stand for the environment, quoted for a shell, each
    /// after a space. A command with these flags reaches the same cloud as the same user, or none.
    pub(super) fn given(&self) -> String {
        let [cacert, cert, key] = [&self.cacert, &self.cert, &self.key]
            .map(|path| path.as_deref().map(Path::to_string_lossy));
        let flags = [
            ("--endpoint", self.endpoint.as_deref()),
            ("--profile", self.profile.as_deref()),
            ("--cacert", cacert.as_deref()),
            ("--cert", cert.as_deref()),
            ("--key", key.as_deref()),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(flag, value)| Some((flag, value?)));
        given
            .map(|(flag, value)| format!(" {flag} {}", quote(value)))
            .chain([command_line::implied().to_owned()])
            .collect()
    }

    fn chosen(&self) -> Result<Option<ChosenProfile>> {
        let by_variable = || environment::variable(&[PROFILE_VARIABLE]);
        let (name, named_by) = match &self.profile {
            Some(name) => (Some(name.clone()), "--profile"),
            None => (by_variable()?, PROFILE_VARIABLE),
        };
        let config = match environment::config_file() {
            Some(path) => ConfigFile::open(&path)?.ok_or(path),
            None => Err(PathBuf::from("~/.config/openhosting/config.toml")),
        };
        let (name, named_by, config) = match (name, config) {
            (Some(name), Ok(config)) => (name, named_by, config),
            (Some(name), Err(path)) => {
                let what = format!(
                    "There is no profile {name:?}, which {named_by} names: there is no config {}",
                    path.display()
                );
                let hint = format!("Make it with: openhosting login {}", quote(&name));
                return Err(Error::new(ErrorKind::Usage, what).hint_to(hint));
            }
            (None, Ok(config)) => match config.default.clone() {
                Some(name) => (name, "default", config),
                None => return Ok(None),
            },
            (None, Err(_)) => return Ok(None),
        };
        Ok(Some(ChosenProfile {
            profile: config.profile(&name, named_by)?.clone(),
            config: config.path().to_owned(),
            is_named: self.profile.is_some(),
        }))
    }
}

/// The default profile of the config, if the config can be read.
fn default_profile() -> Option<Profile> {
    let config = ConfigFile::open(&environment::config_file()?).ok()??;
    config.find(config.default.as_deref()?).cloned()
}

/// Combines the settings. Flags have priority, including a profile selected by a flag. The
/// environment comes next, and then a profile that no flag selected.
fn resolve(
    flags: &Access,
    chosen: Option<ChosenProfile>,
    uri: Option<(String, String)>,
    auth: Option<(Zeroizing<String>, String)>,
) -> Result<ResolvedAccess> {
    let missing = |what: &str| Error::new(ErrorKind::Usage, what).hint_to(NOTHING_CONFIGURED);
    let config = chosen.as_ref().map(|chosen| chosen.config.clone());
    let (named, other) = match chosen {
        Some(chosen) if chosen.is_named => (Some(chosen.profile), None),
        Some(chosen) => (None, Some(chosen.profile)),
        None => (None, None),
    };
    let endpoint_of = |profile: &Option<Profile>| {
        let profile = profile.as_ref()?;
        let config = config.as_deref().unwrap_or(Path::new(""));
        let from = format!("the profile {:?} in {}", profile.name, config.display());
        Some((profile.endpoint.clone()?, from))
    };
    let flag = flags
        .endpoint
        .clone()
        .map(|uri| (uri, "--endpoint".to_owned()));
    let chosen_uri = flag.or_else(|| endpoint_of(&named)).or(uri);
    let uses_profile_endpoint = chosen_uri.is_none();
    let (endpoint, endpoint_from) = chosen_uri
        .or_else(|| endpoint_of(&other))
        .ok_or_else(|| missing("Please set OHURI=<API endpoint URI>"))?;
    remedies::endpoint_is_from(&endpoint_from);
    let endpoint: Endpoint = endpoint.parse()?;
    let source_of = |profile: &Option<Profile>| {
        let profile = profile.as_ref()?;
        let reference = profile.credentials.clone()?;
        Some(CredentialSource::Profile(profile.name.clone(), reference))
    };
    let source = source_of(&named)
        .or(auth.map(|(text, variable)| CredentialSource::Environment(text, variable)));
    let is_chosen = source.is_some();
    let credentials = source
        .or_else(|| source_of(&other))
        .ok_or_else(|| missing("Please set OHAUTH=<user uuid>:<secret API key>"))?;
    remedies::credentials_are_from(credentials.place());
    // Credentials for one cloud must not be sent to another one just because OHURI was set for some
    // other purpose.
    if let (false, Some(profile)) = (is_chosen, &other)
        && let Some(own) = &profile.endpoint
        && own.parse::<Endpoint>()? != endpoint
    {
        let name = &profile.name;
        let what = format!(
            "The credentials of the profile {name:?} are for {own}, and are not sent to {endpoint}"
        );
        let name = quote(name);
        return Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
            "Name another profile with --profile, or set OHAUTH; --profile {name} --endpoint {endpoint} sends them there"
        )));
    }
    let files = match named {
        Some(profile) => profile.files,
        None => other
            .filter(|_| uses_profile_endpoint)
            .map(|other| other.files)
            .unwrap_or_default(),
    };
    let cacert = flags.cacert.clone().or(files.cacert);
    // A key belongs to its certificate, so both are taken from the same source.
    let (cert, key) = match &flags.cert {
        Some(cert) => (Some(cert.clone()), flags.key.clone()),
        None => (files.cert, files.key),
    };
    let identity = cert.map(|cert| identity(&cert, key.as_deref()));
    Ok(ResolvedAccess {
        endpoint,
        endpoint_from,
        credentials,
        certificates: cacert.as_deref().map(certificates).transpose()?,
        identity: identity.transpose()?,
        commands: Commands::default(),
    })
}

/// What messages call the key of a client certificate.
const KEY: &str = "key of the client certificate";

/// The error for a file that holds no private key; `None` if it holds one, or cannot be read.
fn without_key(path: &Path) -> Option<Error> {
    let bytes = secret_files::read_public_bytes(KEY, path).ok()?;
    let has_key = String::from_utf8_lossy(&bytes).contains("PRIVATE KEY-----");
    (!has_key).then(|| {
        let what = format!(
            "Cannot use the {KEY} {}: There is no private key in PEM form",
            path.display()
        );
        Error::new(ErrorKind::Usage, what)
            .hint_to("A file in PEM form has lines that begin with -----BEGIN PRIVATE KEY-----")
    })
}

/// The client certificate from a file, and its key from another file or the same one.
///
/// # Errors
/// [`ErrorKind::Local`] if they cannot be read, [`ErrorKind::Usage`] if others can read the key, or
/// they cannot be used.
fn identity(cert: &Path, key: Option<&Path>) -> Result<Identity> {
    let certificates = secret_files::read_public_bytes("client certificate", cert)?;
    let key_file = key.unwrap_or(cert);
    // The permissions of a file without a key may be right as they are, so that is reported first.
    let key = secret_files::read_secret(KEY, key_file)
        .map_err(|error| without_key(key_file).unwrap_or(error))?;
    Identity::from_pem(&certificates, key.as_bytes()).map_err(|cause| {
        let what = format!(
            "Cannot use the client certificate {} with the key {}",
            cert.display(),
            key_file.display()
        );
        Error::new(ErrorKind::Usage, what).because_of(cause)
    })
}

/// The proxies that the environment defines.
///
/// # Errors
/// [`ErrorKind::Usage`] if a variable is not UTF-8.
pub(super) fn route() -> Result<Route> {
    Ok(Route {
        proxies: Some(Arc::new(FromEnvironment::read()?)),
        ..Route::default()
    })
}

/// How to fetch images and digests from web servers. These `certificates` are trusted in addition
/// to the usual ones.
///
/// # Errors
/// [`ErrorKind::Usage`] if a variable does not name a proxy; those of [`Web::new`].
pub(super) fn web(
    certificates: Option<Certificates>,
    config: ClientConfig,
    patience: &Patience,
) -> Result<WebConfig> {
    proxies::check_proxies()?;
    let config = ClientConfig {
        certificates,
        route: route()?,
        ..config
    };
    Ok(WebConfig {
        web: Web::new(&config)?,
        patience: patience.clone(),
    })
}

/// The certificates in a file.
///
/// # Errors
/// [`ErrorKind::Local`] if they cannot be read, [`ErrorKind::Usage`] if they cannot be used.
pub(super) fn certificates(path: &Path) -> Result<Certificates> {
    let text = secret_files::read_public_bytes("certificates", path)?;
    Certificates::from_pem(&text).map_err(|cause| {
        let what = format!("Cannot use the certificates {}", path.display());
        Error::new(ErrorKind::Usage, what)
            .because(cause)
            .hint_to("A file in PEM form has lines that begin with -----BEGIN CERTIFICATE-----")
    })
}

/// The error for text that is neither a user nor a user and a key. The text is not quoted, because it
/// may be the key. `place` is where it is, unless it is in the environment.
fn no_credentials(place: Option<String>) -> Result<Error> {
    let (what, hint) = match place {
        Some(place) => (format!("{place} do not begin"), "One line is needed: "),
        None => {
            let variable = environment::variable_named(&AUTH_VARIABLES)?;
            let (_, variable) = variable.unwrap_or_default();
            (format!("{variable} does not begin"), "Set OHAUTH=")
        }
    };
    let what = format!("{what} with the UUID of a user");
    let hint = format!("{hint}<user uuid>:<secret API key>");
    Ok(Error::new(ErrorKind::Usage, what).hint_to(hint))
}

impl CredentialSource {
    /// Where they are defined, for messages.
    fn place(&self) -> String {
        match self {
            Self::Environment(_, variable) => variable.clone(),
            Self::Profile(name, _) => format!("the credentials of the profile {name:?}"),
        }
    }

    /// What to do if the endpoint refuses them.
    fn if_refused(&self) -> String {
        match self {
            Self::Environment(_, variable) => format!(
                "Check the user UUID and the key in {variable}, or unset it to use a profile"
            ),
            Self::Profile(name, _) => {
                let name = quote(name);
                format!("Check the user UUID and the key, or run: openhosting login {name}")
            }
        }
    }

    /// The credentials. If the key must be asked for, or a command prints them, this may wait for a
    /// person.
    async fn fetch(self) -> Result<Credentials> {
        let (text, place) = match self {
            Self::Environment(text, _) => (text, None),
            Self::Profile(name, reference) => {
                let text = reference.fetch(&name).await?;
                (
                    text,
                    Some(format!("The credentials of the profile {name:?}")),
                )
            }
        };
        match Credentials::split(&text) {
            (user, Some(key)) => Credentials::new(user, key),
            (user, None) if user.parse::<Uuid>().is_err() => Err(no_credentials(place)?),
            (user, None) => Credentials::new(user, &**prompt::ask_for_key().await?),
        }
    }
}

impl ResolvedAccess {
    /// Where the credentials are defined.
    pub(super) fn credentials_from(&self) -> String {
        self.credentials.place()
    }

    /// What to do if the endpoint refuses the credentials.
    pub(super) fn if_refused(&self) -> String {
        self.credentials.if_refused()
    }

    /// The endpoint, and where it is defined.
    pub(super) fn endpoint(&self) -> (&Endpoint, &str) {
        (&self.endpoint, &self.endpoint_from)
    }

    /// The proxy through which the endpoint is reached.
    pub(super) fn proxy(&self, route: &Route) -> Option<String> {
        let url = self.endpoint.url(["drives", "list"]).ok()?;
        route.proxy(&url)
    }

    /// The certificates to trust, unless this machine's are used.
    pub(super) fn certificates(self) -> Option<Certificates> {
        self.certificates
    }

    /// As [`Access::client`].
    pub(super) async fn client(self, config: ClientConfig, stop: &mut Stop) -> Result<Client> {
        let config = ClientConfig {
            certificates: self.certificates,
            identity: self.identity,
            route: Route {
                endpoint_from: Some(self.endpoint_from),
                commands: self.commands,
                ..route()?
            },
            ..config
        };
        let credentials = stop.unless_asked(self.credentials.fetch()).await?;
        Client::new(self.endpoint, &credentials, &config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "https://a/";
    const B: &str = "https://b/";
    const C: &str = "https://c/";

    /// The endpoint and credentials that result from the flag, a profile, and the environment.
    fn resolved_to(
        flag: Option<&str>,
        profile: Option<(Option<&str>, bool)>,
        uri: Option<&str>,
        auth: Option<&str>,
    ) -> Result<String, String> {
        let flags = Access {
            endpoint: flag.map(str::to_owned),
            ..Access::default()
        };
        let chosen = profile.map(|(endpoint, is_named)| ChosenProfile {
            profile: Profile {
                name: "p".into(),
                endpoint: endpoint.map(str::to_owned),
                credentials: Some(Reference::Variable("P".into())),
                ..Profile::default()
            },
            config: "/c.toml".into(),
            is_named,
        });
        let auth = auth.map(|auth| (Zeroizing::new(auth.to_owned()), "OHAUTH".to_owned()));
        let uri = uri.map(|uri| (uri.to_owned(), "OHURI".to_owned()));
        let resolved = resolve(&flags, chosen, uri, auth);
        let resolved = resolved.map_err(|error| error.to_string())?;
        let who = match resolved.credentials {
            CredentialSource::Environment(text, _) => text.to_string(),
            CredentialSource::Profile(name, _) => name,
        };
        Ok(format!("{who} at {}", resolved.endpoint))
    }

    #[test]
    fn flags_override_the_environment_and_that_overrides_a_profile() {
        let (named, other) = (Some((Some(B), true)), Some((Some(B), false)));
        let said = |text: &str| Ok(text.to_owned());
        for (flag, profile, uri, auth, expected) in [
            (Some(A), other, Some(C), Some("env"), "env at https://a/"),
            (None, other, Some(C), Some("env"), "env at https://c/"),
            (None, other, None, Some("env"), "env at https://b/"),
            (None, other, None, None, "p at https://b/"),
            (None, None, Some(C), Some("env"), "env at https://c/"),
            // A profile that a flag selects counts as a flag.
            (None, named, Some(C), Some("env"), "p at https://b/"),
            (Some(A), named, Some(C), Some("env"), "p at https://a/"),
            (None, named, None, None, "p at https://b/"),
            // The environment supplies what such a profile does not define.
            (
                None,
                Some((None, true)),
                Some(C),
                Some("env"),
                "p at https://c/",
            ),
            (None, Some((None, false)), Some(C), None, "p at https://c/"),
            // The same endpoint, written differently.
            (Some("https://B"), other, None, None, "p at https://b/"),
        ] {
            assert_eq!(resolved_to(flag, profile, uri, auth), said(expected));
        }
    }

    #[test]
    fn credentials_of_a_profile_go_to_its_endpoint() {
        let other = Some((Some(B), false));
        for (flag, uri) in [(Some(A), None), (None, Some(C))] {
            let error = resolved_to(flag, other, uri, None).unwrap_err();
            let place = flag.or(uri).unwrap_or_default();
            assert_eq!(
                error,
                format!(
                    "The credentials of the profile \"p\" are for https://b/, and are not sent to {place}"
                )
            );
        }
    }

    #[test]
    fn a_missing_key_is_asked_for() {
        let error = resolved_to(None, None, None, Some("env")).unwrap_err();
        assert_eq!(error, "Please set OHURI=<API endpoint URI>");
        let error = resolved_to(None, None, Some(C), None).unwrap_err();
        assert_eq!(error, "Please set OHAUTH=<user uuid>:<secret API key>");
    }
}
