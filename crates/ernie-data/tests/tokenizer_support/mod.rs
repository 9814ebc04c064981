//! Reads the tokenizer fixtures.
#![allow(dead_code, unreachable_pub, clippy::print_stderr)]

use std::io::Read;
use std::path::PathBuf;

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer")
}

pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

/// The strings of the fixture.
pub fn strings() -> Vec<String> {
    serde_json::from_slice(&gunzip(&fixture("strings.json.gz"))).unwrap()
}

/// The recorded ids of each string under one tokenizer.
pub fn reference(name: &str) -> Vec<Vec<u32>> {
    let bytes = gunzip(&fixture("ids.bin.gz"));
    let line = bytes.iter().position(|b| *b == b'\n').unwrap();
    let names: Vec<String> = serde_json::from_slice(&bytes[..line]).unwrap();
    let at = names.iter().position(|n| n == name).unwrap();
    let mut numbers = bytes[line + 1..].chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])));
    let count = strings().len();
    let mut list = || -> Vec<u32> {
        let n = numbers.next().unwrap() as usize;
        numbers.by_ref().take(n).collect()
    };
    for _ in 0..at * count {
        list();
    }
    (0..count).map(|_| list()).collect()
}

/// The folder of larger data, or a visible line that says what is skipped.
pub fn test_data(what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("ERNIE_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        skipped(&format!("{what} (set ERNIE_TEST_DATA)"));
    }
    folder
}

/// Says what is skipped, straight to stderr: what goes through the print macros is hidden when a test passes.
pub fn skipped(what: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {what}\n").as_bytes());
}

/// How many property cases to run: `ERNIE_TEST_CASES`, else `default`.
pub fn cases(default: usize) -> usize {
    std::env::var("ERNIE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A small generator of bits, so that a failure names its seed.
pub struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
