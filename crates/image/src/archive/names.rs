//! Names of members: which of them mean the same one, and which are no files of the
//! archive's author at all.

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizer;
use percent_encoding::percent_decode_str;

/// A name without what different tools write differently: the `./` or `/` before it, and
/// empty or `.` components.
pub(super) fn plain(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

/// Whether macOS, Windows or another tar made this beside somebody's files: it holds
/// attributes of a file or of a directory, and never a disk or a description.
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

/// The directory of a member, with the slash at its end; empty if it is in none.
pub(super) fn directory(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..=slash])
}

/// The last component of a name.
pub(super) fn base(name: &str) -> &str {
    &name[directory(name).len()..]
}

/// How exactly a name has to be that of a member, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// The same bytes.
    Same,
    /// The same characters: macOS writes accents apart from their letters.
    Composed,
    /// The same but for upper and lower case.
    AnyCase,
}

impl Likeness {
    /// Those that mean one and the same file.
    pub(super) const CERTAIN: [Self; 2] = [Self::Same, Self::Composed];

    /// What of a name has to be equal.
    pub(super) fn of(self, name: &str) -> Cow<'_, str> {
        let composed = |name| ComposingNormalizer::new_nfc().normalize(name);
        match self {
            Self::Same => Cow::Borrowed(name),
            Self::Composed => composed(name),
            Self::AnyCase => Cow::Owned(composed(name).to_lowercase()),
        }
    }
}

/// What a description may mean by a reference that is in the directory `beside`, the
/// likeliest first. The standard wants a relative URI; many write the name as it is.
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

/// The name that a link of the name `link` leads to.
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
    fn names_are_written_in_one_way() {
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
    fn companions_of_other_systems_are_known() {
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
    fn a_reference_is_looked_for_beside_its_description() {
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
    fn letters_and_their_accents_are_the_same_together_and_apart() {
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
