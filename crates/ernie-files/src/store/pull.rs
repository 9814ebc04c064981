//! Fetching a model: what is needed, resumed where it broke off, checked by the hash that the hub names.
//!
//! Blobs come first, each under its hash and only once the hash is right; then the folder of links, whole or not at all;
//! then the branch's name. So a pull that is killed leaves no half model that could be taken for a whole one, and the next pull goes on.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::hub::{Fault, Hash, Hub, Remote};
use super::{Store, names};
use crate::atomic;
use crate::error::{Error, Result, quoted};

/// Pieces in which bytes are fetched and hashed.
const PIECE_BYTES: usize = 1 << 20;
/// First wait before another try; it doubles with each that got no further.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// What to fetch, and from where.
#[derive(Clone)]
pub struct PullOptions {
    /// Name on the hub, `ORG/NAME`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token, for private and gated models. Sent to the endpoint's host alone.
    pub token: Option<String>,
    /// Exact file names to fetch instead of those that make a model run, such as one `.gguf` file.
    pub files: Vec<String>,
    /// How often a broken download is taken up again without having got any further.
    pub retries: u32,
}

impl PullOptions {
    /// A whole model from the default branch of the public hub, without a token.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            revision: super::DEFAULT_REVISION.into(),
            endpoint: super::DEFAULT_ENDPOINT.into(),
            token: None,
            files: Vec::new(),
            retries: 5,
        }
    }
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is not for logs.
        f.debug_struct("PullOptions")
            .field("name", &self.name)
            .field("revision", &self.revision)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("files", &self.files)
            .field("retries", &self.retries)
            .finish()
    }
}

/// Hears how a pull goes. Every method may be left out; `()` hears nothing.
pub trait Progress {
    /// A file begins; `done_bytes` of `total_bytes` are here already from an earlier, broken pull. Comes again for the
    /// same file where a server cannot go on from there and it has to begin anew.
    fn begin(&mut self, _file: &str, _total_bytes: u64, _done_bytes: u64) {}
    /// Bytes of the current file have arrived.
    fn advance(&mut self, _bytes: u64) {}
    /// The connection failed and is tried again.
    fn retry(&mut self, _file: &str, _why: &str) {}
    /// All bytes of the file are here and its hash is being checked.
    fn checking(&mut self, _file: &str) {}
    /// The file is in the store; `fetched` is false where it was there before.
    fn end(&mut self, _file: &str, _fetched: bool) {}
}

impl Progress for () {}

impl Store {
    /// Fetches a model and returns the folder of its files.
    ///
    /// Without `files` these are configuration, safetensors weights and their index, tokenizer, chat template, README
    /// and licence of the top folder. A file whose bytes do not have the hash that the hub names is deleted. One that is in
    /// the store under that hash with the right length is believed and not fetched again.
    ///
    /// # Errors
    /// [`Error::Name`] for a name, revision, endpoint or token that cannot be one; [`Error::Hub`] for everything the hub
    /// or the network does (Environment); [`Error::Io`] from the disk. What has arrived stays for the next try.
    pub fn pull(&self, options: &PullOptions, progress: &mut dyn Progress) -> Result<PathBuf> {
        let hub = Hub::new(&self.cache_dir, options)?;
        let mut tries = Tries::new(options);
        let (commit, listed) = tries.until_done(progress, "the list of files", |_| hub.files())?;
        let wanted = choose(options, listed.iter().map(String::as_str))?;
        let model = self.model_dir(&options.name);
        let (blobs, snapshots) = (model.join("blobs"), model.join("snapshots"));
        for folder in [&blobs, &snapshots, &self.locks_dir(&options.name)] {
            fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
        }
        atomic::clean(&snapshots)?;
        let mut links = Vec::with_capacity(wanted.len());
        for file in wanted {
            let remote = tries.until_done(progress, &file, |_| hub.describe(&commit, &file))?;
            let lock = self.locks_dir(&options.name).join(format!("{}.lock", remote.hash.digits()));
            let _held = lock_file(&lock, &options.name, &file)?;
            fetch(&hub, &remote, &blobs, &options.name, &mut tries, progress)?;
            links.push((file, remote.hash.digits().to_owned()));
        }
        let snapshot = snapshots.join(&commit);
        link_all(&snapshot, &links)?;
        if options.revision != commit {
            let reference = model.join("refs").join(&options.revision);
            if let Some(folder) = reference.parent() {
                fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
            }
            atomic::write(&reference, commit.as_bytes())?;
        }
        Ok(snapshot)
    }
}

/// The files to fetch of those the hub lists.
fn choose<'a>(options: &PullOptions, listed: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<String>> {
    let fail = |what: String| Err(Error::hub(&options.name, what));
    if !options.files.is_empty() {
        for file in &options.files {
            if !listed.clone().any(|name| name == file) {
                return fail(format!("the hub has no file {} in it", quoted(file)));
            }
        }
        return Ok(options.files.clone());
    }
    let wanted: Vec<String> = listed.clone().filter(|file| names::is_needed(file)).map(str::to_owned).collect();
    if wanted.iter().any(|file| file.ends_with(".safetensors")) {
        return Ok(wanted);
    }
    let offer = |end: &str| listed.clone().find(|file| file.ends_with(end)).map(quoted);
    if let Some(gguf) = offer(".gguf") {
        return fail(format!("has no safetensors weights, but GGUF: name one of its files, such as {gguf}"));
    }
    if let Some(pickle) = offer(".bin").or_else(|| offer(".pt")).or_else(|| offer(".pth")) {
        return fail(format!("has no safetensors weights, only pickles ({pickle}), which can run code when read"));
    }
    fail("has no safetensors weights".into())
}

/// Counts failures that got no further, and waits between them.
struct Tries {
    name: String,
    retries: u32,
    failed: u32,
}

impl Tries {
    fn new(options: &PullOptions) -> Self {
        Self { name: options.name.clone(), retries: options.retries, failed: 0 }
    }

    /// Repeats `attempt` over passing faults.
    fn until_done<T>(
        &mut self,
        progress: &mut dyn Progress,
        what: &str,
        mut attempt: impl FnMut(&mut dyn Progress) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        self.failed = 0;
        loop {
            match attempt(progress) {
                Ok(done) => return Ok(done),
                Err(fault) => self.after(fault, false, progress, what)?,
            }
        }
    }

    /// Waits after a fault, or gives up on it.
    fn after(&mut self, fault: Fault, got_further: bool, progress: &mut dyn Progress, what: &str) -> Result<()> {
        let why = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing(why) => why,
        };
        if got_further {
            self.failed = 0;
        }
        if self.failed >= self.retries {
            return Err(Error::hub(&self.name, format!("{what}: {why} (tried {} times)", self.failed + 1)));
        }
        progress.retry(what, &why);
        std::thread::sleep(FIRST_WAIT * (1 << self.failed.min(6)));
        self.failed += 1;
        Ok(())
    }
}

/// Makes sure that the blob of `remote` is there, whole and with the right hash.
fn fetch(
    hub: &Hub,
    remote: &Remote,
    blobs: &Path,
    name: &str,
    tries: &mut Tries,
    progress: &mut dyn Progress,
) -> Result<()> {
    let file = &remote.file;
    let blob = blobs.join(remote.hash.digits());
    if fs::metadata(&blob).is_ok_and(|kind| kind.is_file() && kind.len() == remote.bytes) {
        progress.begin(file, remote.bytes, remote.bytes);
        progress.end(file, false);
        return Ok(());
    }
    // The name that the hub's own tools give to unfinished blobs, which they and we resume alike.
    let part_path = blobs.join(format!("{}.incomplete", remote.hash.digits()));
    let mut part =
        File::options().create(true).append(true).read(true).open(&part_path).map_err(Error::io(&part_path, "open"))?;
    let mut have = part.metadata().map_err(Error::io(&part_path, "read the length"))?.len();
    if have > remote.bytes {
        part.set_len(0).map_err(Error::io(&part_path, "cut"))?;
        have = 0;
    }
    progress.begin(file, remote.bytes, have);
    tries.failed = 0;
    while have < remote.bytes {
        let before = have;
        match continue_from(hub, remote, &mut part, &part_path, &mut have, progress)? {
            Ok(()) => {}
            Err(fault) => tries.after(fault, have > before, progress, file)?,
        }
    }
    progress.checking(file);
    part.sync_all().map_err(Error::io(&part_path, "make durable"))?;
    drop(part);
    let found = hash_of(&part_path, &remote.hash, remote.bytes)?;
    if found != remote.hash.digits() {
        fs::remove_file(&part_path).map_err(Error::io(&part_path, "remove"))?;
        let (kind, named) = (remote.hash.kind(), remote.hash.digits());
        return Err(Error::hub(name, format!("{}: {kind} is {found}, the hub names {named}: deleted", quoted(file))));
    }
    atomic::rename(&part_path, &blob)?;
    progress.end(file, true);
    Ok(())
}

/// Appends what one request gives to the partial file. The outer error is the disk's, the inner one the hub's.
fn continue_from(
    hub: &Hub,
    remote: &Remote,
    part: &mut File,
    part_path: &Path,
    have: &mut u64,
    progress: &mut dyn Progress,
) -> Result<std::result::Result<(), Fault>> {
    let mut answer = match hub.open(remote, *have) {
        Ok(answer) => answer,
        Err(fault) => return Ok(Err(fault)),
    };
    // Only a 206 that starts where we stand goes on; anything else is the file from its beginning, or nothing.
    let goes_on = answer.status == 206 && answer.content_range() == Some((Some(*have), remote.bytes));
    if *have > 0 && !goes_on {
        part.set_len(0).map_err(Error::io(part_path, "cut"))?;
        *have = 0;
        progress.begin(&remote.file, remote.bytes, 0);
    }
    if answer.status != 200 && !goes_on {
        let what = format!("{}: the hub answers {} to a range", quoted(&remote.file), answer.status);
        return Ok(Err(Fault::Passing(what)));
    }
    let mut piece = vec![0; PIECE_BYTES];
    while *have < remote.bytes {
        let room = usize::try_from(remote.bytes - *have).unwrap_or(usize::MAX).min(piece.len());
        match answer.body.read(&mut piece[..room]) {
            Ok(0) => {
                let what = format!("broke off after {have} of {} bytes", remote.bytes);
                return Ok(Err(Fault::Passing(what)));
            }
            Ok(count) => {
                part.write_all(&piece[..count]).map_err(Error::io(part_path, "write"))?;
                *have += count as u64;
                progress.advance(count as u64);
            }
            Err(error) => {
                let what = format!("broke off after {have} of {} bytes: {error}", remote.bytes);
                return Ok(Err(Fault::Passing(what)));
            }
        }
    }
    Ok(Ok(()))
}

/// The hash of a file, of the kind that `like` is.
fn hash_of(path: &Path, like: &Hash, bytes: u64) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut sha256 = Sha256::new();
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {bytes}\0"));
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = file.read(&mut piece).map_err(Error::io(path, "read"))?;
        if count == 0 {
            break;
        }
        match like {
            Hash::Sha256(_) => sha256.update(&piece[..count]),
            Hash::GitSha1(_) => sha1.update(&piece[..count]),
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(match like {
        Hash::Sha256(_) => hex(sha256.finalize().as_slice()),
        Hash::GitSha1(_) => hex(sha1.finalize().as_slice()),
    })
}

/// Holds the lock of a blob while the result lives.
fn lock_file(path: &Path, name: &str, file: &str) -> Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(path).map_err(Error::io(path, "open"))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::hub(name, format!("{}: another process is fetching it", quoted(file))))
        }
        // Some network drives have no locks; two pulls at once are then caught by the hash.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
    }
}

/// Fills a snapshot with links to its blobs: a new one appears whole, one that is there gets what it lacks.
fn link_all(snapshot: &Path, links: &[(String, String)]) -> Result<()> {
    if snapshot.is_dir() {
        for (file, digits) in links {
            link(snapshot, file, digits)?;
        }
        return Ok(());
    }
    let folder = atomic::Folder::begin(snapshot)?;
    for (file, digits) in links {
        link(folder.path(), file, digits)?;
    }
    folder.commit()
}

/// Links `file` of a snapshot to its blob, in place of whatever was there.
fn link(snapshot: &Path, file: &str, digits: &str) -> Result<()> {
    let path = snapshot.join(file);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
    }
    let depth = file.matches('/').count();
    let target = format!("{}../../blobs/{digits}", "../".repeat(depth));
    #[cfg(unix)]
    {
        if fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
            return Ok(());
        }
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(Error::io(&path, "replace"))?;
        }
        std::os::unix::fs::symlink(&target, &path).map_err(Error::io(&path, "link"))
    }
    #[cfg(not(unix))]
    {
        // Links need a privilege elsewhere; a second copy needs none.
        let blob = snapshot.join("../../blobs").join(digits);
        let _ = target;
        fs::copy(&blob, &path).map(|_| ()).map_err(Error::io(&path, "copy"))
    }
}
