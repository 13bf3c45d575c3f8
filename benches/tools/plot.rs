//! Draws what was measured, as SVG.
//!
//! ```text
//! plot results results.json DIRECTORY    the figures of benches/run.py, as charts
//! plot trace trace.jsonl OUTPUT.svg      what --trace of openhosting-upload wrote
//! ```
//!
//! A line of a trace is an object about one chunk: `at_ms` (since the start), `chunk`
//! (its index), `level` (0 to 12), `effort` (where the controller stands between two
//! levels), `ready` (chunks that wait to be sent), `in_flight`, `raw_bytes`,
//! `body_bytes`, `encode_us`, and `reason` (`auto`, `fixed` or `incompressible`).

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

type Done = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const OTHERS: RGBColor = RGBColor(0xa8, 0xad, 0xb3);
const ACCENT: RGBColor = RGBColor(0xd9, 0x5f, 0x0e);
const THIRD: RGBColor = RGBColor(0x2c, 0x8c, 0x5a);
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const FAINT: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
const WIDTH: u32 = 860;

/// Draws what was measured
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The figures of benches/run.py
    Results {
        /// results.json
        results: PathBuf,
        /// Where the charts go
        directory: PathBuf,
    },
    /// What the compression controller did
    Trace {
        /// A file of openhosting-upload --trace
        trace: PathBuf,
        /// The chart
        output: PathBuf,
    },
}

fn main() -> Done {
    match Args::parse().what {
        What::Results { results, directory } => {
            let results: Value = serde_json::from_slice(&std::fs::read(results)?)?;
            draw_results(&results, &directory)
        }
        What::Trace { trace, output } => {
            let text = std::fs::read_to_string(trace)?;
            let steps: Result<Vec<Step>, _> = text.lines().map(Step::parse).collect();
            draw_trace(&steps?, &output)
        }
    }
}

/// What was measured of one program, as benches/report.py writes it.
struct Run<'a> {
    name: &'a str,
    wall_s: Vec<f64>,
    peak_mib: f64,
}

impl<'a> Run<'a> {
    /// The runs of a case; those without figures are left out.
    fn all(results: &'a Value, case: &str) -> Vec<Self> {
        let runs = results["cases"][case]["runs"].as_array();
        let of = |run: &'a Value| {
            let mut wall_s = numbers(&run["wall_s"]);
            wall_s.sort_by(f64::total_cmp);
            let peak = numbers(&run["peak_bytes"]).into_iter().fold(0.0, f64::max);
            Some(Self {
                name: run["name"].as_str().filter(|_| !wall_s.is_empty())?,
                wall_s,
                peak_mib: peak / f64::from(1 << 20),
            })
        };
        runs.into_iter().flatten().filter_map(of).collect()
    }

    /// As `statistics.median` of Python has it.
    fn median_s(&self) -> f64 {
        let n = self.wall_s.len();
        (self.wall_s[(n - 1) / 2] + self.wall_s[n / 2]) / 2.0
    }

    /// The parts of a name like `loopback: auto`.
    fn group(&self) -> (&'a str, &'a str) {
        self.name.split_once(": ").unwrap_or(("", self.name))
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().into_iter().flatten();
    values.filter_map(Value::as_f64).collect()
}

fn draw_results(results: &Value, directory: &Path) -> Done {
    for case in ["upload", "classic", "download", "sparse", "incompressible"] {
        let runs = Run::all(results, case);
        if !runs.is_empty() {
            let title = results["cases"][case]["title"].as_str().unwrap_or(case);
            draw_bars(title, &runs, &directory.join(format!("{case}.svg")))?;
        }
    }
    let mut links = Run::all(results, "links");
    links.extend(Run::all(results, "fast_links"));
    if !links.is_empty() {
        draw_links(&links, &directory.join("links.svg"))?;
    }
    let memory = Run::all(results, "memory");
    if !memory.is_empty() {
        draw_memory(&memory, &directory.join("memory.svg"))?;
    }
    Ok(())
}

/// Wall time, a bar for each program: the median, and a line from the fastest round to
/// the slowest.
fn draw_bars(title: &str, runs: &[Run<'_>], output: &Path) -> Done {
    let height = 70 + 30 * u32::try_from(runs.len())?;
    let root = SVGBackend::new(output, (WIDTH, height)).into_drawing_area();
    let root = heading(&root, &format!("{title}: seconds, median and range"))?;
    let longest = runs.iter().map(|run| run.name.len()).max().unwrap_or(0);
    let names_width = 13 * u32::try_from(longest)? / 2 + 10;
    let slowest = runs.iter().flat_map(|run| &run.wall_s).copied();
    let span = slowest.fold(0.0, f64::max) * 1.12;
    let rows = runs.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .margin_right(20)
        .x_label_area_size(25)
        .y_label_area_size(names_width)
        .build_cartesian_2d(0.0..span, rows..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .label_style(font(12))
        .draw()?;
    for (row, run) in runs.iter().enumerate() {
        let (top, middle) = (row as f64 + 0.18, row as f64 + 0.5);
        let median = run.median_s();
        let colour = match run.name.contains("openhosting") || is_ours(run.group()) {
            true => OURS,
            false => OTHERS,
        };
        let bar = Rectangle::new([(0.0, top), (median, row as f64 + 0.82)], colour.filled());
        chart.draw_series([bar])?;
        let (fastest, slowest) = (run.wall_s[0], run.wall_s[run.wall_s.len() - 1]);
        let range = vec![(fastest, middle), (slowest, middle)];
        chart.draw_series([PathElement::new(range, INK.stroke_width(1))])?;
        let label = Text::new(
            format!("{median:.2}"),
            (slowest.max(median) + span * 0.01, middle),
            anchored(12, HPos::Left, VPos::Center),
        );
        chart.draw_series([label])?;
        let at = chart.backend_coord(&(0.0, middle));
        let style = anchored(12, HPos::Right, VPos::Center);
        root.draw_text(run.name, &style, relative(&root, (at.0 - 8, at.1)))?;
    }
    Ok(root.present()?)
}

/// Whether a run of a group is without any flag, or any of ours at all.
fn is_ours((group, name): (&str, &str)) -> bool {
    matches!(group, "up" | "down") || name == "auto"
}

/// For each link, how much longer each level takes than the best fixed one.
fn draw_links(runs: &[Run<'_>], output: &Path) -> Done {
    let mut links: Vec<&str> = runs.iter().map(|run| run.group().0).collect();
    links.dedup();
    let levels = runs.len().div_ceil(links.len());
    let root = SVGBackend::new(output, (WIDTH, 400)).into_drawing_area();
    let title =
        "Upload without --level, and at each fixed level: time, as a multiple of the best level's";
    let root = heading(&root, title)?;
    let slot = 1.0 / (levels as f64 + 1.0);
    let bars: Vec<_> = links
        .iter()
        .enumerate()
        .flat_map(|(at, link)| {
            let of = runs.iter().filter(|run| run.group().0 == *link);
            let fixed = of.clone().filter(|run| run.group().1 != "auto");
            let best = fixed.map(Run::median_s).fold(f64::INFINITY, f64::min);
            of.enumerate().map(move |(i, run)| {
                let x = at as f64 + slot * (i as f64 + 0.5);
                (x, run.group().1, run.median_s() / best)
            })
        })
        .collect();
    // What takes ten times as long is bad enough to see.
    let (floor, top) = (0.7, 10.0);
    let mut chart = ChartBuilder::on(&root)
        .margin_right(70)
        .x_label_area_size(45)
        .y_label_area_size(35)
        .build_cartesian_2d(
            0.0..links.len() as f64,
            (floor..top * 1.15)
                .log_scale()
                .with_key_points(vec![1.0, 2.0, 5.0, 10.0]),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .y_label_formatter(&|ratio| format!("{ratio}"))
        .label_style(font(12))
        .draw()?;
    for (x, level, ratio) in bars {
        let colour = if level == "auto" { OURS } else { OTHERS };
        let bar = [(x, floor), (x + slot * 0.85, ratio.clamp(floor, top))];
        chart.draw_series([Rectangle::new(bar, colour.filled())])?;
        let middle = x + slot * 0.42;
        let digits = if ratio < top { 2 } else { 0 };
        let value = Text::new(
            format!("{ratio:.digits$}"),
            (middle, ratio.clamp(1.0, top) * 1.02),
            anchored(9, HPos::Center, VPos::Bottom),
        );
        chart.draw_series([value])?;
        let at = relative(&root, chart.backend_coord(&(middle, floor)));
        let style = anchored(10, HPos::Center, VPos::Top);
        root.draw_text(level, &style, (at.0, at.1 + 5))?;
    }
    for (at, link) in links.iter().enumerate() {
        let middle = at as f64 + 0.5 - slot / 2.0;
        let at = relative(&root, chart.backend_coord(&(middle, floor)));
        let style = anchored(13, HPos::Center, VPos::Top);
        root.draw_text(link, &style, (at.0, at.1 + 22))?;
    }
    let goal = vec![(0.0, 1.05), (links.len() as f64, 1.05)];
    chart.draw_series([PathElement::new(goal, ACCENT.stroke_width(1))])?;
    let at = relative(&root, chart.backend_coord(&(links.len() as f64, 1.05)));
    let style = anchored(11, HPos::Left, VPos::Center).color(&ACCENT);
    root.draw_text("goal: 1.05", &style, (at.0 + 5, at.1))?;
    Ok(root.present()?)
}

/// Peak memory by requests in flight, a line for each size, and the bound.
fn draw_memory(runs: &[Run<'_>], output: &Path) -> Done {
    let root = SVGBackend::new(output, (WIDTH, 380)).into_drawing_area();
    let root = heading(&root, "Peak memory in MiB, by requests in flight (-j)")?;
    let areas = root.split_evenly((1, 2));
    for (area, (way, what, chunk_mib)) in
        (areas.iter()).zip([("up", "upload", 5.0), ("down", "download", 4.0)])
    {
        // Names are like `up -j 4: 16 GiB`.
        let points: Vec<(f64, &str, f64)> = runs
            .iter()
            .filter_map(|run| {
                let (group, size) = run.group();
                let jobs = group.strip_prefix(way)?.strip_prefix(" -j ")?;
                Some((jobs.parse().ok()?, size, run.peak_mib))
            })
            .collect();
        let jobs_max = points.iter().map(|point| point.0).fold(1.0, f64::max);
        let bound = |jobs: f64| 64.0 + 3.0 * jobs * chunk_mib;
        let mut chart = ChartBuilder::on(area)
            .caption(what, font(13))
            .margin_right(20)
            .x_label_area_size(30)
            .y_label_area_size(45)
            .build_cartesian_2d(0.0..jobs_max + 1.0, 0.0..bound(jobs_max) * 1.5)?;
        chart
            .configure_mesh()
            .x_label_formatter(&|jobs| format!("{jobs:.0}"))
            .y_label_formatter(&|mib| format!("{mib:.0}"))
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(FAINT)
            .label_style(font(12))
            .draw()?;
        let line = [1.0, jobs_max].map(|jobs| (jobs, bound(jobs)));
        chart
            .draw_series(LineSeries::new(line, ACCENT.stroke_width(2)))?
            .label("bound: 64 MiB + 3 x jobs x chunk")
            .legend(key(ACCENT));
        let mut sizes: Vec<&str> = Vec::new();
        for (_, size, _) in &points {
            if !sizes.contains(size) {
                sizes.push(size);
            }
        }
        // Lines that lie upon each other are still seen: the later ones are thinner.
        let looks = [(OURS, 8), (THIRD, 4), (OTHERS, 2)];
        for (size, (colour, width)) in sizes.iter().zip(looks.into_iter().cycle()) {
            let of: Vec<_> = (points.iter().filter(|point| point.1 == *size))
                .map(|point| (point.0, point.2))
                .collect();
            chart
                .draw_series(LineSeries::new(of, colour.stroke_width(width)))?
                .label(*size)
                .legend(key(colour));
        }
        legend(&mut chart)?;
    }
    Ok(root.present()?)
}

/// One line of a trace.
struct Step {
    at_s: f64,
    level: f64,
    effort: f64,
    ready: f64,
    in_flight: f64,
    raw_bytes: f64,
    body_bytes: f64,
    reason: String,
}

impl Step {
    fn parse(line: &str) -> Result<Self, Box<dyn Error>> {
        let step: Value = serde_json::from_str(line)?;
        let number = |key: &str| {
            let number = step[key].as_f64();
            number.ok_or_else(|| format!("No number {key:?} in {line}"))
        };
        Ok(Self {
            at_s: number("at_ms")? / 1000.0,
            level: number("level")?,
            effort: number("effort")?,
            ready: number("ready")?,
            in_flight: number("in_flight")?,
            raw_bytes: number("raw_bytes")?,
            body_bytes: number("body_bytes")?,
            reason: step["reason"].as_str().unwrap_or("auto").to_owned(),
        })
    }
}

fn draw_trace(steps: &[Step], output: &Path) -> Done {
    let Some(end_s) = steps.iter().map(|step| step.at_s).reduce(f64::max) else {
        return Err("The trace is empty".into());
    };
    let end_s = end_s.max(0.001);
    let root = SVGBackend::new(output, (WIDTH, 760)).into_drawing_area();
    let count = steps.len();
    let root = heading(&root, &format!("{count} chunks in {end_s:.1} s"))?;
    let panels = root.split_evenly((3, 1));

    let mut chart = panel(&panels[0], end_s, 13.0, "level", "")?;
    let reasons = [("auto", OURS), ("fixed", THIRD), ("incompressible", OTHERS)];
    for (reason, colour) in reasons {
        let of: Vec<_> = steps.iter().filter(|step| step.reason == reason).collect();
        if !of.is_empty() {
            let dots =
                (of.iter()).map(|step| Circle::new((step.at_s, step.level), 2, colour.filled()));
            chart
                .draw_series(dots)?
                .label(format!("{reason}: {} chunks", of.len()))
                .legend(key(colour));
        }
    }
    let effort = steps.iter().map(|step| (step.at_s, step.effort));
    chart
        .draw_series(LineSeries::new(effort, ACCENT.stroke_width(1)))?
        .label("effort")
        .legend(key(ACCENT));
    legend(&mut chart)?;

    let most = (steps.iter()).map(|step| step.ready.max(step.in_flight));
    let most = most.fold(1.0, f64::max);
    let mut chart = panel(&panels[1], end_s, most * 1.2, "chunks", "")?;
    let in_flight: Vec<_> = (steps.iter())
        .map(|step| (step.at_s, step.in_flight))
        .collect();
    let ready: Vec<_> = steps.iter().map(|step| (step.at_s, step.ready)).collect();
    for (name, colour, line) in [("in flight", OTHERS, in_flight), ("ready", OURS, ready)] {
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(1)))?
            .label(name)
            .legend(key(colour));
    }
    legend(&mut chart)?;

    let read = rates(steps, end_s, |step| step.raw_bytes);
    let sent = rates(steps, end_s, |step| step.body_bytes);
    let most = (read.iter().chain(&sent)).map(|(_, rate)| *rate);
    let most = most.fold(0.001, f64::max);
    let mut chart = panel(&panels[2], end_s, most * 1.2, "MB/s", "seconds")?;
    for (name, colour, line) in [("of the image", OTHERS, read), ("of bodies", OURS, sent)] {
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name)
            .legend(key(colour));
    }
    legend(&mut chart)?;
    Ok(root.present()?)
}

/// MB per second in slices of the time, as steps.
fn rates(steps: &[Step], end_s: f64, bytes: fn(&Step) -> f64) -> Vec<(f64, f64)> {
    let slices = (steps.len() / 8).clamp(4, 80);
    let slice_s = end_s / slices as f64;
    let mut sums = vec![0.0; slices];
    for step in steps {
        let slice = (step.at_s / slice_s) as usize;
        sums[slice.min(slices - 1)] += bytes(step);
    }
    let sides = |(slice, sum): (usize, f64)| {
        let (from, rate) = (slice as f64 * slice_s, sum / slice_s / 1e6);
        [(from, rate), (from + slice_s, rate)]
    };
    sums.into_iter().enumerate().flat_map(sides).collect()
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// A chart over time.
fn panel<'a, 'b>(
    area: &'a Area<'b>,
    end_s: f64,
    top: f64,
    what: &str,
    below: &str,
) -> Result<Chart<'a, 'b>, Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin_right(20)
        .margin_top(8)
        .x_label_area_size(if below.is_empty() { 22 } else { 38 })
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..end_s, 0.0..top)?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .label_style(font(12))
        .y_desc(what)
        .x_desc(below)
        .draw()?;
    Ok(chart)
}

fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>) -> Done {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .label_font(font(12))
        .draw()?;
    Ok(())
}

/// The line before a name in a legend.
fn key<'b>(
    colour: RGBColor,
) -> impl Fn((i32, i32)) -> DynElement<'static, SVGBackend<'b>, (i32, i32)> {
    move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)).into_dyn()
}

/// A white area with a title; what is left of it.
fn heading<'b>(root: &Area<'b>, title: &str) -> Result<Area<'b>, Box<dyn Error>> {
    root.fill(&WHITE)?;
    Ok(root.margin(8, 4, 4, 4).titled(title, font(15))?)
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn anchored(size: i32, h: HPos, v: VPos) -> TextStyle<'static> {
    font(size).pos(Pos::new(h, v))
}

/// A place on the whole picture, as one of an area in it.
fn relative(area: &Area<'_>, at: (i32, i32)) -> (i32, i32) {
    let base = area.get_base_pixel();
    (at.0 - base.0, at.1 - base.1)
}
