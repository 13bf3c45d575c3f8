//! The line that shows the progress of a phase. It has the same design for all phases: the
//! operation and its object, the percentage, a bar, the position in the disk, the speed, and the
//! time left. These are pure functions of the values, the width of the terminal and the time;
//! `screen` draws the line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::printable;
use crate::amounts::{duration, short_time, size};

/// Cells of the bar if all parts of the line fit.
const BAR_CELLS: usize = 20;
/// Maximum cells of the bar.
const BAR_CELLS_MAX: usize = 40;
/// Cells of the bar in the short form.
const BAR_CELLS_SHORT: usize = 10;
/// Minimum cells of a shortened name.
const NAME_CELLS_MIN: usize = 5;
/// Cells of a name in a line about a wait.
const NAME_CELLS_WAITING: usize = 16;
/// Maximum cells of a name.
const NAME_CELLS_MAX: usize = 40;
/// Columns that stay free at the right: when the user types Ctrl-C, a terminal shows `^C` after the
/// line, which must not wrap.
const FREE_COLUMNS: usize = 3;
/// Narrower terminals get the short form.
const SHORT_BELOW: usize = 60;
/// The speed is averaged over this long: a choice, so that it follows a change of the link and can
/// still be read.
const RATE_WINDOW: Duration = Duration::from_secs(8);
/// The time left is computed from the pace over this long: a choice, longer than for the speed, so
/// that it does not jump with each pause.
const PACE_WINDOW: Duration = Duration::from_secs(30);
/// Time between two samples of a [`Speed`].
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// A speed over a shorter time is not shown.
const SPEED_AFTER: Duration = Duration::from_secs(1);

/// How the line is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) has_color: bool,
    pub(super) is_unicode: bool,
}

/// Why nothing moves, and when the command gives up.
#[derive(Clone, Debug)]
struct Wait {
    why: String,
    gives_up_at: Option<Instant>,
}

/// What the line shows.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// The operation, such as `Upload`.
    what: &'static str,
    /// The image or drive.
    name: String,
    /// Bytes of the disk, if known.
    pub(super) total: Option<u64>,
    /// The position in it, in bytes.
    done: u64,
    began: Instant,
    moved: Speed,
    pace: Speed,
    /// Maximum bytes per second: no higher speed is shown.
    pub(super) rate_max: Option<u64>,
    /// What is shown if there is room.
    pub(super) details: Vec<String>,
    wait: Option<Wait>,
}

impl Bar {
    pub(super) fn new(what: &'static str, name: &str, now: Instant) -> Self {
        Self {
            what,
            name: printable::line(name),
            total: None,
            done: 0,
            began: now,
            moved: Speed::new(RATE_WINDOW),
            pace: Speed::new(PACE_WINDOW),
            rate_max: None,
            details: Vec::new(),
            wait: None,
        }
    }

    /// Begins another phase, at a position in a disk of `total` bytes.
    pub(super) fn begin(
        &mut self,
        what: &'static str,
        done: u64,
        total: Option<u64>,
        now: Instant,
    ) {
        self.what = what;
        self.began = now;
        self.moved = Speed::new(RATE_WINDOW);
        self.pace = Speed::new(PACE_WINDOW);
        self.details.clear();
        self.total = total;
        self.done = done;
        self.at(done, 0, now);
    }

    /// Sets the position in the disk, and the total of bytes that were transferred for it.
    pub(super) fn at(&mut self, done: u64, moved: u64, now: Instant) {
        self.done = done;
        self.moved.at(moved, now);
        self.pace.at(done, now);
    }

    /// Reports that nothing moves, for this reason.
    pub(super) fn wait(&mut self, why: &str, gives_up_at: Option<Instant>) {
        self.wait = Some(Wait {
            why: printable::line(why),
            gives_up_at,
        });
    }

    /// Reports that a wait is over. The pace is measured anew.
    pub(super) fn go_on(&mut self) {
        self.wait = None;
        self.moved.forget();
        self.pace.forget();
    }

    /// Percentage in whole numbers; 100 only at the very end.
    pub(super) fn percent(&self) -> Option<u64> {
        percent(self.done, self.total?)
    }

    /// Whether the line shows a wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// The line, with fewer columns than `width`.
    pub(super) fn line(&self, width: usize, now: Instant, style: Style) -> String {
        let room = width.saturating_sub(FREE_COLUMNS);
        if let Some(wait) = &self.wait {
            return self.waiting(wait, room, width < SHORT_BELOW, now, style);
        }
        let is_short = width < SHORT_BELOW;
        let position = match self.total {
            Some(total) => format!("{:>7}/{}", size(self.done), size(total)),
            None if self.done > 0 => format!("{:>7}", size(self.done)),
            // Without a count, only the elapsed time can be shown.
            None => {
                let passed = short_time(now.saturating_duration_since(self.began));
                let label = self.label(room.saturating_sub(passed.len() + 1), style);
                let line = format!("{label} {passed}");
                return shorten(&line, room, style.is_unicode).replace(&label, &style.bold(&label));
            }
        };
        let rate = self.moved.per_second(now).map(|rate| {
            let rate = self.rate_max.map_or(rate, |most| rate.min(most));
            format!("{}/s", size(rate))
        });
        // The fields have fixed widths, so that they do not move.
        let rate = format!("{:>9}", rate.unwrap_or_default());
        let (time, time_short) = self.times(now);
        let percent = self.percent().map(|percent| format!("{percent:>3}%"));
        let cells = |cells| self.percent().is_some().then_some(cells);
        let mut forms = Vec::new();
        if !is_short {
            let details = match self.details.as_slice() {
                [] => String::new(),
                details => format!(" {}", details.join(", ")),
            };
            for name in [NAME_CELLS_MAX, NAME_CELLS_MIN] {
                if !details.is_empty() && name == NAME_CELLS_MAX {
                    let rest = vec![
                        position.clone(),
                        rate.clone(),
                        time.clone(),
                        details.clone(),
                    ];
                    forms.push((name, cells(BAR_CELLS_MAX), rest));
                }
                let rest = vec![position.clone(), rate.clone(), time.clone()];
                forms.push((name, cells(BAR_CELLS), rest));
            }
            let rest = vec![position.clone(), time_short.clone()];
            forms.push((NAME_CELLS_MIN, cells(BAR_CELLS), rest));
        }
        let rest = vec![position.clone(), time_short.clone()];
        forms.push((NAME_CELLS_MIN, cells(BAR_CELLS_SHORT), rest.clone()));
        forms.push((0, cells(BAR_CELLS_SHORT), rest.clone()));
        forms.push((0, None, rest));
        forms.push((0, None, vec![time_short]));
        forms.push((0, None, Vec::new()));
        for (name_min, bar, rest) in forms {
            let rest: Vec<String> = rest.into_iter().filter(|part| !part.is_empty()).collect();
            let parts = percent.iter().chain(&rest).map(|part| part.width() + 1);
            let taken: usize = parts.sum::<usize>() + bar.map_or(0, |cells| cells + 1);
            let name = self.name.width().min(name_min);
            let label = self.what.width() + if name > 0 { name + 1 } else { 0 };
            if label + taken > room {
                continue;
            }
            let label = self.label(room - taken, style);
            let spare = room - taken - label.width();
            let mut line = style.bold(&label);
            if let Some(percent) = &percent {
                line += &format!(" {percent}");
            }
            if let Some(cells) = bar {
                let cells = (cells + spare).min(BAR_CELLS_MAX);
                line += &format!(" {}", self.cells(cells, style));
            }
            for part in rest {
                line += &format!(" {part}");
            }
            return line.trim_end().to_owned();
        }
        shorten(self.what, room, style.is_unicode)
    }

    /// The time left or elapsed, in 9 columns and in 4.
    fn times(&self, now: Instant) -> (String, String) {
        let (time, time_short) = match (self.left(now), self.total) {
            (Some(left), _) => (format!("{} left", short_time(left)), short_time(left)),
            (None, Some(_)) => (String::new(), String::new()),
            (None, None) => {
                let passed = short_time(now.saturating_duration_since(self.began));
                (passed.clone(), passed)
            }
        };
        (format!("{time:>9}"), format!("{time_short:>4}"))
    }

    /// The direction and the names, shortened to `room` columns if that is limited.
    fn label(&self, room: usize, style: Style) -> String {
        let left = room.saturating_sub(self.what.width() + 1);
        if self.name.is_empty() || left < self.name.width().min(NAME_CELLS_MIN) {
            return self.what.to_owned();
        }
        let name = shorten(&self.name, left.min(NAME_CELLS_MAX), style.is_unicode);
        format!("{} {name}", self.what)
    }

    fn cells(&self, cells: usize, style: Style) -> String {
        let total = self.total.unwrap_or(0).max(1);
        let share = (self.done.min(total) as f64 / total as f64 * cells as f64) as usize;
        let (full, empty) = match style.is_unicode {
            true => ("\u{2501}", "\u{2500}"),
            false => ("#", "-"),
        };
        let full = full.repeat(share);
        let empty = empty.repeat(cells - share);
        format!(
            "{}{}",
            style.colored("36", &full),
            style.colored("2", &empty)
        )
    }

    /// The line during a wait: the reason, and the time until the command gives up.
    fn waiting(
        &self,
        wait: &Wait,
        room: usize,
        is_short: bool,
        now: Instant,
        style: Style,
    ) -> String {
        let name = if is_short { 0 } else { NAME_CELLS_WAITING + 1 };
        let mut head = self.label(self.what.width() + name, style);
        if let Some(percent) = self.percent() {
            head += &format!(" {percent:>3}%");
        }
        let columns = room;
        let room = room.saturating_sub(head.width() + 1);
        let tail = wait.gives_up_at.map(|at| {
            let left = duration(at.saturating_duration_since(now));
            match is_short {
                true => format!("gives up in {left}"),
                false => format!("giving up in {left}"),
            }
        });
        let text = match tail {
            // A cause that is shortened further would be meaningless.
            Some(tail) if room < tail.width() + 12 => shorten(&tail, room, style.is_unicode),
            Some(tail) => {
                let why = shorten(&wait.why, room - tail.width() - 2, style.is_unicode);
                format!("{why}; {tail}")
            }
            None => shorten(&wait.why, room, style.is_unicode),
        };
        match room {
            0 => shorten(&head, columns, style.is_unicode),
            _ => format!("{} {}", style.bold(&head), style.colored("33", &text)),
        }
    }

    /// The time left at the recent pace.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        let pace = self.pace.per_second(now).filter(|pace| *pace > 0)?;
        Some(Duration::from_secs(left.div_ceil(pace)))
    }
}

impl Style {
    fn colored(self, code: &str, text: &str) -> String {
        match self.has_color && !text.is_empty() {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }

    fn bold(self, text: &str) -> String {
        self.colored("1", text)
    }
}

/// Percentage in whole numbers; 100 only if everything is done.
pub(super) fn percent(done: u64, total: u64) -> Option<u64> {
    let percent = u128::from(done.min(total)) * 100;
    let percent = percent.checked_div(u128::from(total))?;
    u64::try_from(percent).ok()
}

/// Text in at most `columns` columns; an omission in the middle is marked.
pub(super) fn shorten(text: &str, columns: usize, is_unicode: bool) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mark = if is_unicode { "\u{2026}" } else { "~" };
    let Some(room) = columns.checked_sub(1) else {
        return String::new();
    };
    // The end of a name is often more informative than its middle.
    let (tail_room, mut used) = (room / 3, 0);
    let tail = text.char_indices().rev().take_while(|(_, c)| {
        used += c.width().unwrap_or(0);
        used <= tail_room
    });
    let tail = tail.last().map_or(text.len(), |(at, _)| at);
    let (head_room, mut used) = (room - text[tail..].width(), 0);
    let head = text.chars().take_while(|c| {
        used += c.width().unwrap_or(0);
        used <= head_room
    });
    let head: String = head.collect();
    format!("{head}{mark}{}", &text[tail..])
}

/// The growth of a number over the last seconds.
#[derive(Clone, Debug)]
struct Speed {
    window: Duration,
    /// Times and values, the oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn new(window: Duration) -> Self {
        Self {
            window,
            samples: VecDeque::new(),
        }
    }

    fn at(&mut self, number: u64, now: Instant) {
        let before = self.samples.len().checked_sub(2);
        let before = before.and_then(|index| self.samples.get(index));
        let is_soon =
            before.is_some_and(|(at, _)| now.saturating_duration_since(*at) < SAMPLE_EVERY);
        if is_soon {
            self.samples.pop_back();
        }
        self.samples.push_back((now, number));
        // One sample older than the window is kept, as the start of the window.
        while self.samples.len() > 2
            && let Some((at, _)) = self.samples.get(1)
            && now.saturating_duration_since(*at) > self.window
        {
            self.samples.pop_front();
        }
    }

    fn forget(&mut self) {
        let last = self.samples.pop_back();
        self.samples.clear();
        self.samples.extend(last);
    }

    /// `None` while there are too few samples.
    fn per_second(&self, now: Instant) -> Option<u64> {
        let (from, first) = self.samples.front()?;
        let (_, last) = self.samples.back()?;
        let time = now.saturating_duration_since(*from);
        (time >= SPEED_AFTER)
            .then(|| (last.saturating_sub(*first) as f64 / time.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const PLAIN: Style = Style {
        has_color: false,
        is_unicode: true,
    };

    fn bar(now: Instant) -> Bar {
        let mut bar = Bar::new("Upload", "disk.img", now);
        bar.begin("Upload", 0, Some(2 << 30), now);
        for second in 1..=10_u32 {
            let mib = u64::from(second) << 20;
            bar.at(86 * mib, 46 * mib, now + S * second);
        }
        bar
    }

    #[test]
    fn a_line_has_all_parts_at_80_columns_and_details_at_200() {
        let now = Instant::now();
        let mut bar = bar(now);
        bar.details = vec!["454 MiB sent".into(), "778 MiB of zeros".into()];
        let at = now + 10 * S;
        assert_eq!(
            bar.line(80, at, PLAIN),
            "Upload disk.img  41% ━━━━━━━━──────────── 860 MiB/2.0 GiB  46 MiB/s  14s left"
        );
        assert_eq!(
            bar.line(200, at, PLAIN),
            "Upload disk.img  41% ━━━━━━━━━━━━━━━━──────────────────────── 860 MiB/2.0 GiB  46 MiB/s  14s left  454 MiB sent, 778 MiB of zeros"
        );
        assert_eq!(bar.line(40, at, PLAIN), "Upload  41% 860 MiB/2.0 GiB  14s");
        assert_eq!(
            bar.line(59, at, PLAIN),
            "Upload disk.img  41% ━━━━━───────── 860 MiB/2.0 GiB  14s"
        );
    }

    #[test]
    fn a_wait_shows_why_and_until_when() {
        let now = Instant::now();
        let mut bar = bar(now);
        let at = now + 10 * S;
        bar.wait("cannot connect: connection refused", Some(at + 890 * S));
        assert_eq!(
            bar.line(80, at, PLAIN),
            "Upload disk.img  41% cannot connect: connection refused; giving up in 14m 50s"
        );
        assert_eq!(bar.line(40, at, PLAIN), "Upload  41% gives up in 14m 50s");
        bar.go_on();
        assert!(!bar.line(80, at, PLAIN).contains("giving up"));
    }

    #[test]
    fn an_unknown_size_has_no_percent_and_no_total() {
        let now = Instant::now();
        let mut bar = Bar::new("Upload", "stdin", now);
        bar.begin("Upload", 0, None, now);
        assert_eq!(bar.line(80, now + 3 * S, PLAIN), "Upload stdin 3s");
        bar.at(5 << 20, 3 << 20, now + S);
        let line = bar.line(80, now + 3 * S, PLAIN);
        assert_eq!(line, "Upload stdin 5.0 MiB 1.0 MiB/s        3s");
    }

    #[test]
    fn no_rate_is_above_the_limit() {
        let now = Instant::now();
        let mut bar = bar(now);
        bar.rate_max = Some(20 << 20);
        assert!(bar.line(80, now + 10 * S, PLAIN).contains(" 20 MiB/s"));
    }

    proptest! {
        #[test]
        fn a_line_never_wraps(
            name in "\\PC{0,30}",
            width in 1_usize..250,
            done in 0_u64..(1 << 50),
            total in proptest::option::of(0_u64..(1 << 50)),
            seconds in 0_u32..10_000,
            waits in any::<bool>(),
        ) {
            let now = Instant::now();
            let mut bar = Bar::new("Download", &name, now);
            bar.begin("Download", 0, total, now);
            bar.at(done, done, now + S * seconds);
            bar.details = vec!["x".repeat(30)];
            if waits {
                bar.wait("the endpoint does not answer at all", Some(now + 20_000 * S));
            }
            for is_unicode in [true, false] {
                let style = Style { has_color: false, is_unicode };
                let line = bar.line(width, now + S * (seconds + 1), style);
                prop_assert!(line.width() <= width.saturating_sub(FREE_COLUMNS) || line.is_empty(), "{line:?}");
            }
        }
    }
}
