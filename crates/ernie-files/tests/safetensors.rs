//! Safetensors: what is sound is read, what is broken is one clear line. The list is that of known attacks.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{safetensors, shard};
use ernie_files::{Checkpoint, Dtype, Error, ErrorKind, TensorInfo, safetensors::Writer};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dense")
}

/// Opens these bytes as a file.
fn open(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

/// The message about these bytes, which must be a clean refusal that names the file.
fn refusal(bytes: &[u8]) -> String {
    let error = open(bytes).err().unwrap_or_else(|| panic!("taken: {}", String::from_utf8_lossy(bytes)));
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    let message = error.to_string();
    assert!(message.contains("x.safetensors: ") && !message.contains('\n'), "{message}");
    assert!(message.len() < 1200, "{message}");
    message
}

fn one(entry: &str) -> String {
    format!("{{\"w\":{entry}}}")
}

#[test]
fn a_published_layout_is_read() {
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let embedding = checkpoint.info("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dtype, Dtype::F32);
    assert_eq!(embedding.shape.len(), 2);
    let sum: usize = checkpoint.tensors().map(TensorInfo::bytes).sum();
    assert_eq!(checkpoint.total_bytes(), sum as u64);
    for info in checkpoint.tensors() {
        assert_eq!(checkpoint.bytes(&info.name).unwrap().len(), info.bytes(), "{}", info.name);
    }
    assert!(matches!(checkpoint.bytes("x\n"), Err(Error::NoTensor { .. })));
    assert!(!checkpoint.bytes("x\n").unwrap_err().to_string().contains('\n'));
}

#[test]
fn odd_but_sound_files_are_read() {
    // No tensor at all; a scalar; extents of 0; spaces after the header; a header that is not aligned.
    assert_eq!(open(&safetensors("{}", b"")).unwrap().tensors().count(), 0);
    let scalar = open(&safetensors(&one(r#"{"dtype":"F16","shape":[],"data_offsets":[0,2]}"#), b"ab")).unwrap();
    assert_eq!(&scalar.bytes("w").unwrap()[..], b"ab");
    let header = r#"{"a":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},
        "b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "c":{"dtype":"I64","shape":[3,0],"data_offsets":[1,1]},"__metadata__":{"format":"pt"}}      "#;
    let zero = open(&safetensors(header, b"z")).unwrap();
    assert!(zero.bytes("a").unwrap().is_empty() && zero.bytes("c").unwrap().is_empty());
    assert_eq!(zero.metadata()["format"], "pt");
}

#[test]
fn broken_headers_are_refused() {
    let long = |length: u64| {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(b"{}");
        file
    };
    let dims = format!(r#"{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#, "1,".repeat(1_000_000));
    let nested = format!(r#"{{"w":{}"#, "[".repeat(100_000));
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "is empty"),
        ("too short", b"1234567".to_vec(), "too short"),
        ("length 0", long(0), "not a JSON object"),
        ("length 1", long(1), "header: "),
        ("length past the end", long(3), "past the end"),
        ("length 2^63", long(1 << 63), "over the limit"),
        ("length 2^64-1", long(u64::MAX), "over the limit"),
        ("length 100 MB + 1", long(100_000_001), "over the limit"),
        ("length 100 MB", long(100_000_000), "past the end"),
        (
            "not UTF-8",
            safetensors("{\"\u{0}", b"").into_iter().map(|b| if b == 0x22 { 0xff } else { b }).collect(),
            "not UTF-8",
        ),
        ("not JSON", safetensors("{w}", b""), "header: "),
        ("deep JSON", safetensors(&nested, b""), "header: "),
        ("text after the JSON", safetensors("{}{}", b""), "header: "),
        ("an array", safetensors("[]", b""), "not a JSON object"),
        ("metadata not strings", safetensors(r#"{"__metadata__":{"a":1}}"#, b""), "header: "),
        ("metadata twice", safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), "stands twice"),
        ("metadata key twice", safetensors(r#"{"__metadata__":{"a":"","a":""}}"#, b""), "stands twice"),
        ("10^6 dims", safetensors(&one(&dims), b"x"), "dimensions"),
        ("pickle", b"\x80\x02}q\x00.aaaaaaaa".to_vec(), "pickle"),
        ("zip of torch.save", b"PK\x03\x04aaaaaaaa".to_vec(), "pickle"),
        ("GGUF", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "GGUF"),
        ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git-lfs"),
    ];
    for (what, bytes, expected) in table {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{what}: {message}");
    }
}

#[test]
fn broken_entries_are_refused() {
    let max = u64::MAX;
    let near = max - 3;
    let table = [
        (r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#.to_owned(), "reversed"),
        (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,8]}"#.to_owned(), "past the end"),
        (format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{near},{max}]}}"#), "past the end"),
        (format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{near},2]}}"#), "reversed"),
        (r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#.to_owned(), "needs 8 bytes"),
        (r#"{"dtype":"F64","shape":[1],"data_offsets":[0,4]}"#.to_owned(), "needs 8 bytes"),
        (r#"{"dtype":"F32","shape":[1,0],"data_offsets":[0,4]}"#.to_owned(), "needs 0 bytes"),
        (format!(r#"{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,4]}}"#), "overflows"),
        (format!(r#"{{"dtype":"F32","shape":[{},5],"data_offsets":[0,4]}}"#, max / 4), "overflows"),
        (r#"{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#.to_owned(), "unknown dtype \"F33\""),
        (r#"{"dtype":"f\nx","shape":[1],"data_offsets":[0,4]}"#.to_owned(), "unknown dtype"),
        (r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#.to_owned(), "tensor"),
        (r#"{"dtype":"F32","shape":[1]}"#.to_owned(), "missing field"),
        (r#"{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}"#.to_owned(), "duplicate field"),
        (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#.to_owned(), "unknown field"),
        (r#"{"dtype":"U8","shape":[3],"data_offsets":[0,3]}"#.to_owned(), "1 bytes follow the last tensor"),
        (r#"{"dtype":"U8","shape":[3],"data_offsets":[1,4]}"#.to_owned(), "gap"),
        ("null".to_owned(), "tensor"),
    ];
    for (entry, expected) in table {
        let message = refusal(&safetensors(&one(&entry), b"1234"));
        assert!(message.contains(expected), "{entry}: {message}");
        assert!(message.contains("\"w\"") || expected.contains("follow"), "{message}");
    }
}

#[test]
fn tensors_must_cover_the_data_once() {
    let two = |a: &str, b: &str| {
        let entry = |range: &str| format!(r#"{{"dtype":"U8","shape":[2],"data_offsets":[{range}]}}"#);
        safetensors(&format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b)), b"12345")
    };
    assert!(refusal(&two("0,2", "1,3")).contains("\"b\": overlaps"));
    assert!(refusal(&two("0,2", "0,2")).contains("overlaps"));
    assert!(refusal(&two("0,2", "3,5")).contains("\"b\": leaves a gap"));
    assert!(refusal(&two("0,2", "2,4")).contains("1 bytes follow"));
    let twice =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(refusal(&safetensors(twice, b"12")).contains("\"a\" stands twice"));
    // Escapes must not hide that a name stands twice.
    let hidden = twice.replacen("\"a\"", "\"\\u0061\"", 1);
    assert!(refusal(&safetensors(&hidden, b"12")).contains("stands twice"));
}

#[test]
fn every_cut_of_a_sound_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    shard(&path, &["a", "b"]);
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        refusal(&bytes[..length]);
    }
}

#[test]
fn a_file_cut_while_open_gives_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    shard(&path, &["a", "b"]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
    let error = checkpoint.bytes("b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("cut while in use"), "{error}");
}

#[test]
fn replacing_by_rename_leaves_an_open_checkpoint_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    shard(&path, &["a", "b"]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    shard(&path, &["c"]);
    assert_eq!(&checkpoint.bytes("b").unwrap()[..], &[1; 16]);
}

mod folders {
    use super::*;

    /// A folder with two shards, `a` and `b` in the first, `c` in the second, and this index.
    fn folder(index: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        shard(&folder.path().join("one.safetensors"), &["a", "b"]);
        shard(&folder.path().join("two.safetensors"), &["c"]);
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        folder
    }

    const SOUND: &str = r#"{"metadata":{"total_size":48},"weight_map":
        {"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#;

    fn refusal(folder: &Path) -> String {
        let error = Checkpoint::open(folder).unwrap_err();
        assert!(error.is_input() && !error.to_string().contains('\n'), "{error}");
        error.to_string()
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let folder = folder(SOUND);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let names: Vec<_> = checkpoint.tensors().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(checkpoint.total_bytes(), 48);
        assert_eq!(&checkpoint.bytes("b").unwrap()[..], &[1; 16]);
        assert!(checkpoint.notes().is_empty());
    }

    #[test]
    fn a_wrong_total_is_noted() {
        for said in ["47", "1e300", "0"] {
            let folder = folder(&SOUND.replace("48", said));
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert!(checkpoint.notes()[0].contains("the shards hold 48"));
        }
        assert!(Checkpoint::open(folder(&SOUND.replace("48", "48.0")).path()).unwrap().notes().is_empty());
        assert!(refusal(folder(&SOUND.replace("48", "\"48\"")).path()).contains("index.json"));
    }

    #[test]
    fn hostile_indexes_are_refused() {
        let map = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
        let table = [
            (map(r#""a":"../../etc/passwd""#), "plain path inside the folder"),
            (map(r#""a":"/etc/passwd""#), "plain path inside the folder"),
            (map(r#""a":"x/../../y""#), "plain path inside the folder"),
            (map(r#""a":"..\\..\\y""#), "plain path inside the folder"),
            (map(r#""a":"""#), "plain path inside the folder"),
            (map(r#""a":".""#), "plain path inside the folder"),
            (map(r#""a":"one.safetensors\u0000""#), "plain path inside the folder"),
            (map(r#""a":"none.safetensors""#), "missing from the folder"),
            (map(r#""a":"two.safetensors""#), "\"a\" is not in shard \"two.safetensors\""),
            (map(r#""d":"two.safetensors""#), "\"d\" is not in shard"),
            (map(r#""a":"one.safetensors","a":"two.safetensors""#), "stands twice"),
            (map(""), "names no tensor"),
            (r#"{"weight_map":{},"weight_map":{}}"#.to_owned(), "stands twice"),
            (r#"{"metadata":{}}"#.to_owned(), "missing field"),
            (r#"{"weight_map":["a"]}"#.to_owned(), "index.json"),
            (r#"{"weight_map":{"a":1}}"#.to_owned(), "index.json"),
            ("[]".to_owned(), "index.json"),
            ("".to_owned(), "index.json"),
            (format!("{{\"x\":{}", "[".repeat(1_000_000)), "index.json"),
        ];
        for (index, expected) in table {
            let message = refusal(folder(&index).path());
            assert!(message.contains(expected), "{}: {message}", &index[..index.len().min(100)]);
        }
        let folder = folder("");
        std::fs::write(folder.path().join("model.safetensors.index.json"), b"{\"\xff\"").unwrap();
        assert!(refusal(folder.path()).contains("not UTF-8"));
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let folder = folder(SOUND);
        shard(&folder.path().join("two.safetensors"), &["c", "a"]);
        assert!(refusal(folder.path()).contains("\"a\" is in another shard too"));
    }

    #[test]
    fn a_broken_shard_is_named() {
        let folder = folder(SOUND);
        std::fs::write(folder.path().join("two.safetensors"), b"12345678{").unwrap();
        assert!(refusal(folder.path()).contains("two.safetensors: "));
    }

    #[test]
    fn a_tensor_that_the_index_forgets_is_still_listed() {
        let folder = folder(r#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#);
        assert!(Checkpoint::open(folder.path()).unwrap().info("b").is_some());
    }

    #[cfg(unix)]
    #[test]
    fn links_may_not_leave_the_folder() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        shard(&outside.path().join("two.safetensors"), &["c"]);
        let folder = folder(SOUND);
        let two = folder.path().join("two.safetensors");
        std::fs::remove_file(&two).unwrap();
        symlink(outside.path().join("two.safetensors"), &two).unwrap();
        assert!(refusal(folder.path()).contains("leads out of the folder"));
        // A loop, and a link to nowhere.
        std::fs::remove_file(&two).unwrap();
        symlink("two.safetensors", &two).unwrap();
        assert!(refusal(folder.path()).contains("cannot follow the link"));
        std::fs::remove_file(&two).unwrap();
        symlink("nowhere", &two).unwrap();
        assert!(refusal(folder.path()).contains("cannot follow the link"));
        // Within the folder they may.
        std::fs::remove_file(&two).unwrap();
        shard(&folder.path().join("real.safetensors"), &["c"]);
        symlink("real.safetensors", &two).unwrap();
        assert!(Checkpoint::open(folder.path()).is_ok());
        // `model.safetensors` is our own name: a loop there is an error too.
        let folder = tempfile::tempdir().unwrap();
        symlink("model.safetensors", folder.path().join("model.safetensors")).unwrap();
        assert!(refusal(folder.path()).contains("model.safetensors"));
    }

    #[cfg(unix)]
    #[test]
    fn the_hubs_cache_is_links_and_works() {
        use std::os::unix::fs::symlink;
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--a--b");
        let snapshot = model.join("snapshots/0123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(model.join("blobs")).unwrap();
        shard(&model.join("blobs/h1"), &["a", "b"]);
        shard(&model.join("blobs/h2"), &["c"]);
        std::fs::write(model.join("blobs/h3"), SOUND).unwrap();
        for (name, blob) in
            [("one.safetensors", "h1"), ("two.safetensors", "h2"), ("model.safetensors.index.json", "h3")]
        {
            symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        assert_eq!(Checkpoint::open(&snapshot).unwrap().tensors().count(), 3);
        // Another model's blobs are outside.
        let other = cache.path().join("models--c--d/blobs");
        std::fs::create_dir_all(&other).unwrap();
        shard(&other.join("h2"), &["c"]);
        std::fs::remove_file(snapshot.join("two.safetensors")).unwrap();
        symlink(other.join("h2"), snapshot.join("two.safetensors")).unwrap();
        assert!(refusal(&snapshot).contains("leads out of the folder"));
    }

    #[test]
    fn what_else_a_folder_holds_is_said() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(folder.path()).contains("holds neither model.safetensors nor"));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"\x80\x02").unwrap();
        let message = refusal(folder.path());
        assert!(message.contains("pytorch_model.bin: is a pickle") && message.contains("convert"), "{message}");
        std::fs::write(folder.path().join("model.gguf"), b"GGUF").unwrap();
        assert!(refusal(folder.path()).contains("name the GGUF file itself"));
        shard(&folder.path().join("model-00001-of-00002.safetensors"), &["a"]);
        assert!(refusal(folder.path()).contains("model-00001-of-00002.safetensors"));
        assert!(matches!(Checkpoint::open(&folder.path().join("none")), Err(Error::NotFound { .. })));
    }
}

mod writing {
    use super::*;

    fn write(path: &Path, tensors: &[TensorInfo], pieces: &[&[u8]]) -> Result<(), Error> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut writer = Writer::create(path, tensors, &metadata)?;
        for piece in pieces {
            writer.write(piece)?;
        }
        writer.finish()
    }

    #[test]
    fn bytes_arrive_where_they_belong_and_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = [
            TensorInfo::new("bytes", Dtype::U8, [3]),
            TensorInfo::new("none", Dtype::F64, [0]),
            TensorInfo::new("wide", Dtype::F32, [2]),
            TensorInfo::new("half", Dtype::Bf16, []),
        ];
        // Pieces that cross the tensors' borders.
        write(&path, &tensors, &[b"b", b"ytWIDE", b"wide", b"", b"h", b"f"]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let read = |name: &str| checkpoint.bytes(name).unwrap().to_vec();
        assert_eq!(read("bytes"), b"byt");
        assert_eq!(read("wide"), b"WIDEwide");
        assert_eq!(read("half"), b"hf");
        assert_eq!(read("none"), b"");
        assert_eq!(checkpoint.metadata()["format"], "pt");
        let start = |name: &str| checkpoint.bytes(name).unwrap().as_ptr() as usize;
        assert!(start("wide").is_multiple_of(8) && start("half").is_multiple_of(2));
    }

    #[test]
    fn a_file_that_is_not_finished_does_not_appear() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = [TensorInfo::new("a", Dtype::U8, [3])];
        let error = write(&path, &tensors, &[b"12"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("tensor \"a\" has 2 of 3 bytes"), "{error}");
        assert_eq!(write(&path, &tensors, &[b"1234"]).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        // Nor does it harm the one that is there.
        write(&path, &tensors, &[b"123"]).unwrap();
        write(&path, &tensors, &[b"45"]).unwrap_err();
        assert_eq!(&Checkpoint::open(&path).unwrap().bytes("a").unwrap()[..], b"123");
    }

    #[test]
    fn descriptions_that_make_no_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let a = TensorInfo::new("a", Dtype::U8, [1]);
        for tensors in [
            vec![a.clone(), a.clone()],
            vec![TensorInfo::new("__metadata__", Dtype::U8, [1])],
            vec![TensorInfo::new("a", Dtype::F32, [usize::MAX])],
            vec![TensorInfo::new("a", Dtype::U8, [usize::MAX]), TensorInfo::new("b", Dtype::U8, [usize::MAX])],
            vec![TensorInfo::new("a", Dtype::U8, vec![1; 17])],
        ] {
            assert_eq!(write(&path, &tensors, &[]).unwrap_err().kind(), ErrorKind::Internal);
        }
        write(&path, &[], &[]).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().tensors().count(), 0);
    }

    #[test]
    fn names_of_any_kind_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let names = ["", "\"", "\\", "\n", "模型", "a.b.c", "\u{0}"];
        let tensors: Vec<_> = names.iter().map(|name| TensorInfo::new(*name, Dtype::U8, [1])).collect();
        write(&path, &tensors, &[b"0123456"]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (index, name) in names.iter().enumerate() {
            assert_eq!(checkpoint.bytes(name).unwrap()[0], b'0' + index as u8);
        }
    }
}
