//! Owns safetensors checkpoints: one file, or shards with an index. Tensors are borrowed slices of the mapping; headers
//! are checked by the safetensors crate, and here for what it lets pass. Knows no model family.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use dualgauge_kernels::{Format, HostTensor, Shape};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::mapping::{Mapping, read_text};
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;

/// The open files of one checkpoint.
pub struct Safetensors {
    shards: Vec<Mapping>,
    tensors: HashMap<String, Entry>,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// A tensor as it lies in its file, of whatever element type.
pub(crate) struct Part<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

impl Safetensors {
    /// Maps `model.safetensors` of a folder, or the shards its index names.
    ///
    /// # Errors
    /// When there is neither, or a file is broken; the error names the file.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut all = Self { shards: vec![], tensors: HashMap::new() };
        if folder.join(SINGLE).exists() {
            all.add(&folder.join(SINGLE))?;
            return Ok(all);
        }
        let Some(index) = read_text(&folder.join(INDEX), MAX_INDEX_BYTES)? else {
            let pickle =
                folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists();
            let hint = match pickle {
                true => "the folder has a pickle file, which is never read: convert it to safetensors",
                false => "not found in the model folder, nor is its index",
            };
            return Err(Error::file(SINGLE, hint));
        };
        let places = places(&index).map_err(|reason| Error::file(INDEX, reason))?;
        let shards: BTreeSet<&str> = places.iter().map(|(_, shard)| shard.as_str()).collect();
        if shards.len() > MAX_SHARDS {
            return Err(Error::file(INDEX, format!("names {} files; at most {MAX_SHARDS} are read", shards.len())));
        }
        for shard in &shards {
            all.add(&folder.join(shard))?;
        }
        for (tensor, shard) in &places {
            if all.tensors.get(tensor).is_none_or(|entry| all.shards[entry.shard].name() != shard) {
                return Err(Error::file(shard, format!("has no tensor {tensor}, which {INDEX} places there")));
            }
        }
        Ok(all)
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.range.len() as u64).sum()
    }

    /// The file a tensor is in, for errors; the first file when there is no such tensor.
    pub(crate) fn file(&self, name: &str) -> &str {
        let shard = self.tensors.get(name).map_or(0, |entry| entry.shard);
        self.shards.get(shard).map_or(SINGLE, Mapping::name)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor, borrowed from the mapping.
    ///
    /// # Errors
    /// When its element type or rank is nothing that a weight can have.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        let Some((key, entry)) = self.tensors.get_key_value(name) else { return Ok(None) };
        let fail = |reason: String| Error::file(self.file(name), format!("tensor {name}: {reason}"));
        let format = match entry.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            other => return Err(fail(format!("element type {other:?} is not supported; these are: F32, F16, BF16"))),
        };
        if entry.shape.len() > Shape::MAX_RANK {
            return Err(fail(format!("{} dimensions", entry.shape.len())));
        }
        let bytes = &self.shards[entry.shard].bytes()[entry.range.clone()];
        let tensor = HostTensor::new(key.as_str(), entry.shape.as_slice(), format, bytes);
        Ok(Some(tensor.expect("lengths were checked at open: this is a bug")))
    }

    pub(crate) fn part(&self, name: &str) -> Option<Part<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = &self.shards[entry.shard].bytes()[entry.range.clone()];
        Some(Part { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    pub(crate) fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.shards[entry.shard].release(entry.range.clone());
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let map = Mapping::open(path)?;
        let fail = |reason: String| Error::file(map.name(), reason);
        let (header, metadata) = SafeTensors::read_metadata(map.bytes()).map_err(|e| fail(reason(&e, map.bytes())))?;
        let text = &map.bytes()[8..8 + header];
        let keys = unique(text).map_err(|e| fail(format!("has a broken header: {e}")))?;
        debug_assert!(keys >= metadata.tensors().len());
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let range = 8 + header + start..8 + header + end;
            let entry = Entry { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), range };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                return Err(fail(format!("tensor {name} is also in {}", self.shards[other.shard].name())));
            }
        }
        self.shards.push(map);
        Ok(())
    }
}

/// The crate's error in the words of a person who has the file before them.
fn reason(error: &safetensors::SafeTensorError, bytes: &[u8]) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::HeaderTooSmall | E::InvalidHeaderLength | E::MetadataIncompleteBuffer => {
            format!("its {} bytes are not what its header says; the download may be incomplete", bytes.len())
        }
        E::HeaderTooLarge if bytes.starts_with(b"version https://git-lfs") => {
            "is a Git LFS pointer, not the file itself: fetch it with git lfs pull".into()
        }
        other => format!("is no valid safetensors file: {other}"),
    }
}

/// Tensor and shard of every entry of an index.
fn places(index: &str) -> Result<Vec<(String, String)>, String> {
    let index: Index = serde_json::from_str(index).map_err(|e| format!("is no valid index: {e}"))?;
    if index.weight_map.0.is_empty() {
        return Err("weight_map is empty".into());
    }
    for (tensor, shard) in &index.weight_map.0 {
        let plain = shard.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !plain || shard.len() <= ".safetensors".len() || !shard.ends_with(".safetensors") {
            return Err(format!("weight_map: {tensor}: {shard:?} is not the name of a safetensors file"));
        }
    }
    Ok(index.weight_map.0)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// Checks that no key of a JSON object comes twice; the number of keys.
fn unique(json: &[u8]) -> Result<usize, serde_json::Error> {
    serde_json::from_slice::<Unique<IgnoredAny>>(json).map(|keys| keys.0.len())
}

/// A JSON object whose keys are all different. Maps of other readers keep the last of two.
struct Unique<V>(Vec<(String, V)>);

impl<'de, V: serde::Deserialize<'de>> serde::Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(std::marker::PhantomData))
    }
}

struct UniqueVisitor<V>(std::marker::PhantomData<V>);

impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
        let (mut entries, mut seen) = (vec![], HashSet::new());
        while let Some((key, value)) = map.next_entry::<String, V>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!("{key:?} comes twice")));
            }
            entries.push((key, value));
        }
        Ok(Unique(entries))
    }
}
