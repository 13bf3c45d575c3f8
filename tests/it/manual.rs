//! `openhosting completions` and `openhosting man`: how shells and man interpret them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::cli::{DOWNLOAD, Desk, SIMPLE, Tool, UPLOAD};
use crate::support::http::Ask;
use crate::support::needs::{Need, needs};
use crate::support::server::TestServer;

const SERVER: &str = env!("CARGO_BIN_EXE_openhosting-server");
/// Each tool and command: how to run it, and its page.
const ALL: &[(&str, &[&str], &str)] = &[
    (SIMPLE, &[], "openhosting"),
    (SIMPLE, &["api"], "openhosting-api"),
    (SIMPLE, &["completions"], "openhosting-completions"),
    (SIMPLE, &["doctor"], "openhosting-doctor"),
    (SIMPLE, &["download"], "openhosting-download"),
    (SIMPLE, &["image"], "openhosting-image"),
    (SIMPLE, &["image", "info"], "openhosting-image-info"),
    (SIMPLE, &["login"], "openhosting-login"),
    (SIMPLE, &["ls"], "openhosting-ls"),
    (SIMPLE, &["man"], "openhosting-man"),
    (SIMPLE, &["probe"], "openhosting-probe"),
    (SIMPLE, &["publish"], "openhosting-publish"),
    (SIMPLE, &["rm"], "openhosting-rm"),
    (SIMPLE, &["server"], "openhosting-server"),
    (SIMPLE, &["show"], "openhosting-show"),
    (SIMPLE, &["upload"], "openhosting-upload"),
    (SIMPLE, &["verify"], "openhosting-verify"),
    (SIMPLE, &["version"], "openhosting-version"),
    (UPLOAD, &[], "openhosting-upload"),
    (DOWNLOAD, &[], "openhosting-download"),
    (SERVER, &[], "openhosting-server"),
];

/// The long flags that `--help` lists.
fn flags(desk: &Desk, tool: &str, command: &[&str]) -> BTreeSet<String> {
    let help = desk.tool(tool).list(command.iter().copied()).arg("--help");
    let help = help.run().code(0);
    let mut found = BTreeSet::new();
    for line in help.text().lines().map(str::trim_start) {
        let line = match line.strip_prefix('-') {
            // `-c, --chunk <CHUNK>`
            Some(short) if short.get(1..3) == Some(", ") => &line[4..],
            _ => line,
        };
        if let Some(flag) = line.strip_prefix("--") {
            let end = flag.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            found.insert(format!("--{}", &flag[..end.unwrap_or(flag.len())]));
        }
    }
    assert!(found.contains("--help"), "{found:?}");
    found
}

/// A shell that finds our programs.
fn shell<'a>(desk: &'a Desk, shell: &str) -> Tool<'a> {
    let programs = Path::new(SIMPLE).parent().unwrap().to_str().unwrap();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    desk.tool(shell).env("PATH", path).env("TERM", "dumb")
}

/// A profile `work` and the drives `nightly` and `night-2` at an endpoint.
fn things_to_complete(desk: &Desk) -> TestServer {
    let server = desk.server();
    std::fs::create_dir(desk.path("onlydir")).unwrap();
    for name in ["nightly", "night-2", "two words"] {
        let keys = format!("name {name}\nsize 1000\n");
        let _ = Ask::of(&server).post("/drives/create", keys).expect(200);
    }
    let config = desk.path("config/openhosting/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let profiles = "[profiles.work]\nendpoint = \"http://127.0.0.1:1/\"\n[profiles.other]\n";
    std::fs::write(&config, profiles).unwrap();
    server
}

/// What is typed, and its only completion.
const UNIQUE: &[(&str, &str)] = &[
    ("openhosting pub", "openhosting publish"),
    ("openhosting help verif", "openhosting help verify"),
    (
        "openhosting upload --verify fu",
        "openhosting upload --verify full",
    ),
    (
        "openhosting-upload --format vmd",
        "openhosting-upload --format vmdk",
    ),
    (
        "openhosting-server --log-format js",
        "openhosting-server --log-format json",
    ),
    (
        "openhosting ls --profile wo",
        "openhosting ls --profile work",
    ),
    (
        "openhosting download nightl",
        "openhosting download nightly",
    ),
    (
        "openhosting-upload -d nightl",
        "openhosting-upload -d nightly",
    ),
    (
        "openhosting image info lone",
        "openhosting image info lonely.img",
    ),
    (
        "openhosting verify --pubkey lone",
        "openhosting verify --pubkey lonely.img",
    ),
    (
        "openhosting server --data only",
        "openhosting server --data onlydir/",
    ),
    (
        "openhosting publish --base au",
        "openhosting publish --base auto",
    ),
    (
        "openhosting-upload --tier ss",
        "openhosting-upload --tier ssd",
    ),
    (
        "openhosting man --page openhosting-sh",
        "openhosting man --page openhosting-show",
    ),
    ("openhosting login wo", "openhosting login work"),
    ("openhosting man uplo", "openhosting man upload"),
    (
        "openhosting man openhosting-sh",
        "openhosting man openhosting-show",
    ),
];

/// What is typed, and the line that a shell makes of it: names of files are quoted where they need
/// to be, and no files are offered where none is expected.
const ON_THE_LINE: &[(&str, &str)] = &[
    (
        "openhosting upload two",
        r"openhosting upload two\ words.img",
    ),
    (
        r"openhosting upload two\ w",
        r"openhosting upload two\ words.img",
    ),
    (
        "openhosting upload ~/at",
        r"openhosting upload ~/at\ home.img",
    ),
    (
        "openhosting-upload --format=vmd",
        "openhosting-upload --format=vmdk",
    ),
    (
        "openhosting upload --local=only",
        "openhosting upload --local=onlydir/",
    ),
    (
        "openhosting upload $HOME/at",
        r"openhosting upload $HOME/at\ home.img",
    ),
    (
        "openhosting upload --jobs lone",
        "openhosting upload --jobs lone",
    ),
    (
        "openhosting server --data lone",
        "openhosting server --data lone",
    ),
];

/// The lines in `lines` as a shell completes them.
const BASH: &str = r#"
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "-i"])
def until(mark):
    seen = b""
    while mark not in seen:
        seen += os.read(fd, 65536)
    return seen
show = r"""bind -x '"\C-t": printf "\nGOT:%s:TOG\n" "$READLINE_LINE"; READLINE_LINE='"""
os.write(fd, f"PS1=; bind 'set enable-bracketed-paste off'; source all.bash; {show}; echo REA''DY\n".encode())
until(b"READY")
for line in open("lines", "rb"):
    os.write(fd, line.rstrip(b"\n") + b"\t\x14")
    shown = until(b":TOG").split(b"GOT:")[-1].split(b":TOG")[0]
    print(shown.decode().rstrip())
"#;

#[test]
fn bash_completes_commands_flags_and_values_of_all_tools() {
    let desk = Desk::new();
    let server = things_to_complete(&desk);
    desk.file("lonely.img", b"");
    let script = desk.tool(SIMPLE).args("completions bash").run().code(0);
    desk.file("all.bash", &script.stdout);
    let bash = |commands: &str| {
        let script = format!("set -eu; source all.bash; {commands}");
        let done = shell(&desk, "bash").args("--norc -c").arg(script);
        let done = done
            .env("OHURI", &server.uri)
            .env("XDG_CONFIG_HOME", desk.path("config"));
        let done = done.run().code(0);
        assert_eq!(done.stderr, "");
        done.text().to_owned()
    };
    let tools = "openhosting openhosting-upload openhosting-download openhosting-server";
    let bound = bash(&format!("complete -p {tools}"));
    assert_eq!(bound.lines().count(), 4, "{bound}");
    // The completions after these words, of which the last is incomplete.
    let offered = |words: &[&str]| {
        let (tool, last) = (words[0], words[words.len() - 1]);
        let before = words[words.len().saturating_sub(2)];
        let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let commands = format!(
            "set +eu; COMP_TYPE=9; COMP_WORDS=({}); COMP_CWORD={}; _clap_complete_{} {tool} '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words.len() - 1,
            tool.replace('-', "_"),
        );
        let offered = bash(&commands);
        offered.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    for (tool, command, _) in ALL {
        let name = Path::new(tool).file_name().unwrap().to_str().unwrap();
        let words: Vec<_> = [&[name][..], command, &["--"]].concat();
        assert_eq!(offered(&words), flags(&desk, tool, command), "{words:?}");
    }
    let cases: &[(&str, &[&str])] = &[
        ("openhosting p", &["probe", "publish"]),
        ("openhosting upload --holes ", &["read", "sample", "trust"]),
        ("openhosting publish --verify ", &["full", "none", "sample"]),
        (
            "openhosting-download --compress ",
            &["gz", "xz", "zlib", "zst", "zstd"],
        ),
        (
            "openhosting-upload --progress ",
            &["auto", "bar", "json", "none", "plain"],
        ),
        (
            "openhosting completions ",
            &["bash", "fish", "powershell", "zsh"],
        ),
        ("openhosting show --profile ", &["other", "work"]),
        ("openhosting show night", &["night-2", "nightly"]),
        ("openhosting rm -y nightly night-", &["night-2"]),
        (
            "openhosting api -j ",
            &["drives", "profile", "resources", "servers"],
        ),
        ("openhosting api drives ", &[]),
    ];
    for (line, expected) in cases {
        let words: Vec<_> = line.split(' ').collect();
        let values = offered(&words);
        let values: Vec<_> = values
            .iter()
            .filter(|word| !word.starts_with('-'))
            .collect();
        assert_eq!(values, *expected, "{line}");
    }
    for (line, expected) in UNIQUE {
        let words: Vec<_> = line.split(' ').collect();
        let last = expected.rsplit(' ').next().unwrap();
        assert_eq!(Vec::from_iter(offered(&words)), [last], "{line}");
    }
    // Flags are among the words only after a dash, or if nothing else can follow.
    for (line, expected) in [
        ("openhosting upload ", "lonely.img"),
        ("openhosting show ", "nightly"),
        ("openhosting ", "upload"),
        ("openhosting doctor ", "--profile"),
        ("openhosting show -", "--profile"),
    ] {
        let all = offered(&line.split(' ').collect::<Vec<_>>());
        assert!(all.contains(expected), "{line}: {all:?}");
        let mut flags = all.iter().filter(|word| word.starts_with("--"));
        assert_eq!(flags.next().is_some(), expected == "--profile", "{all:?}");
    }
    // A name that a shell would have to quote is offered by its UUID.
    let all = offered(&["openhosting", "show", ""]);
    let is_uuid = |word: &&String| uuid::Uuid::parse_str(word).is_ok();
    assert_eq!(all.iter().filter(is_uuid).count(), 1, "{all:?}");
    assert!(all.contains("nightly") && !all.contains("two"), "{all:?}");
}

#[test]
fn completions_print_nothing_without_an_endpoint() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    let script = desk.tool(SIMPLE).args("completions fish").run().code(0);
    assert!(
        script
            .text()
            .contains("OPENHOSTING_COMPLETE=fish openhosting -- ")
    );
    let ask = |uri: &str| {
        let tool = desk.simple(uri).env("OPENHOSTING_COMPLETE", "fish");
        tool.args("-- openhosting show x")
    };
    // No key, no endpoint, and an endpoint without a listener: no question, no error, no wait.
    let no_key = ask(&proxy.uri()).env("OHAUTH", &desk.user);
    for tool in [no_key, ask("").unset("OHURI"), ask("http://127.0.0.1:9/")] {
        let done = tool.run().code(0);
        assert_eq!((done.text(), &*done.stderr), ("", ""));
    }
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn scripts_are_written_where_shells_look_for_them() {
    let desk = Desk::new();
    let shells = [
        ("bash", ["openhosting.bash", "openhosting-upload.bash"]),
        ("zsh", ["_openhosting", "_openhosting-upload"]),
        ("fish", ["openhosting.fish", "openhosting-upload.fish"]),
    ];
    for (shell, names) in shells {
        let directory = format!("made/{shell}");
        let written = desk.tool(SIMPLE).args("completions").arg(shell);
        let written = written.arg(&directory).run().code(0);
        assert_eq!(written.text(), "");
        let files = std::fs::read_dir(desk.path(&directory)).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 4, "{files:?}");
        for name in names {
            assert!(desk.path(&directory).join(name).exists(), "{name}");
        }
        if needs(&[Need::Command(shell)]) {
            for file in files {
                let read = desk.tool(shell).arg("-n").arg(file).run().code(0);
                assert_eq!(read.stderr, "");
            }
        }
    }
    let _ = desk.tool(SIMPLE).args("completions tcsh").run().code(2);
}

/// Types each line and a key that completes it, and prints the resulting line.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
send() { zpty -w -n shell "$1" }
send $'PS1= PS2= RPS1=; unsetopt zle_bracketed_paste 2>/dev/null; autoload -U compinit; compinit -u -D\n'
send $'source all.zsh; show() { zle complete-word; print -r -- "GOT:$BUFFER:"; BUFFER= }; zle -N show; bindkey "^T" show\n'
send $'print READ"Y"\n'
zpty -r shell out '*READY*'
while read -r line; do
    send "$line"$'\x14'
    zpty -r shell out '*GOT:*:*'
    out=${out##*GOT:}
    print -r -- "${${out%%:*}%% }"
done < lines
"#;

#[test]
fn zsh_and_fish_complete_what_bash_does() {
    let desk = Desk::new();
    let server = things_to_complete(&desk);
    desk.file("lonely.img", b"");
    let lines: String = UNIQUE.iter().map(|(line, _)| format!("{line}\n")).collect();
    desk.file("lines", lines.as_bytes());
    let run = |name: &str, commands: &str| {
        let script = desk.tool(SIMPLE).args("completions").arg(name).run();
        desk.file(format!("all.{name}"), &script.code(0).stdout);
        let flags = if name == "zsh" {
            "-f -c"
        } else {
            "--no-config -c"
        };
        let tool = shell(&desk, name).args(flags).arg(commands);
        let tool = tool
            .env("OHURI", &server.uri)
            .env("XDG_CONFIG_HOME", desk.path("config"));
        tool.run().code(0).text().to_owned()
    };
    if needs(&[Need::Command("zsh")]) {
        let done = run("zsh", ZSH);
        let expected: Vec<_> = UNIQUE.iter().map(|(_, expected)| *expected).collect();
        assert_eq!(done.lines().collect::<Vec<_>>(), expected);
    }
    if needs(&[Need::Command("fish")]) {
        let commands = "source all.fish; while read -l line; complete -C $line; echo; end < lines";
        let done = run("fish", commands);
        let words = done.lines().filter(|line| !line.is_empty());
        let words: Vec<_> = words.map(|line| line.split('\t').next().unwrap()).collect();
        let last = UNIQUE
            .iter()
            .map(|(_, line)| line.rsplit(' ').next().unwrap());
        assert_eq!(words, last.collect::<Vec<_>>());
    }
    let script = desk
        .tool(SIMPLE)
        .args("completions powershell")
        .run()
        .code(0);
    assert_eq!(
        script.text().matches("Register-ArgumentCompleter").count(),
        4
    );
}

#[test]
fn names_of_files_are_quoted_and_offered_only_where_a_file_is_expected() {
    let desk = Desk::new();
    let server = things_to_complete(&desk);
    desk.file("lonely.img", b"");
    desk.file("two words.img", b"");
    desk.file("../home/at home.img", b"");
    let lines = ON_THE_LINE.iter().map(|(line, _)| format!("{line}\n"));
    desk.file("lines", lines.collect::<String>().as_bytes());
    let expected: Vec<_> = ON_THE_LINE.iter().map(|(_, expected)| *expected).collect();
    for (name, program, flags) in [("bash", "python3", "-c"), ("zsh", "zsh", "-f -c")] {
        if !needs(&[Need::Command(name), Need::Command(program)]) {
            continue;
        }
        let script = desk.tool(SIMPLE).args("completions").arg(name).run();
        desk.file(format!("all.{name}"), &script.code(0).stdout);
        let tool = shell(&desk, program).args(flags);
        let tool = tool.arg(if name == "bash" { BASH } else { ZSH });
        let done = tool.env("OHURI", &server.uri).run().code(0);
        let done: Vec<_> = done.text().lines().collect();
        assert_eq!(done, expected, "{name}");
    }
}

#[test]
fn short_help_fits_a_screen_and_long_help_has_examples() {
    let desk = Desk::new();
    for (tool, command, page) in ALL {
        let help = |flag: &str| {
            let tool = desk.tool(tool).list(command.iter().copied()).arg(flag);
            tool.env("COLUMNS", "80").run().code(0).text().to_owned()
        };
        let (short, long) = (help("-h"), help("--help"));
        // The list of all commands is not a list of flags.
        let most = if command.is_empty() && *tool == SIMPLE {
            40
        } else {
            24
        };
        let lines: Vec<_> = short.lines().collect();
        assert!(
            lines.len() <= most,
            "{page}: {} lines\n{short}",
            lines.len()
        );
        for line in lines {
            assert!(line.chars().count() <= 80, "{page}: {line}");
        }
        if *page != "openhosting" {
            assert!(
                long.contains("\nExamples:\n") && long.contains("\nExit codes:\n"),
                "{page}"
            );
            // A broken example would be two commands when it is pasted.
            let examples = long.split("\nExamples:\n").nth(1).unwrap();
            let examples = examples.split("\n\n").next().unwrap();
            for line in examples.lines() {
                let is_command = line.starts_with("      ");
                assert!(
                    !is_command || line.contains("openhosting"),
                    "{page}: {line}"
                );
            }
        }
        let man = desk.tool(SIMPLE).args("man --page").arg(page).run().code(0);
        for section in ["EXAMPLES", "\"EXIT STATUS\""] {
            let section = format!("\n.SH {section}\n");
            assert!(man.text().contains(&section), "{page}: no {section}");
        }
    }
}

#[test]
fn the_help_says_how_times_and_sizes_are_written() {
    let desk = Desk::new();
    let mut explained = 0;
    for (tool, command, page) in ALL {
        let tool = desk.tool(tool).list(command.iter().copied()).arg("--help");
        let help = tool.run().code(0).text().to_owned();
        let (flags, rest) = help.split_once("\nExamples:\n").unwrap_or((&help, ""));
        let (_, values) = rest.split_once("\nValues:\n").unwrap_or_default();
        let (values, _) = values.split_once("\n\n").unwrap_or_default();
        let man = desk.tool(SIMPLE).args("man --page").arg(page).run().code(0);
        for name in ["TIME", "BYTES", "SIZE", "CHUNK", "OFFSET", "RATE"] {
            let mut words = values.split(|c: char| !c.is_ascii_uppercase());
            let is_explained = words.any(|word| word == name);
            let is_value = flags.contains(&format!("<{name}>"));
            assert_eq!(is_explained, is_value, "{page}: {name}\n{help}");
            explained += usize::from(is_explained);
        }
        let has_section = man.text().contains(".SH \"VALUES\"\n");
        assert_eq!(has_section, !values.is_empty(), "{page}");
    }
    assert!(explained > 10);
}

#[test]
fn the_manual_has_a_page_for_each_command_with_all_its_flags() {
    let desk = Desk::new();
    let _ = desk.tool(SIMPLE).args("man ./pages").run().code(0);
    let files = std::fs::read_dir(desk.path("pages")).unwrap();
    let files: BTreeSet<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected: BTreeSet<_> = ALL.iter().map(|(_, _, page)| format!("{page}.1")).collect();
    assert_eq!(files, expected);
    let has_groff = needs(&[Need::Command("groff")]);
    for (tool, command, page) in ALL {
        let file = format!("pages/{page}.1");
        let source = std::fs::read_to_string(desk.path(&file)).unwrap();
        let text = match has_groff {
            true => {
                let groff = desk
                    .tool("groff")
                    .args("-man -Tascii -ww -P-cbou -rLL=200n");
                let done = groff.arg(&file).run().code(0);
                assert_eq!(done.stderr, "", "{page}");
                done.text().to_owned()
            }
            false => source.replace("\\-", "-"),
        };
        for flag in flags(&desk, tool, command) {
            assert!(text.contains(&flag), "{page}: no {flag}\n{text}");
        }
    }
    let page = desk.tool(SIMPLE).args("man").run().code(0);
    assert!(page.text().contains(".TH OPENHOSTING 1"), "{page:?}");
    let page = desk
        .tool(SIMPLE)
        .args("man --page openhosting-rm")
        .run()
        .code(0);
    assert!(page.text().contains(".TH OPENHOSTING-RM 1"), "{page:?}");
    let none = desk.tool(SIMPLE).args("man --page rn").run().code(2);
    let _ = none.says("There is no page \"rn\"").says("openhosting-rm");
}

/// A typing error does not create files.
#[test]
fn a_word_that_is_no_page_is_no_directory_either() {
    let desk = Desk::new();
    let man = |word: &str| desk.tool(SIMPLE).args("man").arg(word).run();
    let page = man("upload").code(0);
    assert!(page.text().contains(".TH OPENHOSTING-UPLOAD 1"), "{page:?}");
    let none = man("uplaod").code(2).says("There is no page \"uplaod\"");
    let _ = none.says("Did you mean \"upload\"? For a new directory, write: ./uplaod\n");
    let _ = man("new")
        .code(2)
        .says(" For a new directory, write: ./new\n");
    assert!(!desk.path("uplaod").exists());
    let written = man("./pages/new").code(0);
    assert!(written.text().ends_with(" pages to ./pages/new\n"));
    assert!(desk.path("pages/new/openhosting-rm.1").exists());
    // A directory that exists needs no path.
    let written = man("pages").code(0);
    assert!(written.text().ends_with(" pages to pages\n"));
    assert!(desk.path("pages/openhosting-rm.1").exists());
}
