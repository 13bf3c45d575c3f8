//! What was read from a drive and written to it.

/// Bytes and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) read_bytes: u64,
    pub(crate) read_requests: u64,
    pub(crate) write_bytes: u64,
    pub(crate) write_requests: u64,
}

impl Counters {
    /// The keys of info that tell them (docs/dev/reference.md, 1.3).
    pub(crate) const KEYS: [&'static str; 4] = [
        "read:bytes",
        "read:requests",
        "write:bytes",
        "write:requests",
    ];

    /// Each with its key.
    pub(crate) fn fields(&mut self) -> [(&'static str, &mut u64); 4] {
        let [a, b, c, d] = Self::KEYS;
        [
            (a, &mut self.read_bytes),
            (b, &mut self.read_requests),
            (c, &mut self.write_bytes),
            (d, &mut self.write_requests),
        ]
    }

    /// `f` of each number here and there.
    pub(crate) fn zip(mut self, mut other: Self, f: fn(u64, u64) -> u64) -> Self {
        for ((_, here), (_, there)) in self.fields().into_iter().zip(other.fields()) {
            *here = f(*here, *there);
        }
        self
    }
}
