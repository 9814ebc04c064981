//! Files made for the tests.
#![allow(dead_code, unreachable_pub)]

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd_bytes(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// A file with the columns `id` (int64) and `text` (optional string), in row groups of `group` rows.
pub fn parquet_file(rows: &[Option<String>], codec: &str, dictionary: bool, group: usize) -> Vec<u8> {
    let compression = match codec {
        "snappy" => Compression::SNAPPY,
        "gzip" => Compression::GZIP(Default::default()),
        "zstd" => Compression::ZSTD(Default::default()),
        _ => Compression::UNCOMPRESSED,
    };
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .set_data_page_row_count_limit(30)
        .set_write_batch_size(30)
        .build();
    write(rows, properties, group)
}

/// A file whose strings are delta-encoded.
pub fn parquet_delta(rows: &[&str]) -> Vec<u8> {
    let rows: Vec<Option<String>> = rows.iter().map(|&r| Some(r.to_owned())).collect();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .set_column_encoding("id".into(), Encoding::PLAIN)
        .build();
    write(&rows, properties, 10)
}

fn write(rows: &[Option<String>], properties: WriterProperties, group: usize) -> Vec<u8> {
    let schema = parse_message_type("message m { required int64 id; optional binary text (UTF8); }").unwrap();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).unwrap();
    for rows in rows.chunks(group) {
        let mut out = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..rows.len() as i64).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|row| ByteArray::from(row.as_str())).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// How many property cases to run: `ERNIE_TEST_CASES`, else `default`.
pub fn cases(default: u32) -> u32 {
    std::env::var("ERNIE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The most memory this process has held, where the system tells.
pub fn peak_rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
