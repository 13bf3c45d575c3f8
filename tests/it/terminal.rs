//! What a terminal shows while a command runs: one line of progress that never wraps, never appears
//! twice, and disappears at the end.

use std::thread;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, SIMPLE, UPLOAD, has_terminals};
use crate::support::http::drives;
use crate::support::noise;
use crate::support::proxy::{Fault, Request, refusal};

const C: usize = 64 * 1024;
/// Chunks of the image; the tests limit the rate, so that they take a moment.
const CHUNKS: usize = 12;
const SLOW: &str = "-c 65536 -j 2 --limit-rate 400K";
const COLUMNS: [u16; 3] = [40, 80, 200];

/// All lines of progress that were visible, in order, and the text on the terminal at the end.
struct Screen {
    progress: Vec<String>,
    /// The lines that were written, independently of the number of rows that each of them takes.
    lines: Vec<String>,
}

/// Whether a row is one of progress: its first words are the name of a phase, and it was
/// drawn from the left margin without an end of line.
fn is_progress(row: &str) -> bool {
    let mut words = row.split_whitespace();
    let phase = words.next().unwrap_or_default();
    let is_phase = [
        "Prepare", "Upload", "Download", "Publish", "Verify", "Hash", "Check", "Compare", "Copy",
        "Examine",
    ]
    .contains(&phase);
    let is_bar = row.contains('\u{2501}') || row.contains('\u{2500}');
    is_phase && !row.ends_with(':') || is_bar
}

/// Displays what was written on a terminal with this many columns, and checks the screen after each
/// piece.
#[track_caller]
fn play(outcome: &Outcome, columns: u16) -> Screen {
    play_bytes(&outcome.stdout, columns)
}

#[track_caller]
fn play_bytes(written: &[u8], columns: u16) -> Screen {
    let mut terminal = vt100::Parser::new(50, columns, 0);
    let mut progress: Vec<String> = Vec::new();
    let mut rest = written;
    while !rest.is_empty() {
        // Each piece ends with a line of progress that was drawn, or with the end of a line.
        let end = rest.windows(3).position(|bytes| bytes == b"\x1b[K");
        let end = end.map_or(rest.len(), |at| at + 3);
        let line = rest.iter().position(|byte| *byte == b'\n');
        let end = line.map_or(end, |at| end.min(at + 1));
        let (piece, after) = rest.split_at(end);
        rest = after;
        terminal.process(piece);
        let screen = terminal.screen();
        let rows: Vec<String> = screen.rows(0, columns).collect();
        let drawn: Vec<usize> = (0..rows.len())
            .filter(|row| is_progress(&rows[*row]))
            .collect();
        assert!(
            drawn.len() <= 1,
            "{columns}: drawn twice:\n{}",
            screen.contents()
        );
        if let Some(row) = drawn.first() {
            let is_wrapped = screen.row_wrapped(u16::try_from(*row).unwrap());
            assert!(!is_wrapped, "{columns}: wrapped:\n{}", screen.contents());
            let (cursor, _) = screen.cursor_position();
            assert_eq!(usize::from(cursor), *row, "text below a line of progress");
            let row = rows[*row].trim_end().to_owned();
            if progress.last() != Some(&row) {
                progress.push(row);
            }
        }
    }
    let left = terminal
        .screen()
        .rows(0, columns)
        .find(|row| is_progress(row));
    assert_eq!(left, None, "{columns}: a line of progress is left");
    let lines = terminal
        .screen()
        .contents()
        .lines()
        .map(str::to_owned)
        .collect();
    Screen { progress, lines }
}

impl Screen {
    /// The phases that were shown, in order.
    fn phases(&self) -> Vec<&str> {
        let first = |row: &'_ String| row.len() - row.trim_start_matches(|c| c != ' ').len();
        let mut phases: Vec<&str> = self.progress.iter().map(|row| &row[..first(row)]).collect();
        phases.dedup();
        phases
    }

    /// The percentages of one phase, in the order in which they were visible.
    fn percents(&self, phase: &str) -> Vec<u64> {
        let rows = self.progress.iter().filter(|row| row.starts_with(phase));
        let percent = rows.filter_map(|row| {
            let before = row.split_once('%')?.0;
            before.rsplit(' ').next()?.parse().ok()
        });
        percent.collect()
    }

    #[track_caller]
    fn has_line(&self, start: &str) -> &Self {
        let found = self.lines.iter().any(|line| line.starts_with(start));
        assert!(found, "no {start:?} in {:#?}", self.lines);
        self
    }
}

#[test]
fn the_checks_of_this_file_see_ghosts_and_wraps() {
    let bar = "Upload disk.img  41% \u{2501}\u{2500} 1 MiB/2 MiB";
    let good = format!("\r{bar}\x1b[K\r\x1b[Kdone\r\n");
    assert_eq!(play_bytes(good.as_bytes(), 80).lines, ["done"]);
    for (bad, columns) in [
        (format!("\r{bar}\x1b[K"), 80),
        (format!("\r{bar}\x1b[K\r\n{bar}\x1b[K\r\x1b[K"), 80),
        (format!("\r{bar}\x1b[Kdone\r\n\x1b[K"), 80),
        (format!("\r{bar}\x1b[K\r\x1b[Kdone\r\n"), 20),
    ] {
        let seen = std::panic::catch_unwind(|| play_bytes(bad.as_bytes(), columns).lines);
        assert!(seen.is_err(), "{bad:?}");
    }
}

/// Runs a test on terminals of all widths at once.
fn on_all_widths(test: impl Fn(u16) + Sync) {
    if !has_terminals() {
        return;
    }
    thread::scope(|scope| {
        let test = &test;
        for columns in COLUMNS {
            scope.spawn(move || test(columns));
        }
    });
}

/// A desk with an image.
fn desk() -> Desk {
    let desk = Desk::new();
    desk.file("disk.img", &noise(5, CHUNKS * C));
    desk
}

#[test]
fn an_upload_that_stops_and_resumes_and_a_download_show_one_line() {
    on_all_widths(|columns| {
        let desk = desk();
        let (server, proxy) = desk.pair();
        let run = |tool: &str, stop_at: &str, words: &str| {
            let tool = desk.on_a_screen(columns, stop_at, tool);
            tool.env("OHURI", proxy.uri()).args(words).run()
        };
        let words = format!("{SLOW} -n my-disk disk.img");
        let stopped = run(UPLOAD, "[1-9][0-9]?%", &words).code(130);
        let screen = play(&stopped, columns);
        assert!(
            screen.phases().contains(&"Upload"),
            "{:#?}",
            screen.progress
        );
        let percents = screen.percents("Upload");
        assert!(percents.is_sorted(), "{percents:?}");
        screen.has_line("Stopping after the current requests");
        let last = stopped.text().trim_end().rsplit("\r\n").next().unwrap();
        assert_eq!(last, format!("openhosting-upload {words}"));
        let drive = drives(&server).into_iter().next().unwrap();
        let short: String = drive.chars().take(8).collect();
        let said = stopped.text().replace("\r\n", " ");
        assert!(
            said.contains(&format!("768 KiB are on drive {short}). Continue with:")),
            "{said}"
        );

        let resumed = run(UPLOAD, "", &words).code(0);
        let screen = play(&resumed, columns);
        screen.has_line("openhosting-upload: note: Resuming");
        let after = screen.percents("Upload");
        // The bar continues where it was before and does not start from zero.
        assert!(after.iter().all(|percent| *percent >= 8), "{after:?}");
        assert!(after.is_sorted(), "{after:?}");
        screen.has_line("Uploaded disk.img (768 KiB) to drive");

        let downloaded = run(DOWNLOAD, "", &format!("{SLOW} {drive} out")).code(0);
        let screen = play(&downloaded, columns);
        assert!(
            screen.phases().contains(&"Download"),
            "{:#?}",
            screen.progress
        );
        screen.has_line(&format!("Downloaded drive {short} (768 KiB) to"));
        if columns >= 80 {
            let bars = screen
                .progress
                .iter()
                .filter(|row| row.starts_with("Download out"));
            let cells = bars.map(|row| row.matches(['\u{2501}', '\u{2500}']).count());
            assert!(cells.min().unwrap() >= 20, "{:#?}", screen.progress);
        }
    });
}

#[test]
fn publish_and_verify_show_every_phase() {
    on_all_widths(|columns| {
        let desk = desk();
        let server = desk.server();
        let run = |words: &str| {
            let tool = desk.on_a_screen(columns, "", SIMPLE);
            let done = tool.env("OHURI", &server.uri).args(words).run().code(0);
            let screen = play(&done, columns);
            (screen, done)
        };
        let publish = "publish disk.img --name nightly --receipt r.json --limit-rate 600K";
        let (first, done) = run(publish);
        let phases = first.phases();
        for phase in ["Hash", "Publish", "Check"] {
            assert!(phases.contains(&phase), "{phases:?}");
        }
        first.has_line("Published disk.img (768 KiB) as nightly");
        let drive = drives(&server).into_iter().next().unwrap();
        assert!(done.text().contains(&drive));
        let short: String = drive.chars().take(8).collect();
        let (_, again) = run(publish);
        let said = format!("nightly is up to date: nothing to send (drive {short})");
        assert!(
            again.text().replace("\r\n", " ").contains(&said),
            "{}",
            again.text()
        );
        let (verified, _) = run("verify r.json");
        assert!(
            verified.phases().contains(&"Verify"),
            "{:#?}",
            verified.progress
        );
        desk.file("other.img", &noise(7, 768 << 10));
        let (_, other) = run("publish other.img --name nightly --keep 1");
        let said = format!("Removed older drives of nightly: {short}");
        let shown = other.text().replace("\r\n", " ");
        assert!(shown.contains(&said), "{shown}");
        assert_eq!(drives(&server).len(), 1);
    });
}

#[test]
fn an_outage_shows_its_cause_and_when_it_gives_up_in_the_same_line() {
    on_all_widths(|columns| {
        let desk = desk();
        let (_server, proxy) = desk.pair();
        let down = Fault::Answer(refusal(503, "system"));
        proxy.fault_after(2, Request::is_write, usize::MAX, down);
        let words = "-c 65536 -j 1 --max-outage 5s disk.img";
        let tool = desk.on_a_screen(columns, "", UPLOAD);
        let outcome = tool.env("OHURI", proxy.uri()).args(words).run().code(75);
        let screen = play(&outcome, columns);
        let waits = screen
            .progress
            .iter()
            .find(|row| row.contains("in up") || row.contains("up in "));
        let wait = waits.unwrap_or_else(|| panic!("{:#?}", screen.progress));
        assert_eq!(
            wait.contains("503 (not available); giving up in "),
            columns >= 80,
            "{wait}"
        );
        let last = outcome.text().trim_end().rsplit("\r\n").next().unwrap();
        assert_eq!(last, format!("openhosting-upload {words}"));
    });
}

/// As in `upload … | tee log`: the output passes through the pipe to the same terminal.
#[test]
fn a_pipe_to_the_same_terminal_never_crosses_the_line() {
    on_all_widths(|columns| {
        let desk = desk();
        let server = desk.server();
        for (pipe, is_bar) in [
            ("| cat", true),
            ("2>&1 | cat", false),
            ("2>&1 >/dev/tty | cat", false),
        ] {
            let script = format!("{UPLOAD} {SLOW} disk.img {pipe}");
            let tool = desk.on_a_screen(columns, "", "sh").arg("-c").arg(script);
            let outcome = tool.env("OHURI", &server.uri).run().code(0);
            let screen = play(&outcome, columns);
            assert_eq!(
                !screen.progress.is_empty(),
                is_bar,
                "{pipe}: {:#?}",
                screen.progress
            );
            let text = outcome.text();
            if pipe != "2>&1 >/dev/tty | cat" {
                let dots = format!(
                    "Uploading {CHUNKS} chunks of {C} bytes: {}",
                    ".".repeat(CHUNKS)
                );
                assert!(text.contains(&format!("{dots} completed\r\n")), "{text}");
            }
            assert!(text.contains("Created drive "), "{text}");
        }
    });
}

#[test]
fn a_terminal_that_cannot_draw_gets_plain_lines_and_no_color_is_honoured() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let server = desk.server();
    let run = |name: &str, value: &str| {
        let tool = desk.on_a_screen(80, "", UPLOAD).env(name, value);
        let done = tool
            .env("OHURI", &server.uri)
            .args(SLOW)
            .arg("disk.img")
            .run();
        done.code(0).text().to_owned()
    };
    let dumb = run("TERM", "dumb");
    assert!(!dumb.contains('\u{1b}'), "{dumb:?}");
    assert!(!dumb.replace("\r\n", "").contains('\r'), "{dumb:?}");
    let plain = run("NO_COLOR", "1");
    assert!(
        plain.contains("Upload disk.img") && !plain.contains("\u{1b}[3"),
        "{plain:?}"
    );
    let ascii = run("LC_ALL", "C");
    assert!(
        ascii.contains("------") && ascii.contains('#') && ascii.is_ascii(),
        "{ascii:?}"
    );
    let taskbar = run("WT_SESSION", "x");
    assert!(taskbar.contains("\u{1b}]9;4;1;"), "{taskbar:?}");
    assert!(taskbar.contains("\u{1b}]9;4;0;\u{1b}\\"), "{taskbar:?}");
    assert!(!plain.contains("]9;4"), "{plain:?}");
}

#[test]
fn a_reader_that_ends_early_leaves_nothing_on_the_screen() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let server = desk.server();
    let upload = desk.simple(&server.uri).args("upload -q disk.img");
    let _ = upload.run().code(0);
    let tool = desk.on_a_screen(80, "", "bash").arg("-c");
    let line = format!("{SIMPLE} download disk.img - | head -c 1 >one; echo ${{PIPESTATUS[0]}}");
    let shown = tool.arg(line).env("OHURI", &server.uri).run().code(0);
    assert_eq!(play(&shown, 80).lines, ["141"]);
}

#[test]
fn image_info_shows_that_it_reads() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    on_all_widths(|columns| {
        let tool = desk.on_a_screen(columns, "", SIMPLE);
        let outcome = tool.args("image info disk.img").run().code(0);
        let screen = play(&outcome, columns);
        assert!(screen.phases().contains(&"Examine"), "{outcome:?}");
        assert!(outcome.text().contains("On the wire"), "{outcome:?}");
    });
}

#[test]
fn a_disk_is_not_written_to_a_terminal_and_a_cleanup_says_what_it_did() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let server = desk.server();
    let run = |words: &str| {
        let tool = desk.on_a_screen(80, "", SIMPLE);
        tool.env("OHURI", &server.uri).args(words).run()
    };
    let _ = run("upload disk.img").code(0);
    let refused = run("download disk.img -").code(2);
    assert!(
        refused.text().contains("would garble the terminal"),
        "{refused:?}"
    );
    let local = run("upload --local c disk.img").code(0);
    let next = "To list or download the drive, start: openhosting server --data c";
    let shown = play(&local, 80).lines.join(" ");
    assert!(shown.contains(next), "{shown}");
    let local = run("publish --local c -n nightly disk.img").code(0);
    let shown = play(&local, 80).lines.join(" ");
    assert!(shown.contains(next), "{shown}");
    for (call, next) in [
        ("drives", "A call that exists: openhosting drives list"),
        ("drives lst", "A call that exists: openhosting drives list"),
        ("profile info", "This endpoint has no call"),
        ("api list", "A call begins with drives, servers"),
        ("api drive list", "Did you mean: openhosting drives list"),
        ("drives disk.img info", "prints: openhosting show disk.img"),
    ] {
        let missing = run(call);
        assert!(missing.text().contains(next), "{missing:?}");
        let failed = format!("openhosting {call}");
        let repeats = |line: &str| line.trim_end().ends_with(&failed);
        assert!(!missing.text().lines().any(repeats), "{missing:?}");
    }
    let _ = run("drives list").code(0);
    let _ = run("show disk.img").code(0);
    desk.own(&desk.path("c"));
    let cleaned = run("publish -n nightly --cleanup").code(0);
    let screen = play(&cleaned, 80);
    assert_eq!(screen.lines, ["Nothing unfinished is left of nightly"]);
    // Whatever the width, no row is longer than the terminal.
    for columns in COLUMNS {
        for words in ["ls", "image info disk.img", "show disk.img"] {
            let tool = desk.on_a_screen(columns, "", SIMPLE);
            let shown = tool.env("OHURI", &server.uri).args(words).run().code(0);
            // What remains of a row after the line of progress was removed from it.
            let rows = shown.text().lines();
            let mut rows = rows.map(|row| row.rsplit("\x1b[K").next().unwrap_or(row));
            let long = rows.find(|line| {
                let is_whole = line.contains(' ') && line.chars().count() > usize::from(columns);
                is_whole && words != "show disk.img"
                    || line.chars().count() > 80.max(columns.into())
            });
            assert_eq!(long, None, "{columns}: {words}");
        }
    }
}

/// No request is in flight at a question, so none is said to be finished.
#[test]
fn ctrl_c_at_a_question_says_that_nothing_was_done() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let server = desk.server();
    let tool = desk.tool(UPLOAD).env("OHURI", &server.uri);
    let _ = tool.args("disk.img").run().code(0);
    let drive = drives(&server).remove(0);
    for (words, question, result) in [
        (
            "login",
            "Endpoint URI:",
            "openhosting login: Nothing was stored",
        ),
        (
            &*format!("rm {drive}"),
            "y/N",
            "openhosting rm: Nothing was removed",
        ),
        (
            &*format!("login --endpoint {} --user {}", server.uri, desk.user),
            "Secret API key:",
            "openhosting login: Nothing was stored",
        ),
    ] {
        let tool = desk.on_a_screen(80, question, SIMPLE);
        let stopped = tool.env("OHURI", &server.uri).args(words).run().code(130);
        assert!(!stopped.text().contains("requests"), "{stopped:?}");
        let last = stopped.text().trim_end().lines().last();
        assert_eq!(last, Some(result), "{stopped:?}");
    }
    assert_eq!(drives(&server), [drive]);
}

/// Ctrl-C ends a call that waits for typed input, and the terminal says that it waits.
#[test]
fn ctrl_c_ends_a_raw_call_that_waits_for_its_input() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    for words in ["-c drives create", "-f /dev/tty drives create"] {
        let tool = desk.on_a_screen(80, "Ctrl-D ends it", SIMPLE);
        let tool = tool.env("OHURI", &server.uri).args(words);
        let stopped = tool.run().code(130);
        assert!(
            stopped.text().contains("Type the input; Ctrl-D ends it"),
            "{stopped:?}"
        );
    }
    assert_eq!(drives(&server), Vec::<String>::new());
}

#[test]
fn a_terminal_is_not_filled_with_the_source_of_a_page() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    for (words, line) in [
        ("man", "To read the page, run: openhosting man | man -l -"),
        (
            "man upload",
            "To read the page, run: openhosting man upload | man -l -",
        ),
        ("-v", concat!("openhosting ", env!("CARGO_PKG_VERSION"))),
    ] {
        let shown = desk.on_a_screen(80, "", SIMPLE).args(words).run().code(0);
        assert_eq!(play(&shown, 80).lines.first().unwrap(), line);
    }
}

#[test]
fn an_image_is_not_read_from_the_keyboard() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    for words in ["upload -", "image info -"] {
        let tool = desk.on_a_terminal("", SIMPLE).env("OHURI", &server.uri);
        let outcome = tool.args(words).run();
        let shown = format!("{}{}", outcome.text(), outcome.stderr);
        assert!(
            shown.contains("Standard input is a terminal"),
            "{outcome:?}"
        );
    }
    assert_eq!(drives(&server), Vec::<String>::new());
}

/// At a low rate a whole chunk takes long, and a bar that stands still looks as if it hung.
#[test]
fn the_bar_moves_before_a_chunk_is_confirmed() {
    on_all_widths(|columns| {
        let desk = Desk::new();
        desk.file("disk.img", &noise(5, 16 * C));
        let (server, proxy) = desk.pair();
        let run = |tool: &str, stop_at: &str, words: &str| {
            let tool = desk.on_a_screen(columns, stop_at, tool);
            tool.env("OHURI", proxy.uri()).args(words).run()
        };
        // The image is one chunk, so nothing is confirmed before the end.
        let moves = |outcome: &Outcome, phase: &str| {
            let screen = play(outcome, columns);
            let percents = screen.percents(phase);
            let mut between = percents
                .iter()
                .filter(|percent| (1..100).contains(*percent));
            assert!(between.next().is_some(), "{percents:?}");
            assert!(percents.is_sorted(), "{percents:?}");
            screen
        };
        // The connection breaks in the middle of the first attempt.
        proxy.fault(Request::is_write, 1, Fault::ResetMidBody);
        let uploaded = run(UPLOAD, "", "-c 1M --limit-rate 600K disk.img").code(0);
        moves(&uploaded, "Upload").has_line("Uploaded disk.img (1.0 MiB) to drive");
        let drive = drives(&server).into_iter().next().unwrap();
        let words = format!("-c 1M --limit-rate 600K {drive} out");
        let downloaded = run(DOWNLOAD, "", &words).code(0);
        moves(&downloaded, "Download").has_line("Downloaded drive ");

        // What is in flight is not done: the run that stops says so, and the next starts at zero.
        let words = "-c 1M --limit-rate 40K -n other disk.img";
        let stopped = run(UPLOAD, " [1-9][0-9]?%", words).code(130);
        let said = stopped.text().replace("\r\n", " ");
        assert!(
            said.contains("before the first chunk was complete."),
            "{said}"
        );
        let events = desk.upload(proxy.uri().as_str());
        let words = "-c 1M --limit-rate 500K --progress json -n other disk.img";
        let resumed = events.args(words).run().code(0);
        let lines = resumed.stderr.lines().filter_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            (event["event"] == "progress").then_some(event)
        });
        let lines: Vec<_> = lines.collect();
        let is_moving = |event: &serde_json::Value| {
            event["bytes_done"] == 0 && event["bytes_in_flight"].as_u64() > Some(0)
        };
        assert!(lines.iter().any(is_moving), "{lines:#?}");
    });
}

#[test]
fn a_pipe_of_unknown_size_says_what_becomes_of_its_drive_and_resumes_in_readable_sizes() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let (_server, proxy) = desk.pair();
    let run = |words: &str| {
        let line = format!("cat disk.img | {SIMPLE} upload -j 1 {words} -");
        let tool = desk.on_a_screen(80, "", "bash").arg("-c").arg(line);
        tool.env("OHURI", proxy.uri()).run()
    };
    let said = |outcome: &Outcome| play(outcome, 80).lines.join(" ");
    let growing = "The size of the image is unknown: the drive starts at 1.0 GiB";
    let refused = Fault::Answer(refusal(507, "full"));
    proxy.fault_after(4, Request::is_write, usize::MAX, refused);
    let first = said(&run("-c 65536 -n a").code(1));
    assert!(
        first.contains(growing) && first.contains("--size SIZE avoids this"),
        "{first}"
    );
    proxy.heal();
    // The drive is known now, so only the sizes are said.
    let second = said(&run("-c 1M -n a").code(0));
    assert!(!second.contains(growing), "{second}");
    for line in [
        "note: Resuming stdin (256 KiB already done)",
        "note: Chunks stay at 64 KiB, as the earlier run began; to use 1.0 MiB, start over",
        "Uploaded stdin (768 KiB) to drive",
    ] {
        assert!(second.contains(line), "{second}");
    }
    let sized = said(&run("-n b --size 768K").code(0));
    assert!(!sized.contains(growing), "{sized}");
    // A program that reads the output gets no such line.
    let tool = desk.simple(&proxy.uri()).args("upload -n c -");
    let piped = tool.input(&noise(5, CHUNKS * C)).run().code(0);
    assert!(!piped.stderr.contains(growing), "{piped:?}");
}

#[test]
fn a_part_says_what_else_is_needed_and_its_last_command_makes_the_whole() {
    if !has_terminals() {
        return;
    }
    let desk = desk();
    let server = desk.server();
    let run = |words: &str| {
        let tool = desk.on_a_screen(80, "", SIMPLE).env("OHURI", &server.uri);
        tool.args(words).run().code(0)
    };
    // The lines, and the command in the last one.
    let said = |outcome: &Outcome, lines: &[&str]| {
        let all = play(outcome, 80).lines;
        let text = all.join(" ");
        for line in lines {
            assert!(text.contains(line), "no {line:?} in {text}");
        }
        let command = all
            .iter()
            .rev()
            .find(|line| line.starts_with("openhosting "));
        command.map(|command| command.trim_start_matches("openhosting ").to_owned())
    };
    let _ = run("upload disk.img");
    let drive = drives(&server).into_iter().next().unwrap();
    let short: String = drive.chars().take(8).collect();
    let part = |index: u32| run(&format!("download -c 65536 --shard {index}/2 disk.img out"));
    let summary = format!("Downloaded shard 1 of 2 of drive {short} (384 KiB) to out.oh-part in");
    let needs = "When shard 2 of 2 is done too, finish out with:";
    let join = said(&part(1), &[&summary, needs]).unwrap();
    assert_eq!(join, "download -c 65536 disk.img out --join 2");
    let _ = part(2);
    let _ = run(&join);
    assert!(std::fs::read(desk.path("out")).unwrap() == noise(5, CHUNKS * C));

    let publish = "publish disk.img --name p --receipt r.json";
    let part = |index: u32| run(&format!("{publish} --shard {index}/3"));
    let needs = "When the other 2 shards are done too, finish p with:";
    let join = said(&part(1), &["Sent shard 1 of 3 of disk.img to drive", needs]).unwrap();
    assert_eq!(join, format!("{publish} --join"));
    let _ = (part(2), part(3));
    let _ = said(&run(&join), &["Published disk.img (768 KiB) as p"]);

    let compared = run("verify r.json --shard 2/2");
    let lines = [
        "Compared shard 2 of 2 of drive",
        "This run did not compare shard 1 of 2",
    ];
    let _ = said(&compared, &lines);
    let uploaded = run("upload -d disk.img --shard 1/2 disk.img");
    let lines = [
        "Uploaded shard 1 of 2 of disk.img",
        "The drive is complete when shard 2 of 2 is done too",
    ];
    let _ = said(&uploaded, &lines);
}
