//! `openhosting completions` and `openhosting man`: what shells and man make of them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::cli::{DOWNLOAD, Desk, SIMPLE, UPLOAD};
use crate::support::needs::{Need, needs};

const SERVER: &str = env!("CARGO_BIN_EXE_openhosting-server");
/// Each tool and command: how it is run, and its page.
const ALL: &[(&str, &[&str], &str)] = &[
    (SIMPLE, &[], "openhosting"),
    (SIMPLE, &["api"], "openhosting-api"),
    (SIMPLE, &["completions"], "openhosting-completions"),
    (SIMPLE, &["download"], "openhosting-download"),
    (SIMPLE, &["image"], "openhosting-image"),
    (SIMPLE, &["image", "info"], "openhosting-image-info"),
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

/// The long flags that `--help` tells.
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

#[test]
fn bash_completes_commands_and_flags_of_all_tools() {
    let desk = Desk::new();
    let script = desk.tool(SIMPLE).args("completions bash").run().code(0);
    desk.file("all.bash", &script.stdout);
    let bash = |commands: &str| {
        let script = format!("set -eu; source all.bash; {commands}");
        let done = desk.tool("bash").args("--norc -c").arg(script).run();
        let done = done.code(0);
        assert_eq!(done.stderr, "");
        done.text().to_owned()
    };
    let tools = "openhosting openhosting-upload openhosting-download openhosting-server";
    let bound = bash(&format!("complete -p {tools}"));
    assert_eq!(bound.lines().count(), 4, "{bound}");
    // What would be offered after these words, of which the last is not finished.
    let offered = |words: &[&str]| {
        let (tool, last) = (words[0], words[words.len() - 1]);
        let before = words[words.len().saturating_sub(2)];
        let commands = format!(
            "set +eu; COMP_WORDS=({}); COMP_CWORD={}; _{} {tool} '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words
                .iter()
                .map(|word| format!("'{word}'"))
                .collect::<Vec<_>>()
                .join(" "),
            words.len() - 1,
            tool.replace('-', "__"),
        );
        let offered = bash(&commands);
        offered.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    for (tool, command, _) in ALL {
        let name = Path::new(tool).file_name().unwrap().to_str().unwrap();
        let words: Vec<_> = [&[name][..], command, &["--"]].concat();
        assert_eq!(offered(&words), flags(&desk, tool, command), "{words:?}");
    }
    let commands = offered(&["openhosting", "p"]);
    assert_eq!(Vec::from_iter(commands), ["probe", "publish"]);
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

#[test]
fn zsh_and_fish_take_the_scripts_of_all_tools() {
    let desk = Desk::new();
    if needs(&[Need::Command("zsh")]) {
        let script = desk.tool(SIMPLE).args("completions zsh").run().code(0);
        desk.file("all.zsh", &script.stdout);
        let commands = "autoload -U compinit; compinit -u -D; source all.zsh; \
             print -l ${_comps[openhosting]} ${_comps[openhosting-upload]} ${_comps[openhosting-server]}";
        let done = desk.tool("zsh").args("-f -c").arg(commands).run().code(0);
        assert_eq!(
            done.text(),
            "_openhosting\n_openhosting-upload\n_openhosting-server\n"
        );
    }
    if needs(&[Need::Command("fish")]) {
        let script = desk.tool(SIMPLE).args("completions fish").run().code(0);
        desk.file("all.fish", &script.stdout);
        let commands = "source all.fish; complete -C 'openhosting-upload --prof'; complete -C 'openhosting pub'";
        let done = desk.tool("fish").args("--no-config -c").arg(commands);
        let done = done.run().code(0);
        assert!(done.text().starts_with("--profile\t"), "{done:?}");
        assert!(done.text().contains("\npublish\t"), "{done:?}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_command_with_all_its_flags() {
    let desk = Desk::new();
    let _ = desk.tool(SIMPLE).args("man pages").run().code(0);
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
    let none = desk.tool(SIMPLE).args("man --page rm").run().code(2);
    let _ = none.says("There is no page \"rm\"").says("openhosting-rm");
}
