//! The alphabet of byte-level BPE: each of the 256 bytes as one printable character (GPT-2).
//!
//! Printable Latin-1 stands for itself; the other 68 bytes take the characters from U+0100 on, in order.

use std::sync::LazyLock;

static TO_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut table = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        table[usize::from(byte)] = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    table
});

/// The character that stands for a byte.
pub(super) fn to_char(byte: u8) -> char {
    TO_CHAR[usize::from(byte)]
}

/// The byte that a character stands for.
pub(super) fn to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes behind a token of a byte-level vocabulary; `None` when it is not written in this alphabet.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(to_byte).collect()
}

/// A text in this alphabet.
pub(super) fn text_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| to_char(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        for byte in 0..=255 {
            assert_eq!(to_byte(to_char(byte)), Some(byte));
        }
        assert_eq!((to_char(b' '), to_char(b'\n'), to_char(b'a')), ('Ġ', 'Ċ', 'a'));
        assert_eq!(to_byte('中'), None);
    }
}
