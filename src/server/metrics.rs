//! What an operator counts, in the text format of OpenMetrics, which Prometheus reads.
//! The names are told in docs/operating.md. No user and no drive is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::admission::{Admission, Reason};
use super::budget::{Budget, Budgets};
use super::work::Load;
use crate::tenancy::quota::Figures;

/// Upper ends of the buckets of latencies, in seconds: from an answer out of memory to
/// a long transfer over a slow link.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// The media type of [`Metrics::print`].
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    call: &'static str,
    /// Empty if the client had gone before there was an answer.
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    call: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    of: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Because {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQuota {
    quota: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBudget {
    budget: &'static str,
}

/// Whose part of a budget: that of one `user`, or `all`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartOfBudget {
    budget: &'static str,
    of: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Treated {
    how: &'static str,
}

type Count = Gauge<i64, std::sync::atomic::AtomicI64>;

/// The figures of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// Numbers of requests, from 1.
    ids: AtomicU64,
    requests: Family<Answered, Counter>,
    seconds: Family<OfCall, Histogram, fn() -> Histogram>,
    received: Counter,
    sent: Counter,
    digested: Family<Treated, Counter>,
    imaged: Family<Treated, Counter>,
    digests: Family<InState, Count>,
    in_flight: Count,
    drives: Count,
    size: Count,
    allocated: Count,
    free: Count,
    imagings: Family<InState, Count>,
    connections: Family<Of, Count>,
    connections_closed: Family<Because, Counter>,
    quotas_used: Family<OfQuota, Count>,
    quotas_limit: Family<OfQuota, Count>,
    quotas_refused: Family<OfQuota, Counter>,
    budgets_used: Family<OfBudget, Count>,
    budgets_limit: Family<PartOfBudget, Count>,
    budgets_refused: Family<PartOfBudget, Counter>,
    resident: Count,
    open_files: Count,
}

/// What is looked up when somebody asks, in bytes where it is no number.
#[derive(Clone, Debug, Default)]
pub(super) struct Stock {
    pub(super) drives: u64,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) free: Option<u64>,
    pub(super) imagings_queued: u64,
    pub(super) imagings_running: u64,
    pub(super) digests: Load,
    pub(super) quotas: Vec<Figures>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix("openhosting");
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let requests = Family::default();
        let seconds = Family::new_with_constructor(seconds);
        let (received, sent) = (Counter::default(), Counter::default());
        let [in_flight, drives, size, allocated, free] = [(); 5].map(|()| Count::default());
        let [resident, open_files] = [(); 2].map(|()| Count::default());
        let imagings = Family::default();
        let (digested, digests, imaged) = (Family::default(), Family::default(), Family::default());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("server", "The version of this server", version);
        let text = "Requests by call and status; the status is empty where the client had gone";
        registry.register("requests", text, requests.clone());
        let text = "Time from the head of a request to the end of its answer";
        let name = "request_duration";
        registry.register_with_unit(name, text, Unit::Seconds, seconds.clone());
        let text = "Bytes of bodies of requests, as they were sent";
        registry.register_with_unit("received", text, Unit::Bytes, received.clone());
        let text = "Bytes of bodies of answers";
        registry.register_with_unit("sent", text, Unit::Bytes, sent.clone());
        let text = "Requests whose answers have not ended";
        registry.register("requests_in_flight", text, in_flight.clone());
        let text = "Bytes of drives in digests, hashed or known to be zeros";
        registry.register_with_unit("digest", text, Unit::Bytes, digested.clone());
        let text = "Bytes of the sources of imagings, read or known to be zeros";
        registry.register_with_unit("imaging", text, Unit::Bytes, imaged.clone());
        let text = "Digests, lists of extents and maps, waiting for their turn or under way";
        registry.register("digests", text, digests.clone());
        registry.register("drives", "Drives of all users", drives.clone());
        let text = "Sizes of all drives";
        registry.register_with_unit("drives_size", text, Unit::Bytes, size.clone());
        let text = "What the drives take on the disk";
        registry.register_with_unit("drives_allocated", text, Unit::Bytes, allocated.clone());
        let text = "What is free on the file system of the drives";
        registry.register_with_unit("filesystem_free", text, Unit::Bytes, free.clone());
        let text = "Imagings, waiting for their turn or under way";
        registry.register("imagings", text, imagings.clone());
        let connections = Family::default();
        let connections_closed = Family::default();
        let text = "Connections of users, and of strangers who have not proved to be one";
        registry.register("connections", text, connections.clone());
        let text = "Connections closed to make room, or because they proved no user in time";
        registry.register("connections_closed", text, connections_closed.clone());
        let (quotas_used, quotas_limit) = (Family::default(), Family::default());
        let quotas_refused = Family::default();
        let text = "What all users have that one may have so much of, in the unit of its name";
        registry.register("quota_used", text, quotas_used.clone());
        let text = "The most that one user may have; -1 without a limit";
        registry.register("quota_limit", text, quotas_limit.clone());
        let text = "Requests refused because one user had too much";
        registry.register("quota_refused", text, quotas_refused.clone());
        let budgets_used = Family::default();
        let budgets_limit = Family::default();
        let budgets_refused = Family::default();
        let text = "What requests hold of a budget now, in the unit of its name";
        registry.register("budget_used", text, budgets_used.clone());
        let text = "What one user, and all users together, may hold of a budget";
        registry.register("budget_limit", text, budgets_limit.clone());
        let text = "Requests refused because one user, or all together, held too much";
        registry.register("budget_refused", text, budgets_refused.clone());
        // The names that exporters of processes use.
        let text = "Memory of the process that is in RAM";
        let name = "process_resident_memory";
        all.register_with_unit(name, text, Unit::Bytes, resident.clone());
        let text = "Open files of the process";
        all.register("process_open_fds", text, open_files.clone());
        Self {
            registry: all,
            ids: AtomicU64::new(0),
            requests,
            seconds,
            received,
            sent,
            digested,
            imaged,
            digests,
            in_flight,
            drives,
            size,
            allocated,
            free,
            imagings,
            connections,
            connections_closed,
            quotas_used,
            quotas_limit,
            quotas_refused,
            budgets_used,
            budgets_limit,
            budgets_refused,
            resident,
            open_files,
        }
    }

    /// A request has begun; its number.
    pub(super) fn begin_request(self: &Arc<Self>) -> u64 {
        self.in_flight.inc();
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A request has ended, with this status if it was answered.
    pub(super) fn end_request(&self, call: &'static str, status: Option<u16>, took: Duration) {
        let status = status.map(|status| status.to_string()).unwrap_or_default();
        self.requests
            .get_or_create(&Answered { call, status })
            .inc();
        let seconds = self.seconds.get_or_create(&OfCall { call });
        seconds.observe(took.as_secs_f64());
        // Last: when no request is in flight, all of them are counted.
        self.in_flight.dec();
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// `bytes` of a drive were hashed.
    pub(super) fn digested(&self, bytes: u64) {
        let hashed = Treated { how: "hashed" };
        self.digested.get_or_create(&hashed).inc_by(bytes);
    }

    /// `bytes` of a drive were found to be zeros, and not hashed.
    pub(super) fn digested_zeros(&self, bytes: u64) {
        let zeros = Treated { how: "zeros" };
        self.digested.get_or_create(&zeros).inc_by(bytes);
    }

    /// `bytes` of the source of an imaging were copied, compressed or decompressed.
    pub(super) fn imaged(&self, bytes: u64) {
        let data = Treated { how: "data" };
        self.imaged.get_or_create(&data).inc_by(bytes);
    }

    /// `bytes` of the source of an imaging took no work: holes and shared blocks.
    pub(super) fn imaged_zeros(&self, bytes: u64) {
        let zeros = Treated { how: "zeros" };
        self.imaged.get_or_create(&zeros).inc_by(bytes);
    }

    /// All of it as text. Blocks a little on the kernel.
    pub(super) fn print(&self, stock: &Stock, budgets: &Budgets, admission: &Admission) -> String {
        let set = |gauge: &Count, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.drives, stock.drives);
        set(&self.size, stock.size);
        set(&self.allocated, stock.allocated);
        set(&self.free, stock.free.unwrap_or(0));
        for (state, number) in [
            ("queued", stock.imagings_queued),
            ("running", stock.imagings_running),
        ] {
            set(&self.imagings.get_or_create(&InState { state }), number);
        }
        let (strangers, users) = admission.count();
        for (of, number) in [("strangers", strangers), ("users", users)] {
            set(&self.connections.get_or_create(&Of { of }), number as u64);
        }
        for because in Reason::ALL {
            let reason = because.as_str();
            let counter = self.connections_closed.get_or_create(&Because { reason });
            let closed = admission.closed(because);
            counter.inner().store(closed, Ordering::Relaxed);
        }
        for figures in &stock.quotas {
            let of = OfQuota {
                quota: figures.kind.name(),
            };
            set(&self.quotas_used.get_or_create(&of), figures.used);
            let limit = figures.limit.map(i64::try_from);
            let limit = limit.map_or(-1, |limit| limit.unwrap_or(i64::MAX));
            self.quotas_limit.get_or_create(&of).set(limit);
            let refused = self.quotas_refused.get_or_create(&of);
            refused.inner().store(figures.refused, Ordering::Relaxed);
        }
        for figures in budgets.all().map(Budget::figures) {
            let budget = figures.name;
            let used = self.budgets_used.get_or_create(&OfBudget { budget });
            set(&used, figures.used);
            for (of, limit, refused) in [
                ("user", figures.each, figures.refused_to_user),
                ("all", figures.all, figures.refused_to_all),
            ] {
                let part = PartOfBudget { budget, of };
                set(&self.budgets_limit.get_or_create(&part), limit);
                let counter = self.budgets_refused.get_or_create(&part);
                counter.inner().store(refused, Ordering::Relaxed);
            }
        }
        for (state, number) in [
            ("queued", stock.digests.waiting),
            ("running", stock.digests.running),
        ] {
            let digests = self.digests.get_or_create(&InState { state });
            set(&digests, number as u64);
        }
        let resident = bytes_in_proc("/proc/self/status", "VmRSS:");
        set(&self.resident, resident.unwrap_or(0));
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // One of them is that directory.
        set(&self.open_files, files.saturating_sub(1) as u64);
        let mut text = String::new();
        // A string takes everything.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The bytes that a file of /proc states on the line that begins with `key`, in kB.
pub(super) fn bytes_in_proc(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
