//! Commands in messages that take members out of an archive. Whoever made the archive chose the
//! names of its members, so no name may act as an option.

use crate::quoting::{quote, quote_file};

/// The words for members, by their names in the archive. If one of them could be taken for an
/// option, or by 7-Zip for a list of names, `--` precedes them.
pub(super) fn members(names: &[impl AsRef<str>]) -> String {
    let is_special = |name: &str| name.starts_with(['-', '@']);
    let ends_options = match names.iter().any(|name| is_special(name.as_ref())) {
        true => "-- ",
        false => "",
    };
    let words: Vec<_> = names.iter().map(|name| quote(name.as_ref())).collect();
    format!("{ends_options}{}", words.join(" "))
}

/// The command that extracts members of a tar into files.
pub(super) fn untar(archive: &str, names: &[impl AsRef<str>]) -> String {
    format!("tar -xf {} {}", quote_file(archive), members(names))
}

/// The words for the files that [`untar`] makes of members. tar removes leading slashes.
pub(super) fn files(names: &[impl AsRef<str>]) -> String {
    let files = names
        .iter()
        .map(|name| name.as_ref().trim_start_matches('/'));
    files.map(quote_file).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_member_is_never_an_option() {
        assert_eq!(untar("a b.ova", &["c", "d e"]), "tar -xf 'a b.ova' c 'd e'");
        assert_eq!(untar("-a", &["b", "--c"]), "tar -xf ./-a -- b --c");
        assert_eq!(members(&["@list"]), "-- @list");
        assert_eq!(files(&["/-a", "b/-c", "//-d e"]), "./-a b/-c './-d e'");
    }
}
