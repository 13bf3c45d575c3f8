//! Zeros in the place of old bytes, without moving any where that is possible.

use std::fs::File;
use std::io;

use openhosting_system::{FileAt, punch};

use super::is_plain;
use openhosting_base::chunk::zeros;

/// Makes `len` bytes from `offset` on read as zeros: as a hole, or as zeros that the
/// device makes itself, or by writing them.
pub fn put_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    if !is_plain() && punch(file, offset, len)? {
        return Ok(());
    }
    let mut at = offset;
    for step in zeros(len) {
        file.write_all_at(step, at)?;
        at += step.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroing_a_range_leaves_its_neighbours_unchanged() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 20_000], 0).unwrap();
        put_zeros(&file, 5, 10_000).unwrap();
        put_zeros(&file, 0, 0).unwrap();
        let mut bytes = vec![1; 20_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..5], [7; 5]);
        assert!(bytes[5..10_005].iter().all(|b| *b == 0));
        assert!(bytes[10_005..].iter().all(|b| *b == 7));
    }
}
