//! Sources from outside: what is found, how it is cut into documents, and what bad files say.

use std::io::Write;
use std::path::Path;

use ernie_data::source::{Documents, Format, Piece, Position, Source, SourceConfig};
use ernie_data::{Error, ErrorKind};
use tempfile::TempDir;

mod common;
use common::{gzip, parquet_file, zstd_bytes};

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

fn read(config: &SourceConfig, dir: &Path) -> Result<Vec<Piece>, Error> {
    let mut source = Source::open(config, dir)?;
    let mut pieces = Vec::new();
    while let Some(piece) = source.next()? {
        pieces.push(piece);
    }
    Ok(pieces)
}

fn texts(config: &SourceConfig, dir: &Path) -> Vec<String> {
    read(config, dir).unwrap().into_iter().map(|piece| piece.text).collect()
}

/// Reads one file of this name and content and expects an input error that holds every one of `parts`.
fn refused(name: &str, bytes: &[u8], config: &SourceConfig, parts: &[&str]) {
    let dir = folder(&[(name, bytes)]);
    let error = read(config, dir.path()).expect_err(name);
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Input, "{message}");
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn files_are_sorted_and_read_once() {
    let dir =
        folder(&[(".hidden.txt", b"no"), ("b.txt", b"b"), ("a/2.txt", b"2"), ("a/10.txt", b"10"), ("c[1].txt", b"c")]);
    let globs = SourceConfig::new(&["*.txt", "b.txt", "a/*.txt", "**/2.txt"]);
    assert_eq!(texts(&globs, dir.path()), ["10", "2", "b", "c"]);
    // A name with a glob's characters in it is found as written.
    assert_eq!(texts(&SourceConfig::new(&["c[1].txt"]), dir.path()), ["c"]);
    let absolute = dir.path().join("b.txt");
    assert_eq!(texts(&SourceConfig::new(&[absolute.to_str().unwrap()]), Path::new("/elsewhere")), ["b"]);
}

#[cfg(unix)]
#[test]
fn links_in_a_circle_are_walked_once() {
    let dir = folder(&[("a/x.txt", b"x")]);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/round")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/again")).unwrap();
    std::os::unix::fs::symlink("self.txt", dir.path().join("self.txt")).unwrap();
    assert_eq!(texts(&SourceConfig::new(&["**/x.txt"]), dir.path()), ["x"]);
    assert_eq!(texts(&SourceConfig::new(&["**/**/a/**/?.txt", "./a/../a/*.txt"]), dir.path()), ["x", "x"]);
    let error = Source::open(&SourceConfig::new(&["self.txt"]), dir.path()).err().unwrap();
    assert!(!error.to_string().is_empty(), "a link to itself is an error, not a hang");
}

#[test]
fn a_base_folder_with_glob_characters_is_taken_as_written() {
    let dir = folder(&[("x[ab]/one.txt", b"1"), ("xa/two.txt", b"2")]);
    assert_eq!(texts(&SourceConfig::new(&["*.txt"]), &dir.path().join("x[ab]")), ["1"]);
}

#[test]
fn text_is_cut_as_asked() {
    let text = "\u{feff}one\r\ntwo\n\n \nthree\nfour\n\n\n";
    let dir = folder(&[("t.txt", text.as_bytes())]);
    let with = |documents| SourceConfig { documents, ..SourceConfig::new(&["t.txt"]) };
    let cut = |documents| -> Vec<(String, u64)> {
        read(&with(documents), dir.path()).unwrap().into_iter().map(|p| (p.text, p.separator_bytes)).collect()
    };
    let own = |list: &[(&str, u64)]| list.iter().map(|&(t, n)| (t.to_owned(), n)).collect::<Vec<_>>();
    assert_eq!(cut(Documents::File), own(&[("one\r\ntwo\n\n \nthree\nfour\n\n\n", 0)]));
    assert_eq!(cut(Documents::Line), own(&[("one", 2), ("two", 1), ("three", 1), ("four", 1)]));
    assert_eq!(cut(Documents::Paragraph), own(&[("one\r\ntwo", 2), ("three\nfour", 2)]));
}

#[test]
fn a_long_file_comes_in_pieces_of_one_document() {
    let text: String = (0..40_000).map(|i| format!("line {i}\n")).collect();
    let dir = folder(&[("a.txt", text.as_bytes()), ("b.txt", b"end")]);
    let pieces = read(&SourceConfig::new(&["*.txt"]), dir.path()).unwrap();
    assert!(pieces.len() > 5 && pieces.iter().all(|p| p.text.len() < 66_000));
    assert_eq!(pieces.iter().filter(|p| p.ends).count(), 2);
    assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<String>(), text + "end");
}

#[test]
fn compression_is_known_by_its_bytes_whatever_the_name() {
    let line = br#"{"text": "hello"}"#;
    let mut two_members = gzip(line);
    two_members.extend(gzip(b"\n{\"text\": \"again\"}"));
    let mut two_frames = zstd_bytes(line);
    two_frames.extend(zstd_bytes(b"\n{\"text\": \"again\"}"));
    let dir = folder(&[
        ("a.jsonl", &gzip(line)),
        ("b.jsonl.gz", line),
        ("c.json.zst", &two_members),
        ("d.ndjson", &two_frames),
    ]);
    assert_eq!(texts(&SourceConfig::new(&["*"]), dir.path()), ["hello", "hello", "hello", "again", "hello", "again"]);
}

#[test]
fn jsonl_takes_the_fields_asked_for() {
    let lines = "\u{feff}{\"question\": \"q\", \"answer\": \"a\"}\r\n\n{\"question\": \"\", \"answer\": \" \"}\n{\"answer\": \"d\", \"question\": \"c\"}";
    let dir = folder(&[("x.jsonl", lines.as_bytes()), ("y.txt", lines.as_bytes())]);
    let fields = vec!["question".to_owned(), "answer".to_owned()];
    let config = SourceConfig { text_fields: fields.clone(), ..SourceConfig::new(&["x.jsonl"]) };
    let mut source = Source::open(&config, dir.path()).unwrap();
    let mut found = Vec::new();
    while let Some(piece) = source.next().unwrap() {
        found.push(piece.text);
    }
    assert_eq!(found, ["q\na", "c\nd"]);
    assert_eq!(source.notes().len(), 1, "the empty record is noted: {:?}", source.notes());
    let by_format = SourceConfig { text_fields: fields, format: Format::Jsonl, ..SourceConfig::new(&["y.txt"]) };
    assert_eq!(texts(&by_format, dir.path()), found);
}

#[test]
fn parquet_columns_are_read_under_every_codec() {
    let rows: Vec<Option<String>> =
        (0..500).map(|i| (i % 7 != 3).then(|| format!("row {i} {}", "x".repeat(i % 50)))).collect();
    let present: Vec<String> = rows.iter().flatten().cloned().collect();
    for codec in ["none", "snappy", "gzip", "zstd"] {
        for dictionary in [false, true] {
            let dir = folder(&[("data.bin", &parquet_file(&rows, codec, dictionary, 170))]);
            assert_eq!(texts(&SourceConfig::new(&["data.bin"]), dir.path()), present, "{codec} {dictionary}");
        }
    }
}

#[test]
fn parquet_faults_are_named() {
    let bytes = parquet_file(&[Some("a".into())], "none", false, 10);
    let no_column = SourceConfig { text_fields: vec!["body".into()], ..SourceConfig::new(&["*"]) };
    refused("a.parquet", &bytes, &no_column, &["a.parquet", "`body`", "`text`", "`id`"]);
    let numbers = SourceConfig { text_fields: vec!["id".into()], ..SourceConfig::new(&["*"]) };
    refused("a.parquet", &bytes, &numbers, &["not a column of strings"]);
    refused("a.parquet", &bytes[..bytes.len() - 1], &SourceConfig::new(&["*"]), &["a.parquet", "PAR1"]);
    refused("a.parquet", b"PAR1PAR1", &SourceConfig::new(&["*"]), &["too short"]);
    refused("a.parquet", &gzip(&bytes), &SourceConfig::new(&["*"]), &["Parquet inside"]);
    let asked = SourceConfig { format: Format::Parquet, ..SourceConfig::new(&["*"]) };
    refused("a.txt", b"hello, I am no Parquet", &asked, &["PAR1"]);
    let short = SourceConfig { max_record_bytes: 3, ..SourceConfig::new(&["*"]) };
    refused("a.parquet", &parquet_file(&[Some("four".into())], "none", false, 10), &short, &["longer than 3"]);
    let delta = common::parquet_delta(&["a", "b"]);
    refused("a.parquet", &delta, &SourceConfig::new(&["*"]), &["DELTA_LENGTH_BYTE_ARRAY"]);
}

#[test]
fn hostile_parquet_footers_end_in_one_line() {
    let any = SourceConfig::new(&["*"]);
    // A schema list of 2^31 elements, a root of 2^31 children, a chain of groups 50,000 deep.
    let mut chain = vec![0x19, 0xfc, 0xd0, 0x86, 0x03];
    for _ in 0..50_000 {
        chain.extend([0x48, 1, b'a', 0x15, 2, 0]);
    }
    chain.push(0);
    let huge_root = [0x15, 2, 0x19, 0x1c, 0x48, 1, b'r', 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    let huge_list = [0x15, 2, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
    for footer in [&chain[..], &huge_root, &huge_list, &[0x1c; 5000], &[]] {
        let mut file = b"PAR1".to_vec();
        file.extend(footer);
        file.extend((footer.len() as u32).to_le_bytes());
        file.extend(b"PAR1");
        refused("a.parquet", &file, &any, &["a.parquet", "damaged Parquet"]);
    }
    refused("a.parquet", b"PAR1____\xff\xff\xff\xffPAR1", &any, &["footer of 4294967295 bytes"]);
}

#[test]
fn names_that_match_nothing_useful_are_refused() {
    let dir = folder(&[("sub/a.txt", b"a")]);
    let check = |glob: &str, part: &str| {
        let error = Source::open(&SourceConfig::new(&[glob]), dir.path()).err().expect(glob);
        assert!(error.is_input() && error.to_string().contains(part), "{glob}: {error}");
        assert!(error.to_string().contains(glob), "{error}");
    };
    check("missing.txt", "no such file");
    check("*.parquet", "no such file");
    check("sub", "a folder");
    check("s*", "a folder");
    check("a***b", "not a glob");
    check("bundled:nothing", "bundled:train");
    check("/dev/zero", "not a regular file");
    assert!(Source::open(&SourceConfig::default(), dir.path()).is_err_and(|e| e.is_input()));
    let none = SourceConfig { text_fields: vec![], ..SourceConfig::new(&["sub/*"]) };
    assert!(Source::open(&none, dir.path()).is_err_and(|e| e.is_input()));
}

#[test]
fn a_bad_line_is_named_by_file_and_number() {
    let any = SourceConfig::new(&["*"]);
    let good = "{\"text\": \"a\"}\n";
    refused(
        "d.jsonl",
        format!("{good}\n{good}{{\"text\": 1}}\n").as_bytes(),
        &any,
        &["d.jsonl:4", "expected a string"],
    );
    refused("d.jsonl", format!("{good}nonsense").as_bytes(), &any, &["d.jsonl:2", "not a JSON object"]);
    refused("d.jsonl", b"{\"text\": \"a\xff\"}", &any, &["d.jsonl:1", "not UTF-8 at byte 12"]);
    refused("d.json", b"[\n{\"text\": \"a\"}\n]", &any, &["d.json:1", "a JSON array"]);
    refused("d.json", b"{\n\"text\": \"a\"\n}", &any, &["d.json:1", "not a JSON object"]);
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    refused("d.jsonl", deep.as_bytes(), &any, &["d.jsonl:1", "expected a string"]);
    refused("d.jsonl", "\u{feff}\u{feff}{}".as_bytes(), &any, &["d.jsonl:1"]);
}

#[test]
fn what_is_no_text_is_named() {
    let any = SourceConfig::new(&["*"]);
    refused("a.txt", b"\xfd7zXZ\0......", &any, &["xz"]);
    refused("a.txt", b"BZh91AY&SY.....", &any, &["bzip2"]);
    refused("a.pt", b"PK\x03\x04.....", &any, &["zip"]);
    refused("a.txt", b"\xff\xfeh\0i\0", &any, &["UTF-16"]);
    refused("a.gz", &gzip(&gzip(b"a")), &any, &["compressed twice"]);
    let mut garbage = gzip(b"text\n");
    garbage.extend(b"garbage behind it");
    refused("a.gz", &garbage, &any, &["a.gz", "damaged compressed file"]);
    refused("a.gz", &gzip(b"text")[..12], &any, &["damaged compressed file"]);
    refused("a.zst", &zstd_bytes(&b"text ".repeat(100))[..12], &any, &["damaged compressed file"]);
}

#[test]
fn broken_utf8_in_text_is_replaced_and_noted() {
    let dir = folder(&[("a.txt", b"caf\xe9\nfine\n\xff\n")]);
    let config = SourceConfig { documents: Documents::Line, ..SourceConfig::new(&["a.txt"]) };
    let mut source = Source::open(&config, dir.path()).unwrap();
    let mut found = Vec::new();
    while let Some(piece) = source.next().unwrap() {
        found.push(piece.text);
    }
    assert_eq!(found, ["caf\u{fffd}", "fine", "\u{fffd}"]);
    assert!(source.notes()[0].contains("2 records") && source.notes()[0].contains("U+FFFD"), "{:?}", source.notes());
}

#[test]
fn long_lines_stop_at_the_cap() {
    let capped = SourceConfig { max_record_bytes: 1000, ..SourceConfig::new(&["*"]) };
    refused("a.txt", &[b'a'; 1001], &capped, &["a.txt:1", "1000 bytes"]);
    refused("a.jsonl", format!("{{}}\n{}", " ".repeat(5000)).as_bytes(), &capped, &["a.jsonl:"]);
    let paragraphs = SourceConfig { documents: Documents::Paragraph, ..capped.clone() };
    refused("a.txt", "word word\n".repeat(200).as_bytes(), &paragraphs, &["a paragraph longer"]);
    let dir = folder(&[("a.txt", "word word\n".repeat(200).as_bytes())]);
    assert_eq!(texts(&capped, dir.path()).concat().len(), 2000, "the cap is one line's, not the file's");
}

#[test]
fn a_line_of_a_gigabyte_and_bombs_stay_small() {
    let any = SourceConfig::new(&["*"]);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut deflate = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let block = vec![b'a'; 1 << 20];
    for i in 0..1024 {
        encoder.write_all(&block).unwrap();
        if i < 128 {
            deflate.write_all(&block).unwrap();
        }
    }
    let before = common::peak_rss_kib();
    let dir = tempfile::tempdir().unwrap();
    for name in ["plain.txt", "plain.jsonl"] {
        // A sparse gibibyte without a line end.
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(1 << 30).unwrap();
        let error = read(&SourceConfig::new(&[name]), dir.path()).expect_err(name).to_string();
        assert_eq!(error, format!("data {name}:1: a line longer than 67108864 bytes (data.max_record_bytes)"));
    }
    refused("a.zst", &encoder.finish().unwrap(), &any, &["a.zst"]);
    refused("a.gz", &deflate.finish().unwrap(), &any, &["a.gz:1", "a line longer than 67108864 bytes"]);
    if let (Some(before), Some(after)) = (before, common::peak_rss_kib()) {
        assert!(after - before < 512 << 10, "peak memory grew by {} KiB", after - before);
    }
    // Short lines for ever: the expansion is what gives it away.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..256 {
        encoder.write_all(&vec![b'\n'; 1 << 20]).unwrap();
    }
    let lines = SourceConfig { documents: Documents::Line, ..any };
    refused("b.zst", &encoder.finish().unwrap(), &lines, &["4096-fold"]);
}

#[test]
fn a_zstd_window_beyond_the_limit_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    encoder.write_all(b"some text").unwrap();
    refused("a.zst", &encoder.finish().unwrap(), &SourceConfig::new(&["*"]), &["damaged compressed file"]);
}

#[test]
fn resumed_at_any_record_equals_uninterrupted() {
    let rows: Vec<Option<String>> = (0..150).map(|i| (i % 5 != 0).then(|| format!("p{i}"))).collect();
    let long: String = (0..30_000).map(|i| format!("l {i}\n")).collect();
    let dir = folder(&[
        ("a.jsonl", b"{\"text\": \"1\"}\n{\"text\": \"2\"}\n{\"text\": \"\"}\n{\"text\": \"3\"}"),
        ("b.parquet", &parquet_file(&rows, "snappy", true, 40)),
        ("c.txt.gz", &gzip(long.as_bytes())),
        ("d.txt", b""),
        ("e.txt.zst", &zstd_bytes(b"end")),
    ]);
    let config = SourceConfig::new(&["*"]);
    let mut source = Source::open(&config, dir.path()).unwrap();
    let mut whole = Vec::new();
    let mut positions = vec![source.position()];
    while let Some(piece) = source.next().unwrap() {
        whole.push(piece);
        positions.push(source.position());
    }
    assert!(whole.len() > 120);
    for (at, position) in positions.iter().enumerate() {
        let mut resumed = Source::open(&config, dir.path()).unwrap();
        resumed.seek(*position).unwrap();
        for expected in &whole[at..] {
            assert_eq!(resumed.next().unwrap().as_ref(), Some(expected), "from {position:?}");
        }
        assert_eq!(resumed.next().unwrap(), None);
    }
    for beyond in [Position { file: 9, record: 0 }, Position { file: 0, record: 4 }, Position { file: 4, record: 99 }] {
        assert!(Source::open(&config, dir.path()).unwrap().seek(beyond).is_err_and(|e| e.is_input()), "{beyond:?}");
    }
}

#[test]
fn real_files_read() {
    let Some(data) = std::env::var_os("ERNIE_TEST_DATA").map(std::path::PathBuf::from) else {
        // Straight to stderr: what goes through the print macros is hidden when a test passes.
        let _ = writeln!(std::io::stderr(), "skipped: real_files_read (set ERNIE_TEST_DATA)");
        return;
    };
    let fields = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let poems = texts(&SourceConfig::new(&["pretrain/zh_poetry.jsonl.gz"]), &data);
    assert_eq!(poems.len(), 103_658 - 5, "five poems of the file have no text");
    let medical = SourceConfig {
        text_fields: fields(&["question", "answer"]),
        ..SourceConfig::new(&["medical/medquad_qa.jsonl.gz"])
    };
    assert_eq!(texts(&medical, &data).len(), 16_255);
    let books = texts(&SourceConfig::new(&["pretrain/tinyshakespeare.txt.gz"]), &data);
    assert_eq!(books.concat().len(), 1_115_394);
}
