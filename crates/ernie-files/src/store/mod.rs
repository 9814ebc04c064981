//! The local model store, in the hub's own cache layout, so that models fetched by other tools are found and ours by them.
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/HASH            the bytes, under the hash that the hub names
//!                         snapshots/COMMIT/FILE  links into blobs
//!                         refs/main              the commit that a branch or tag stood at
//! CACHE/.locks/models--ORG--NAME/HASH.lock       held while a blob is fetched
//! ```
//!
//! Where the cache is, which hub is asked and with which token is the caller's to say: nothing here reads the environment.

mod hub;
mod names;
mod pull;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub use pull::{Progress, PullOptions};

/// The branch that is meant when no revision is named.
pub const DEFAULT_REVISION: &str = "main";
/// The hub that is asked when the caller names none.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A folder in the hub's cache layout.
#[derive(Debug, Clone)]
pub struct Store {
    cache_dir: PathBuf,
}

/// One revision of a model in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Name on the hub, such as `baidu/ERNIE-4.5-0.3B-PT`.
    pub name: String,
    /// The commit.
    pub revision: String,
    /// Branches and tags that stood at this commit when they were last fetched.
    pub refs: Vec<String>,
    /// The folder with its files, to be opened like any model folder.
    pub path: PathBuf,
    /// Number of files.
    pub files: usize,
    /// Bytes of the files. Revisions may share them on disk.
    pub bytes: u64,
}

impl Store {
    /// A store in this folder, which need not exist yet. The hub's tools use `~/.cache/huggingface/hub`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into() }
    }

    /// The folder.
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// The folder of a model's files, if it is here. `revision` is a branch, a tag or a whole commit; `None` means [`DEFAULT_REVISION`].
    pub fn resolve(&self, name: &str, revision: Option<&str>) -> Option<PathBuf> {
        names::check_name(name).ok()?;
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        names::check_revision(revision).ok()?;
        let model = self.model_dir(name);
        let commit = match read_ref(&model.join("refs").join(revision)) {
            Some(commit) => commit,
            None if names::is_commit(revision) => revision.to_owned(),
            None => return None,
        };
        let path = model.join("snapshots").join(commit);
        path.is_dir().then_some(path)
    }

    /// Every revision of every model, by name. A store that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::Io`] where a folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let mut stored = Vec::new();
        for folder in subfolders(&self.cache_dir)? {
            let Some(name) = names::from_folder(&folder) else { continue };
            let refs = refs_of(&self.cache_dir.join(&folder));
            let snapshots = self.cache_dir.join(&folder).join("snapshots");
            for revision in subfolders(&snapshots)? {
                if !names::is_commit(&revision) {
                    continue;
                }
                let path = snapshots.join(&revision);
                let (mut files, mut bytes) = (0, 0);
                visit(&path, &mut |file| {
                    files += 1;
                    // A link that leads nowhere counts as a file without bytes.
                    bytes += fs::metadata(file).map_or(0, |kind| kind.len());
                })?;
                let refs = refs.get(&revision).cloned().unwrap_or_default();
                stored.push(Stored { name: name.clone(), revision, refs, path, files, bytes });
            }
        }
        stored.sort_by(|a, b| (&a.name, &a.revision).cmp(&(&b.name, &b.revision)));
        Ok(stored)
    }

    /// Removes one revision of a model, or all of it for `None`, with the blobs that no other revision uses.
    /// Returns the bytes freed.
    ///
    /// # Errors
    /// [`Error::Name`] for what cannot be a name, [`Error::NotFound`] where it is not in the store, [`Error::Io`].
    pub fn remove(&self, name: &str, revision: Option<&str>) -> Result<u64> {
        names::check_name(name)?;
        let model = self.model_dir(name);
        if !model.is_dir() {
            return Err(Error::NotFound { path: model });
        }
        let Some(revision) = revision else {
            let mut bytes = 0;
            visit(&model, &mut |file| bytes += fs::symlink_metadata(file).map_or(0, |kind| kind.len()))?;
            remove_tree(&model)?;
            remove_tree(&self.locks_dir(name))?;
            return Ok(bytes);
        };
        names::check_revision(revision)?;
        let snapshot = self
            .resolve(name, Some(revision))
            .ok_or_else(|| Error::NotFound { path: model.join("refs").join(revision) })?;
        // The names first: were we killed between the steps, nothing would point at half a model.
        let commit = snapshot.file_name().map(|commit| commit.to_string_lossy().into_owned()).unwrap_or_default();
        for reference in refs_of(&model).remove(&commit).unwrap_or_default() {
            remove_file(&model.join("refs").join(reference))?;
        }
        remove_tree(&snapshot)?;
        let freed = free_blobs(&model)?;
        if subfolders(&model.join("snapshots"))?.is_empty() {
            remove_tree(&model)?;
            remove_tree(&self.locks_dir(name))?;
        }
        Ok(freed)
    }

    fn model_dir(&self, name: &str) -> PathBuf {
        self.cache_dir.join(names::to_folder(name))
    }

    fn locks_dir(&self, name: &str) -> PathBuf {
        self.cache_dir.join(".locks").join(names::to_folder(name))
    }
}

/// Removes blobs that no snapshot links to, and unfinished ones; returns the bytes freed.
fn free_blobs(model: &Path) -> Result<u64> {
    let mut used = HashSet::new();
    visit(&model.join("snapshots"), &mut |file| {
        if let Ok(blob) = file.canonicalize() {
            used.insert(blob);
        }
    })?;
    let blobs = model.join("blobs");
    let mut unused = BTreeSet::new();
    if blobs.is_dir() {
        visit(&blobs, &mut |file| {
            if file.canonicalize().is_ok_and(|blob| !used.contains(&blob)) {
                unused.insert(file.to_path_buf());
            }
        })?;
    }
    let mut freed = 0;
    for blob in unused {
        freed += fs::symlink_metadata(&blob).map_or(0, |kind| kind.len());
        remove_file(&blob)?;
    }
    Ok(freed)
}

/// The commit that a file of `refs` holds.
fn read_ref(path: &Path) -> Option<String> {
    let text = crate::read::read_text(path, 256).ok()?;
    let commit = text.trim();
    names::is_commit(commit).then(|| commit.to_owned())
}

/// Branches and tags of a model, by the commit they stand at.
fn refs_of(model: &Path) -> BTreeMap<String, Vec<String>> {
    let refs = model.join("refs");
    let mut by_commit: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // A store whose refs cannot be listed still has its snapshots.
    let _ = visit(&refs, &mut |file| {
        let name = file.strip_prefix(&refs).ok().and_then(Path::to_str);
        if let (Some(name), Some(commit)) = (name, read_ref(file)) {
            by_commit.entry(commit).or_default().push(name.to_owned());
        }
    });
    by_commit.values_mut().for_each(|names| names.sort());
    by_commit
}

/// Names of the real folders in a folder, sorted; none where it does not exist.
fn subfolders(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, "list")(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Calls `see` for every file and link below a folder. Links are not followed.
fn visit(folder: &Path, see: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), see)?;
        } else {
            see(&entry.path());
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}
