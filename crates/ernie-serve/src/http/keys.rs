//! API keys: read from a file, kept hashed, compared in constant time.
//!
//! A line of the file is a key, or `sha256:` and the hash of one in hexadecimal; blank lines and lines that begin with
//! `#` are passed over. In memory there are hashes only, and every one of them is compared with what a caller sends, so
//! that neither time nor a dump tells of a key.

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::{Error, Result};

/// Keys of one file at most.
const MAX_KEYS: usize = 10_000;

/// Characters of a key: long enough not to be guessed by accident, short enough for a header.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 8..=512;

/// The keys that open a server.
#[derive(Clone, Default)]
pub struct Keys {
    hashes: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.hashes.len())
    }
}

impl Keys {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`Error::Parameter`] with the line at fault, which is not quoted; or when there is no key at all.
    pub fn parse(text: &str) -> Result<Self> {
        let mut hashes = Vec::new();
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let wrong = |expected: &str| Error::parameter("a key", format!("wrong in line {number}"), expected);
            let hash = match line.strip_prefix("sha256:") {
                Some(hex) => from_hex(hex).ok_or_else(|| wrong("64 hexadecimal digits after `sha256:`"))?,
                None => {
                    if !KEY_BYTES.contains(&line.len()) || !line.bytes().all(|b| b.is_ascii_graphic()) {
                        return Err(wrong("8 to 512 printable ASCII characters without spaces"));
                    }
                    hash(line.as_bytes())
                }
            };
            if !hashes.contains(&hash) {
                hashes.push(hash);
            }
            if hashes.len() > MAX_KEYS {
                return Err(Error::parameter("keys", "too many", format!("at most {MAX_KEYS}")));
            }
        }
        if hashes.is_empty() {
            return Err(Error::parameter("keys", "an empty list", "at least one key, one a line"));
        }
        Ok(Self { hashes })
    }

    /// Whether there are none, so that everybody may come in.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Which key this is, if it is one. All are looked at, whichever fits.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let asked = hash(key);
        let mut found = u64::MAX;
        for (at, known) in self.hashes.iter().enumerate() {
            found.conditional_assign(&(at as u64), known.ct_eq(&asked));
        }
        usize::try_from(found).ok().filter(|&at| at < self.hashes.len())
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_hashed_keys_open() {
        // The hash of `second-key`, as `printf second-key | sha256sum` prints it.
        let hex: String = hash(b"second-key").iter().map(|byte| format!("{byte:02x}")).collect();
        let keys = Keys::parse(&format!("# people\nfirst-key\n\nsha256:{hex}\nfirst-key\n")).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!((keys.find(b"first-key"), keys.find(b"second-key")), (Some(0), Some(1)));
        for wrong in [&b"first-kez"[..], b"first-ke", b"first-key ", b"", b"\xff\xfe", hex.as_bytes()] {
            assert_eq!(keys.find(wrong), None);
        }
        assert_eq!(Keys::default().find(b""), None);
    }

    #[test]
    fn bad_lines_are_named_and_not_quoted() {
        for (text, line) in
            [("good-enough-key\nshort", 2), ("sha256:abc", 1), ("with a space here", 1), ("schlüssel-lang", 1)]
        {
            let error = Keys::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
            assert!(!error.contains("short") && !error.contains("schl"), "{error}");
        }
        assert!(Keys::parse("\n# none\n").unwrap_err().is_input());
        assert!(!format!("{:?}", Keys::parse("secret-secret").unwrap()).contains("secret"));
    }
}
