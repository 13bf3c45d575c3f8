//! The tables of `openhosting ls`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use unicode_width::UnicodeWidthStr;
use uuid::Uuid;

use super::bar::shorten;
use super::printable;
use super::screen::fits;
use super::text_table::table;
use crate::amounts::{age, size};
use crate::drive::{Condition, DriveId};

/// Minimum digits of a UUID to show.
const SHORT_ID: usize = 8;
/// Minimum columns of NAME and STATE, however narrow the terminal is.
const CELL_MIN: usize = 8;

/// A drive of the list.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: DriveId,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) state: Condition,
    pub(super) published_ms: Option<u64>,
    /// Its place among the drives of its name.
    pub(super) place: (Reverse<Option<u64>>, DriveId),
    pub(super) claimed: Option<String>,
    pub(super) status: Option<String>,
}

/// The table in at most `columns` columns, if there is a limit: then names and states are
/// shortened.
pub(super) fn short(
    rows: &[Row],
    servers: &BTreeMap<Uuid, String>,
    columns: Option<usize>,
    now_ms: u64,
) -> String {
    let digits = short_ids(rows);
    let mut cells: Vec<[String; 5]> =
        vec![["NAME", "SIZE", "STATE", "AGE", "UUID"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        [
            printable::line(&row.name),
            size(row.size),
            printable::line(&row.state.words(servers)),
            row.published_ms
                .map_or_else(|| "-".to_owned(), |published| age(published, now_ms)),
            row.id.to_string()[..digits].to_owned(),
        ]
    }));
    if let Some(columns) = columns {
        fit(&mut cells, columns);
    }
    let text = table(cells.iter().cloned(), &[1, 3]);
    // The API reports no time of creation, so only published drives have an age.
    let has_ages = rows.iter().any(|row| row.published_ms.is_some());
    if columns.is_none_or(|columns| has_ages && fits(&text, columns)) {
        return text;
    }
    // Without ages, or without room for them, their column is left out.
    table(
        cells
            .into_iter()
            .map(|[name, size, state, _, id]| [name, size, state, id]),
        &[1],
    )
}

/// Shortens states, then names, so that the lines fit.
fn fit(cells: &mut [[String; 5]], columns: usize) {
    for column in [2, 0] {
        let widest = |column: usize| {
            let widths = cells.iter().map(|row| row[column].width());
            widths.max().unwrap_or(0)
        };
        let all: usize = (0..5).map(widest).sum::<usize>() + 2 * 4;
        let over = all.saturating_sub(columns);
        if over == 0 {
            return;
        }
        // A state needs more columns than a name to be understood.
        let least = if column == 2 { 24 } else { CELL_MIN };
        let room = widest(column).saturating_sub(over).max(least);
        for row in cells.iter_mut() {
            row[column] = shorten(&row[column], room, true);
        }
    }
}

/// How many characters of the UUIDs are needed to distinguish them.
fn short_ids(rows: &[Row]) -> usize {
    let mut ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    ids.sort();
    let common = ids.windows(2).map(|two| {
        let pairs = two[0].bytes().zip(two[1].bytes());
        pairs.take_while(|(a, b)| a == b).count()
    });
    (common.max().unwrap_or(0) + 1).clamp(SHORT_ID, 36)
}

/// The table with all columns. If it is wider than `columns`, it is a paragraph for each drive
/// instead, because a terminal would break the lines within words.
pub(super) fn long(
    rows: &[Row],
    servers: &BTreeMap<Uuid, String>,
    columns: Option<usize>,
) -> String {
    const HEAD: [&str; 7] = [
        "NAME",
        "BYTES",
        "STATE",
        "STATUS",
        "CLAIMED",
        "PUBLISHED",
        "UUID",
    ];
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = rows.iter().map(|row| {
        [
            row.name.clone(),
            row.size.to_string(),
            row.state.words(servers),
            or_none(&row.status),
            or_none(&row.claimed),
            row.published_ms.map_or_else(|| "-".to_owned(), time),
            row.id.to_string(),
        ]
    });
    let rows: Vec<[String; 7]> = rows.collect();
    let head = std::iter::once(HEAD.map(str::to_owned));
    let text = table(head.chain(rows.iter().cloned()), &[1]);
    if columns.is_none_or(|columns| fits(&text, columns)) {
        return text;
    }
    let paragraph = |row: &[String; 7]| {
        let keys = HEAD.iter().zip(row).filter(|(_, value)| *value != "-");
        let lines = keys.map(|(key, value)| [format!("{key}:"), value.clone()]);
        table(lines, &[])
    };
    rows.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

/// A time in milliseconds since 1970, as RFC 3339 writes it.
pub(super) fn time(ms: u64) -> String {
    // Later times than the year 9999 cannot be written in this form.
    const MS_MAX: u64 = 253_402_300_799_000;
    let time = UNIX_EPOCH + Duration::from_millis(ms.min(MS_MAX));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: [u8; 16], name: &str, state: Condition) -> Row {
        Row {
            id: DriveId::from_bytes(number),
            name: name.to_owned(),
            size: 10 << 30,
            state,
            published_ms: Some(0),
            place: (Reverse(Some(0)), DriveId::from_bytes(number)),
            claimed: None,
            status: None,
        }
    }

    #[test]
    fn the_table_fits_and_its_uuids_are_unambiguous() {
        let servers = BTreeMap::new();
        let mut near = [1; 16];
        near[5] = 2;
        let long_name = "n".repeat(200);
        let rows = [
            row([1; 16], "a", Condition::Ready),
            row(near, &long_name, Condition::Status("x".repeat(99))),
        ];
        let text = short(&rows, &servers, Some(80), 47 * 3_600_000);
        for line in text.lines() {
            assert!(line.width() <= 80, "{line}");
        }
        assert!(
            text.contains("47h  01010101-0101") && text.contains("01010101-0102"),
            "{text}"
        );
        // Nothing is shortened for a file.
        assert!(short(&rows, &servers, None, 0).contains(&long_name));
        let lines = |columns| long(&rows, &servers, columns).lines().count();
        assert_eq!(lines(None), 3);
        // Two paragraphs of five lines, with an empty line between them.
        assert_eq!(lines(Some(80)), 11);
        let all = long(&rows, &servers, Some(80));
        assert!(
            all.contains(&format!("UUID:       {}\n", rows[1].id)),
            "{all}"
        );
    }

    #[test]
    fn a_time_far_in_the_future_is_printed() {
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
    }
}
