//! Rows of a Parquet file. Only the columns that are looked at are read, a row group at a time.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, reader::RowIter},
    schema::types::Type,
};
use serde_json::{Number, Value};

use super::{
    DataError,
    rows::{Row, Visit},
};

/// Reads a file row by row, of each the columns of the fields in `wanted` (empty: all of them).
/// `name` is what errors call it. Rows are counted from 1.
///
/// # Errors
/// The file can't be read or is damaged, or what `visit` returns.
pub(super) fn rows(
    path: &Path,
    name: &str,
    wanted: &[String],
    visit: &mut Visit<'_>,
) -> Result<(), DataError> {
    let file = File::open(path).map_err(|source| DataError::Unreadable {
        file: name.to_owned(),
        source,
    })?;
    let failed = |message: String| DataError::Parquet {
        file: name.to_owned(),
        message,
    };
    // The library asserts some of what a damaged file can break.
    let guarded = |work: &mut dyn FnMut() -> parquet::errors::Result<Option<Row>>| {
        catch_unwind(AssertUnwindSafe(work))
            .map_err(|_| failed("it is damaged".to_owned()))?
            .map_err(|error| failed(error.to_string()))
    };
    let mut reader = None;
    guarded(&mut || {
        reader = Some(SerializedFileReader::new(file.try_clone()?)?);
        Ok(None)
    })?;
    let Some(reader) = reader else {
        return Ok(());
    };
    let schema = reader.metadata().file_metadata().schema();
    let projection = projection(schema, wanted).map_err(|error| failed(error.to_string()))?;
    let mut number = 0;
    for index in 0..reader.num_row_groups() {
        let mut group = None;
        guarded(&mut || {
            group = Some(reader.get_row_group(index)?);
            Ok(None)
        })?;
        let Some(group) = group else { continue };
        let mut rows = None;
        guarded(&mut || {
            rows = Some(RowIter::from_row_group(projection.clone(), &*group)?);
            Ok(None)
        })?;
        let Some(mut rows) = rows else { continue };
        let mut next = || rows.next().transpose().map(|row| row.map(object));
        while let Some(row) = guarded(&mut next)? {
            number += 1;
            visit(number, Ok(row))?;
        }
    }
    Ok(())
}

/// The schema with the columns of `wanted` alone; none where all are to be read: where `wanted` is
/// empty, or names what is not there, so that the row can say what it has.
fn projection(schema: &Type, wanted: &[String]) -> parquet::errors::Result<Option<Type>> {
    let has = |name: &str| schema.get_fields().iter().any(|field| field.name() == name);
    let mut columns = Vec::new();
    for path in wanted {
        // A name comes before a path, as in `rows::field`.
        let column = match has(path) {
            true => path.as_str(),
            false => path.split('.').next().unwrap_or(path),
        };
        if has(column) {
            columns.push(column);
        } else if path != "id" {
            return Ok(None);
        }
    }
    if columns.is_empty() {
        return Ok(None);
    }
    let fields = schema.get_fields().iter();
    let fields = fields.filter(|field| columns.contains(&field.name()));
    let group =
        Type::group_type_builder(schema.name()).with_fields(fields.map(Arc::clone).collect());
    group.build().map(Some)
}

fn object(row: parquet::record::Row) -> Row {
    let columns = row.into_columns().into_iter();
    columns.map(|(name, field)| (name, value(field))).collect()
}

/// A field as JSON; what JSON has no word for (dates, decimals, bytes) is text.
fn value(field: Field) -> Value {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(number.into()),
        Field::Float(number) => float(number.into()),
        Field::Double(number) => float(number),
        Field::Str(text) => text.into(),
        // Text whose writer did not say that it is.
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect())
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let key = |key: &Field| match value(key.clone()) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(
                entries
                    .map(|(name, field)| (key(name), value(field.clone())))
                    .collect(),
            )
        }
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests;
