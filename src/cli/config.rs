//! The config file (docs/user/configuration.md). It contains profiles, which are named settings. It
//! says where credentials are, and never contains them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::{environment, quote, secret_files};
use crate::error::{Error, ErrorKind, Result};

/// The keys of a profile.
const KEYS: &str = "endpoint, credentials, cacert, cert and cert-key";
/// The ways to refer to credentials.
const REFERENCES: &str = "credentials.file = \"FILE\", a file with one line UUID:KEY that nobody else may read; \
     or credentials.env = \"VARIABLE\", or credentials.command = [\"PROGRAM\", \"ARGUMENT\"]";
/// Maximum bytes that a command may print. It prints one line with credentials, and maybe a few
/// comments.
const PRINTED_BYTES_MAX: u64 = 64 << 10;
/// Keys under which somebody might store the secret itself, which is refused.
const SECRETS: [&str; 9] = [
    "auth", "ehauth", "key", "ohauth", "pass", "password", "secret", "token", "user",
];

/// The content of the file.
pub(super) struct ConfigFile {
    path: PathBuf,
    /// The profile that is used if none is selected.
    pub(super) default: Option<String>,
    profiles: BTreeMap<String, Profile>,
}

/// Settings with a name.
#[derive(Clone, Default)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) endpoint: Option<String>,
    pub(super) credentials: Option<Reference>,
    pub(super) files: TlsFiles,
}

/// Files for TLS.
#[derive(Clone, Default)]
pub(super) struct TlsFiles {
    /// The certificates, one of which must have signed that of the endpoint.
    pub(super) cacert: Option<PathBuf>,
    /// The client certificate.
    pub(super) cert: Option<PathBuf>,
    /// Its key, if that is not in the same file.
    pub(super) key: Option<PathBuf>,
}

/// Where credentials are. It has no Debug, because somebody may have written a secret into the
/// words.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Reference {
    /// A file with one line `UUID:KEY`, which other users must not be able to read.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// A program and its arguments. The first line that it prints are the credentials.
    Command(Vec<String>),
}

impl ConfigFile {
    /// Reads the config. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if other users may write to it, or its content is invalid.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        Ok(Self::open_with_text(path)?.map(|(_, config)| config))
    }

    /// As [`open`](Self::open), with the text of the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_with_text(path: &Path) -> Result<Option<(String, Self)>> {
        if let Ok(false) = path.try_exists() {
            return Ok(None);
        }
        let text = secret_files::read_trusted("config", path)?;
        let config = Self::parse(&text, path)?;
        Ok(Some((text.to_string(), config)))
    }

    /// The profile with this name, if it exists.
    pub(super) fn find(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    pub(super) fn parse(text: &str, path: &Path) -> Result<Self> {
        let source = ConfigText { text, path };
        let document = DeTable::parse(text).map_err(|error| {
            // The error's own message quotes the line, which may contain a secret.
            source.wrong(error.span().unwrap_or_default(), error.message())
        })?;
        let mut config = Self {
            path: path.to_owned(),
            default: None,
            profiles: BTreeMap::new(),
        };
        for (key, value) in document.get_ref() {
            match key.get_ref().as_ref() {
                "default" => config.default = Some(source.text(value)?.to_owned()),
                "profiles" => {
                    for (name, value) in source.table(value)? {
                        let name = name.get_ref().to_string();
                        let profile = source.profile(&name, source.table(value)?)?;
                        config.profiles.insert(name, profile);
                    }
                }
                other => {
                    let what = format!("there is no key {other:?}, only default and profiles");
                    return Err(source.wrong(key.span(), &what));
                }
            }
        }
        Ok(config)
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all profiles.
    pub(super) fn into_names(self) -> Vec<String> {
        self.profiles.into_keys().collect()
    }

    /// The profile with this name. `named_by` says what selected it, for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], with the names of all profiles, if it does not exist.
    pub(super) fn profile(&self, name: &str, named_by: &str) -> Result<&Profile> {
        self.profiles.get(name).ok_or_else(|| {
            let path = self.path.display();
            let what = format!("There is no profile {name:?}, which {named_by} names, in {path}");
            let names: Vec<_> = self.profiles.keys().map(String::as_str).collect();
            Error::new(ErrorKind::Usage, what).hint_to(match names.as_slice() {
                [] => "It has no profile at all".to_owned(),
                names => format!("Its profiles are: {}", names.join(", ")),
            })
        })
    }
}

/// A text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The text of a config in which `name` is the default profile, and all else is as before.
pub(super) fn with_default(text: &str, name: &str) -> String {
    let document = DeTable::parse(text);
    let default = document.ok().and_then(|document| {
        let mut keys = document.get_ref().iter();
        let (_, value) = keys.find(|(key, _)| &**key.get_ref() == "default")?;
        Some(value.span())
    });
    let name = quoted(name);
    match default {
        Some(span) => {
            let mut text = text.to_owned();
            text.replace_range(span, &name);
            text
        }
        // Keys outside of all tables must precede the first table.
        None => format!("default = {name}\n{text}"),
    }
}

/// The text of a config, for messages that contain the number of the line.
struct ConfigText<'t> {
    text: &'t str,
    path: &'t Path,
}

type Value<'t> = toml::Spanned<DeValue<'t>>;

impl ConfigText<'_> {
    fn wrong(&self, at: Range<usize>, what: &str) -> Error {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let path = self.path.display();
        Error::new(
            ErrorKind::Usage,
            format!("Line {line} of the config {path} is wrong: {what}"),
        )
    }

    fn text<'v>(&self, value: &'v Value<'_>) -> Result<&'v str> {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty());
        text.ok_or_else(|| self.wrong(value.span(), "a text in quotes is needed here"))
    }

    fn table<'v, 'd>(&self, value: &'v Value<'d>) -> Result<&'v DeTable<'d>> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.wrong(value.span(), "a table is needed here"))
    }

    /// A path, which is relative to the directory of the config unless it is absolute.
    fn file(&self, value: &Value<'_>) -> Result<PathBuf> {
        let text = self.text(value)?;
        match text.strip_prefix("~/") {
            Some(below) => environment::home()
                .map(|home| home.join(below))
                .ok_or_else(|| self.wrong(value.span(), "~ stands for HOME, which is not set")),
            None => Ok(self.path.parent().unwrap_or(Path::new("")).join(text)),
        }
    }

    fn profile(&self, name: &str, table: &DeTable<'_>) -> Result<Profile> {
        let mut profile = Profile {
            name: name.to_owned(),
            ..Profile::default()
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "endpoint" => profile.endpoint = Some(self.text(value)?.to_owned()),
                "cacert" => profile.files.cacert = Some(self.file(value)?),
                "cert" => profile.files.cert = Some(self.file(value)?),
                "cert-key" => profile.files.key = Some(self.file(value)?),
                "credentials" => profile.credentials = Some(self.reference(value)?),
                secret if SECRETS.contains(&secret) => return Err(self.secret(key.span())),
                other => {
                    let what = format!("a profile has no key {other:?}, only {KEYS}");
                    return Err(self.wrong(key.span(), &what));
                }
            }
        }
        Ok(profile)
    }

    fn secret(&self, at: Range<usize>) -> Error {
        self.wrong(
            at,
            "credentials are not written into the config, which only says where they are",
        )
        .hint_to(format!("Write {REFERENCES}"))
    }

    fn reference(&self, value: &Value<'_>) -> Result<Reference> {
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.secret(value.span()));
        };
        let mut references = table.iter();
        let (Some((key, value)), None) = (references.next(), references.next()) else {
            let what = "credentials are in one place: a file, a variable, or a command";
            return Err(self
                .wrong(value.span(), what)
                .hint_to(format!("Write {REFERENCES}")));
        };
        match key.get_ref().as_ref() {
            "file" => Ok(Reference::File(self.file(value)?)),
            "env" => {
                let name = self.text(value)?;
                let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                if !is_name {
                    // The value is not quoted, because it may be the secret itself.
                    return Err(self.wrong(value.span(), "env takes the name of a variable"));
                }
                Ok(Reference::Variable(name.to_owned()))
            }
            "command" => {
                let what = "command takes a program and its arguments, as in [\"pass\", \"show\", \"cloud\"]";
                let wrong = || self.wrong(value.span(), what);
                let words = value.get_ref().as_array().ok_or_else(wrong)?;
                let words = words.iter().map(|word| self.text(word).map(str::to_owned));
                let words: Vec<_> = words.collect::<Result<_>>()?;
                if words.is_empty() {
                    return Err(wrong());
                }
                Ok(Reference::Command(words))
            }
            secret if SECRETS.contains(&secret) => Err(self.secret(key.span())),
            other => {
                let what = format!("credentials have no {other:?}, only file, env or command");
                Err(self.wrong(key.span(), &what))
            }
        }
    }
}

impl Reference {
    /// Fetches the credentials: `UUID:KEY`, or `UUID` alone.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if their file cannot be read, [`ErrorKind::Usage`] if they cannot be used.
    /// No message quotes them.
    pub(super) async fn fetch(&self, profile: &str) -> Result<Zeroizing<String>> {
        let text = match self {
            Self::File(path) => {
                let read = secret_files::read_secret("credentials", path);
                read.map_err(|error| match path.exists() {
                    true => error,
                    false => error.hint_to(format!(
                        "Store them again: openhosting login {}",
                        quote(profile)
                    )),
                })?
            }
            Self::Variable(name) => return environment::variable(&[name])?
                .map(Zeroizing::new)
                .ok_or_else(|| {
                    let what = format!(
                        "The credentials of the profile {profile:?} are in {name}, which is not set"
                    );
                    Error::new(ErrorKind::Usage, what)
                        .hint_to(format!("Set {name}=<user uuid>:<secret API key>"))
                }),
            Self::Command(words) => run(words, profile).await?,
        };
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'));
        line.map(|line| Zeroizing::new(line.to_owned()))
            .ok_or_else(|| {
                let what = match self {
                    Self::File(path) => format!("{} is empty", path.display()),
                    _ => "the command printed nothing".to_owned(),
                };
                let what = format!("There are no credentials of the profile {profile:?}: {what}");
                Error::new(ErrorKind::Usage, what)
                    .hint_to("One line is needed: <user uuid>:<secret API key>")
            })
    }
}

/// Runs a command that prints credentials. The command may ask on the terminal. It is killed when
/// the future is dropped.
async fn run(words: &[String], profile: &str) -> Result<Zeroizing<String>> {
    let [program, arguments @ ..] = words else {
        return Err(Error::new(ErrorKind::Bug, "A command without a program"));
    };
    // Its arguments are not quoted, because they may contain a secret.
    let cannot = |why: &dyn std::fmt::Display| {
        let mut what = format!("Cannot get the credentials of the profile {profile:?}: ");
        let _ = write!(what, "the command {program:?} {why}");
        Error::new(ErrorKind::Usage, what)
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| cannot(&"cannot be run").because(cause))?;
    let failed = |cause| cannot(&"cannot be read from").because(cause);
    let mut stdout = Zeroizing::new(Vec::new());
    if let Some(output) = child.stdout.take() {
        let mut output = output.take(PRINTED_BYTES_MAX + 1);
        output.read_to_end(&mut stdout).await.map_err(failed)?;
    }
    if stdout.len() as u64 > PRINTED_BYTES_MAX {
        // Dropping the process kills it.
        return Err(cannot(&format_args!(
            "printed more than {PRINTED_BYTES_MAX} bytes, which are no credentials"
        )));
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() {
        return Err(cannot(&format_args!("ended with {status}")));
    }
    let text = std::str::from_utf8(&stdout);
    text.map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| cannot(&"printed what is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile> {
        ConfigFile::parse(text, Path::new("/etc/oh/config.toml"))
    }

    #[test]
    fn a_profile_names_the_source_of_its_credentials() {
        let text = r#"
            default = "work"
            [profiles.work]
            endpoint = "https://h/"
            credentials.file = "work.key"
            cacert = "/ca.pem"
            [profiles.ci]
            credentials = { env = "CI_AUTH" }
            [profiles."a b"]
            credentials.command = ["pass", "show", "x"]
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.default.as_deref(), Some("work"));
        let of = |name| config.profile(name, "--profile").unwrap();
        let file = Reference::File("/etc/oh/work.key".into());
        assert!(of("work").credentials == Some(file));
        assert_eq!(of("work").endpoint.as_deref(), Some("https://h/"));
        assert_eq!(
            of("work").files.cacert.as_deref(),
            Some(Path::new("/ca.pem"))
        );
        assert!(of("ci").credentials == Some(Reference::Variable("CI_AUTH".into())));
        let words = ["pass", "show", "x"].map(str::to_owned);
        assert!(of("a b").credentials == Some(Reference::Command(words.into())));
        let error = config.profile("home", "--profile").err().unwrap();
        assert_eq!(
            error.to_string(),
            "There is no profile \"home\", which --profile names, in /etc/oh/config.toml"
        );
        let hint = error.hint().unwrap().to_string();
        assert_eq!(hint, "Its profiles are: a b, ci, work");
    }

    #[test]
    fn a_secret_in_the_config_is_refused_and_not_shown() {
        for line in [
            "credentials = \"u:canary\"",
            "credentials.key = \"canary\"",
            "credentials.secret = \"canary\"",
            "credentials.env = \"u:canary\"",
            "credentials.command = \"echo u:canary\"",
            "credentials.file = \"x\"\ncredentials.env = \"canary\"",
            "key = \"canary\"",
            "ohauth = \"u:canary\"",
            "password = 'canary'",
            "credentials = \"u:canary",
            "credentials = u:canary",
        ] {
            let error = parse(&format!("[profiles.p]\n{line}\n")).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Usage, "{line}");
            let all = format!("{} {:?}", error.chain(), error.hint());
            assert!(!all.contains("canary"), "{all}");
            let place = "Line 2 of the config /etc/oh/config.toml is wrong: ";
            assert!(all.starts_with(place), "{line}: {all}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for (text, line, what) in [
            ("defaults = 1", 1, "there is no key \"defaults\""),
            ("\n\ndefault = 1", 3, "a text in quotes"),
            ("profiles = 1", 1, "a table"),
            ("[profiles]\nx = 1", 2, "a table"),
            ("[profiles.x]\nurl = 1", 2, "a profile has no key \"url\""),
            ("[profiles.x]\nendpoint = \"\"", 2, "a text in quotes"),
            (
                "[profiles.x]\ncredentials.vault = \"\"",
                2,
                "credentials have no \"vault\"",
            ),
            (
                "[profiles.x]\ncredentials.command = []",
                2,
                "command takes a program",
            ),
            ("[profiles.x]\n[profiles.x]", 2, ""),
        ] {
            let error = parse(text).err().unwrap().to_string();
            let begin = format!("Line {line} of the config /etc/oh/config.toml is wrong: {what}");
            assert!(error.starts_with(&begin), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn the_command_that_stores_credentials_again_can_be_pasted() {
        let file = Reference::File("/nosuch/a b.key".into());
        let error = file.fetch("a b").await.unwrap_err();
        assert_eq!(
            error.hint().unwrap().to_string(),
            "Store them again: openhosting login 'a b'"
        );
    }

    #[tokio::test]
    async fn a_command_prints_credentials_or_says_why_not() {
        let fetch = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            async move { Reference::Command(words).fetch("p").await }
        };
        let printed = fetch(&["printf", "\n# x\nu:k\nmore\n"]).await.unwrap();
        assert_eq!(*printed, "u:k");
        for (words, why) in [
            (&["true"][..], "the command printed nothing"),
            (&["false", "canary"], "\"false\" ended with exit status: 1"),
            (&["/nosuch", "canary"], "\"/nosuch\" cannot be run: No such"),
            (&["printf", "\\377"], "printed what is no text"),
            (&["yes"], "\"yes\" printed more than 65536 bytes"),
        ] {
            let error = fetch(words).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.chain().contains(why), "{}", error.chain());
            assert!(!error.chain().contains("canary"), "{}", error.chain());
        }
    }
}
