//! Counts what is read from a drive and written to it.

/// Bytes and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Requests that read.
    pub read_requests: u64,
    /// Bytes that were written.
    pub write_bytes: u64,
    /// Requests that wrote.
    pub write_requests: u64,
}

impl Counters {
    /// The keys of `info` for these counters (docs/dev/reference.md, 1.3).
    pub const KEYS: [&'static str; 4] = [
        "read:bytes",
        "read:requests",
        "write:bytes",
        "write:requests",
    ];

    /// Each counter with its key.
    pub fn fields(&mut self) -> [(&'static str, &mut u64); 4] {
        let [a, b, c, d] = Self::KEYS;
        [
            (a, &mut self.read_bytes),
            (b, &mut self.read_requests),
            (c, &mut self.write_bytes),
            (d, &mut self.write_requests),
        ]
    }

    /// Applies `f` to each pair of counters.
    pub fn zip(mut self, mut other: Self, f: fn(u64, u64) -> u64) -> Self {
        for ((_, here), (_, there)) in self.fields().into_iter().zip(other.fields()) {
            *here = f(*here, *there);
        }
        self
    }
}
