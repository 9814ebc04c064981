//! Files and folders that appear whole or not at all.
//!
//! Everything is written under a hidden name beside its final one, made durable (`fsync`), renamed, and the rename made
//! durable. A process that is killed, or a disk that runs full, at any moment leaves what was there before untouched and
//! at most a hidden leftover, which [`clean`] removes.
//!
//! A leftover is told from work in progress by a lock: whoever writes holds an advisory lock on the hidden file or
//! folder, and the kernel drops it with the process. So no process id is trusted, and [`clean`] may run beside a writer.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What the hidden names have in common: `.NAME.ernie-tmp-PID-COUNT`.
const MARK: &str = ".ernie-tmp-";

/// Writes a file so that its name always holds either the old or the new bytes, complete.
///
/// # Errors
/// [`Error::Io`] from the disk, a full one included; the old file is untouched then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.commit()
}

/// A file being written, which takes its name on [`NewFile::commit`] and vanishes when dropped before.
pub struct NewFile {
    final_path: PathBuf,
    hidden: Hidden,
    file: BufWriter<File>,
}

impl NewFile {
    /// Starts a file that shall be called `path`. An older file of that name stays until the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the folder does not exist, [`Error::Refused`] where `path` names none or is a folder,
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::refused(path, "is a folder, expected a file name"));
        }
        let (hidden, file) =
            Hidden::create(path, |hidden| File::options().read(true).write(true).create_new(true).open(hidden))?;
        Ok(Self { final_path: path.to_path_buf(), hidden, file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Makes the bytes durable and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is untouched then.
    pub fn commit(mut self) -> Result<()> {
        let path = &self.final_path;
        self.file.flush().map_err(Error::io(path, "write"))?;
        self.file.get_ref().sync_all().map_err(Error::io(path, "make durable"))?;
        self.hidden.rename(path)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A folder being filled, which takes its name on [`Folder::commit`] and vanishes when dropped before.
pub struct Folder {
    final_path: PathBuf,
    hidden: Hidden,
    /// Open for its lock alone.
    _lock: File,
}

impl Folder {
    /// Starts a folder that shall be called `final_path`; missing parents are made.
    ///
    /// # Errors
    /// [`Error::Refused`] where something is there already (an empty folder excepted), [`Error::Io`].
    pub fn begin(final_path: &Path) -> Result<Self> {
        vacant(final_path)?;
        std::fs::create_dir_all(parent_of(final_path)).map_err(Error::io(final_path, "make its parent"))?;
        let (hidden, lock) = Hidden::create(final_path, |hidden| {
            std::fs::create_dir(hidden)?;
            File::open(hidden)
        })?;
        Ok(Self { final_path: final_path.to_path_buf(), hidden, _lock: lock })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.hidden.path
    }

    /// Makes all that is inside durable and gives the folder its name.
    ///
    /// # Errors
    /// [`Error::Refused`] where something has taken the name meanwhile, [`Error::Io`]; nothing is lost then but this folder.
    pub fn commit(mut self) -> Result<()> {
        sync_tree(&self.hidden.path)?;
        vacant(&self.final_path)?;
        self.hidden.rename(&self.final_path)
    }
}

/// Removes what killed writers left in `folder` (not below it), and says what it removed.
///
/// Work in progress of living processes is left alone.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be listed or a leftover not removed.
pub fn clean(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let path = entry.path();
        if !is_leftover_name(&path) {
            continue;
        }
        let kind = entry.file_type().map_err(Error::io(&path, "look at"))?;
        // Whoever writes holds the lock; where locks do not work we cannot know, and leave it.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let result = if kind.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        result.map_err(Error::io(&path, "remove"))?;
        removed.push(path);
    }
    removed.sort();
    Ok(removed)
}

/// Whether this is the hidden name of something unfinished.
pub fn is_leftover_name(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.') && name.contains(MARK))
}

/// A hidden name that is removed unless it was renamed.
struct Hidden {
    path: PathBuf,
    renamed: bool,
}

impl Hidden {
    /// Makes and locks something new under a hidden name beside `final_path`.
    fn create(final_path: &Path, make: impl Fn(&Path) -> io::Result<File>) -> Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = final_path.file_name() else {
            return Err(Error::refused(final_path, "names no file or folder"));
        };
        // Cut, so that the hidden name is no longer than a name may be.
        let name: String = name.to_string_lossy().chars().take(40).collect();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let hidden = format!(".{name}{MARK}{}-{count}", std::process::id());
            let path = parent_of(final_path).join(hidden);
            let file = match make(&path) {
                Ok(file) => file,
                // A leftover of a process that had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io(final_path, "create")(error)),
            };
            let hidden = Self { path, renamed: false };
            match file.try_lock() {
                // `clean` may have come between making and locking: then it is gone, and we make another.
                Err(TryLockError::WouldBlock) => continue,
                // Without locks `clean` leaves us alone, so we can go on without.
                Err(TryLockError::Error(_)) => return Ok((hidden, file)),
                Ok(()) if hidden.path.symlink_metadata().is_ok() => return Ok((hidden, file)),
                Ok(()) => continue,
            }
        }
    }

    fn rename(&mut self, to: &Path) -> Result<()> {
        std::fs::rename(&self.path, to).map_err(Error::io(to, "rename into place"))?;
        self.renamed = true;
        sync_folder(parent_of(to))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing can be done about a failure here, and `clean` will find it.
            let _ = match self.path.symlink_metadata() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&self.path),
                Ok(_) => std::fs::remove_file(&self.path),
                Err(_) => Ok(()),
            };
        }
    }
}

/// Gives a file that is durable already another name in its folder, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io(to, "rename into place"))?;
    sync_folder(parent_of(to))
}

/// The folder a path lies in; the current one for a bare name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fails unless the name is free, or an empty folder that a rename replaces.
fn vacant(path: &Path) -> Result<()> {
    let taken = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io(path, "look at")(error)),
        Ok(kind) if kind.is_dir() => std::fs::read_dir(path).map_err(Error::io(path, "list"))?.next().is_some(),
        Ok(_) => true,
    };
    if taken { Err(Error::refused(path, "exists already")) } else { Ok(()) }
}

/// Makes every file and folder below durable, the innermost first. Links are not followed.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(&path, "look at"))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(Error::io(&path, "open"))?;
            file.sync_all().map_err(Error::io(&path, "make durable"))?;
        }
    }
    sync_folder(folder)
}

/// Makes the names in a folder durable, where the system has a way to ask for it.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let handle = File::open(folder).map_err(Error::io(folder, "open"))?;
        handle.sync_all().map_err(Error::io(folder, "make durable"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write(&path, b"old").unwrap();
        let mut half = NewFile::create(&path).unwrap();
        half.write_all(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(half);
        assert_eq!(names(folder.path()), ["x"]);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["x"]);
        assert!(write(folder.path(), b"").unwrap_err().is_input());
        assert!(write(&folder.path().join("no/x"), b"").unwrap_err().is_input());
    }

    #[test]
    fn a_folder_appears_on_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/checkpoint-1");
        let new = Folder::begin(&path).unwrap();
        std::fs::create_dir(new.path().join("sub")).unwrap();
        std::fs::write(new.path().join("sub/x"), b"1").unwrap();
        assert!(!path.exists());
        new.commit().unwrap();
        assert_eq!(std::fs::read(path.join("sub/x")).unwrap(), b"1");
        assert_eq!(names(path.parent().unwrap()), ["checkpoint-1"]);
        // A checkpoint is never written over.
        assert!(matches!(Folder::begin(&path), Err(Error::Refused { .. })));
        drop(Folder::begin(&folder.path().join("other")).unwrap());
        assert_eq!(names(folder.path()), ["a"]);
        // An empty folder is as good as none.
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        Folder::begin(&folder.path().join("empty")).unwrap().commit().unwrap();
    }

    #[test]
    fn clean_takes_the_dead_and_leaves_the_living() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".c.ernie-tmp-1-0")).unwrap();
        std::fs::write(folder.path().join(".c.ernie-tmp-1-0/x"), b"1").unwrap();
        std::fs::write(folder.path().join(".f.ernie-tmp-1-1"), b"1").unwrap();
        std::fs::write(folder.path().join(".hidden"), b"1").unwrap();
        let living_folder = Folder::begin(&folder.path().join("living")).unwrap();
        let living_file = NewFile::create(&folder.path().join("file")).unwrap();
        assert_eq!(clean(folder.path()).unwrap().len(), 2);
        assert!(living_folder.path().exists());
        living_file.commit().unwrap();
        living_folder.commit().unwrap();
        assert_eq!(names(folder.path()), [".hidden", "file", "living"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_the_environments_fault() {
        use crate::error::ErrorKind;
        let path = Path::new("/dev/full");
        let mut full = File::options().write(true).open(path).unwrap();
        let error = full.write_all(b"x").map_err(Error::io(path, "write")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().starts_with("/dev/full: cannot write: "), "{error}");
    }
}
