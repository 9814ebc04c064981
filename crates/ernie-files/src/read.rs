//! Whole small files, within a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a whole regular file of at most `max_bytes` bytes.
///
/// Memory is taken for the file's real size, never for `max_bytes`.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Refused`] for what is not a regular file, [`Error::Malformed`] for one that is larger,
/// [`Error::Memory`], [`Error::Io`].
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !kind.is_file() {
        return Err(Error::refused(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read the length"))?.len();
    if length > max_bytes {
        return Err(too_large(path, length, max_bytes));
    }
    let memory = || Error::Memory { path: path.to_path_buf(), bytes: length };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).map_err(|_| memory())?).map_err(|_| memory())?;
    // A file that grows while it is read is bounded too.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(path, bytes.len() as u64, max_bytes));
    }
    Ok(bytes)
}

/// Reads a whole UTF-8 file of at most `max_bytes` bytes.
///
/// # Errors
/// As [`read_bounded`], and [`Error::Malformed`] where the text is not UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    String::from_utf8(read_bounded(path, max_bytes)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::malformed(path, format!("is not UTF-8 text: bad byte at {at}"))
    })
}

fn too_large(path: &Path, bytes: u64, max_bytes: u64) -> Error {
    Error::malformed(path, format!("is {bytes} bytes, expected at most {max_bytes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"abc");
        assert!(read_bounded(&path, 2).unwrap_err().is_input());
        assert_eq!(read_text(&path, 10).unwrap(), "abc");
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(read_text(&path, 10).unwrap_err().to_string().ends_with("bad byte at 2"));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read_bounded(&path, 0).unwrap(), b"");
        assert!(read_bounded(Path::new("/dev/zero"), 10).is_err());
        assert!(read_bounded(folder.path(), 10).is_err());
    }
}
