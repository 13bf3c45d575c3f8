//! Files with digests, as publishers provide them beside images.

use super::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Finds the SHA-256 of the file with the base name `name` in a text, which may be the output of
/// `sha256sum`, of `sha256sum --tag` or BSD's `sha256`, or a digest alone. Other lines, such as
/// those of a signature, are ignored.
///
/// # Errors
/// [`ErrorKind::Usage`] if there is no digest for this name, or two different ones.
pub fn digest_for(text: &str, name: Option<&str>) -> Result<Digest> {
    let entries: Vec<_> = text.lines().filter_map(entry).collect();
    let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
    if let [(digest, None)] = entries.as_slice() {
        return Ok(*digest);
    }
    let Some(name) = name else {
        return usage("The image has no name to look for among the digests".into());
    };
    let is_it = |entry: &&(Digest, Option<String>)| {
        let named = entry.1.as_deref();
        named.is_some_and(|named| named.rsplit('/').next() == Some(name))
    };
    let mut found = entries.iter().filter(is_it).map(|(digest, _)| *digest);
    match (found.next(), found.next()) {
        (Some(digest), None) => Ok(digest),
        (Some(digest), Some(_)) if found_alike(&entries, name, digest) => Ok(digest),
        (Some(_), Some(_)) => usage(format!("There are several digests for {name:?}")),
        (None, _) => usage(missing(text, &entries, name)),
    }
}

/// Describes what the text has instead of a SHA-256 for `name`.
fn missing(text: &str, entries: &[(Digest, Option<String>)], name: &str) -> String {
    const SHOWN: usize = 3;
    let mut names: Vec<_> = entries
        .iter()
        .filter_map(|entry| entry.1.as_deref())
        .collect();
    names.dedup();
    let is_more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    match (quoted.join(", "), text.lines().find_map(other_algorithm)) {
        (names, Some(algorithm)) if names.is_empty() => {
            format!("There is no SHA-256 for {name:?}: the digests are {algorithm}")
        }
        (names, None) if names.is_empty() => format!("There is no SHA-256 for {name:?}"),
        (names, _) if is_more > 0 => {
            format!("There is no SHA-256 for {name:?}, only for {names} and {is_more} more names")
        }
        (names, _) => format!("There is no SHA-256 for {name:?}, only for {names}"),
    }
}

/// The algorithm of a line with a digest other than SHA-256.
fn other_algorithm(line: &str) -> Option<&'static str> {
    let word = line.trim_start_matches('\\').split_whitespace().next()?;
    let is_digest = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    match word.len() {
        _ if line.starts_with("SHA512 (") => Some("SHA-512"),
        _ if line.starts_with("MD5 (") => Some("MD5"),
        _ if line.starts_with("SHA1 (") => Some("SHA-1"),
        32 if is_digest => Some("MD5"),
        40 if is_digest => Some("SHA-1"),
        96 if is_digest => Some("SHA-384"),
        128 if is_digest => Some("SHA-512"),
        _ => None,
    }
}

/// Whether all entries of this name have this digest.
fn found_alike(entries: &[(Digest, Option<String>)], name: &str, digest: Digest) -> bool {
    let named = |entry: &&(Digest, Option<String>)| {
        let named = entry.1.as_deref();
        named.is_some_and(|named| named.rsplit('/').next() == Some(name))
    };
    entries.iter().filter(named).all(|entry| entry.0 == digest)
}

/// The digest in a line, and the name that it is for.
fn entry(line: &str) -> Option<(Digest, Option<String>)> {
    let line = line.trim_end();
    if let Some(rest) = line.strip_prefix("SHA256 (") {
        let (name, digest) = rest.rsplit_once(") = ")?;
        return Some((digest.parse().ok()?, Some(name.to_owned())));
    }
    // `sha256sum` escapes a name that contains a line end or a backslash.
    let (is_escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let digest = line.get(..64)?.parse().ok()?;
    let name = match line.get(64..)? {
        "" => return Some((digest, None)),
        // A blank, then another blank or the mark for binary mode.
        rest => rest.strip_prefix(' ')?,
    };
    let name = name.strip_prefix(['*', ' ']).unwrap_or(name);
    let name = match is_escaped {
        true => name.replace("\\n", "\n").replace("\\\\", "\\"),
        false => name.to_owned(),
    };
    Some((digest, Some(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_name_is_found_in_every_format_of_the_list() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let forms = [
            format!("{one}  a.img\n{two}  b.img\n"),
            format!("{one} *a.img\r\n{two} *dir/b.img\r\n"),
            format!("SHA256 (a.img) = {one}\nSHA256 (./b.img) = {two}\n"),
            format!("# comment\n{two} b.img\nMD5 (b.img) = 00\n{two}  b.img\n"),
            format!("-----BEGIN PGP SIGNED MESSAGE-----\n\n{two}  b.img\n{one}  cb.img\n"),
            format!("{two}\n"),
            two.to_string().to_uppercase(),
        ];
        for text in &forms {
            assert_eq!(digest_for(text, Some("b.img")).unwrap(), two, "{text}");
        }
        let odd = format!("\\{two}  a\\nb\n");
        assert_eq!(digest_for(&odd, Some("a\nb")).unwrap(), two);
        assert_eq!(digest_for(&two.to_string(), None).unwrap(), two);
    }

    #[test]
    fn a_missing_entry_is_reported_with_the_existing_ones() {
        let one = Digest::of(b"1");
        let said = |text: &str| digest_for(text, Some("a.img")).unwrap_err().to_string();
        let begin = "There is no SHA-256 for \"a.img\"";
        assert_eq!(
            said(&format!("{one}  b.img.xz\n")),
            format!("{begin}, only for \"b.img.xz\"")
        );
        let many: String = (0..5).map(|i| format!("{one}  {i}\n")).collect();
        assert_eq!(
            said(&many),
            format!("{begin}, only for \"0\", \"1\", \"2\" and 2 more names")
        );
        let sha512 = "0a".repeat(64);
        for text in [
            format!("{sha512}  a.img\n"),
            format!("SHA512 (a.img) = {sha512}\n"),
        ] {
            assert_eq!(said(&text), format!("{begin}: the digests are SHA-512"));
        }
        assert_eq!(said("nothing\n"), begin);
    }

    #[test]
    fn no_digest_is_guessed() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let texts = [
            String::new(),
            format!("{one}  b.img.old\n{two}  ab.img\n"),
            format!("{one}  b.img\n{two}  b.img\n"),
            format!("{one}\n{two}\n"),
            format!("{one}x b.img\n"),
            "é".repeat(64),
        ];
        for text in texts {
            let error = digest_for(&text, Some("b.img")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
        }
        assert!(digest_for(&format!("{one}  b.img\n"), None).is_err());
    }
}
