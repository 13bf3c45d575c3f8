//! Names of members: which names refer to the same file, and which members are not files of the
//! archive's author.

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizer;
use percent_encoding::percent_decode_str;

/// Normalizes a name: without a leading `./` or `/`, and without empty or `.` components, which
/// tools write differently.
pub(super) fn plain(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

/// Whether macOS, Windows or another tar added this member beside the user's files. It holds
/// attributes of a file or a directory, never a disk or a description.
pub(crate) fn is_companion(name: &str) -> bool {
    let is_aside = |part: &str| {
        part == "__MACOSX"
            || part == "PaxHeader"
            || part == "PaxHeaders"
            || part.starts_with("PaxHeaders.")
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    name.split('/').any(is_aside)
        || last.starts_with("._")
        || [".DS_Store", "Thumbs.db", "desktop.ini", "@LongLink"]
            .iter()
            .any(|companion| last.eq_ignore_ascii_case(companion))
}

/// The directory of a member, with a slash at the end; empty at the top.
pub(super) fn directory(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..=slash])
}

/// The last component of a name.
pub(super) fn base(name: &str) -> &str {
    &name[directory(name).len()..]
}

/// How exactly two names have to match, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// The same bytes.
    Same,
    /// The same characters after Unicode composition: macOS stores accents separately from their
    /// letters.
    Composed,
    /// The same but for upper and lower case.
    AnyCase,
}

impl Likeness {
    /// The levels at which two names certainly refer to one file.
    pub(super) const CERTAIN: [Self; 2] = [Self::Same, Self::Composed];

    /// The form of a name to compare at this level.
    pub(super) fn of(self, name: &str) -> Cow<'_, str> {
        let composed = |name| ComposingNormalizer::new_nfc().normalize(name);
        match self {
            Self::Same => Cow::Borrowed(name),
            Self::Composed => composed(name),
            Self::AnyCase => Cow::Owned(composed(name).to_lowercase()),
        }
    }
}

/// The names that a reference in a description may refer to, the most likely first; `beside` is the
/// description's directory. The standard requires a relative URI, but many tools write the plain
/// name.
pub(super) fn meant(reference: &str, beside: &str) -> Vec<String> {
    let path = reference.strip_prefix("file://").unwrap_or(reference);
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut names: Vec<String> = Vec::new();
    for path in [path, &*decoded] {
        for name in [format!("{beside}{path}"), path.to_owned()] {
            let name = plain(&name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// The name that a link `link` with this target refers to.
pub(super) fn linked(link: &str, target: &str) -> String {
    let beside = match target.starts_with('/') {
        true => "",
        false => directory(link),
    };
    let mut parts = Vec::new();
    for part in beside.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    plain(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_spellings_of_a_name_are_normalised() {
        for (name, expected) in [
            ("./a/b", "a/b"),
            ("/vm/box.ovf", "vm/box.ovf"),
            (".//a/./b", "a/b"),
            ("a", "a"),
            ("./", ""),
            ("..a/.b", "..a/.b"),
        ] {
            assert_eq!(plain(name), expected);
        }
    }

    #[test]
    fn files_that_macos_adds_are_recognised() {
        for name in [
            "._disk.img",
            "a/b/._box.ovf",
            "__MACOSX/a/disk.img",
            "a/__MACOSX/disk.img",
            "a/.DS_Store",
            "PaxHeaders.12/disk.img",
            "a/PaxHeader/disk.img",
            "Thumbs.db",
        ] {
            assert!(is_companion(name), "{name}");
        }
        for name in [
            "disk.img",
            "a._b",
            ".hidden.img",
            "MACOSX/disk.img",
            "a._/b",
        ] {
            assert!(!is_companion(name), "{name}");
        }
    }

    #[test]
    fn a_reference_is_resolved_beside_its_description() {
        assert_eq!(
            meant("a%20b", "vm/"),
            ["vm/a%20b", "a%20b", "vm/a b", "a b"]
        );
        assert_eq!(meant("file:///a", ""), ["a"]);
        assert_eq!(meant("/etc/a", "vm/"), ["vm/etc/a", "etc/a"]);
        assert_eq!(linked("vm/a", "real"), "vm/real");
        assert_eq!(linked("vm/a", "./../real"), "real");
        assert_eq!(linked("vm/a", "/real"), "real");
        assert_eq!(linked("a", "../../real"), "real");
    }

    #[test]
    fn composed_and_decomposed_names_are_equal() {
        let (together, apart) = ("Gr\u{f6}sse", "Gro\u{308}sse");
        assert_ne!(Likeness::Same.of(together), Likeness::Same.of(apart));
        assert_eq!(
            Likeness::Composed.of(together),
            Likeness::Composed.of(apart)
        );
        assert_eq!(
            Likeness::AnyCase.of("GR\u{d6}SSE"),
            Likeness::AnyCase.of(apart)
        );
    }
}
