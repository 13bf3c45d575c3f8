//! Remedies in the words of the command line: the flag, the variable or the command that does what
//! an error of the library advises.

use std::sync::{Mutex, OnceLock};

use super::{command_line, environment};
use crate::advice::{Advice, Remedy};
use crate::locks;
use crate::quoting::quote;

/// Where the endpoint of this run is defined.
static ENDPOINT_FROM: OnceLock<String> = OnceLock::new();

/// The command that was called, as its parser describes it.
static COMMAND: Mutex<Option<fn() -> clap::Command>> = Mutex::new(None);

/// From now on, advice names flags of this command only.
pub(super) fn command_is(command: fn() -> clap::Command) {
    *locks::lock(&COMMAND) = Some(command);
}

/// Whether the command that was called has a flag. A test without a command has all of them.
fn has(flag: &str) -> bool {
    let command = *locks::lock(&COMMAND);
    command.is_none_or(|command| {
        command()
            .get_arguments()
            .any(|it| it.get_long() == Some(flag))
    })
}

/// Where the credentials of this run are defined.
static CREDENTIALS_FROM: OnceLock<String> = OnceLock::new();

/// From now on, advice about the credentials names this place.
pub(super) fn credentials_are_from(place: String) {
    let _ = CREDENTIALS_FROM.set(place);
}

/// The flags with which this run reaches the endpoint, each after a space.
static ACCESS: OnceLock<String> = OnceLock::new();

/// From now on, commands in advice have these flags.
pub(super) fn access_is(flags: String) {
    let _ = ACCESS.set(flags);
}

/// A command of `openhosting` with the flags of [`access_is`].
fn command(word: &str) -> String {
    let flags = ACCESS.get().map_or("", String::as_str);
    format!("openhosting {word}{flags}")
}

/// From now on, advice about the endpoint names this place: a flag, a variable, or a profile.
pub(super) fn endpoint_is_from(place: &str) {
    let text = match place.starts_with("the profile") {
        true => format!("the endpoint of {place}"),
        false => place.to_owned(),
    };
    let _ = ENDPOINT_FROM.set(text);
}

/// Advice with the flags of its remedies.
pub(super) fn worded(advice: &Advice) -> String {
    let lacks = |remedy: &Remedy| match remedy {
        Remedy::CompareWithDrive(_) => !has("resume-from-drive"),
        Remedy::JournalElsewhere => !has("journal"),
        Remedy::LongerOutage(_) => !has("max-outage"),
        Remedy::ChangedOk => !has("changed-ok"),
        Remedy::Restart => !has("restart"),
        _ => false,
    };
    advice.without(lacks).worded(flag)
}

/// The program that uploads, as the user calls it.
fn upload() -> &'static str {
    match command_line::is_one_program() {
        true => "openhosting upload",
        false => "openhosting-upload",
    }
}

/// The name of a file as a word that is no flag.
fn file(path: &str) -> String {
    match path.starts_with('-') {
        true => quote(&format!("./{path}")),
        false => quote(path),
    }
}

fn flag(remedy: &Remedy) -> String {
    let words = match remedy {
        Remedy::Restart => "--restart",
        Remedy::ChangedOk => "--changed-ok",
        Remedy::JournalElsewhere if has("journal") => "--journal PATH",
        Remedy::JournalElsewhere => environment::STATE_HOME,
        Remedy::CompareWithDrive(Some(id)) => return format!("--resume-from-drive {id}"),
        Remedy::CompareWithDrive(None) => "--resume-from-drive UUID",
        Remedy::EarlierDrive(id) => return format!("{} {id} FILE", command("download")),
        Remedy::SameOptions => "flags",
        Remedy::GiveSize => "--size",
        Remedy::AllowLive => "--allow-live",
        Remedy::Force => "--force",
        Remedy::LongerOutage(outage) => {
            let outage = humantime::format_duration(*outage).to_string();
            return format!("--max-outage {}", outage.replace(' ', ""));
        }
        Remedy::CheckEndpoint => match ENDPOINT_FROM.get() {
            Some(from) => from,
            None => "OHURI or the profile's endpoint",
        },
        Remedy::Endpoint(endpoint) => return format!("--endpoint {}", quote(endpoint)),
        Remedy::CheckCredentials => match CREDENTIALS_FROM.get() {
            Some(from) => from,
            None => "OHAUTH, or the profile's credentials",
        },
        Remedy::ListDrives => return command("ls"),
        Remedy::TrustCertificate => "--cacert FILE",
        Remedy::ClientCertificate if !has("cert") => "the profile's cert and key",
        Remedy::ClientCertificate => "--cert FILE and --key FILE, or the profile's cert and key",
        Remedy::NameReaders => "--readers all, or --readers UUID,UUID",
        Remedy::Join => "--join",
        Remedy::CleanUp => "--cleanup",
        Remedy::WriteReceipt => "\"openhosting publish --receipt FILE\"",
        Remedy::DataDirectory => "--data DIR, or --local DIR of the tools",
        Remedy::ServerCertificate => "--tls-self-signed, or --tls-cert and --tls-key",
        Remedy::InsecureListen => "--insecure-listen",
        Remedy::Format(format) => return format!("--format {format}"),
        Remedy::ChooseDisk => "--disk NAME",
        Remedy::Disk(name) => return format!("--disk {}", quote(name)),
        Remedy::NameDisk => "--disk",
        Remedy::AllowBacking => "--allow-backing",
        Remedy::ListOfDigests if !has("sha256-file") => {
            return format!("{} --sha256-file", upload());
        }
        Remedy::ListOfDigests => "--sha256-file",
        Remedy::File => "a file",
        Remedy::Upload(path) => return format!("{} {}", upload(), file(path)),
        Remedy::UploadDisk { disk, archive } => {
            return format!("{} --disk {} {}", upload(), quote(disk), file(archive));
        }
        Remedy::UploadOutput => return format!("{} --format raw -", upload()),
        Remedy::UploadStdin(name) => {
            let name = name.as_deref().map_or("NAME".into(), quote);
            return format!("{} -n {name} -", upload());
        }
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use openhosting_base::advice;

    #[test]
    fn a_remedy_is_a_flag_that_can_be_pasted() {
        let advice = advice![
            "Wait with ",
            Remedy::LongerOutage(Duration::from_secs(5400)),
            " for ",
            Remedy::UploadDisk {
                disk: "it's a\tb.img".into(),
                archive: "-a b.zip".into()
            },
            " or ",
            Remedy::Disk("plain".into())
        ];
        assert_eq!(
            worded(&advice),
            r"Wait with --max-outage 1h30m for openhosting-upload --disk $'it\'s a\x09b.img' './-a b.zip' or --disk plain"
        );
    }
}
