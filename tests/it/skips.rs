//! `.ci/skips` lists what was skipped and fails on what is not allowed.

use std::path::Path;

use crate::support::cli::{Desk, Outcome};
use crate::support::needs::{Need, write};

const LIST: &str = "*: loop devices # containers have none\n";

/// Runs `.ci/skips --check` with these skips and this list.
fn check(skips: &[(&str, Need)], list: &str) -> Outcome {
    let desk = Desk::new();
    let (record, list) = (desk.path("skipped"), desk.file("list", list.as_bytes()));
    for (test, need) in skips {
        write(&record, test, *need);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/skips");
    let tool = desk.tool(script).arg("--check");
    let tool = tool.env("OPENHOSTING_SKIPPED", record);
    tool.env("OPENHOSTING_SKIPS_ALLOWED", list).run()
}

#[test]
fn a_skip_that_the_list_does_not_allow_fails_the_gate() {
    let missing = ("disks::a_test", Need::Command("nosuch"));
    let allowed = ("disks::another", Need::Other("loop devices"));
    let outcome = check(&[allowed, missing, missing], LIST).code(1);
    let text = outcome.text();
    assert!(
        text.contains("SKIPPED  disks::a_test: command nosuch (NOT ALLOWED)\n"),
        "{text}"
    );
    assert!(
        text.contains("SKIPPED  disks::another: loop devices (containers have none)\n"),
        "{text}"
    );
    assert!(text.contains("2, of which 1 not allowed"), "{text}");
    // The pattern matches one test only.
    let list = "disks::a_*: command nosuch # here\n";
    check(&[missing], list).code(0);
    check(&[("other::a_test", Need::Command("nosuch"))], list).code(1);
}

#[test]
fn skips_of_the_list_and_none_at_all_pass_the_gate() {
    let allowed = ("disks::another", Need::Other("loop devices"));
    let outcome = check(&[allowed], LIST).code(0);
    assert!(outcome.text().contains("1, of which 0"), "{outcome:?}");
    check(&[], LIST).code(0);
    // A line that allows a skip without a reason is an error.
    check(&[], "*: loop devices\n").code(2).says("WHY");
}

#[test]
fn the_list_of_this_repository_can_be_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/skips.txt");
    let list = std::fs::read_to_string(path).unwrap();
    let outcome = check(&[("any::test", Need::Command("nosuch"))], &list);
    outcome.code(1);
}
