//! Results as a table for people, and as a file for programs.

use std::{fmt, fs, path::Path};

use serde::Serialize;

use crate::error::{BenchError, Result};

/// Rows of cells under a line of heads; the first column is text, the others are figures.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<'a>(heads: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            rows: vec![heads.into_iter().map(str::to_owned).collect()],
        }
    }

    /// A row; an empty cell is a figure that there is none of.
    pub(crate) fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(std::iter::once(name.to_owned()).chain(cells).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let wide = |c: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(c));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(wide).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                if line.is_empty() {
                    line = format!("{cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A figure with as many decimals as it can use.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 1.0 => format!("{value:.2}"),
        x if x >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// Writes `results` as JSON.
pub(crate) fn write_json(path: &Path, results: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    fs::write(path, text).map_err(BenchError::file(path))?;
    println!("written to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["", "tina", "a peer"]);
        table.row("seconds", [figure(1.5), figure(123.4)]);
        table.row("a longer name", [figure(0.25), String::new()]);
        let want = "                 tina  a peer\n\
                    seconds          1.50     123\n\
                    a longer name  0.2500\n";
        assert_eq!(table.to_string(), want);
    }

    #[test]
    fn a_small_figure_keeps_its_digits() {
        assert_eq!(figure(2.4e-7), "2.4e-7");
        assert_eq!(figure(0.0), "0");
        assert_eq!(figure(24.13), "24.13");
    }
}
