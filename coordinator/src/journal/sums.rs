//! A checksum in each row's last column. SQLite knows when a page makes no sense, not when a bit of a
//! log-prob flipped on the disk.

use rusqlite::{
    Row, ToSql,
    types::{ToSqlOutput, ValueRef},
};

/// Tables whose rows have one.
pub(super) const TABLES: [&str; 5] = ["meta", "prompts", "completions", "steps", "evals"];

/// CRC-32 over the values of a row, each with its type and length.
#[derive(Default)]
struct Sum(crc32fast::Hasher);

impl Sum {
    fn add(&mut self, value: ValueRef<'_>) {
        let (integer, real);
        let (kind, bytes): (u8, &[u8]) = match value {
            // SQLite keeps a NaN as NULL.
            ValueRef::Null => (0, &[]),
            ValueRef::Real(number) if number.is_nan() => (0, &[]),
            ValueRef::Integer(number) => {
                integer = number.to_le_bytes();
                (1, &integer)
            }
            ValueRef::Real(number) => {
                // And -0.0 as 0.0.
                real = (number + 0.0).to_le_bytes();
                (2, &real)
            }
            ValueRef::Text(text) => (3, text),
            ValueRef::Blob(blob) => (4, blob),
        };
        self.0.update(&[kind]);
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> i64 {
        i64::from(self.0.finalize())
    }
}

/// The checksum of a row to be written.
pub(super) fn of(values: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    let mut sum = Sum::default();
    for value in values {
        match value.to_sql()? {
            ToSqlOutput::Borrowed(value) => sum.add(value),
            ToSqlOutput::Owned(value) => sum.add(ValueRef::from(&value)),
            _ => return Err(rusqlite::Error::InvalidQuery),
        }
    }
    Ok(sum.finish())
}

/// Whether a whole row of one of [`TABLES`] is what was written.
pub(super) fn holds(row: &Row<'_>) -> rusqlite::Result<bool> {
    let last = row.as_ref().column_count().saturating_sub(1);
    let mut sum = Sum::default();
    for column in 0..last {
        sum.add(row.get_ref(column)?);
    }
    Ok(matches!(row.get_ref(last)?, ValueRef::Integer(found) if found == sum.finish()))
}
