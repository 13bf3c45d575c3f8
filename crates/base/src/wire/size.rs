//! Sizes as the API writes them.

use super::WireError;

/// Parses a size: an integer number of bytes, optionally with one of the suffixes k, M, G and T,
/// which are powers of 1024 (docs/dev/reference.md, 1.6). An upper-case K is accepted too;
/// surrounding white space is not.
///
/// # Errors
/// [`WireError::BadSize`] for anything else, and for values that exceed 64 bits.
pub fn parse_size(text: &str) -> Result<u64, WireError> {
    let bad = || WireError::BadSize(text.to_owned());
    let trimmed = text.trim();
    let unit = |suffixes: &[char]| trimmed.strip_suffix(suffixes);
    let units = [
        (unit(&['k', 'K']), 10),
        (unit(&['M']), 20),
        (unit(&['G']), 30),
        (unit(&['T']), 40),
    ];
    let with_unit = units
        .into_iter()
        .find_map(|(digits, shift)| Some((digits?, shift)));
    let (digits, shift) = with_unit.unwrap_or((trimmed, 0));
    // `u64::from_str` accepts a leading plus, but the API does not.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10000000"), Ok(10_000_000));
        assert_eq!(parse_size("4096k"), Ok(4_194_304));
        assert_eq!(parse_size("160G"), Ok(160 << 30));
        assert_eq!(parse_size(" 2T "), Ok(2 << 40));
        for bad in [
            "",
            "k",
            "1.5G",
            "-1",
            "+1",
            "1e3",
            "0x10",
            "16777216T",
            "9g",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
