//! The journal of a transfer: a file that records what was done, so that a later run continues
//! where this one ended, for whatever reason it ended (docs/dev/formats.md).
//!
//! One rule makes it safe: a journal never claims more than is true. A record is written only after
//! its statement is true: after the endpoint confirmed a chunk, or after the bytes of a chunk were
//! synced to the disk. A lost record costs a chunk that is transferred again; a wrong record would
//! cost the image.
//!
//! A chunk that is in a file but not synced has a separate kind of record, [`Record::Written`]. It
//! is valid after the process was killed, but not after a loss of power.

mod keeper;
mod log;
mod record;
mod replay;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rangemap::RangeSet;

use crate::advice::Remedy;
use crate::digest::ChunkDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{
    self, Access, Lock, Locked, Staged, Untrusted, Weakness, create_whole, directory_of, open_own,
    open_to_read, remedy, sync_all, sync_directory, unsynced, with_suffix,
};
use crate::locks;
use crate::plan::Span;
use crate::system::FileAt;
use openhosting_base::advice;

use keeper::{Keeper, done};
use log::{Log, cannot};
use record::{MAGIC, VERSION, forget_source};

pub use crate::filesystem::PageCache;
pub(crate) use keeper::{Data, Note};
pub use record::{Direction, HEADER_BYTES, Header, HeaderError, Proof, RECORD_BYTES, Record};
pub use replay::{Replay, ReplayError, State, replay};

/// The extension of a journal, unless the user chose another name.
pub(crate) const EXTENSION: &str = "ohj";

/// An open journal. While it is open, no other process can open it. A clone is the same journal;
/// dropping the last one closes it, after what was noted is recorded.
#[derive(Clone, Debug)]
pub struct Journal {
    /// Shared with the tasks that write records concurrently.
    log: Arc<Log>,
    /// These tasks, while a transfer runs.
    keeper: Arc<Mutex<Option<Keeper>>>,
    weaknesses: Vec<Weakness>,
}

impl Journal {
    /// Checks that no other process uses this journal. A file that does not exist, or is no file of
    /// this user, is used by none.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if one does.
    pub(crate) fn check_unused(path: &Path) -> Result<()> {
        filesystem::open_own(path).map_or(Ok(()), |file| lock(&file, path).map(drop))
    }

    /// Checks that a journal can be made in a directory: writes a file like one there, and removes it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot.
    pub(crate) fn check_place(directory: &Path) -> Result<()> {
        const BYTES: usize = HEADER_BYTES + RECORD_BYTES;
        let written = std::fs::create_dir_all(directory).and_then(|()| {
            let staged = Staged::beside(&directory.join(EXTENSION), Access::Private)?;
            staged.file().write_all_at(&[1; BYTES], 0)?;
            sync_all(staged.file())
        });
        written.map_err(|cause| {
            let what = format!("Cannot make a journal in {}", directory.display());
            Error::new(ErrorKind::Local, what)
                .because(cause)
                .hint_to(advice!["Put it elsewhere with ", Remedy::JournalElsewhere])
        })
    }

    /// Creates a journal, completely or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be created or exists already.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let cannot = |cause: std::io::Error| {
            let hint = match cause.kind() {
                std::io::ErrorKind::FileTooLarge => remedy(&cause),
                _ => None,
            };
            cannot(path, "make").because(cause).hint_to(match hint {
                Some(hint) => hint.into(),
                None => advice!["Put it elsewhere with ", Remedy::JournalElsewhere],
            })
        };
        let Some(bytes) = header.encode() else {
            return Err(Error::new(
                ErrorKind::Usage,
                "The endpoint or the user is too long a text",
            ));
        };
        let directory = directory_of(path);
        std::fs::create_dir_all(directory).map_err(cannot)?;
        let weak = Cell::new([None, None]);
        let fill = |file: &File| {
            // It is locked before it has its name, so that no other process can be first.
            let locked = filesystem::lock(file, Lock::Exclusive);
            file.write_all_at(&bytes, 0)?;
            weak.set([weakness_of(locked, path), unsynced(file, path)?]);
            Ok(())
        };
        let file = create_whole(path, fill).map_err(cannot)?;
        let names = match sync_directory(directory) {
            Ok(weakness) => weakness,
            Err(cause) => {
                // The next run would take it for one that had begun.
                let _ = std::fs::remove_file(path);
                return Err(cannot(cause));
            }
        };
        let weaknesses = weak.take().into_iter().flatten().chain(names).collect();
        let log = Log::new(file, path, header.session, VERSION);
        Ok(Self::over(log, weaknesses))
    }

    fn over(log: Log, weaknesses: Vec<Weakness>) -> Self {
        Self {
            log: Arc::new(log),
            keeper: Arc::default(),
            weaknesses,
        }
    }

    /// Opens a journal and reads it; `None` if there is none. A tail that a crash left incomplete
    /// is cut off. If the journal is damaged, a copy is stored beside it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if another process has it open, another user may have written it, or it
    /// cannot be read.
    pub fn open(path: &Path) -> Result<Option<(Self, Replay)>> {
        if filesystem::is_placeholder(path) {
            return Ok(None);
        }
        let mut file = match open_own(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                let hint = Untrusted::of(&cause).map(|why| {
                    let over = advice![
                        "or start over with ",
                        Remedy::Restart,
                        ", or choose another file with ",
                        Remedy::JournalElsewhere,
                    ];
                    why.remedy(path, over)
                });
                return Err(cannot(path, "use").because(cause).hint_if(hint));
            }
        };
        let weaknesses = lock(&file, path)?.into_iter().collect();
        let replay = replay(BufReader::new(&mut file), |_, _, _| {}).map_err(|cause| {
            cannot(path, "read").because(cause).hint_to(advice![
                "Start over with ",
                Remedy::Restart,
                ", or compare with the drive with ",
                Remedy::CompareWithDrive(None),
            ])
        })?;
        if replay.is_damaged {
            keep_aside(&file, path).map_err(|cause| {
                let hint = advice![
                    "It is damaged, and its copy could not be written beside it: start over with ",
                    Remedy::Restart,
                ];
                cannot(path, "copy").because(cause).hint_to(hint)
            })?;
        }
        let len = (HEADER_BYTES as u64) + replay.records * (RECORD_BYTES as u64);
        file.set_len(len)
            .map_err(|cause| cannot(path, "repair").because(cause))?;
        let journal = Self::over(Log::after(&replay, file, path), weaknesses);
        Ok(Some((journal, replay)))
    }

    /// Writes and syncs records, so that they survive a loss of power. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Local`]. After a failure, every later call fails as well: what a failed sync
    /// left on the disk is unknown, and a second attempt would wrongly report success.
    pub fn record(&self, records: &[Record]) -> Result<()> {
        self.log.record(records)
    }

    /// Records chunks that are in `data` and synced, with their digests. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if they cannot be read, or the journal cannot be written.
    pub fn remember(&self, data: &File, chunks: impl IntoIterator<Item = Span>) -> Result<()> {
        let records = chunks
            .into_iter()
            .filter_map(|span| done(data, span).transpose());
        self.record(&records.collect::<Result<Vec<_>>>()?)
    }

    /// Starts the tasks that record notes; for a download, with the file to which chunks are
    /// written.
    pub(crate) fn begin(&self, data: Option<Data>) {
        let keeper = Keeper::start(&self.log, data);
        *locks::lock(&self.keeper) = Some(keeper);
    }

    /// Records a note soon, without waiting for it. Call [`begin`](Self::begin) before.
    ///
    /// # Errors
    /// Why the journal cannot be written any more.
    pub(crate) fn note(&self, note: impl Into<Note>) -> Result<()> {
        let note = note.into();
        self.log.waits(&note);
        match &*locks::lock(&self.keeper) {
            Some(keeper) => keeper.note(note),
            None => Err(Error::new(ErrorKind::Bug, "The journal was not begun")),
        }
    }

    /// Whether recording is behind, so that the caller should compute the digest of the chunk that
    /// it has in memory. Otherwise recording would fall further and further behind, and a crash
    /// would lose more and more of the transfer.
    pub(crate) fn is_behind(&self) -> bool {
        self.log.is_behind()
    }

    /// Records what is left of the notes. Returns the chunks that it covers only by calling the
    /// file complete.
    ///
    /// # Errors
    /// Why the journal cannot be written.
    pub(crate) async fn finish(&self) -> Result<Vec<Span>> {
        let keeper = locks::lock(&self.keeper).take();
        match keeper {
            Some(keeper) => keeper.finish().await,
            None => Ok(Vec::new()),
        }
    }

    /// The digests of all chunks that are done, by index. Of several records about one chunk, the
    /// last one counts.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be read.
    pub fn digests(&self) -> Result<BTreeMap<u64, ChunkDigest>> {
        let mut digests = BTreeMap::new();
        let each = |index, _, digest| {
            digests.insert(index, digest);
        };
        let mut file = &self.log.file;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| {
                let reader = BufReader::new(file.take(u64::MAX));
                replay(reader, each).map_err(std::io::Error::other)
            })
            .map_err(|cause| cannot(self.path(), "read").because(cause))?;
        Ok(digests)
    }

    /// Removes what it says about these chunks: writes a new journal without them, completely or
    /// not at all, and replaces the old one.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be read or written; then it is unchanged.
    pub fn without(&self, chunks: &RangeSet<u64>) -> Result<Self> {
        self.rewritten(chunks, |_| {})
    }

    /// As [`without`](Self::without), for an image that differs from that of the first run: removes
    /// the fingerprint as well. Otherwise a run that finds the first image again would trust what
    /// the journal says, while the drive holds chunks of the other one.
    ///
    /// # Errors
    /// As [`without`](Self::without).
    pub(crate) fn of_another_image(&self, chunks: &RangeSet<u64>) -> Result<Self> {
        self.rewritten(chunks, forget_source)
    }

    fn rewritten(
        &self,
        chunks: &RangeSet<u64>,
        change: impl FnOnce(&mut [u8; HEADER_BYTES]),
    ) -> Result<Self> {
        let (log, path) = (&self.log, self.path());
        let cannot = |cause: std::io::Error| cannot(path, "write").because(cause);
        let staged = Staged::beside(path, Access::Private).map_err(cannot)?;
        let file = staged.file().try_clone().map_err(cannot)?;
        lock(&file, path)?;
        let anew = Log::new(file, path, log.session, log.version);
        let anew = Self::over(anew, self.weaknesses.clone());
        let mut kept = Vec::new();
        let mut file = &log.file;
        file.seek(SeekFrom::Start(0)).map_err(cannot)?;
        let mut old = BufReader::new(file);
        let mut header = [0; HEADER_BYTES];
        old.read_exact(&mut header).map_err(cannot)?;
        change(&mut header);
        anew.log.file.write_all_at(&header, 0).map_err(cannot)?;
        let mut bytes = [0; RECORD_BYTES];
        for number in 0..log.records() {
            old.read_exact(&mut bytes).map_err(cannot)?;
            match Record::decode(&bytes, number, &log.session) {
                Some(Record::Done { index, .. } | Record::Written { index, .. })
                    if chunks.contains(&index) => {}
                // Records have other numbers in the new journal.
                Some(Record::Synced { .. }) => {}
                Some(Record::Holes { first, count }) => {
                    let holes = first..first.saturating_add(count);
                    kept.extend(chunks.gaps(&holes).map(|gap| Record::holes(&gap)));
                }
                // It covers these chunks as well.
                Some(Record::Whole { .. }) if !chunks.is_empty() => {}
                Some(record) => kept.push(record),
                None => return Err(cannot(std::io::ErrorKind::InvalidData.into())),
            }
        }
        anew.record(&kept)?;
        staged.replace(path).map_err(cannot)?;
        Ok(anew)
    }

    /// What its file system cannot guarantee.
    pub fn weaknesses(&self) -> &[Weakness] {
        &self.weaknesses
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.log.path
    }

    /// Removes it, because the transfer is complete.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be removed.
    pub fn remove(self) -> Result<()> {
        let path = self.path();
        std::fs::remove_file(path).map_err(|cause| cannot(path, "remove").because(cause))?;
        // If it reappears after a loss of power, it describes a complete transfer, and the next run
        // finds nothing to do. So a failure is ignored.
        let _ = sync_directory(directory_of(path));
        Ok(())
    }
}

/// Whether a file is a journal, perhaps a damaged one, and not a file of another kind that was named
/// by mistake. A journal whose start is lost is only recognised by the extension that journals have
/// by default.
pub(crate) fn may_be_journal(path: &Path) -> bool {
    if path.extension().is_some_and(|end| end == EXTENSION) {
        return true;
    }
    let mut start = Vec::new();
    let read =
        open_to_read(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
    read.is_ok() && (start.is_empty() || start == MAGIC)
}

/// Copies a damaged journal to `PATH.bad`, replacing an earlier copy. A link with that name is
/// replaced, not followed.
fn keep_aside(mut file: &File, path: &Path) -> std::io::Result<()> {
    let copy = Staged::beside(path, Access::Private)?;
    file.seek(SeekFrom::Start(0))?;
    std::io::copy(&mut file, &mut copy.file())?;
    copy.replace(&with_suffix(path, ".bad")).map(drop)
}

/// Locks a journal.
fn lock(file: &File, path: &Path) -> Result<Option<Weakness>> {
    let locked = filesystem::lock(file, Lock::Exclusive);
    if locked == Locked::Busy {
        let what = format!(
            "Another process is at this transfer: it has {}",
            path.display()
        );
        return Err(Error::new(ErrorKind::Local, what).hint_to("Wait until it ends, or stop it"));
    }
    Ok(weakness_of(locked, path))
}

fn weakness_of(locked: Locked, path: &Path) -> Option<Weakness> {
    (locked == Locked::Unsupported).then(|| Weakness::Unlocked(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::rc::Rc;

    use rustix::fs::OFlags;

    use super::record::tests::header_of;
    use super::*;
    use crate::digest::Digest;
    use crate::filesystem::simulated::{Simulated, simulate};

    fn header() -> Header {
        header_of(Direction::Download)
    }

    fn holes(first: u64) -> Record {
        Record::Holes { first, count: 1 }
    }

    #[test]
    fn synced_records_are_replayed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("j.ohj");
        assert!(Journal::open(&path).unwrap().is_none());
        let journal = Journal::create(&path, &header()).unwrap();
        journal.record(&[holes(1)]).unwrap();
        // Everything is synced, so there is nothing to record.
        journal.record(&[]).unwrap();
        drop(journal);
        let (journal, replay) = Journal::open(&path).unwrap().unwrap();
        assert_eq!(replay.header, header());
        // The record, and one that it was synced.
        assert_eq!((replay.records, replay.is_damaged), (2, false));
        journal.record(&[holes(2)]).unwrap();
        drop(journal);
        let (journal, replay) = Journal::open(&path).unwrap().unwrap();
        assert_eq!(replay.state.holes.iter().collect::<Vec<_>>(), [&(1..3)]);
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_another_kind_is_no_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        drop(Journal::create(&path("journal"), &header()).unwrap());
        std::fs::write(path("damaged.ohj"), "lost").unwrap();
        std::fs::write(path("empty"), "").unwrap();
        for name in ["journal", "damaged.ohj", "empty"] {
            assert!(may_be_journal(&path(name)), "{name}");
        }
        std::fs::write(path("image"), [7; 512]).unwrap();
        std::fs::write(path("short"), &MAGIC[..3]).unwrap();
        for name in ["image", "short", "none"] {
            assert!(!may_be_journal(&path(name)), "{name}");
        }
    }

    #[test]
    fn a_retracted_chunk_is_not_recorded_as_done() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let done = |index| Record::Done {
            index,
            len: 10,
            digest: ChunkDigest::of(&[7]),
        };
        let whole = Record::Whole {
            inode: 12,
            modified_ns: 13,
        };
        let records = [
            done(8),
            Record::Holes { first: 0, count: 6 },
            done(7),
            whole,
        ];
        journal.record(&records).unwrap();
        let wrong = RangeSet::from_iter([2..4, 5..6, 8..9]);
        let journal = journal.without(&wrong).unwrap();
        assert!(
            openhosting_filesystem::is_plain() || Journal::open(&path).is_err(),
            "another process could have it"
        );
        journal.record(&[done(9)]).unwrap();
        assert_eq!(journal.digests().unwrap().len(), 2);
        drop(journal);
        let (_, replay) = Journal::open(&path).unwrap().unwrap();
        let holes: Vec<_> = replay.state.holes.iter().cloned().collect();
        let done: Vec<_> = replay.state.done.iter().cloned().collect();
        assert_eq!((holes, done), (vec![0..2, 4..5], vec![7..8, 9..10]));
        assert_eq!(replay.state.whole, None, "the chunks taken back are in it");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_journal_of_another_image_has_no_fingerprint_and_the_same_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let first = Header {
            direction: Direction::Upload,
            source: Some(crate::image::Fingerprint {
                size: 1,
                device: 2,
                inode: 3,
                modified_ns: -4,
            }),
            ..header()
        };
        let journal = Journal::create(&path, &first).unwrap();
        journal.record(&[holes(1), holes(3)]).unwrap();
        let wrong = RangeSet::from_iter(std::iter::once(3..4));
        drop(journal.of_another_image(&wrong).unwrap());
        let (_, replay) = Journal::open(&path).unwrap().unwrap();
        let source = None;
        assert_eq!(replay.header, Header { source, ..first });
        assert_eq!(replay.version, VERSION);
        assert!(replay.state.holes.iter().eq([&(1..2)]));
    }

    #[test]
    fn a_journal_is_locked_and_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(
            error.chain().contains("Another process"),
            "{}",
            error.chain()
        );
        assert!(Journal::create(&path, &header()).is_err());
        drop(journal);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Journal::open(&link).is_err());
    }

    /// A file that can be neither written nor synced: EBADF.
    fn never_synced() -> File {
        let flags = OFlags::PATH.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags).open("/").unwrap()
    }

    /// A disk that takes every write and then fails to sync.
    #[derive(Debug)]
    struct Broken;

    impl Simulated for Broken {
        fn sync(&self, _: &File) -> std::io::Result<()> {
            Err(rustix::io::Errno::IO.into())
        }

        fn boot(&self) -> [u8; 16] {
            [0; 16]
        }
    }

    #[test]
    fn a_failed_sync_stays_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::create(&directory.path().join("j.ohj"), &header()).unwrap();
        simulate(Some(Rc::new(Broken)));
        let first = journal.record(&[holes(1)]);
        simulate(None);
        assert!(first.is_err(), "it was not synced");
        let second = journal.record(&[holes(2)]);
        assert!(second.is_err(), "the first record may not be on the disk");
    }

    #[test]
    fn a_failed_write_stays_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&directory.path().join("j.ohj"), &header()).unwrap();
        let file = |journal: &mut Journal, file| {
            let log = Arc::get_mut(&mut journal.log).unwrap();
            std::mem::replace(&mut log.file, file)
        };
        let good = file(&mut journal, never_synced());
        let first = journal.record(&[holes(1)]);
        assert!(first.is_err(), "it was not written");
        file(&mut journal, good);
        let second = journal.record(&[holes(2)]);
        assert!(second.is_err(), "the first record is not there");
    }

    #[tokio::test]
    async fn a_record_is_written_only_after_its_data_is_synced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        journal.begin(Some(data(never_synced(), None)));
        journal.note(holes(1)).unwrap();
        assert!(journal.finish().await.is_err());
        drop(journal);
        let (_, replay) = Journal::open(&path).unwrap().unwrap();
        assert!(replay.state.settled().is_empty());
    }

    fn data(file: File, page_cache: Option<PageCache>) -> Data {
        Data {
            file,
            page_cache,
            accepted: Vec::new(),
        }
    }

    const PAGE_CACHE: PageCache = PageCache {
        boot: [7; 16],
        device: 1,
        mount: 2,
        inode: 3,
    };

    /// The chunk of 10 bytes with this index, of which one block has data.
    fn written(index: u64) -> Note {
        let span = Span {
            index,
            offset: index * 10,
            len: 10,
        };
        Note::Written { span, blocks: 1 }
    }

    /// What a process would leave if it were killed as soon as the journal satisfies `is_wanted`.
    async fn left(path: &Path, is_wanted: impl Fn(&State) -> bool) -> State {
        loop {
            let bytes = std::fs::read(path).unwrap();
            let state = replay(&bytes[..], |_, _, _| {}).unwrap().state;
            if is_wanted(&state) {
                return state;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_written_chunk_has_a_record_only_until_it_is_synced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        let (again, now) = (file.try_clone().unwrap(), Some(PAGE_CACHE));
        journal.begin(Some(data(again, now)));
        journal.note(written(4)).unwrap();
        let _ = left(&path, |state| state.written.len() == 1).await;
        // To the next process, this looks as if the first had been killed now.
        let bytes = std::fs::read(&path).unwrap();
        journal.finish().await.unwrap();
        drop(journal);
        std::fs::write(&path, bytes).unwrap();
        let (journal, replay) = Journal::open(&path).unwrap().unwrap();
        assert!(replay.state.written.keys().eq([&4]));
        let mut data = data(file, now);
        data.accepted.push(written(4));
        journal.begin(Some(data));
        journal.note(written(5)).unwrap();
        let state = left(&path, |state| state.written.len() == 2).await;
        assert_eq!(state.page_cache(), Some(PAGE_CACHE));
        assert!(state.written.keys().eq([&4, &5]) && state.done.is_empty());
        journal.finish().await.unwrap();
        drop(journal);
        let state = left(&path, |_| true).await;
        assert!(state.written.is_empty());
        assert!(state.done.iter().eq([&(4..6)]));
    }

    #[tokio::test]
    async fn after_a_failed_sync_only_synced_chunks_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let data = data(never_synced(), Some(PAGE_CACHE));
        journal.begin(Some(data));
        let done = Record::Done {
            index: 5,
            len: 10,
            digest: ChunkDigest::Whole(Digest::of(&[1; 10])),
        };
        journal.note(done).unwrap();
        let _ = left(&path, |state| !state.written.is_empty()).await;
        assert!(journal.finish().await.is_err());
        drop(journal);
        let state = left(&path, |_| true).await;
        assert_eq!((state.written.len(), state.page_cache()), (0, None));
    }

    #[tokio::test]
    async fn a_file_that_is_not_trusted_has_no_records_before_its_sync() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        journal.begin(Some(data(file, None)));
        journal.note(written(5)).unwrap();
        journal.finish().await.unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        let records = bytes[HEADER_BYTES..].chunks_exact(RECORD_BYTES);
        let records = (0..).zip(records).map(|(number, record)| {
            Record::decode(record.try_into().unwrap(), number, &header().session).unwrap()
        });
        let kinds: Vec<_> = records.collect();
        assert!(
            matches!(kinds[..], [Record::Done { .. }, Record::Synced { .. }]),
            "{kinds:?}"
        );
    }

    #[test]
    fn a_record_that_follows_a_revocation_does_not_replace_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        assert!(journal.log.begin_run(Some(PAGE_CACHE)).unwrap());
        let unsynced = Record::Written {
            index: 1,
            len: 10,
            proof: Proof::Blocks(1),
        };
        journal.log.write(&[unsynced]).unwrap();
        journal.log.revoke();
        // The task that writes records does not know yet that the other one failed.
        journal.log.write(&[holes(2)]).unwrap();
        drop(journal);
        let (_, replay) = Journal::open(&path).unwrap().unwrap();
        assert_eq!((replay.records, replay.state.page_cache()), (4, None));
        assert!(replay.state.written.is_empty() && replay.state.holes.contains(&2));
    }

    #[tokio::test]
    async fn recording_is_behind_until_what_was_noted_is_durable() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::create(&directory.path().join("j.ohj"), &header()).unwrap();
        journal.begin(None);
        // The tasks that record do not run before the next await.
        for (len, is_behind) in [(1 << 30, false), (1 << 30, false), (1, true)] {
            let digest = ChunkDigest::of(&[]);
            let index = 0;
            journal.note(Record::Done { index, len, digest }).unwrap();
            assert_eq!(journal.is_behind(), is_behind);
        }
        journal.finish().await.unwrap();
        assert!(!journal.is_behind());
    }

    #[tokio::test]
    async fn a_journal_of_version_1_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let mut bytes = header().encode().unwrap().to_vec();
        bytes[8] = 1;
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let (journal, _) = Journal::open(&path).unwrap().unwrap();
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        journal.begin(Some(data(file, Some(PAGE_CACHE))));
        journal.note(written(5)).unwrap();
        journal.finish().await.unwrap();
        drop(journal.without(&RangeSet::new()).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let replay = replay(&bytes[..], |_, _, _| {}).unwrap();
        // An older program, which knows no other version, can continue it.
        assert_eq!((replay.version, replay.records), (1, 1));
        assert!(replay.state.done.contains(&5));
    }

    #[tokio::test]
    async fn confirmed_chunks_are_recorded_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        journal.begin(None);
        journal.note(holes(1)).unwrap();
        let _ = left(&path, |state| state.holes.contains(&1)).await;
        journal.finish().await.unwrap();
        drop(journal);
        let state = left(&path, |_| true).await;
        assert!(state.holes.iter().eq([&(1..2)]), "it is there once");
        let records = (std::fs::read(&path).unwrap().len() - HEADER_BYTES) / RECORD_BYTES;
        assert_eq!(records, 2, "the record, and that it is synced");
    }

    /// A journal beside a file of three chunks that were written in this order, followed by the
    /// last note, if any. Returns the result, the content of the journal, and its digests.
    async fn kept(last: Option<Note>) -> (Journal, Vec<Span>, Replay, BTreeMap<u64, ChunkDigest>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        let data = tempfile::tempfile_in(directory.path()).unwrap();
        data.write_all_at(b"0123456789abcdefghijklmno", 0).unwrap();
        journal.begin(Some(self::data(data, None)));
        for (index, len) in [(1, 10), (0, 10), (2, 5)] {
            let offset = index * 10;
            let span = Span { index, offset, len };
            journal.note(Note::Written { span, blocks: 1 }).unwrap();
        }
        if let Some(last) = last {
            journal.note(last).unwrap();
        }
        let unrecorded = journal.finish().await.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let digests = journal.digests().unwrap();
        let replay = replay(&bytes[..], |_, _, _| {}).unwrap();
        (journal, unrecorded, replay, digests)
    }

    #[tokio::test]
    async fn a_chunk_in_the_file_is_remembered_with_its_digest() {
        let (_, unrecorded, replay, digests) = kept(None).await;
        assert_eq!(unrecorded, []);
        let all = [&b"0123456789"[..], b"abcdefghij", b"klmno"];
        let all = (0..).zip(all.map(ChunkDigest::of)).collect();
        assert_eq!(digests, all);
        assert_eq!(replay.state.whole, None);
    }

    #[tokio::test]
    async fn chunks_without_a_digest_are_listed() {
        let (journal, mut unrecorded, replay, digests) = kept(Some(Note::Whole)).await;
        assert_eq!((replay.state.done.len(), digests.len()), (0, 0));
        assert!(replay.state.whole.is_some());
        let indexes: Vec<_> = unrecorded.iter().map(|span| span.index).collect();
        assert_eq!(indexes, [1, 0, 2]);
        let data = tempfile::tempfile().unwrap();
        data.write_all_at(b"9876543210", 10).unwrap();
        journal.remember(&data, unrecorded.drain(..1)).unwrap();
        let digests = journal.digests().unwrap();
        assert_eq!(
            digests,
            BTreeMap::from([(1, ChunkDigest::of(b"9876543210"))])
        );
        // What cannot be read is not recorded.
        assert!(journal.remember(&data, unrecorded).is_err());
    }

    #[test]
    fn a_torn_tail_is_cut_and_a_damaged_journal_is_saved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.ohj");
        let journal = Journal::create(&path, &header()).unwrap();
        journal.record(&[0, 2, 4, 6].map(holes)).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        let (journal, replay) = Journal::open(&path).unwrap().unwrap();
        // The last record states that all before it are on the disk.
        assert_eq!((replay.records, replay.is_damaged), (4, false));
        drop(journal);
        let mut damaged = whole;
        damaged[HEADER_BYTES + RECORD_BYTES] ^= 1;
        // A link was planted at the name of the copy: it is replaced, not followed.
        let (bad, victim) = (
            path.with_extension("ohj.bad"),
            directory.path().join("victim"),
        );
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &bad).unwrap();
        for _ in 0..2 {
            std::fs::write(&path, &damaged).unwrap();
            let (_, replay) = Journal::open(&path).unwrap().unwrap();
            assert_eq!((replay.records, replay.is_damaged), (1, true));
            assert_eq!(std::fs::read(&bad).unwrap(), damaged);
            let copy = bad.symlink_metadata().unwrap();
            assert!(copy.is_file() && copy.permissions().mode() & 0o777 == 0o600);
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
