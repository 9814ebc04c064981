//! GGUF: what is sound is read, what is broken is one clear line. The list is that of known attacks.

mod common;

use common::{Gguf as Made, key, list, tensor, text};
use ernie_files::gguf::{GgmlType, Gguf, Value};
use ernie_files::{Error, ErrorKind};

fn open(bytes: &[u8]) -> Result<Gguf, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

/// The message about a sound file changed like this, which must be a clean refusal that names the file.
fn refusal(change: impl FnOnce(&mut Made)) -> String {
    let mut made = Made::sound();
    change(&mut made);
    let error = open(&made.bytes()).expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    let message = error.to_string();
    assert!(message.contains("x.gguf: ") && !message.contains('\n') && message.len() < 1200, "{message}");
    message
}

#[test]
fn a_sound_file_is_read() {
    for version in [2, 3] {
        let gguf = open(&Made { version, ..Made::sound() }.bytes()).unwrap();
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.need_str("general.architecture").unwrap(), "ernie4_5");
        assert_eq!(gguf.need_u32("ernie4_5.block_count").unwrap(), 18);
        assert_eq!(gguf.need_f32("ernie4_5.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
        assert_eq!(gguf.need_strings("tokenizer.ggml.tokens").unwrap(), ["<s>", "héllo"]);
        assert_eq!(gguf.get_f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.0, 1.0]);
        assert_eq!(gguf.get_i64s("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1]);
        assert_eq!(gguf.get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
        assert_eq!(gguf.get_u64("wide").unwrap(), Some(1 << 40));
        assert_eq!(gguf.get_f32("double").unwrap(), Some(0.25));
        assert_eq!(gguf.metadata()["small"], Value::I16(-5));
        assert_eq!(gguf.get_u32("absent").unwrap(), None);
        // Outermost first.
        let (a, b) = (gguf.info("a").unwrap(), gguf.info("b").unwrap());
        assert_eq!((a.kind, a.shape.as_slice(), a.elements(), a.bytes()), (GgmlType::F32, &[2, 3][..], 6, 24));
        assert_eq!((b.kind, b.shape.as_slice(), b.bytes()), (GgmlType::Q8_0, &[2, 32][..], 68));
        assert_eq!(gguf.bytes("a").unwrap()[..4], [0, 1, 2, 3]);
        assert_eq!(gguf.bytes("b").unwrap()[..4], [32, 33, 34, 35]);
        assert_eq!(gguf.total_bytes(), 92);
        assert!(matches!(gguf.bytes("c"), Err(Error::NoTensor { .. })));
    }
}

#[test]
fn a_vocabulary_alone_is_a_file() {
    let mut made = Made { tensors: vec![], data: vec![], alignment: 1, ..Made::sound() };
    assert_eq!(open(&made.bytes()).unwrap().tensors().len(), 0);
    made.keys.clear();
    assert!(open(&made.bytes()).unwrap().metadata().is_empty());
}

#[test]
fn other_alignments_are_followed() {
    for alignment in [1_u32, 8, 64, 4096] {
        let mut made = Made { alignment: alignment as usize, ..Made::sound() };
        made.keys.push(key("general.alignment", 4, &alignment.to_le_bytes()));
        let second = 24_u64.next_multiple_of(alignment.into());
        made.tensors = vec![tensor("a", &[6], 0, 0), tensor("b", &[1], 0, second)];
        made.data = vec![7; second as usize + 4];
        made.data[second as usize] = 9;
        assert_eq!(open(&made.bytes()).unwrap().bytes("b").unwrap()[0], 9, "{alignment}");
    }
}

#[test]
fn keys_of_the_wrong_type_are_named() {
    let gguf = open(&Made::sound().bytes()).unwrap();
    let check = |result: Option<Error>, key: &str, expected: &str| {
        let message = result.expect("must be refused").to_string();
        assert!(message.contains(&format!("key \"{key}\": is ")) && message.contains(expected), "{message}");
    };
    check(
        gguf.get_u32("general.architecture").err(),
        "general.architecture",
        "is string \"ernie4_5\", expected a whole number",
    );
    check(gguf.get_u32("wide").err(), "wide", "expected a whole number below 2^32");
    check(gguf.get_u32("small").err(), "small", "i16 -5");
    check(gguf.get_u32("double").err(), "double", "f64 0.25");
    check(gguf.get_f32("ernie4_5.block_count").err(), "ernie4_5.block_count", "expected a float");
    check(gguf.get_str("ernie4_5.block_count").err(), "ernie4_5.block_count", "expected a string");
    check(gguf.get_bool("ernie4_5.block_count").err(), "ernie4_5.block_count", "expected true or false");
    check(gguf.get_strings("tokenizer.ggml.scores").err(), "tokenizer.ggml.scores", "a list of 2 f32");
    check(gguf.get_strings("general.architecture").err(), "general.architecture", "expected a list of strings");
    check(gguf.get_f32s("tokenizer.ggml.tokens").err(), "tokenizer.ggml.tokens", "a list of 2 strings");
    check(gguf.get_i64s("tokenizer.ggml.scores").err(), "tokenizer.ggml.scores", "whole numbers");
    assert!(gguf.need_u32("absent").unwrap_err().to_string().contains("key \"absent\" is missing"));
}

#[test]
fn broken_fronts_are_refused() {
    assert!(refusal(|made| made.magic = b"GGML".to_vec()).contains("does not start with \"GGUF\""));
    assert!(refusal(|made| made.version = 1).contains("version 1"));
    assert!(refusal(|made| made.version = 4).contains("version 4"));
    assert!(refusal(|made| made.version = 0).contains("version 0"));
    assert!(refusal(|made| made.version = 3_u32.swap_bytes()).contains("big-endian"));
    for count in [1_u64 << 32, 1 << 40, 1 << 62, 1 << 63, u64::MAX] {
        assert!(refusal(|made| made.tensor_count = Some(count)).contains("tensors"));
        assert!(refusal(|made| made.key_count = Some(count)).contains("metadata keys"));
    }
    refusal(|made| made.tensor_count = Some(3));
    refusal(|made| made.key_count = Some(11));
    // A 24-byte file that asks for much.
    let mut tiny = b"GGUF\x03\0\0\0".to_vec();
    tiny.extend((1_u64 << 33).to_le_bytes());
    tiny.extend((1_u64 << 33).to_le_bytes());
    assert!(open(&tiny).unwrap_err().is_input());
}

#[test]
fn broken_metadata_is_refused() {
    let huge = |length: u64| length.to_le_bytes().to_vec();
    let nested = |depth: usize| {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            bytes.extend(list(9, 1, b""));
        }
        bytes
    };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("string of 2^60", key("k", 8, &huge(1 << 60)), "\"k\": claims 1152921504606846976 bytes"),
        ("string of 2^64-1", key("k", 8, &huge(u64::MAX)), "claims"),
        ("string not UTF-8", key("k", 8, b"\x01\0\0\0\0\0\0\0\xff"), "not UTF-8"),
        ("key of 2^60", huge(1 << 60), "a key"),
        ("key over the limit", key(&"k".repeat(70_000), 0, b"x"), "at most 65535"),
        ("key empty", key("", 0, b"x"), "a key is empty"),
        ("key twice", key("general.architecture", 0, b"x"), "\"general.architecture\" stands twice"),
        ("value type 13", key("k", 13, b"x"), "unknown value type 13"),
        ("truth value 2", key("k", 7, b"\x02"), "truth value 2"),
        ("list of 2^60 bytes", key("k", 9, &list(0, 1 << 60, b"")), "claims 1152921504606846976 entries"),
        ("list of 2^61 u64, wraps", key("k", 9, &list(10, 1 << 61, b"")), "entries"),
        ("list of 2^60 strings", key("k", 9, &list(8, 1 << 60, b"")), "entries"),
        ("list of 2^63 truths", key("k", 9, &list(7, 1 << 63, b"")), "entries"),
        ("list of unknown type", key("k", 9, &list(99, 1, b"x")), "unknown type 99"),
        ("list of lists", key("k", 9, &nested(2)), "list of lists"),
        ("lists 10^5 deep", key("k", 9, &nested(100_000)), "list of lists"),
        ("list of truths 3", key("k", 9, &list(7, 1, b"\x03")), "truth value 3"),
        ("split", key("split.count", 2, &[2, 0]), "one of 2 parts"),
        ("split of wrong type", key("split.count", 8, &text("x")), "split.count"),
        ("alignment 0", key("general.alignment", 4, &0_u32.to_le_bytes()), "power of two"),
        ("alignment 3", key("general.alignment", 4, &3_u32.to_le_bytes()), "power of two"),
        ("alignment 2^63", key("general.alignment", 10, &(1_u64 << 63).to_le_bytes()), "power of two"),
        ("alignment of text", key("general.alignment", 8, &text("32")), "power of two"),
        ("alignment -32", key("general.alignment", 5, &(-32_i32).to_le_bytes()), "power of two"),
    ];
    for (what, bytes, expected) in table {
        let message = refusal(|made| made.keys.push(bytes));
        assert!(message.contains(expected), "{what}: {message}");
    }
}

#[test]
fn broken_tables_are_refused() {
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("0 dims", tensor("c", &[], 0, 128), "0 dimensions"),
        ("5 dims", tensor("c", &[1; 5], 0, 128), "5 dimensions"),
        ("10^6 dims", [text("c"), 1_000_000_u32.to_le_bytes().to_vec()].concat(), "1000000 dimensions"),
        ("a dim of 0", tensor("c", &[4, 0], 0, 128), "a dimension is 0"),
        ("product wraps", tensor("c", &[1 << 32, 1 << 32], 0, 128), "overflow"),
        ("product wraps to 0", tensor("c", &[1 << 62, 1 << 2], 24, 128), "overflow"),
        ("product wraps small", tensor("c", &[(1 << 63) + 4, 2], 24, 128), "overflow"),
        ("bytes wrap", tensor("c", &[1 << 62], 0, 128), "c"),
        ("row of part blocks", tensor("c", &[33], 8, 128), "not whole blocks of 32 for Q8_0"),
        ("row of part super-blocks", tensor("c", &[255], 12, 128), "not whole blocks of 256 for Q4_K"),
        ("unknown type", tensor("c", &[1], 77, 128), "unknown ggml type 77"),
        ("removed type", tensor("c", &[1], 31, 128), "Q4_0_4_4 was removed"),
        ("unaligned", tensor("c", &[1], 0, 129), "not a multiple of the alignment 32"),
        ("overlap", tensor("c", &[1], 0, 64), "\"c\": overlaps tensor \"b\""),
        ("same place", tensor("c", &[1], 0, 0), "overlaps"),
        ("past the end", tensor("c", &[1024], 0, 128), "past the end"),
        ("far past the end", tensor("c", &[1], 0, !31), "past the end"),
        ("offset wraps", tensor("c", &[64], 24, u64::MAX - 31), "past the end"),
        ("name twice", tensor("a", &[1], 24, 96), "\"a\": stands twice"),
        ("name empty", tensor("", &[1], 24, 96), "name is empty"),
        ("name too long", tensor(&"n".repeat(5000), &[1], 24, 96), "a tensor's name"),
        ("name of 2^60", (1_u64 << 60).to_le_bytes().to_vec(), "a tensor's name"),
    ];
    for (what, bytes, expected) in table {
        let message = refusal(|made| made.tensors.push(bytes));
        assert!(message.contains(expected), "{what}: {message}");
    }
}

#[test]
fn kinds_that_nobody_computes_with_are_still_named() {
    for kind in GgmlType::ALL {
        let (elements, bytes) = (kind.block_elements() as u64, kind.block_bytes());
        let made = Made {
            tensors: vec![tensor("a", &[elements, 2], kind.number(), 0)],
            data: vec![0; 2 * bytes],
            ..Made::sound()
        };
        let gguf = open(&made.bytes()).unwrap();
        assert_eq!(gguf.info("a").unwrap().kind, *kind);
        assert_eq!(gguf.bytes("a").unwrap().len(), 2 * bytes);
    }
    assert_eq!(GgmlType::from_number(16).unwrap().to_string(), "IQ2_XXS");
}

#[test]
fn every_cut_of_a_sound_file_is_refused() {
    let bytes = Made::sound().bytes();
    for length in 0..bytes.len() {
        let error = open(&bytes[..length]).expect_err("must be refused");
        assert!(error.is_input(), "{length}: {error}");
    }
}
