//! The disk in an archive that is read in order, compressed or through a pipe. Clouds distribute
//! images this way: `disk.raw` in a .tar.gz. Members before the disk are skipped, and everything
//! after it is read to the end, where the checksum of the compression is.

use std::io::{self, Read};

use super::headers::{Entry, Headers, Kind, Source};
use super::names::{self, Likeness};
use super::{any_of, is_disk};
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind};
use crate::pieces::{Pieces, Stretch};
use crate::signs::HEAD_BYTES;
use crate::{Format, Member};

/// How messages describe an archive that is read in order.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    /// Its name for messages.
    pub(crate) name: String,
    /// The command that writes the tar to standard output.
    pub(crate) unpack: String,
}

/// The bytes of an archive in order.
struct InStream {
    read: Box<dyn Read + Send>,
    name: String,
}

impl Source for InStream {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read.read(&mut bytes[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(done)
    }

    fn skip(&mut self, len: u64) -> io::Result<()> {
        io::copy(&mut self.read.by_ref().take(len), &mut io::sink()).map(|_| ())
    }
}

/// Reads the content of one member. It reports the end only when the whole archive was read.
pub(crate) struct DiskInOrder {
    headers: Headers<InStream>,
    described: Described,
    /// The name of the member.
    name: String,
    /// Whether the user named it, so that another disk is no problem.
    is_named: bool,
    content: Content,
    /// The bytes that were read to recognise the member, and how many of them were returned.
    head: io::Cursor<Vec<u8>>,
    /// Whether the rest of the archive was read as well. Then every further read returns 0 bytes.
    is_over: bool,
}

/// The rest of a member.
struct Content {
    pieces: Pieces,
    offset: u64,
}

impl Content {
    fn of(pieces: Pieces) -> Self {
        Self { pieces, offset: 0 }
    }

    /// Reads more; returns 0 at the end.
    fn read(&mut self, headers: &mut Headers<InStream>, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(Stretch { at, len }) = self.pieces.at(self.offset) else {
            return Ok(0);
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        let n = match at {
            None => {
                bytes[..len].fill(0);
                len
            }
            Some(_) => headers.read(&mut bytes[..len])?,
        };
        if n == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        Ok(n)
    }

    /// Reads the first bytes.
    fn head(&mut self, headers: &mut Headers<InStream>) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.pieces.size()).unwrap_or(usize::MAX);
        let len = len.min(HEAD_BYTES);
        let mut head = vec![0; len];
        let mut done = 0;
        while done < len {
            done += self.read(headers, &mut head[done..])?;
        }
        Ok(head)
    }
}

impl DiskInOrder {
    /// Reads up to the disk with the name `wanted`, or without one up to the first disk; the next
    /// bytes to read are those of the disk. Without `wanted`, a member counts as a disk if its first
    /// bytes show one, or if its name ends in `.img` or `.raw`: the content of an empty disk, or of
    /// one without a partition table, shows nothing. Returns the member and its size in bytes.
    ///
    /// # Errors
    /// Our own, if there is no such disk or it cannot be read in order; errors of reading.
    pub(crate) fn open(
        read: Box<dyn Read + Send>,
        described: Described,
        wanted: Option<&str>,
    ) -> io::Result<(Self, Member, u64)> {
        let name = described.name.clone();
        let mut headers = Headers::new(InStream { read, name });
        let mut seen = Vec::new();
        let wanted = wanted.map(|wanted| {
            let wanted = names::plain(wanted);
            Likeness::Composed.of(&wanted).into_owned()
        });
        loop {
            let Some((name, pieces)) = next_file(&mut headers, &described)? else {
                return Err(none(&described, wanted.as_deref(), &seen));
            };
            let mut content = Content::of(pieces);
            let is_named = match &wanted {
                Some(wanted) => Likeness::Composed.of(&name) == **wanted,
                None => false,
            };
            let head = match wanted.is_some() && !is_named {
                true => Vec::new(),
                false => content.head(&mut headers)?,
            };
            let lower = name.to_lowercase();
            let is_called = lower.ends_with(".img") || lower.ends_with(".raw");
            if is_named || wanted.is_none() && (is_called || holds_disk(&head)) {
                let size = content.pieces.size();
                if size == 0 {
                    let what = format!(
                        "{name:?} in {} is empty: there is nothing to upload",
                        described.name
                    );
                    return Err(io::Error::other(Error::new(ErrorKind::Image, what)));
                }
                let member = Member::new(&name, &[]);
                let disk = Self {
                    headers,
                    described,
                    name,
                    is_named,
                    content,
                    head: io::Cursor::new(head),
                    is_over: false,
                };
                return Ok((disk, member, size));
            }
            if seen.len() < super::NAMES_MAX {
                seen.push(name);
            }
        }
    }

    /// Reads what follows the disk, to the end of the archive: only there is the checksum of the
    /// compression, so a truncated archive is detected here. Fails if there is another disk, because
    /// it would be an equally good choice. By then the first disk was sent, so this check is strict:
    /// a later member counts only by its content, and not by its name as in `open`.
    fn finish(&mut self) -> io::Result<()> {
        while let Some((name, pieces)) = next_file(&mut self.headers, &self.described)? {
            if self.is_named {
                continue;
            }
            let head = Content::of(pieces).head(&mut self.headers)?;
            if holds_disk(&head) {
                let what = format!(
                    "{} holds the disk {name:?} besides {:?}, and nothing in it says which one boots",
                    self.described.name, self.name
                );
                let error = Error::new(ErrorKind::Image, what).permanent();
                return Err(io::Error::other(error.hint_to(advice![
                    "Name one of them: ",
                    any_of(&[self.name.clone(), name.clone()]),
                ])));
            }
        }
        self.headers.drain()
    }
}

impl Read for DiskInOrder {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.head.read(bytes)?;
        if n > 0 || bytes.is_empty() {
            return Ok(n);
        }
        let n = self.content.read(&mut self.headers, bytes)?;
        if n == 0 && !self.is_over {
            self.finish()?;
            self.is_over = true;
        }
        Ok(n)
    }
}

/// The next regular file. Fails for an OVF description or a manifest: a description can name a disk
/// that was read past already, and a manifest must be known before the disk that it is about.
fn next_file(
    headers: &mut Headers<InStream>,
    described: &Described,
) -> io::Result<Option<(String, Pieces)>> {
    while let Some(Entry { name, kind, .. }) = headers.next()? {
        let name = names::plain(&name);
        let Kind::File(pieces) = kind else {
            continue;
        };
        if names::is_companion(&name) {
            continue;
        }
        let lower = name.to_lowercase();
        let why = match lower.rsplit_once('.') {
            Some((_, "ovf")) => "is an OVA, whose disks have to be read at any place",
            Some((_, "mf")) => "holds a manifest, by which its disk can be checked in a file only",
            _ => return Ok(Some((name, pieces))),
        };
        let what = format!("{} {why}: it comes in order", described.name);
        let unpack = &described.unpack;
        let hint = advice![
            format!("Write it to a file, and upload that: {unpack} > archive.tar && "),
            Remedy::Upload("archive.tar".to_owned()),
        ];
        let error = Error::new(ErrorKind::Image, what).permanent();
        return Err(io::Error::other(error.hint_to(hint)));
    }
    Ok(None)
}

/// Whether a file with this beginning is a disk, raw or in an image format.
fn holds_disk(head: &[u8]) -> bool {
    is_disk(head) || Format::of_head(head).is_some()
}

/// The error for an archive without a disk, or without the one that the user named.
fn none(described: &Described, wanted: Option<&str>, seen: &[String]) -> io::Error {
    let what = match wanted {
        Some(wanted) => format!("There is no file {wanted:?} in {}", described.name),
        None => format!("{} is a tar, and no disk is in it", described.name),
    };
    let seen: Vec<_> = seen.iter().map(|name| format!("{name:?}")).collect();
    let hint = match seen.is_empty() {
        true => "No file is in it".into(),
        false => advice![
            Remedy::ChooseDisk,
            format!(" takes another file. In it are {}", seen.join(", ")),
        ],
    };
    io::Error::other(Error::new(ErrorKind::Image, what).permanent().hint_to(hint))
}
