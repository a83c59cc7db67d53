use std::{path::PathBuf, sync::Arc};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};

use super::*;
use crate::{
    config::BadRows,
    data::{PromptTemplate, RowFormat, read_problems, rows::field},
};

/// As pyarrow writes a dataset: text that may be null, numbers, a struct, a list.
const SCHEMA: &str = "message schema {
    OPTIONAL BYTE_ARRAY problem (UTF8);
    OPTIONAL INT64 level;
    OPTIONAL DOUBLE share;
    OPTIONAL group extra { OPTIONAL BYTE_ARRAY answer (UTF8); }
    OPTIONAL group choices (LIST) { REPEATED group list { OPTIONAL BYTE_ARRAY element (UTF8); } }
    OPTIONAL BYTE_ARRAY raw;
}";

fn texts(
    group: &mut SerializedRowGroupWriter<'_, std::fs::File>,
    values: &[&str],
    levels: &[i16],
    repeat: Option<&[i16]>,
) {
    let mut column = group.next_column().expect("a column").expect("one more");
    let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(*text)).collect();
    let typed = column.typed::<ByteArrayType>();
    typed
        .write_batch(&values, Some(levels), repeat)
        .expect("written");
    column.close().expect("closed");
}

/// Writes so many row groups of three rows each; the second row has nulls.
fn write(path: &Path, compression: Compression, groups: usize) {
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let file = std::fs::File::create(path).expect("created");
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties)).expect("a writer");
    for number in 0..groups {
        let mut group = writer.next_row_group().expect("a group");
        let first = format!("{number} + 1?");
        texts(&mut group, &[&first, "π?"], &[1, 0, 1], None);
        let mut column = group.next_column().expect("a column").expect("one more");
        let numbers = column.typed::<Int64Type>();
        numbers
            .write_batch(&[number as i64, 3], Some(&[1, 0, 1]), None)
            .expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("a column").expect("one more");
        let shares = column.typed::<DoubleType>();
        shares
            .write_batch(&[0.5, f64::NAN], Some(&[1, 0, 1]), None)
            .expect("written");
        column.close().expect("closed");
        texts(
            &mut group,
            &[&(number + 1).to_string(), "3.14"],
            &[2, 0, 2],
            None,
        );
        texts(
            &mut group,
            &["a", "b", "c"],
            &[3, 3, 0, 3],
            Some(&[0, 1, 0, 0]),
        );
        texts(&mut group, &["bytes", "b"], &[1, 0, 1], None);
        group.close().expect("closed");
    }
    writer.close().expect("closed");
}

fn file(compression: Compression, groups: usize) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("train.parquet");
    write(&path, compression, groups);
    (folder, path)
}

fn read(path: &Path, wanted: &[&str]) -> Result<Vec<Row>, DataError> {
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let mut all = Vec::new();
    rows(path, "train.parquet", &wanted, &mut |number, row| {
        all.push(row.expect("a row"));
        assert_eq!(number, all.len());
        Ok(())
    })?;
    Ok(all)
}

#[test]
fn rows_are_json_whatever_the_compression() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(Default::default()),
    ] {
        let (_folder, path) = file(compression, 2);
        let rows = read(&path, &[]).expect("rows");
        assert_eq!(rows.len(), 6);
        let text = |row: usize| serde_json::to_string(&rows[row]).expect("text");
        assert_eq!(
            text(3),
            r#"{"problem":"1 + 1?","level":1,"share":0.5,"extra":{"answer":"2"},"choices":["a","b"],"raw":"bytes"}"#
        );
        assert_eq!(
            text(4),
            r#"{"problem":null,"level":null,"share":null,"extra":null,"choices":null,"raw":null}"#
        );
        assert_eq!(rows[5]["problem"], "π?");
        assert_eq!(rows[5]["share"], Value::Null, "JSON has no NaN");
    }
}

#[test]
fn only_the_columns_that_are_looked_at_are_read() {
    let (_folder, path) = file(Compression::SNAPPY, 1);
    let rows = read(&path, &["id", "problem", "extra.answer"]).expect("rows");
    let names: Vec<&str> = rows[0].keys().map(String::as_str).collect();
    assert_eq!(names, ["problem", "extra"]);
    assert_eq!(field(&rows[0], "extra.answer"), Some(&Value::from("1")));
    // What is not there is asked of the row, which tells what it has.
    let rows = read(&path, &["problem", "nothing"]).expect("rows");
    assert_eq!(rows[0].len(), 6);
}

#[test]
fn problems_are_made_of_a_parquet_file() {
    let (_folder, path) = file(Compression::ZSTD(Default::default()), 3);
    let source = path.display().to_string().parse().expect("a source");
    let template = PromptTemplate::parse("{question} ({choices.0})").expect("a template");
    let mut format = RowFormat::new("problem", "extra.answer", template);
    format.keep = vec!["level".to_owned()];
    let read = read_problems(&source, &format, BadRows::Skip).expect("problems");
    assert_eq!((read.rows, read.bad, read.problems.len()), (9, 3, 6));
    let row = &read.first_bad[0];
    assert_eq!(
        (row.line, row.message.contains("it is null")),
        (2, true),
        "{row}"
    );
    let second = &read.problems[2];
    assert_eq!(
        (&*second.id, &*second.prompt, &*second.answer),
        ("4", "1 + 1? (a)", "2")
    );
    assert_eq!(second.extra["level"], 1);

    format.answer_field = "answer".to_owned();
    let error = read_problems(&source, &format, BadRows::Fail).expect_err("no field");
    let error = error.to_string();
    assert!(
        error.contains("train.parquet:1: no field \"answer\"; the row has problem, level, share"),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_panic() {
    let (folder, path) = file(Compression::SNAPPY, 2);
    let whole = std::fs::read(&path).expect("read");
    let damaged = folder.path().join("damaged.parquet");
    let read_of = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).expect("written");
        read(&damaged, &[])
    };
    for length in (0..whole.len()).step_by(97) {
        let error = read_of(&whole[..length])
            .expect_err("cut short")
            .to_string();
        assert!(
            error.starts_with("train.parquet: not a Parquet file"),
            "{error}"
        );
    }
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // Some bytes are a row's text, or a name, and may be anything.
        let _ = read_of(&bytes);
    }
    let error = read_of(b"{\"problem\": 1}").expect_err("no Parquet");
    assert!(error.to_string().contains("not a Parquet file"), "{error}");
}
