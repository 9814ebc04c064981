//! A checkpoint of safetensors: one file, or a folder with one file or an index and shards.
//!
//! Which tensors lie in which shard is nobody's business outside: tensors of one layer may straddle shards. Shards are
//! named by the index, that is by a file from elsewhere, so their paths must stay in the folder; links of the hub's cache
//! (`snapshots/REV/FILE` → `../../blobs/HASH`) are followed. Pickled weights are refused: reading them runs code.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::dtype::TensorInfo;
use crate::error::{Error, Result, quoted};
use crate::map::{Bytes, Map};
use crate::read::read_text;
use crate::safetensors::header::{self, UniqueStrings};

/// Why pickled weights are not read.
pub(crate) const PICKLE: &str =
    "is a pickle (PyTorch .bin/.pt), which can run code when it is read: convert it to safetensors first";
/// The weights of a folder, in one file.
const SINGLE: &str = "model.safetensors";
/// The list of shards of a folder.
const INDEX: &str = "model.safetensors.index.json";
/// Longest index that is read; that of a 300B model is one or two MB.
const MAX_INDEX_BYTES: u64 = 32_000_000;
/// Most shards; each keeps a file open.
const MAX_SHARDS: usize = 4096;

/// An open checkpoint: headers checked, tensors mapped.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Arc<Map>>,
    tensors: Vec<TensorInfo>,
    /// For each tensor its file and its range in it.
    places: Vec<(usize, Range<usize>)>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, or a folder that holds `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// Every header is checked here, so that what follows can trust names, shapes and ranges.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Malformed`] for what is broken; [`Error::Refused`] for pickles, other formats
    /// and shard paths that leave the folder; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut checkpoint = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        };
        let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !kind.is_dir() {
            checkpoint.add(path)?;
        } else if path.join(SINGLE).symlink_metadata().is_ok() {
            checkpoint.add(&path.join(SINGLE))?;
        } else if path.join(INDEX).symlink_metadata().is_ok() {
            checkpoint.add_shards(path)?;
        } else {
            return Err(nothing_in(path)?);
        }
        Ok(checkpoint)
    }

    /// All tensors, in the order of shards and of bytes within them.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// Type and shape of a tensor, if it is here.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The bytes of a tensor: a view into the map, little-endian, rows outermost.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Changed`] if the file was cut since it was opened.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let Some(&index) = self.by_name.get(name) else {
            return Err(Error::NoTensor { path: self.path.clone(), name: name.chars().take(120).collect() });
        };
        let (file, range) = &self.places[index];
        self.files[*file].view(range.clone())
    }

    /// The strings of the header's `__metadata__`; with shards, of all of them, the first to name a key wins.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|info| info.bytes() as u64).sum()
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Oddities that change no number, one line each: an index whose `total_size` is not that of its shards.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Maps a file and takes its tensors in.
    fn add(&mut self, path: &Path) -> Result<()> {
        let map = Map::open(path)?;
        let header = header::parse(path, map.all()?)?;
        let file = self.files.len();
        for (info, range) in header.tensors {
            if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                // Within one file the header's check has excluded this.
                return Err(Error::malformed(path, format!("tensor {} is in another shard too", quoted(&info.name))));
            }
            self.tensors.push(info);
            self.places.push((file, range));
        }
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.files.push(map);
        Ok(())
    }

    /// Opens the shards that the folder's index names, and holds the index to its word.
    fn add_shards(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(INDEX);
        let bad = |what: String| Error::malformed(&path, what);
        let text = read_text(&path, MAX_INDEX_BYTES)?;
        let index: Index = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        for shard in index.weight_map.values() {
            shards.insert(shard, 0);
        }
        if shards.is_empty() {
            return Err(bad("weight_map names no tensor".into()));
        }
        if shards.len() > MAX_SHARDS {
            return Err(bad(format!("{} shards, expected at most {MAX_SHARDS}", shards.len())));
        }
        for (shard, number) in &mut shards {
            let shard_path = inside(folder, shard).map_err(|why| bad(format!("shard {}: {why}", quoted(shard))))?;
            if !shard_path.exists() {
                return Err(bad(format!("shard {} is missing from the folder", quoted(shard))));
            }
            *number = self.files.len();
            self.add(&shard_path)?;
        }
        for (name, shard) in &index.weight_map {
            let here = self.by_name.get(name).map(|&tensor| self.places[tensor].0);
            if here != shards.get(shard.as_str()).copied() {
                let (name, shard) = (quoted(name), quoted(shard));
                return Err(bad(format!("tensor {name} is not in shard {shard} where the index puts it")));
            }
        }
        if let Some(said) = index.total_size
            && said != self.total_bytes() as f64
        {
            self.notes.push(format!("{INDEX}: total_size says {said} bytes, the shards hold {}", self.total_bytes()));
        }
        Ok(())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("files", &self.files.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Where a shard lies, or why its name is refused.
fn inside(folder: &Path, name: &str) -> std::result::Result<PathBuf, String> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain || name.contains(['\\', '\0']) {
        return Err("expected a plain path inside the folder".into());
    }
    let path = folder.join(name);
    let real = match path.canonicalize() {
        Ok(real) => real,
        // Reported as missing by the caller, unless a link is there that leads nowhere or in circles.
        Err(_) if path.symlink_metadata().is_err() => return Ok(path),
        Err(error) => return Err(format!("cannot follow the link: {error}")),
    };
    let home = folder.canonicalize().map_err(|error| error.to_string())?;
    if real.starts_with(&home) || is_hub_blob(&home, &real) {
        return Ok(path);
    }
    Err("a link leads out of the folder".into())
}

/// Whether `home` is `…/snapshots/REV` of the hub's cache and `real` a file of its `…/blobs`.
fn is_hub_blob(home: &Path, real: &Path) -> bool {
    let Some(snapshots) = home.parent() else { return false };
    snapshots.file_name().is_some_and(|name| name == "snapshots")
        && snapshots.parent().map(|model| model.join("blobs")).as_deref() == real.parent()
}

/// The error for a folder without safetensors, which says what is there instead.
fn nothing_in(folder: &Path) -> Result<Error> {
    let (mut pickle, mut shard, mut gguf) = (None, None, None);
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name().to_string_lossy().into_owned();
        let slot = match Path::new(&name).extension().and_then(|extension| extension.to_str()) {
            Some("bin" | "pt" | "pth" | "ckpt") => &mut pickle,
            Some("safetensors") => &mut shard,
            Some("gguf") => &mut gguf,
            _ => continue,
        };
        // The least name, so that the message does not depend on the order of the folder.
        if slot.as_ref().is_none_or(|least| name < *least) {
            *slot = Some(name);
        }
    }
    Ok(match (shard, gguf, pickle) {
        (Some(name), _, _) => {
            Error::refused(folder, format!("holds {} but neither {SINGLE} nor {INDEX}", quoted(&name)))
        }
        (_, Some(name), _) => {
            Error::refused(folder, format!("holds {} and no {SINGLE}: name the GGUF file itself", quoted(&name)))
        }
        (_, _, Some(name)) => Error::refused(&folder.join(name), PICKLE),
        _ => Error::refused(folder, format!("holds neither {SINGLE} nor {INDEX}")),
    })
}

/// The index file. Keys we do not know are ignored; none of them could change a number.
struct Index {
    weight_map: BTreeMap<String, String>,
    /// Some writers give it as a float.
    total_size: Option<f64>,
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with weight_map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Index, A::Error> {
                let (mut weight_map, mut total_size) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "weight_map" if weight_map.is_some() => {
                            return Err(A::Error::custom("weight_map stands twice"));
                        }
                        "weight_map" => weight_map = Some(map.next_value::<UniqueStrings>()?.0),
                        "metadata" => {
                            total_size = map.next_value::<Option<IndexMetadata>>()?.and_then(|m| m.total_size);
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let weight_map = weight_map.ok_or_else(|| A::Error::missing_field("weight_map"))?;
                Ok(Index { weight_map, total_size })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The part of the index's metadata that we compare; the rest is skipped unread.
#[derive(serde::Deserialize)]
struct IndexMetadata {
    #[serde(default)]
    total_size: Option<f64>,
}
