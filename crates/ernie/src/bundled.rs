//! The model inside the program, which `chat` and `serve` talk with when no MODEL is named. `assets/nano/README.md` says what it was made of.
//!
//! Weights are mapped from files wherever they come from, so it is unpacked once, into the user's cache.

use crate::{
    environment,
    failure::{Failure, Result},
};
use ernie_files::atomic;
use std::path::{Path, PathBuf};

/// What it is called.
pub(crate) const NAME: &str = "nano";

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_bytes!(concat!("../assets/nano/", $name)))),*] };
}

const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Its folder, made where it is not there yet or is not what it should be.
///
/// # Errors
/// Environment (3) where neither the cache nor the folder for temporary files can be written.
pub(crate) fn folder() -> Result<PathBuf> {
    let places = environment::cache().into_iter().chain([std::env::temp_dir()]);
    let mut why = None;
    for place in places {
        // Each version of the program has its own, so that two of them do not take turns at it.
        let folder = place.join("ernie").join(format!("{NAME}-{}", crate::commands::VERSION));
        match unpack(&folder) {
            Ok(()) => return Ok(folder),
            // Whatever the kind: it is the place that does not serve.
            Err(failure) => why = Some(Failure::environment(failure.message)),
        }
    }
    Err(why
        .unwrap_or_else(|| Failure::environment("there is no place to unpack the bundled model in"))
        .hint("name a MODEL, or set XDG_CACHE_HOME to a folder that can be written"))
}

fn unpack(folder: &Path) -> Result<()> {
    if is_whole(folder) {
        return Ok(());
    }
    let new = match atomic::Folder::begin(folder) {
        // Another process was faster.
        Err(_) if is_whole(folder) => return Ok(()),
        Err(_) if folder.is_dir() => {
            std::fs::remove_dir_all(folder).map_err(|error| failed(folder, "cannot be replaced", &error))?;
            atomic::Folder::begin(folder)?
        }
        begun => begun?,
    };
    for (name, bytes) in FILES {
        let path = new.path().join(name);
        std::fs::write(&path, bytes).map_err(|error| failed(&path, "cannot be written", &error))?;
    }
    match new.commit() {
        Err(_) if is_whole(folder) => Ok(()),
        done => Ok(done?),
    }
}

/// Whether every file is there to the byte: a cache outlives crashes and full disks.
fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| {
        let path = folder.join(name);
        std::fs::metadata(&path).is_ok_and(|file| file.len() == bytes.len() as u64)
            && std::fs::read(&path).is_ok_and(|found| found == *bytes)
    })
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::environment(format!("{}: {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_mends_itself() {
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= 16_000_000, "{total} bytes");
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("deep/nano");
        unpack(&folder).unwrap();
        assert!(is_whole(&folder));
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
        assert!(!is_whole(&folder));
        unpack(&folder).unwrap();
        assert!(is_whole(&folder));
        let in_the_way = place.path().join("file");
        std::fs::write(&in_the_way, "").unwrap();
        assert!(unpack(&in_the_way.join("nano")).is_err());
    }

    #[test]
    fn several_may_unpack_at_once() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("nano");
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| unpack(&folder))).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert!(is_whole(&folder));
    }
}
