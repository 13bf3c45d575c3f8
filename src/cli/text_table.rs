//! Tables for people.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::printable;

/// Formats rows of cells, of which the first is the header, with two spaces between columns; the
/// columns in `right` are right-aligned. Nothing is shortened or wrapped, because the output may go
/// to a file.
pub(super) fn table<const N: usize>(
    rows: impl IntoIterator<Item = [String; N]>,
    right: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for row in rows {
        table.add_row(row.map(|cell| printable::line(&cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_confuses_a_terminal() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [
            row(["NAME", "SIZE", "STATUS"]),
            row(["a", "10.00 GiB", "active"]),
            row(["日本\u{1b}[31m\n", "1 B", ""]),
        ];
        assert_eq!(
            table(rows, &[1]),
            "NAME                   SIZE  STATUS\n\
             a                 10.00 GiB  active\n\
             日本\\u{1b}[31m\\n        1 B\n"
        );
    }
}
