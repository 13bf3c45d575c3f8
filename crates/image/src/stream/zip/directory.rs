//! The directory at the end of a zip archive.

use super::header::{
    END_64_SIGNATURE, END_BYTES, END_SIGNATURE, ENTRY_BYTES, ENTRY_SIGNATURE, Header, IS_IN_EXTRA,
    LOCATOR_64_BYTES, LOCATOR_64_SIGNATURE, numbers_64,
};
use super::{Entry, is_ignored};
use crate::RawImage;
use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::error::{Error, ErrorKind, Result};
use crate::extraction;
use crate::number::{le16, le32, le64};
use crate::quoting::quote_file;

/// Maximum bytes of the directory, which is read into memory: enough for tens of thousands of
/// files, far more than an archive of an image has. An archive with a larger one is refused.
const DIRECTORY_BYTES_MAX: u64 = 4 << 20;
/// Maximum bytes of the comment in the end record, whose length has 16 bits.
const COMMENT_BYTES_MAX: usize = u16::MAX as usize;
/// Maximum number of names that an error lists; any number that fits a screen will do.
const NAMES_MAX: usize = 20;

/// The location of the directory.
struct Directory {
    at: u64,
    bytes: u64,
    count: u64,
}

/// The file of this name in an archive, or the only file that is not ignored.
///
/// # Errors
/// [`ErrorKind::Image`] if the archive is damaged at its end, or has no such file or several.
pub(crate) fn find(file: &RawImage, wanted: Option<&str>) -> Result<Entry> {
    let shown = file.path().display().to_string();
    let broken = || {
        let what = format!(
            "{shown} is a zip archive that was cut off, or is damaged: it has no sound directory at its end"
        );
        Error::new(ErrorKind::Image, what)
            .permanent()
            .hint_to(format!(
                "Test it with: {}, and fetch it again",
                super::super::command(&shown, "unzip -t")
            ))
    };
    let directory = directory(file)?.ok_or_else(broken)?;
    if directory.bytes > DIRECTORY_BYTES_MAX {
        let what = format!(
            "{shown} is a zip archive of {} files: only one that holds one image is read",
            directory.count
        );
        return Err(Error::new(ErrorKind::Image, what).hint_to("Unpack the image first"));
    }
    let mut bytes = vec![0; usize::try_from(directory.bytes).unwrap_or(0)];
    file.read_at(&mut bytes, directory.at)?;
    let entries = entries(&bytes, directory.count).ok_or_else(broken)?;
    let mut files: Vec<_> = match wanted {
        Some(wanted) => entries
            .iter()
            .filter(|(header, _)| header.name == wanted)
            .collect(),
        None => {
            let files = entries.iter();
            files
                .filter(|(header, _)| !is_ignored(&header.name))
                .collect()
        }
    };
    let Some((header, at)) = files.pop().filter(|_| files.is_empty()) else {
        return Err(choice(&shown, wanted, &entries));
    };
    if let Some(how) = header.why_unreadable() {
        let what = format!("{:?} in {shown} is {how}", header.name);
        let archive = quote_file(&shown);
        let member = extraction::members(&[&header.name]);
        return Err(Error::new(ErrorKind::Image, what).hint_to(advice![
            format!("7-Zip may read it: 7z x -so {archive} {member} | "),
            Remedy::UploadStdin(Some(header.name.clone())),
        ]));
    }
    if header.size == 0 {
        let what = format!(
            "{:?} in {shown} is empty: there is nothing to upload",
            header.name
        );
        return Err(Error::new(ErrorKind::Image, what));
    }
    if at
        .checked_add(header.packed_size)
        .is_none_or(|end| end > directory.at)
    {
        return Err(broken());
    }
    Ok(Entry {
        name: header.name.escape_debug().to_string(),
        at: *at,
        size: header.size,
        packed_size: header.packed_size,
        crc: header.crc,
    })
}

/// The error for an archive in which it is unclear which file is the image.
fn choice(shown: &str, wanted: Option<&str>, entries: &[(Header, u64)]) -> Error {
    let files = entries.iter().map(|(header, _)| &*header.name);
    let files: Vec<_> = files.filter(|name| !is_ignored(name)).collect();
    let list = files.iter().take(NAMES_MAX).map(|name| format!("{name:?}"));
    let list = list.collect::<Vec<_>>().join(", ");
    let more = match files.len() > NAMES_MAX {
        true => " and others",
        false => "",
    };
    let (what, hint) = match (wanted, &files[..]) {
        (_, []) => (
            format!("{shown} is a zip archive without a file in it"),
            Advice::default(),
        ),
        (None, [first, ..]) => (
            format!(
                "{shown} is a zip archive of {} files: {list}{more}",
                files.len()
            ),
            advice![
                "Name the disk in it, as in: ",
                Remedy::UploadDisk {
                    disk: (*first).to_owned(),
                    archive: shown.to_owned(),
                },
            ],
        ),
        (Some(wanted), _) => (
            format!("{wanted:?} is not one file in {shown}"),
            format!("In it are {list}{more}").into(),
        ),
    };
    let error = Error::new(ErrorKind::Image, what);
    match hint.is_empty() {
        true => error,
        false => error.hint_to(hint),
    }
}

/// Finds the directory from the end of the file; `None` if it is missing, or the archive consists
/// of several files.
fn directory(file: &RawImage) -> Result<Option<Directory>> {
    let tail_bytes = file.size().min((END_BYTES + COMMENT_BYTES_MAX) as u64);
    let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0)];
    let tail_at = file.size() - tail_bytes;
    file.read_at(&mut tail, tail_at)?;
    // The last end record whose comment fits, because a comment may contain a record as well.
    let is_end = |at: &usize| {
        let end = &tail[*at..];
        let comment = le16(end, END_BYTES - 2).map(usize::from);
        end.starts_with(END_SIGNATURE)
            && comment.is_some_and(|comment| END_BYTES + comment <= end.len())
    };
    let Some(at) = (0..tail.len()).rev().find(is_end) else {
        return Ok(None);
    };
    let end = &tail[at..];
    let end_at = tail_at + at as u64;
    let numbers = || {
        let (disk, count) = (le16(end, 4)?, le16(end, 10)?);
        let (bytes, at) = (le32(end, 12)?, le32(end, 16)?);
        Some((disk, count, bytes, at))
    };
    let Some((disk, count, bytes, at)) = numbers() else {
        return Ok(None);
    };
    let has_64_bits = count == u16::MAX || bytes == IS_IN_EXTRA || at == IS_IN_EXTRA;
    let found = match has_64_bits {
        false => Some(Directory {
            at: at.into(),
            bytes: bytes.into(),
            count: count.into(),
        })
        .filter(|_| disk == 0),
        true => directory_64(file, end_at)?,
    };
    Ok(found.filter(|found| {
        let end = found.at.checked_add(found.bytes);
        end.is_some_and(|end| end <= end_at)
    }))
}

/// Finds the directory by the 64-bit record in front of the end record.
fn directory_64(file: &RawImage, end_at: u64) -> Result<Option<Directory>> {
    // Bytes of the 64-bit end record without the extensible data at its end.
    const END_64_BYTES: usize = 56;
    let Some(locator_at) = end_at.checked_sub(LOCATOR_64_BYTES as u64) else {
        return Ok(None);
    };
    let mut locator = [0; LOCATOR_64_BYTES];
    file.read_at(&mut locator, locator_at)?;
    let at = le64(&locator, 8).filter(|_| locator.starts_with(LOCATOR_64_SIGNATURE));
    let is_within = |at: &u64| {
        let end = at.checked_add(END_64_BYTES as u64);
        end.is_some_and(|end| end <= locator_at)
    };
    let Some(at) = at.filter(is_within) else {
        return Ok(None);
    };
    let mut end = [0; END_64_BYTES];
    file.read_at(&mut end, at)?;
    let found = || {
        Some(Directory {
            count: le64(&end, 32)?,
            bytes: le64(&end, 40)?,
            at: le64(&end, 48)?,
        })
    };
    Ok(found().filter(|_| end.starts_with(END_64_SIGNATURE)))
}

/// The files of a directory, and the offsets of their headers; `None` if it is damaged.
fn entries(bytes: &[u8], count: u64) -> Option<Vec<(Header, u64)>> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while rest.starts_with(ENTRY_SIGNATURE) {
        let length = |at| le16(rest, at).map(usize::from);
        let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
        let name_end = ENTRY_BYTES + name;
        let extra_end = name_end + extra;
        let extra = rest.get(name_end..extra_end)?;
        let header = Header::parse(rest.get(6..)?, rest.get(ENTRY_BYTES..name_end)?, extra)?;
        let at = match le32(rest, 42)? {
            IS_IN_EXTRA => {
                // In the extra field, the offset follows the sizes that are there as well.
                let sizes = [20, 24].map(|at| le32(rest, at));
                let sizes_there = sizes.iter().filter(|size| **size == Some(IS_IN_EXTRA));
                numbers_64(extra).nth(sizes_there.count())?
            }
            at => u64::from(at),
        };
        entries.push((header, at));
        rest = rest.get(extra_end + comment..)?;
    }
    (entries.len() as u64 == count).then_some(entries)
}
