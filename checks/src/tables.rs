//! Tables that fit the reader's screen.
#![forbid(unsafe_code)]

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

/// Columns of a screen of which nothing is known.
const NARROW: u16 = 80;

/// Columns of the terminal; without one what `COLUMNS` says, else 80.
pub fn width() -> u16 {
    let terminal = Table::new().width();
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.or_else(said).unwrap_or(NARROW)
}

/// An empty table that takes at most `width` columns of the screen. Columns whose index is in `numbers` are set to the
/// right and never broken.
pub fn table<T: ToString>(width: u16, header: impl IntoIterator<Item = T>, numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(header.into_iter().map(|title| title.to_string()).collect::<Vec<_>>());
    for &number in numbers {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

/// Checks that no line of a table is wider than it may be.
#[cfg(test)]
pub(crate) fn assert_fits(table: &Table, width: usize) {
    for line in table.lines() {
        assert!(line.chars().count() <= width, "wider than {width}:\n{table}");
    }
}
