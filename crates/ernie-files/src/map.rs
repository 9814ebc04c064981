//! Read-only maps of files, and cheap views into them.
//!
//! A map costs no memory of its own: pages come from the file when they are read and go back when they are not. Two
//! things are checked: a path must be a regular file (a pipe or device is refused), and every time a view is handed
//! out the file's length is asked again, so that a file cut short while it is open gives an error.
//!
//! What remains: a file that another process cuts *between* that check and the reading of the bytes makes the
//! operating system kill us (`SIGBUS`), and one that is overwritten in place changes under our eyes. Neither happens
//! when checkpoints are replaced by rename, as [`crate::atomic`], `git` and the hub clients all do: the map then keeps the old
//! file alive. A caller who cannot trust the file's owner copies it first.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A mapped file. Kept alive by the [`Bytes`] that look into it.
pub(crate) struct Map {
    path: PathBuf,
    /// Held for asking the length again; the path may name another file by then.
    file: File,
    map: Mmap,
}

impl Map {
    /// Maps a regular, non-empty file.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        // Looked at before opening, because opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !kind.is_file() {
            let what = if kind.is_dir() { "is a folder" } else { "is not a regular file" };
            return Err(Error::refused(path, format!("{what}, expected a file")));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "read the length"))?.len();
        if length == 0 {
            return Err(Error::malformed(path, "is empty"));
        }
        let bytes = usize::try_from(length).map_err(|_| Error::Memory { path: path.to_path_buf(), bytes: length })?;
        // SAFETY: the map is read-only and private to this process's view. Soundness rests on nobody changing the file
        // while it is mapped; the module's documentation says what is checked and what remains, and every bit pattern
        // is a valid `u8`, so a change can spoil numbers but no type.
        let map =
            unsafe { memmap2::MmapOptions::new().len(bytes).map(&file) }.map_err(Error::io(path, "map into memory"))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), file, map }))
    }

    /// The whole file, after a look at its length.
    pub(crate) fn all(&self) -> Result<&[u8]> {
        self.check()?;
        Ok(&self.map)
    }

    /// A view; the range must lie within the file, which the header's checks have made sure of.
    pub(crate) fn view(self: &Arc<Self>, range: Range<usize>) -> Result<Bytes> {
        self.check()?;
        if range.start > range.end || range.end > self.map.len() {
            return Err(Error::misuse(&self.path, format!("view {range:?} outside the map")));
        }
        Ok(Bytes { map: Arc::clone(self), range })
    }

    /// Fails if the file has become shorter than its map.
    fn check(&self) -> Result<()> {
        let now_bytes = self.file.metadata().map_err(Error::io(&self.path, "read the length"))?.len();
        let mapped_bytes = self.map.len() as u64;
        if now_bytes < mapped_bytes {
            return Err(Error::Changed { path: self.path.clone(), mapped_bytes, now_bytes });
        }
        Ok(())
    }
}

/// A view into a read-only map; cloning it copies nothing, and it keeps the map alive.
///
/// The bytes start where the file put them: nothing is promised about alignment, so read numbers with
/// `from_le_bytes` or an unaligned cast.
#[derive(Clone)]
pub struct Bytes {
    map: Arc<Map>,
    range: Range<usize>,
}

impl Bytes {
    /// A smaller view of the same map, or `None` if `range` leaves this one.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { map: Arc::clone(&self.map), range: start..start + range.len() })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The constructors keep the range inside the map; an empty slice stands for the impossible case.
        self.map.map.get(self.range.clone()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} at {} of {})", self.range.len(), self.range.start, self.map.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_outlive_the_name_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"0123456789").unwrap();
        let map = Map::open(&path).unwrap();
        let view = map.view(2..8).unwrap();
        drop(map);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&view[..], b"234567");
        assert_eq!(&view.slice(1..3).unwrap()[..], b"34");
        assert!(view.slice(1..7).is_none());
    }

    #[test]
    fn a_file_cut_while_open_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"0123456789").unwrap();
        let map = Map::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        assert!(matches!(map.view(0..2), Err(Error::Changed { now_bytes: 4, .. })));
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Map::open(folder.path()), Err(Error::Refused { .. })));
        assert!(matches!(Map::open(&folder.path().join("none")), Err(Error::NotFound { .. })));
        assert!(Map::open(Path::new("/dev/zero")).is_err());
    }
}
