//! Comments and documents cite docs/dev/reference.md and docs/dev/faults.md by section, as in
//! "docs/dev/faults.md, 3.2", or by the name of a table row. Every citation must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use openhosting::wire::ErrorType;

const DOCUMENTS: [&str; 2] = ["docs/dev/reference.md", "docs/dev/faults.md"];
/// Directories without sources, and those that tools generate.
const SKIPPED: [&str; 5] = [".git", "target", "fixtures", "corpus", "artifacts"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Adds the text files below `directory`.
fn collect(directory: &Path, files: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let is_skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && !is_skipped {
            collect(&path, files);
        } else if kind.is_file()
            // This file contains the documents' names itself.
            && !path.ends_with("tests/it/citations.rs")
            && let Ok(text) = fs::read_to_string(&path)
        {
            files.push((path, text));
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A section such as `3` or `3.2`, or a row such as `N5`.
fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    text.split('.').all(is_number)
        || chars.next().is_some_and(|c| c.is_ascii_uppercase()) && is_number(chars.as_str())
}

/// The numbers of the headings of a document and the names of its table rows.
fn names(document: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in document.lines() {
        let name = match line.strip_prefix("| ") {
            Some(row) => row.split(' ').next(),
            None if line.starts_with("## ") || line.starts_with("### ") => line.split(' ').nth(1),
            None => None,
        };
        let is_row = line.starts_with('|');
        // A status such as 404 at the start of a row is not a name.
        if let Some(name) = name.filter(|name| is_name(name) && !(is_row && is_number(name))) {
            assert!(names.insert(name.to_owned()), "{name} is there twice");
        }
    }
    names
}

/// The anchors that GitHub generates for the headings of a document.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_citation_names_a_section_that_exists() {
    let mut files = Vec::new();
    collect(root(), &mut files);
    let (mut citations, mut wrong) = (0, Vec::new());
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let (names, anchors) = (names(&text), anchors(&text));
        assert!(names.len() > 30, "{document}: {names:?}");
        for (path, text) in &files {
            let lines = text.lines().enumerate();
            for (line, rest) in lines.flat_map(|(number, line)| {
                let places = line.match_indices(document);
                places.map(move |(at, _)| (number + 1, &line[at + document.len()..]))
            }) {
                let place = format!("{}:{line}", path.display());
                // Not a citation, but a link to the document or a heading.
                if rest.starts_with([']', ')']) {
                    continue;
                }
                if let Some(anchor) = rest.strip_prefix('#') {
                    let anchor = anchor.split(')').next().unwrap();
                    if !anchors.contains(anchor) {
                        wrong.push(format!("{place}: {document} has no heading #{anchor}"));
                    }
                    continue;
                }
                citations += 1;
                let name = rest.strip_prefix(", ").unwrap_or_default();
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                let name = name[..end.unwrap_or(name.len())].trim_end_matches('.');
                if !names.contains(name) {
                    wrong.push(format!("{place}: {document} has no section {name:?}"));
                }
            }
        }
    }
    // There is only one form, so that no citation escapes this test.
    for (path, text) in &files {
        for name in ["reference.md, ", "faults.md, "] {
            for (at, _) in text.match_indices(name) {
                if !text[..at].ends_with("docs/dev/") {
                    wrong.push(format!("{}: {name}without docs/dev/", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(citations > 80, "only {citations} citations were found");
}

/// The two documents link to each other's headings.
#[test]
fn links_between_the_two_documents_lead_to_headings() {
    for (from, to) in [(DOCUMENTS[0], DOCUMENTS[1]), (DOCUMENTS[1], DOCUMENTS[0])] {
        let [from, target] = [from, to].map(|name| fs::read_to_string(root().join(name)).unwrap());
        let anchors = anchors(&target);
        let file_name = to.rsplit('/').next().unwrap();
        for rest in from.split(&format!("({file_name}#")).skip(1) {
            let anchor = rest.split(')').next().unwrap();
            assert!(anchors.contains(anchor), "{to} has no heading #{anchor}");
        }
    }
}

#[test]
fn the_error_table_of_the_reference_is_that_of_the_code() {
    let text = fs::read_to_string(root().join(DOCUMENTS[0])).unwrap();
    let (_, table) = text.split_once("### 3.1 ").unwrap();
    let (table, _) = table.split_once("\n### ").unwrap();
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let status: u16 = cells.next()?.parse().ok()?;
        Some((status, cells.next()?.trim_matches('`').to_owned()))
    });
    let types = ErrorType::ALL.iter().map(|t| (t.status(), t.to_string()));
    assert_eq!(rows.collect::<Vec<_>>(), types.collect::<Vec<_>>());
}
