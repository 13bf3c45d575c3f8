//! `openhosting login` and `openhosting doctor`.

use std::os::unix::fs::PermissionsExt;

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::proxy::{FaultProxy, answer};
use crate::support::schema::object;
use crate::support::server::TestServer;

fn config(desk: &Desk) -> std::path::PathBuf {
    let root = desk.work().parent().unwrap().to_owned();
    root.join("home/.config/openhosting/config.toml")
}

/// A tool that knows neither endpoint nor credentials.
fn bare<'a>(desk: &'a Desk, words: &str) -> Tool<'a> {
    let tool = desk.simple("").unset("OHURI").unset("OHAUTH");
    tool.args(words)
}

fn log_in(desk: &Desk, server: &TestServer, words: &str, key: &str) -> Outcome {
    let key_file = config(desk).with_file_name("default.key");
    desk.own(&key_file);
    bare(desk, "login")
        .args(words)
        .args(&format!("--endpoint {}", server.uri))
        .args(&format!("--user {}", desk.user))
        .input(format!("{key}\n").as_bytes())
        .run()
}

#[test]
fn a_login_is_a_profile_that_works_and_only_the_user_can_read() {
    let desk = Desk::new();
    let server = desk.server();
    let outcome = log_in(&desk, &server, "", &desk.key).code(0);
    assert!(outcome.text().contains("accepts you"), "{outcome:?}");
    assert!(outcome.text().contains("is the default"), "{outcome:?}");
    for name in ["config.toml", "default.key"] {
        let metadata = std::fs::metadata(config(&desk).with_file_name(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
    let _ = bare(&desk, "ls").run().code(0);
    // Again with the same name: the key is replaced, and the config stays.
    let before = std::fs::read(config(&desk)).unwrap();
    let again = log_in(&desk, &server, "", &desk.key).code(0);
    let said = format!("exists: endpoint {}, user {}", server.uri, desk.user);
    let _ = again.says(&said).says("are replaced once the endpoint");
    assert_eq!(std::fs::read(config(&desk)).unwrap(), before);
    // The endpoint and the user of the profile are the defaults.
    let key = format!("{}\n", desk.key);
    let _ = bare(&desk, "login").input(key.as_bytes()).run().code(0);
    assert_eq!(std::fs::read(config(&desk)).unwrap(), before);
    let _ = bare(&desk, "ls").run().code(0);
    // Another profile is not the default.
    desk.own(&config(&desk).with_file_name("work.key"));
    let outcome = log_in(&desk, &server, "work", &desk.key).code(0);
    assert!(outcome.text().contains("--profile work"), "{outcome:?}");
    let _ = bare(&desk, "ls --profile work").run().code(0);
    let _ = bare(&desk, "ls --profile default").run().code(0);
}

#[test]
fn a_login_that_is_refused_stores_nothing() {
    let desk = Desk::new();
    let server = desk.server();
    let outcome = log_in(&desk, &server, "", "not-the-key").code(1);
    let outcome = outcome
        .says("Nothing was stored")
        .says("Check the user UUID");
    assert!(!outcome.stderr.contains("not-the-key"), "{outcome:?}");
    assert!(!config(&desk).exists());
    // No question is asked if nobody can answer it.
    for (words, what) in [
        ("login", "--endpoint URI"),
        ("login --endpoint http://127.0.0.1:1/", "--user UUID"),
        ("login ../x", "letters, digits"),
        ("login --endpoint 127.0.0.1:1", "Use https://127.0.0.1:1"),
        (
            "login --endpoint http://127.0.0.1:1/ --user admin",
            "not the UUID of a user",
        ),
        ("login --endpoint http://example.com/", "https"),
        // What may be a key is not repeated.
        (
            "login --endpoint b7d6a1c0-2a32-4c4e-9c5b-3f4d1f3f8a11:hush",
            "not the URI of an endpoint",
        ),
        ("login --endpoint hush", "not the URI of an endpoint"),
    ] {
        let refused = bare(&desk, words).run().code(2).says(what);
        assert!(!refused.stderr.contains("hush"), "{refused:?}");
    }
    assert!(!config(&desk).parent().unwrap().exists());
}

#[test]
fn login_keeps_an_existing_config() {
    let desk = Desk::new();
    let server = desk.server();
    let path = config(&desk);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let old = "# Mine.\ndefault = \"old\"\n[profiles.old]\nendpoint = \"https://old.example/\"\ncredentials.env = \"OLD\"\n";
    std::fs::write(&path, old).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let _ = log_in(&desk, &server, "", &desk.key).code(0);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with(old));
    // The credentials of the profile are not in a file.
    let outcome = bare(&desk, "login old").run().code(2);
    let _ = outcome.says("has no key file");
    // The default is switched on request only, and nothing else is changed.
    for name in ["default", "other"] {
        desk.own(&path.with_file_name(format!("{name}.key")));
        let words = format!("{name} --default");
        let outcome = log_in(&desk, &server, &words, &desk.key).code(0);
        assert!(
            outcome.text().contains("is the default in place of"),
            "{outcome:?}"
        );
        let text = std::fs::read_to_string(&path).unwrap();
        let switched = old.replace("\"old\"", &format!("{name:?}"));
        assert!(text.starts_with(&switched), "{text}");
        let _ = bare(&desk, "ls").run().code(0);
    }
}

#[test]
fn questions_are_asked_on_a_terminal_and_the_key_is_not_shown() {
    if !crate::support::cli::has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    desk.own(&config(&desk).with_file_name("default.key"));
    let typed = format!("{}\n{}\n{}\n", server.uri, desk.user, desk.key);
    let tool = desk.on_a_terminal(&typed, crate::support::cli::SIMPLE);
    let outcome = tool.unset("OHAUTH").arg("login").run();
    let shown = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(shown.contains("Endpoint URI"), "{outcome:?}");
    assert!(shown.contains("Secret API key"), "{outcome:?}");
    let _ = bare(&desk, "ls").run().code(0);
    // Again: the user is known, and Enter keeps it.
    let typed = format!("\n{}\n", desk.key);
    let tool = desk.on_a_terminal(&typed, crate::support::cli::SIMPLE);
    let outcome = tool.unset("OHAUTH").arg("login").run();
    let shown = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(
        shown.contains(&format!("User UUID [{}]: ", desk.user)),
        "{outcome:?}"
    );
    assert!(shown.contains("accepts you"), "{outcome:?}");
    // After a wrong answer, the question is asked again.
    let typed = format!(
        "x.example\n{}\nadmin\n{}\n{}\n",
        server.uri, desk.user, desk.key
    );
    desk.own(&config(&desk).with_file_name("work.key"));
    let tool = desk.on_a_terminal(&typed, crate::support::cli::SIMPLE);
    let outcome = tool.unset("OHAUTH").arg("login").arg("work").run();
    let shown = format!("{}{}", outcome.text(), outcome.stderr);
    for part in ["has no scheme", "not the UUID of a user", "accepts you"] {
        assert!(shown.contains(part), "{part}: {outcome:?}");
    }
}

/// The server and the environment write them together.
#[test]
fn a_script_may_pass_user_and_key_together() {
    let desk = Desk::new();
    let server = desk.server();
    desk.own(&config(&desk).with_file_name("default.key"));
    let outcome = bare(&desk, &format!("login --endpoint {}", server.uri))
        .input(format!("{}:{}\n", desk.user, desk.key).as_bytes())
        .run();
    assert!(outcome.code(0).text().contains("accepts you"));
}

#[test]
fn a_key_given_as_part_of_the_user_is_not_shown() {
    let desk = Desk::new();
    let server = desk.server();
    // What a tool prints is checked for the key when it ends.
    for (user, what) in [
        (desk.auth(), "only the part before the colon"),
        (desk.key.clone(), "not the UUID of a user"),
    ] {
        let tool = bare(&desk, "login --endpoint").arg(&server.uri);
        let _ = tool.arg("--user").arg(user).run().code(2).says(what);
    }
}

#[test]
fn doctor_reports_each_problem() {
    let desk = Desk::new();
    let server = desk.server();
    let doctor = |endpoint: &str| desk.simple(endpoint).arg("doctor");
    let healthy = doctor(&server.uri).run().code(0);
    for line in [
        "ok       endpoint",
        "ok       connection",
        "ok       credentials",
        "ok       clock",
        "ok       state",
    ] {
        assert!(healthy.text().contains(line), "{line}: {healthy:?}");
    }
    let outcome = doctor(&server.uri).arg("--json").run().code(0);
    let value = object("doctor/1", &outcome.stdout);
    assert!(value["checks"].as_array().unwrap().len() >= 7, "{value:#}");
    // Each mistake has its own message, and the other checks are made nevertheless.
    let wrong = desk
        .simple(&server.uri)
        .env("OHAUTH", format!("{}:x", desk.user));
    let outcome = wrong.arg("doctor").run().code(1);
    assert!(
        outcome.text().contains("failed   credentials"),
        "{outcome:?}"
    );
    let text = outcome.text();
    assert!(text.contains("the key in OHAUTH"), "{outcome:?}");
    assert!(!text.contains("openhosting login"), "{outcome:?}");
    assert!(text.contains("ok       state"), "{outcome:?}");
    let _ = log_in(&desk, &server, "", &desk.key).code(0);
    std::fs::write(
        config(&desk).with_file_name("default.key"),
        format!("{}:x", desk.user),
    )
    .unwrap();
    let outcome = bare(&desk, "doctor").run().code(1);
    let text = outcome.text().split_whitespace().collect::<Vec<_>>();
    let advice = "the key, or run: openhosting login default";
    assert!(text.join(" ").contains(advice), "{outcome:?}");
    let outcome = doctor("http://127.0.0.1:1/").run().code(75);
    assert!(
        outcome.text().contains("failed   connection"),
        "{outcome:?}"
    );
    let outcome = doctor("http://example.com/").run().code(2);
    assert!(outcome.text().contains("failed   endpoint"), "{outcome:?}");
    // The same exit code as that of an upload.
    let stateless = doctor(&server.uri).env("XDG_STATE_HOME", "/dev/null/state");
    let outcome = stateless.run().code(2);
    let state = outcome
        .text()
        .lines()
        .find(|line| line.contains("  state  "));
    let what = "failed   state        Cannot use the directory of the journal /dev/null/state";
    assert!(state.unwrap().starts_with(what), "{outcome:?}");
    let late = FaultProxy::stub(|_| {
        let date = ["Date: Sun, 06 Nov 1994 08:49:37 GMT"];
        answer(200, &date, b"")
    });
    let outcome = doctor(&late.uri()).run().code(0);
    assert!(outcome.text().contains("warning  clock"), "{outcome:?}");
}

#[test]
fn doctor_reports_what_answers_at_a_wrong_endpoint() {
    let desk = Desk::new();
    let server = desk.server();
    let doctor = |endpoint: &str| desk.simple(endpoint).arg("doctor").run();
    let check = |outcome: Outcome, says: &str| {
        let text = outcome.text().split_whitespace().collect::<Vec<_>>();
        let text = text.join(" ");
        let start = text.find("failed endpoint ").expect(&text);
        assert!(text[start..].contains(says), "{says}: {text}");
        // Nothing is said about credentials, which were not checked.
        assert!(!text.contains(" credentials "), "{text}");
    };
    let page: &[_] = &["Content-Type: text/html"];
    let html = b"<html><title>Welcome</title></html>";
    for (status, headers, body, says) in [
        (404, page, &html[..], "404 (an HTML page, \"Welcome\")"),
        (200, page, html, "an HTML page"),
        (401, page, html, "401 (an HTML page, \"Welcome\")"),
        (404, &[], b"no such page", "404 (no such page)"),
        (
            200,
            &["Content-Type: application/json"],
            b"{}",
            "application/json",
        ),
        (
            302,
            &["Location: https://a.test/x"],
            b"",
            "redirect to a.test",
        ),
    ] {
        let foreign = FaultProxy::stub(move |_| answer(status, headers, body));
        let outcome = doctor(&foreign.uri()).code(1);
        assert!(
            outcome.text().contains("is no OpenHosting API"),
            "{outcome:?}"
        );
        assert!(outcome.text().contains("(from OHURI)"), "{outcome:?}");
        check(outcome, says);
    }
    // The right server, with a path that it does not have.
    let outcome = doctor(&format!("{}api/v1/", server.uri)).code(1);
    check(outcome, &format!("try {}", server.uri));
    // An endpoint that is down for a while is not a wrong one.
    let down = FaultProxy::stub(|_| answer(503, &[], b"maintenance"));
    check(doctor(&down.uri()).code(75), "503 (maintenance)");
    // A refusal by the API is one of the credentials.
    let refused = FaultProxy::stub(|_| answer(403, &["X-Elastic-Error: auth"], b"no"));
    let outcome = doctor(&refused.uri()).code(1);
    assert!(
        outcome.text().contains("failed   credentials"),
        "{outcome:?}"
    );
}
