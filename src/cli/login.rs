//! `openhosting login`: asks for the endpoint and the credentials, checks them with one call, and
//! writes a profile and its key file. Nothing is written before the endpoint has accepted the
//! credentials.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::access;
use super::config::{ConfigFile, Reference, quoted, with_default};
use super::drives::each_drive;
use super::output::{CommandOutput, OutputForm};
use super::secret_files::read_secret;
use super::wait_lines::{self, WaitLines};
use super::written_files::cannot_write;
use super::{candidates, environment, exit, help, prompt, proxies, screen};
use crate::amounts::counted;
use crate::api::{Client, ClientConfig, Endpoint};
use crate::credentials::Credentials;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, private_directory, replace};
use crate::transfer::Stop;

const FORM: OutputForm = OutputForm::new("openhosting login", "login/1");

/// Stores the endpoint and credentials of a user as a profile
///
/// Asks for what is missing, checks it with one call, and writes it to the config file.
/// The key is stored in a file of its own that only you can read. Where stdin is not a
/// terminal, its first line is the key, or UUID:KEY.
#[derive(Debug, Parser)]
#[command(name = "openhosting-login", bin_name = "openhosting login", version, after_long_help = help::after("login"))]
pub(super) struct LoginArguments {
    /// Name of the profile; without it, the name is "default"
    #[arg(value_name = "NAME", add = candidates::profiles(), default_value = "default", hide_default_value = true, value_parser = profile_name)]
    name: String,

    /// Endpoint URI
    #[arg(long, value_name = "URI")]
    endpoint: Option<String>,

    /// UUID of the user
    #[arg(long, value_name = "UUID")]
    user: Option<String>,

    /// Trust only the certificates in FILE (PEM)
    #[arg(long, value_name = "FILE", add = candidates::files())]
    cacert: Option<PathBuf>,

    /// Make this profile the default in place of another one
    ///
    /// Without this flag, it becomes the default only if no profile is the default yet, even if its
    /// name is "default".
    #[arg(long)]
    default: bool,
}

/// Checks that a name can be a key in the config and the name of a file on any system.
fn profile_name(text: &str) -> Result<String, String> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !text.is_empty() && text.bytes().all(is_fine) {
        true => Ok(text.to_owned()),
        false => Err(
            "a profile's name has letters, digits, - and _ only. Use another one, for example work"
                .to_owned(),
        ),
    }
}

pub(super) fn main(words: &[OsString]) -> ExitCode {
    FORM.main(words, |arguments: &LoginArguments| {
        FORM.run(false, async |stop| {
            // A stop is possible only before the profile is written.
            let done = run(arguments, stop).await;
            done.map_err(|error| match error.kind() {
                ErrorKind::Cancelled => Error::new(ErrorKind::Cancelled, "Nothing was stored"),
                _ => error,
            })
        })
    })
}

/// What will be written, and to which files.
struct Plan {
    config: PathBuf,
    /// The current text of the config, and its content.
    old: Option<(String, ConfigFile)>,
    key_file: PathBuf,
    /// The endpoint of the profile, if the profile exists.
    endpoint: Option<String>,
    cacert: Option<PathBuf>,
    /// The user of the profile, if the profile exists and its key file can be read.
    user: Option<String>,
}

impl Plan {
    /// # Errors
    /// [`ErrorKind::Usage`] if no config file can be used, or the profile exists and its
    /// credentials are not in a file.
    fn of(arguments: &LoginArguments) -> Result<Self> {
        let config = environment::config_file().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "There is no place for a config")
                .hint_to("Set HOME or XDG_CONFIG_HOME")
        })?;
        let old = ConfigFile::open_with_text(&config)?;
        let known = old
            .as_ref()
            .and_then(|(_, config)| config.find(&arguments.name));
        let mut plan = Self {
            key_file: config.with_file_name(format!("{}.key", arguments.name)),
            endpoint: None,
            cacert: arguments.cacert.clone(),
            user: None,
            config,
            old: None,
        };
        if let Some(profile) = known {
            let (name, config) = (&arguments.name, plan.config.display().to_string());
            let unusable = |what: String| {
                Error::new(ErrorKind::Usage, what)
                    .hint_to("Choose another name, or edit the profile")
            };
            let Some(Reference::File(path)) = &profile.credentials else {
                let what = format!("The profile {name:?} in {config} has no key file");
                return Err(unusable(what));
            };
            plan.key_file = path.clone();
            plan.user = user_in(path);
            plan.endpoint = profile.endpoint.clone();
            plan.cacert = plan.cacert.or_else(|| profile.files.cacert.clone());
            // As endpoints, because a slash at the end makes no difference.
            let parsed = |text: &Option<String>| text.as_deref()?.parse::<Endpoint>().ok();
            let is_other = arguments.endpoint.is_some()
                && parsed(&arguments.endpoint) != parsed(&plan.endpoint);
            if is_other || plan.endpoint.is_none() {
                return Err(unusable(format!(
                    "The profile {name:?} is in {config} already, and names another endpoint or none"
                )));
            }
        }
        plan.old = old;
        plan.report_known(&arguments.name);
        Ok(plan)
    }

    /// Says which profile exists, and what this run replaces.
    fn report_known(&self, name: &str) {
        let Some(endpoint) = &self.endpoint else {
            return;
        };
        let user = self.user.as_ref();
        let user = user.map_or(String::new(), |user| format!(", user {user}"));
        let config = self.config.display();
        let key_file = self.key_file.display();
        for line in [
            format!("The profile {name:?} in {config} exists: endpoint {endpoint}{user}"),
            format!(
                "Its user and key in {key_file} are replaced once the endpoint accepts the new ones"
            ),
        ] {
            exit::Notice::Note.say(FORM.program, &line);
        }
    }

    /// Whether the config contains the profile already. Then only its key file is written.
    fn is_known(&self) -> bool {
        self.endpoint.is_some()
    }

    /// The default profile of the config until now.
    fn default(&self) -> Option<&str> {
        let (_, config) = self.old.as_ref()?;
        config.default.as_deref()
    }

    /// The config with the profile, and whether the profile is the default in it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the config cannot be extended.
    fn extended(
        &self,
        name: &str,
        endpoint: &Endpoint,
        is_default: bool,
    ) -> Result<(String, bool)> {
        let old = self.old.as_ref().map_or("", |(text, _)| text.as_str());
        let is_own = is_default || self.default().is_none_or(|default| default == name);
        let mut text = match is_own && self.default() != Some(name) {
            true => with_default(old, name),
            false => old.to_owned(),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        if !self.is_known() {
            text += &format!(
                "\n[profiles.{name}]\nendpoint = {}\n",
                quoted(&endpoint.to_string())
            );
            text += &format!("credentials.file = {}\n", quoted(&format!("{name}.key")));
            if let Some(cacert) = &self.cacert {
                let cacert = std::path::absolute(cacert).unwrap_or_else(|_| cacert.clone());
                text += &format!("cacert = {}\n", quoted(&cacert.to_string_lossy()));
            }
        }
        // The old text may end in such a way that nothing can be appended.
        ConfigFile::parse(&text, &self.config).map_err(|cause| {
            let what = format!("Cannot add a profile to {}", self.config.display());
            let error = Error::new(ErrorKind::Usage, what);
            error
                .hint_to("Edit it, or choose another name")
                .because(cause)
        })?;
        Ok((text, is_own))
    }

    /// Writes the key file first, and then the config, which refers to it.
    fn write(&self, config: &str, user: &str, key: &str) -> Result<()> {
        let directory = crate::filesystem::directory_of(&self.config);
        private_directory(directory).map_err(cannot_write(directory))?;
        let line = Zeroizing::new(format!("{user}:{key}\n"));
        replace(&self.key_file, Access::Private, line.as_bytes())
            .map_err(cannot_write(&self.key_file))?;
        let is_same = self.old.as_ref().is_some_and(|(text, _)| text == config);
        match is_same {
            true => Ok(()),
            false => replace(&self.config, Access::Private, config.as_bytes())
                .map_err(cannot_write(&self.config)),
        }
    }
}

/// The user in a key file; `None` if there is none, or the file cannot be used.
fn user_in(key_file: &Path) -> Option<String> {
    let text = read_secret("key", key_file).ok()?;
    let (user, key) = Credentials::split(text.trim());
    (key.is_some() && user.parse::<Uuid>().is_ok()).then(|| user.to_owned())
}

async fn run(arguments: &LoginArguments, mut stop: Stop) -> Result<CommandOutput> {
    let plan = Plan::of(arguments)?;
    let is_asking = std::io::stdin().is_terminal();
    let endpoint = match arguments.endpoint.as_ref().or(plan.endpoint.as_ref()) {
        Some(endpoint) => endpoint_of(endpoint)?,
        None if is_asking => ENDPOINT.ask(None, endpoint_of, &mut stop).await?,
        None => return Err(ENDPOINT.unanswered()),
    };
    // Checked before the user is asked for anything else.
    let (config, is_default) = plan.extended(&arguments.name, &endpoint, arguments.default)?;
    let user = arguments.user.as_deref().map(user_of).transpose()?;
    let (user, key) = match is_asking {
        true => ask_user_and_key(user, &plan, &mut stop).await?,
        false => {
            let line = stop.unless_asked(prompt::line()).await?;
            read_user_and_key(user, &plan, &line)?
        }
    };
    let credentials = Credentials::new(&user, &**key)?;
    let drives = check(&plan, &endpoint, &credentials, &mut stop).await?;
    plan.write(&config, &user, &key)?;
    let mut text = format!(
        "{endpoint} accepts you; you have {} there\nProfile {:?} is in {}",
        counted(drives as u64, "drive"),
        arguments.name,
        plan.config.display()
    );
    let replaced = plan.default().filter(|other| *other != arguments.name);
    text += &match (is_default, replaced) {
        (true, Some(other)) => format!(", and is the default in place of {other:?}\n"),
        (true, None) => ", and is the default\n".to_owned(),
        (false, _) => format!("; use it with --profile {}\n", arguments.name),
    };
    for variable in ["OHURI", "EHURI", "OHAUTH", "EHAUTH"] {
        if environment::variable(&[variable])?.is_some() {
            text += &format!(
                "{variable} is set, and goes before the default profile: unset it, or use --profile {}\n",
                arguments.name
            );
        }
    }
    let lines: Vec<_> = text
        .lines()
        .flat_map(|line| screen::stdout_lines(line, 0))
        .collect();
    Ok(CommandOutput::new(lines.join("\n") + "\n", Value::Null))
}

/// Asks for the key on the terminal, and for the user if none is given.
async fn ask_user_and_key(
    user: Option<String>,
    plan: &Plan,
    stop: &mut Stop,
) -> Result<(String, Zeroizing<String>)> {
    let user = match user {
        Some(user) => user,
        None => USER.ask(plan.user.as_deref(), user_of, stop).await?,
    };
    let question = prompt::secret(prompt::SECRET_KEY.to_owned());
    let line = stop.unless_asked(question).await?;
    let key = key_of(&user, &line)?;
    Ok((user, key))
}

/// The user and the key if this line of stdin is the key, or both as `UUID:KEY`.
fn read_user_and_key(
    user: Option<String>,
    plan: &Plan,
    line: &str,
) -> Result<(String, Zeroizing<String>)> {
    let user = match (user, user_and_key(line)) {
        (Some(user), _) => user,
        (None, Ok((user, Some(key)))) => return Ok((user, key)),
        (None, _) => plan.user.clone().ok_or_else(|| USER.unanswered())?,
    };
    let key = key_of(&user, line)?;
    Ok((user, key))
}

/// The UUID of a user, from the command line or the terminal: both would show a key.
///
/// # Errors
/// [`ErrorKind::Usage`]. The value is not quoted, because it may be, or contain, the key.
fn user_of(text: &str) -> Result<String> {
    match user_and_key(text)? {
        (user, None) => Ok(user),
        (_, Some(_)) => Err(Error::new(
            ErrorKind::Usage,
            "The user is only the part before the colon",
        )
        .hint_to("Give the UUID as the user; the key is asked for separately")),
    }
}

/// A user, and the key if it follows after a colon, as servers and profiles show them.
///
/// # Errors
/// [`ErrorKind::Usage`], without the value, as for [`user_of`].
fn user_and_key(text: &str) -> Result<(String, Option<Zeroizing<String>>)> {
    let (user, key) = Credentials::split(text.trim());
    if user.parse::<Uuid>().is_err() {
        return Err(
            Error::new(ErrorKind::Usage, "The value is not the UUID of a user")
                .hint_to("The provider shows it beside the secret API key"),
        );
    }
    let key = key.filter(|key| !key.is_empty());
    Ok((
        user.to_owned(),
        key.map(|key| Zeroizing::new(key.to_owned())),
    ))
}

/// The key of this user, which may follow after the user.
///
/// # Errors
/// [`ErrorKind::Usage`] if there is none.
fn key_of(user: &str, line: &str) -> Result<Zeroizing<String>> {
    let line = line.trim();
    let key = line.strip_prefix(&format!("{user}:")).unwrap_or(line);
    if key.is_empty() {
        return Err(
            Error::new(ErrorKind::Usage, "The secret API key is missing")
                .hint_to("Type it when it is asked for, or give it as the first line of stdin"),
        );
    }
    Ok(Zeroizing::new(key.to_owned()))
}

/// Parses an endpoint URI; if only the scheme is missing, the hint adds it.
fn endpoint_of(text: &str) -> Result<Endpoint> {
    let text = text.trim();
    if text.contains("://") || text.contains('@') {
        return text.parse();
    }
    let is_host = text.contains('.') || text.starts_with("localhost") || text.starts_with('[');
    // Neither a key nor a user and a key may be printed.
    if user_and_key(text).is_ok() || !is_host {
        let what = "The value is not the URI of an endpoint";
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("It begins with https://, and the user and the key are asked for after it"));
    }
    let what = format!("The endpoint {text:?} has no scheme");
    Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
        "Use https://{text}, or http://{text} for a server on this machine"
    )))
}

/// Lists the drives of the user with these credentials, and returns their number.
async fn check(
    plan: &Plan,
    endpoint: &Endpoint,
    credentials: &Credentials,
    stop: &mut Stop,
) -> Result<usize> {
    if !endpoint.is_loopback() {
        proxies::check_proxies()?;
    }
    let mut route = access::route()?;
    route.endpoint_from = Some("openhosting login".to_owned());
    let config = ClientConfig {
        certificates: plan
            .cacert
            .as_deref()
            .map(access::certificates)
            .transpose()?,
        route,
        ..wait_lines::config()
    };
    let client = Client::new(endpoint.clone(), credentials, &config)?;
    let patience = wait_lines::patience();
    let mut drives = std::collections::BTreeSet::new();
    let list = each_drive(&client, &patience, async |drive| {
        drives.insert(drive.id);
    });
    let list = stop.unless_asked(list);
    let listed = patience.watching(&mut WaitLines(FORM.program), list).await;
    listed.map_err(|cause| {
        let kind = cause.kind();
        let error = Error::new(kind, "Nothing was stored").because_of(cause);
        match kind {
            ErrorKind::Unauthenticated => error.hint_to("Check the user UUID and the key"),
            _ => error,
        }
    })?;
    Ok(drives.len())
}

/// A question on the terminal.
struct Question {
    what: &'static str,
    /// How to answer it without a terminal.
    instead: &'static str,
}

const ENDPOINT: Question = Question {
    what: "Endpoint URI",
    instead: "Pass --endpoint URI",
};
const USER: Question = Question {
    what: "User UUID",
    instead: "Pass --user UUID, or give UUID:KEY as the first line of stdin",
};

impl Question {
    /// Asks until the answer can be parsed. The present value is the answer if the user types none.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] at the end of the input, and for no answer without a present value.
    async fn ask<T>(
        &self,
        present: Option<&str>,
        parse: impl Fn(&str) -> Result<T>,
        stop: &mut Stop,
    ) -> Result<T> {
        let shown = present.map_or(String::new(), |present| format!(" [{present}]"));
        loop {
            exit::ask(&format!("{}{shown}: ", self.what));
            let line = stop.unless_asked(prompt::line()).await?;
            let answer = match (line.trim(), present) {
                ("", Some(present)) if !line.is_empty() => present,
                ("", _) => {
                    let what = format!("{} is missing", self.what);
                    return Err(Error::new(ErrorKind::Usage, what).hint_to(self.instead));
                }
                (answer, _) => answer,
            };
            match parse(answer) {
                Ok(value) => return Ok(value),
                Err(error) => exit::print_error(FORM.program, &error),
            }
        }
    }

    /// The error if nobody can be asked.
    fn unanswered(&self) -> Error {
        let what = format!("{} is missing, and stdin is not a terminal", self.what);
        Error::new(ErrorKind::Usage, what).hint_to(self.instead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(old: Option<&str>) -> Plan {
        let config = PathBuf::from("/c/config.toml");
        Plan {
            user: None,
            old: old.map(|text| {
                let parsed = ConfigFile::parse(text, &config).unwrap();
                (text.to_owned(), parsed)
            }),
            key_file: "/c/work.key".into(),
            endpoint: None,
            cacert: None,
            config,
        }
    }

    #[test]
    fn login_preserves_the_rest_of_the_config() {
        let endpoint: Endpoint = "https://h/".parse().unwrap();
        let (text, is_default) = plan(None).extended("work", &endpoint, false).unwrap();
        let expected = "default = \"work\"\n\n[profiles.work]\nendpoint = \"https://h/\"\ncredentials.file = \"work.key\"\n";
        assert_eq!(text, expected);
        assert!(is_default);
        // The last line is a comment and has no line end.
        let old = "default = \"a\" # mine\n[profiles.a]\nendpoint = \"https://a/\"";
        let (text, is_default) = plan(Some(old)).extended("work", &endpoint, false).unwrap();
        assert!(
            text.starts_with(old) && text.contains("\n[profiles.work]\n"),
            "{text}"
        );
        assert!(!is_default);
        let (text, is_default) = plan(Some(old)).extended("work", &endpoint, true).unwrap();
        let switched = old.replace("\"a\" #", "\"work\" #");
        assert!(is_default && text.starts_with(&switched), "{text}");
        // A profile, but no default.
        let old = "[profiles.a]\nendpoint = \"https://a/\"\n";
        let (text, is_default) = plan(Some(old)).extended("work", &endpoint, false).unwrap();
        assert!(is_default && text.contains(old), "{text}");
        // Nothing can be added to an inline table.
        let old = "profiles = { a = { endpoint = \"https://a/\" } }\n";
        let error = plan(Some(old))
            .extended("work", &endpoint, false)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_user_and_a_key_may_be_given_together() {
        const USER: &str = "b7d6a1c0-2a32-4c4e-9c5b-3f4d1f3f8a11";
        let read = |given: Option<&str>, known: Option<&str>, line: &str| {
            let plan = Plan {
                user: known.map(str::to_owned),
                ..plan(None)
            };
            let read = read_user_and_key(given.map(str::to_owned), &plan, line);
            read.map(|(user, key)| (user, key.to_string())).ok()
        };
        let both = Some((USER.to_owned(), "key".to_owned()));
        let line = format!("{USER}:key\n");
        for (given, known, line) in [
            (None, None, &*line),
            (Some(USER), None, &line),
            (Some(USER), None, "key\n"),
            (None, Some(USER), "key\n"),
            (None, Some(USER), &line),
        ] {
            assert_eq!(read(given, known, line), both, "{given:?} {known:?} {line}");
        }
        for line in ["key\n", "\n", "", "x:key\n", &format!("{USER}:\n")] {
            assert_eq!(read(None, None, line), None, "{line}");
        }
        assert_eq!(read(Some(USER), None, &format!("{USER}:\n")), None);
        // A key in the command line is visible to others.
        assert!(user_of(USER).is_ok() && user_of(line.trim()).is_err());
    }

    #[test]
    fn a_name_is_a_key_and_a_file() {
        assert!(profile_name("a-b_C9").is_ok());
        for name in ["", "a b", "a/b", "..", "a.b", "ä"] {
            assert!(profile_name(name).is_err(), "{name:?}");
        }
    }
}
