//! The metrics for an operator, in the text format of OpenMetrics, which Prometheus reads.
//! docs/user/operating.md describes them. They identify no user and no drive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::admission::{Admission, Reason};
use super::budget::{Budget, BudgetFigures, Budgets};
use super::work::Load;
use openhosting_tenancy::QuotaFigures;

/// Upper ends of the latency buckets, in seconds: from an answer out of memory to a long transfer
/// over a slow link.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// The media type of [`Metrics::print`].
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The prefix of our own metrics.
const PREFIX: &str = "openhosting";
const BYTES: Option<Unit> = Some(Unit::Bytes);

/// Labels with their values.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of one server that are counted as things happen. Other values are looked up on
/// request.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// Numbers of requests, from 1.
    ids: AtomicU64,
    /// By call and status; the status is empty if the client went away before there was an answer.
    requests: Family<[(&'static str, String); 2], Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    received: Counter,
    sent: Counter,
    digested: Family<Labels<1>, Counter>,
    imaged: Family<Labels<1>, Counter>,
    in_flight: Gauge,
}

/// Values that are looked up on request; sizes are in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Stock {
    pub(super) drives: u64,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) free: Option<u64>,
    pub(super) imagings_queued: u64,
    pub(super) imagings_running: u64,
    pub(super) digests: Load,
    pub(super) quotas: Vec<QuotaFigures>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut all = Registry::with_prefix(PREFIX);
        let registry = &mut all;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("server", "The version of this server", version);
        let text = "Requests by call and status; the status is empty if the client left early";
        let requests = figure(registry, "requests", text, None);
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let seconds = Family::new_with_constructor(seconds);
        let text = "Time from the head of a request to the end of its answer";
        registry.register_with_unit("request_duration", text, Unit::Seconds, seconds.clone());
        let text = "Bytes of request bodies, as they were sent";
        let received = figure(registry, "received", text, BYTES);
        let sent = figure(registry, "sent", "Bytes of answer bodies", BYTES);
        let text = "Requests whose answers have not ended";
        let in_flight = figure(registry, "requests_in_flight", text, None);
        let text = "Bytes of drives in digests, hashed or known to be zeros";
        let digested = figure(registry, "digest", text, BYTES);
        let text = "Bytes of the sources of imagings, read or known to be zeros";
        let imaged = figure(registry, "imaging", text, BYTES);
        Self {
            registry: all,
            ids: AtomicU64::new(0),
            requests,
            seconds,
            received,
            sent,
            digested,
            imaged,
            in_flight,
        }
    }

    /// A request began; returns its number.
    pub(super) fn begin_request(self: &Arc<Self>) -> u64 {
        self.in_flight.inc();
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A request ended, with this status if it was answered.
    pub(super) fn end_request(&self, call: &'static str, status: Option<u16>, took: Duration) {
        let status = status.map(|status| status.to_string()).unwrap_or_default();
        self.requests
            .get_or_create(&[("call", call.to_owned()), ("status", status)])
            .inc();
        let seconds = self.seconds.get_or_create(&[("call", call)]);
        seconds.observe(took.as_secs_f64());
        // Last, so that when no request is in flight, all of them have been counted.
        self.in_flight.dec();
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// Counts bytes of a drive that were hashed.
    pub(super) fn digested(&self, bytes: u64) {
        self.digested
            .get_or_create(&[("how", "hashed")])
            .inc_by(bytes);
    }

    /// Counts bytes of a drive that are zeros, and were not hashed.
    pub(super) fn digested_zeros(&self, bytes: u64) {
        self.digested
            .get_or_create(&[("how", "zeros")])
            .inc_by(bytes);
    }

    /// Counts bytes of the source of an imaging that were copied, compressed or decompressed.
    pub(super) fn imaged(&self, bytes: u64) {
        self.imaged.get_or_create(&[("how", "data")]).inc_by(bytes);
    }

    /// Counts bytes of the source of an imaging that needed no work: holes and shared blocks.
    pub(super) fn imaged_zeros(&self, bytes: u64) {
        self.imaged.get_or_create(&[("how", "zeros")]).inc_by(bytes);
    }

    /// Prints all metrics. Blocks for a moment on the kernel.
    pub(super) fn print(&self, stock: &Stock, budgets: &Budgets, admission: &Admission) -> String {
        let mut looked_up = Registry::with_prefix(PREFIX);
        stock.register(&mut looked_up);
        register_connections(&mut looked_up, admission);
        register_quotas(&mut looked_up, &stock.quotas);
        register_budgets(&mut looked_up, budgets);
        let mut text = String::new();
        // Writing to a string cannot fail.
        for registry in [&process(), &self.registry, &looked_up] {
            let _ = encode_registry(&mut text, registry);
        }
        let _ = encode_eof(&mut text);
        text
    }
}

impl Stock {
    fn register(&self, registry: &mut Registry) {
        let in_states = |queued, running| {
            [
                ([("state", "queued")], queued),
                ([("state", "running")], running),
            ]
        };
        let text = "Digests, lists of extents and maps, waiting for their turn or under way";
        let states = in_states(self.digests.waiting as u64, self.digests.running as u64);
        gauges(registry, "digests", text, states);
        gauge(registry, "drives", "Drives of all users", self.drives, None);
        gauge(
            registry,
            "drives_size",
            "Sizes of all drives",
            self.size,
            BYTES,
        );
        let text = "Space that the drives take on the disk";
        gauge(registry, "drives_allocated", text, self.allocated, BYTES);
        let text = "Free space on the file system of the drives";
        gauge(
            registry,
            "filesystem_free",
            text,
            self.free.unwrap_or(0),
            BYTES,
        );
        let text = "Imagings, waiting for their turn or under way";
        let states = in_states(self.imagings_queued, self.imagings_running);
        gauges(registry, "imagings", text, states);
    }
}

fn register_connections(registry: &mut Registry, admission: &Admission) {
    let (strangers, users) = admission.count();
    let of = [
        ([("of", "strangers")], strangers as u64),
        ([("of", "users")], users as u64),
    ];
    let text = "Connections of users, and of strangers, who have not sent a right key";
    gauges(registry, "connections", text, of);
    let reasons = Reason::ALL.map(|why| ([("reason", why.as_str())], admission.closed(why)));
    let text = "Connections closed to make room, or because they sent no right key in time";
    counters(registry, "connections_closed", text, reasons);
}

fn register_quotas(registry: &mut Registry, quotas: &[QuotaFigures]) {
    let each = |f: fn(&QuotaFigures) -> u64| {
        let of = move |quota: &QuotaFigures| ([("quota", quota.kind.name())], f(quota));
        quotas.iter().map(of)
    };
    let text = "How much of each quota all users have, in the unit of its name";
    gauges(registry, "quota_used", text, each(|quota| quota.used));
    let text = "How much of each quota one user may have; -1 without a limit";
    let limits: Family<Labels<1>, Gauge> = figure(registry, "quota_limit", text, None);
    for quota in quotas {
        let limit = quota.limit.map_or(-1, clamped);
        limits
            .get_or_create(&[("quota", quota.kind.name())])
            .set(limit);
    }
    let text = "Requests answered with 402 because of a quota";
    counters(registry, "quota_refused", text, each(|quota| quota.refused));
}

fn register_budgets(registry: &mut Registry, budgets: &Budgets) {
    let figures = budgets.all().map(Budget::figures);
    let used = figures.iter().map(|of| ([("budget", of.name)], of.used));
    let text = "How much of each budget requests hold, in the unit of its name";
    gauges(registry, "budget_used", text, used);
    // Both parts of a budget: that of one user, and that of all.
    let parts = |user: fn(&BudgetFigures) -> u64, all: fn(&BudgetFigures) -> u64| {
        let of = move |budget: &BudgetFigures| {
            let part = |of| [("budget", budget.name), ("of", of)];
            [(part("user"), user(budget)), (part("all"), all(budget))]
        };
        figures.iter().flat_map(of)
    };
    let text = "How much of each budget one user, and all users together, may hold";
    gauges(
        registry,
        "budget_limit",
        text,
        parts(|of| of.each, |of| of.all),
    );
    let text = "Requests refused because of the budget of one user, or of all users";
    let refused = parts(|of| of.refused_to_user, |of| of.refused_to_all);
    counters(registry, "budget_refused", text, refused);
}

/// The kernel's figures about this process, under the usual names of process exporters.
fn process() -> Registry {
    let mut registry = Registry::default();
    let resident = bytes_in_proc("/proc/self/status", "VmRSS:").unwrap_or(0);
    let text = "Memory of the process that is in RAM";
    gauge(
        &mut registry,
        "process_resident_memory",
        text,
        resident,
        BYTES,
    );
    // One of the open files is the directory itself.
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let files = files.saturating_sub(1) as u64;
    gauge(
        &mut registry,
        "process_open_fds",
        "Open files of the process",
        files,
        None,
    );
    registry
}

/// Registers a metric.
fn figure<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    text: &str,
    unit: Option<Unit>,
) -> M {
    let figure = M::default();
    match unit {
        Some(unit) => registry.register_with_unit(name, text, unit, figure.clone()),
        None => registry.register(name, text, figure.clone()),
    }
    figure
}

/// Registers a number that was looked up.
fn gauge(registry: &mut Registry, name: &str, text: &str, value: u64, unit: Option<Unit>) {
    let gauge: Gauge = figure(registry, name, text, unit);
    gauge.set(clamped(value));
}

/// Registers numbers that were looked up and may rise and fall.
fn gauges<const N: usize>(
    registry: &mut Registry,
    name: &str,
    text: &str,
    values: impl IntoIterator<Item = (Labels<N>, u64)>,
) {
    let gauges: Family<Labels<N>, Gauge> = figure(registry, name, text, None);
    for (labels, value) in values {
        gauges.get_or_create(&labels).set(clamped(value));
    }
}

/// Registers numbers that were looked up and only increase.
fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    text: &str,
    values: impl IntoIterator<Item = (Labels<N>, u64)>,
) {
    let counters: Family<Labels<N>, Counter> = figure(registry, name, text, None);
    for (labels, value) in values {
        counters.get_or_create(&labels).inc_by(value);
    }
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The value in bytes of the line in a file of /proc that begins with `key` and has a number of kB.
pub(super) fn bytes_in_proc(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
