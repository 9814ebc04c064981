//! Walking Thrift's compact encoding, as far as Parquet's headers need it.
//!
//! Not a decoder: it visits the integers and list borders of a structure so that sizes can be judged before a real
//! decoder allocates by them. <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

use std::io::Read;

/// Deepest nesting of structures and lists; Parquet's own headers need 8.
const MAX_DEPTH: usize = 24;

/// What a visitor sees, with the field ids that lead there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A field of this wire type begins; comes before its other events.
    Field(u8),
    /// An integer of 16 to 64 bits.
    Int(i64),
    /// A list or set of this many elements begins.
    List(u64),
    /// An element of a list ends.
    ElementEnd,
}

/// Wire type of a 32-bit integer.
pub(super) const I32: u8 = 5;
/// Wire type of bytes.
pub(super) const BINARY: u8 = 8;
/// Wire type of a structure.
pub(super) const STRUCT: u8 = 12;

/// Judges each event; its error ends the walk.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[i16], Event) -> Result<(), String>;

/// Visits one structure; says what is malformed.
pub(super) fn walk(reader: &mut dyn Read, visit: Visit<'_>) -> Result<(), String> {
    Walker { reader, visit, path: Vec::new(), depth: 0 }.structure()
}

struct Walker<'a> {
    reader: &'a mut dyn Read,
    visit: Visit<'a>,
    path: Vec<i16>,
    depth: usize,
}

impl Walker<'_> {
    fn structure(&mut self) -> Result<(), String> {
        self.deeper()?;
        let mut last = 0i16;
        loop {
            let head = self.byte()?;
            if head == 0 {
                break;
            }
            let id = match head >> 4 {
                0 => i16::try_from(self.zig_zag()?).map_err(|_| "a field id beyond 16 bits")?,
                delta => last.checked_add(i16::from(delta)).ok_or("a field id beyond 16 bits")?,
            };
            last = id;
            self.path.push(id);
            (self.visit)(&self.path, Event::Field(head & 0x0f))?;
            // A boolean field is its type and has no bytes of its own.
            if !matches!(head & 0x0f, 1 | 2) {
                self.value(head & 0x0f)?;
            }
            self.path.pop();
        }
        self.depth -= 1;
        Ok(())
    }

    fn value(&mut self, kind: u8) -> Result<(), String> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => {
                let value = self.zig_zag()?;
                (self.visit)(&self.path, Event::Int(value))
            }
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => self.list(),
            11 => self.map(),
            12 => self.structure(),
            13 => self.skip(16),
            _ => Err(format!("unknown wire type {kind}")),
        }
    }

    fn list(&mut self) -> Result<(), String> {
        self.deeper()?;
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            few => u64::from(few),
        };
        (self.visit)(&self.path, Event::List(count))?;
        for _ in 0..count {
            self.value(head & 0x0f)?;
            (self.visit)(&self.path, Event::ElementEnd)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn map(&mut self) -> Result<(), String> {
        self.deeper()?;
        let count = self.varint()?;
        if count > 0 {
            let kinds = self.byte()?;
            for _ in 0..count {
                self.value(kinds >> 4)?;
                self.value(kinds & 0x0f)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(format!("nested deeper than {MAX_DEPTH}")) } else { Ok(()) }
    }

    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).map_err(|_| "it ends too early")?;
        Ok(byte[0])
    }

    fn skip(&mut self, length: u64) -> Result<(), String> {
        let skipped = std::io::copy(&mut self.reader.take(length), &mut std::io::sink()).map_err(|e| e.to_string())?;
        if skipped == length { Ok(()) } else { Err("it ends too early".into()) }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer longer than ten bytes".into())
    }

    fn zig_zag(&mut self) -> Result<i64, String> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Result<Vec<(Vec<i16>, Event)>, String> {
        let mut seen = Vec::new();
        walk(&mut &bytes[..], &mut |path, event| {
            seen.push((path.to_vec(), event));
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn integers_and_lists_are_visited() {
        // {1: i32 -3, 3: list<i32> [1], 4: binary "ab", 5: true, 6: {1: i64 300}}
        let bytes = [0x15, 5, 0x29, 0x15, 2, 0x18, 2, b'a', b'b', 0x11, 0x1c, 0x16, 0xd8, 0x04, 0, 0];
        let seen = events(&bytes).unwrap();
        assert!(seen.contains(&(vec![1], Event::Int(-3))));
        assert!(seen.contains(&(vec![3], Event::List(1))) && seen.contains(&(vec![3], Event::Int(1))));
        assert!(seen.contains(&(vec![6, 1], Event::Int(300))));
        for cut in 0..bytes.len() {
            assert!(events(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn hostile_bytes_end() {
        assert!(events(&[0x1c; 1000]).unwrap_err().contains("deeper"));
        assert!(events(&[0x19; 1000]).is_err());
        assert!(events(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err().contains("early"));
        assert!(events(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(events(&[0x1e]).is_err());
    }
}
