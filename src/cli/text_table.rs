//! Tables for people.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::printable;

/// Rows of cells, the first of them the head, in columns with two spaces between them;
/// those columns are flushed right. Nothing is cut off or wrapped: it may go to a file.
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
