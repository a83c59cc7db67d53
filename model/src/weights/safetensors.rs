//! Weights in safetensors files, one or many, mapped.
//!
//! The format is described at <https://huggingface.co/docs/safetensors/index#format>.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::mapped::MappedFile;
use super::{Weights, check_shape, missing};
use crate::error::{ModelError, Result};

/// The header's length stands in the first eight bytes; the reference refuses longer ones, too.
const MAX_HEADER: u64 = 100_000_000;

/// Tensors by name, wherever they lie.
#[derive(Debug)]
pub(crate) struct SafetensorsWeights {
    files: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    file: Arc<MappedFile>,
    dtype: String,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl SafetensorsWeights {
    /// Maps one file of weights.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        weights.add(path)?;
        Ok(weights)
    }

    /// Maps all files that an index (`model.safetensors.index.json`) names.
    pub(crate) fn open_sharded(index: &Path) -> Result<Self> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let shards = shards(index)?;
        let folder = index.parent().unwrap_or(Path::new("."));
        for (shard, names) in &shards {
            let path = folder.join(shard);
            let file = weights.add(&path)?;
            let here = |name: &&String| {
                weights
                    .tensors
                    .get(*name)
                    .is_some_and(|stored| Arc::ptr_eq(&stored.file, &file))
            };
            if let Some(name) = names.iter().find(|name| !here(name)) {
                let message = format!("tensor `{name}` is not in it, where the index expects it");
                return Err(ModelError::bad_file(&path, message));
            }
        }
        Ok(weights)
    }

    /// The files, in a fixed order.
    pub(crate) fn files(&self) -> Vec<Arc<MappedFile>> {
        self.files.clone()
    }

    /// Every tensor's name and shape.
    pub(crate) fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        self.tensors
            .iter()
            .map(|(name, stored)| (name.as_str(), &stored.shape[..]))
            .collect()
    }

    fn add(&mut self, path: &Path) -> Result<Arc<MappedFile>> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = header(&file).map_err(|message| ModelError::bad_file(path, message))?;
        for (name, (dtype, shape, bytes)) in header {
            let stored = Stored {
                file: Arc::clone(&file),
                dtype,
                shape,
                bytes,
            };
            if let Some(other) = self.tensors.insert(name.clone(), stored) {
                let message = format!("tensor `{name}` is in {}, too", other.file.path().display());
                return Err(ModelError::bad_file(path, message));
            }
        }
        self.files.push(Arc::clone(&file));
        Ok(file)
    }
}

impl Weights for SafetensorsWeights {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn is_wide(&self, name: &str) -> bool {
        let stored = self.tensors.get(name);
        stored.is_some_and(|stored| stored.dtype != "BF16")
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let Some(stored) = self.tensors.get(name) else {
            let paths: Vec<_> = self
                .files
                .iter()
                .map(|f| f.path().display().to_string())
                .collect();
            return Err(missing(name, expected, &paths.join(", ")));
        };
        check_shape(name, &stored.shape, expected)?;
        let dtype = match stored.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            other => {
                let message =
                    format!("tensor `{name}` is of type {other}, expected F32, BF16 or F16");
                return Err(ModelError::bad_file(stored.file.path(), message));
            }
        };
        let bytes = &stored.file[stored.bytes.clone()];
        Ok(Tensor::from_raw_buffer(
            bytes,
            dtype,
            &stored.shape,
            &Device::Cpu,
        )?)
    }
}

/// The shards that an index names, each with its tensors' names.
pub(crate) fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(ModelError::io(index))?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|error| ModelError::bad_file(index, format!("not an index of shards: {error}")))?;
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in parsed.weight_map {
        // The name becomes a path: it must stay in the folder.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !shard.ends_with(".safetensors") || !shard.chars().all(plain) || shard.starts_with('.') {
            let message =
                format!("tensor `{tensor}` is said to be in `{shard}`, not a file beside it");
            return Err(ModelError::bad_file(index, message));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(ModelError::bad_file(index, "weight_map is empty"));
    }
    Ok(shards)
}

type Tensors = BTreeMap<String, (String, Vec<usize>, Range<usize>)>;

/// Reads and checks a file's header: type, shape and place of every tensor.
fn header(file: &[u8]) -> Result<Tensors, String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!(
            "not a safetensors file: {} bytes, expected at least 8",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(format!(
            "not a safetensors file, or cut short: a header of {length} bytes is announced, {} follow",
            rest.len()
        ));
    }
    let (json, data) = rest.split_at(length as usize);
    let entries: BTreeMap<String, Value> = serde_json::from_slice(json)
        .map_err(|error| format!("the safetensors header is not a JSON object: {error}"))?;
    let start = 8 + json.len();
    let mut tensors = Tensors::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(entry)
            .map_err(|error| format!("tensor `{name}`: bad entry in the header: {error}"))?;
        let (from, to) = entry.data_offsets;
        if from > to || to > data.len() {
            return Err(format!(
                "tensor `{name}` of shape {:?} is at bytes {from} to {to} of the weights, but there \
                 are {}; the file is cut short",
                entry.shape,
                data.len()
            ));
        }
        let bits = match entry.dtype.as_str() {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" | "U16" => 16,
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
            other => return Err(format!("tensor `{name}` is of unknown type {other}")),
        };
        let elements = entry
            .shape
            .iter()
            .try_fold(1usize, |product, n| product.checked_mul(*n));
        if elements.and_then(|n| n.checked_mul(bits / 8)) != Some(to - from) {
            return Err(format!(
                "tensor `{name}` of type {} and shape {:?} has {} bytes, which do not fit",
                entry.dtype,
                entry.shape,
                to - from
            ));
        }
        tensors.insert(name, (entry.dtype, entry.shape, start + from..start + to));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file holding one F32 tensor `w` of shape [2, 3], and one I64 tensor `n`.
    fn file() -> Vec<u8> {
        let json = r#"{"__metadata__":{"format":"pt"},
            "w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
            "n":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        (0..6u8).for_each(|n| bytes.extend_from_slice(&f32::from(n).to_le_bytes()));
        bytes.extend_from_slice(&7i64.to_le_bytes());
        bytes
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsWeights> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsWeights::open(&path)
    }

    #[test]
    fn tensors_are_read_as_stored() {
        let weights = open(&file()).unwrap();
        assert_eq!(weights.names(), ["n", "w"]);
        let w = weights.load("w", &[2, 3]).unwrap();
        assert_eq!(w.to_vec2::<f32>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let weights = open(&file()).unwrap();
        let errors = [
            (
                weights.load("w", &[3, 2]).unwrap_err(),
                "`w` has shape [2, 3], expected [3, 2]",
            ),
            (
                weights.load("v", &[5]).unwrap_err(),
                "`v` is missing: expected shape [5] in ",
            ),
            (
                weights.load("n", &[1]).unwrap_err(),
                "`n` is of type I64, expected F32",
            ),
            (open(&file()[..file().len() - 20]).unwrap_err(), "cut short"),
            (open(&file()[..20]).unwrap_err(), "cut short"),
            (open(b"hello").unwrap_err(), "not a safetensors file"),
            (open(&[255; 64]).unwrap_err(), "not a safetensors file"),
        ];
        for (error, expected) in errors {
            assert!(error.to_string().contains(expected), "{error}");
        }
        let mut swapped = file();
        let at = swapped
            .windows(5)
            .position(|window| window == b"[2,3]")
            .unwrap();
        swapped[at + 3] = b'4';
        let error = open(&swapped).unwrap_err().to_string();
        assert!(
            error.contains("`w` of type F32 and shape [2, 4] has 24 bytes"),
            "{error}"
        );
    }

    #[test]
    fn shards_are_read_through_their_index_and_must_hold_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        std::fs::write(folder.path().join("a.safetensors"), file()).unwrap();
        let write =
            |map: &str| std::fs::write(&index, format!("{{\"weight_map\":{map}}}")).unwrap();

        write(r#"{"w": "a.safetensors"}"#);
        assert!(
            SafetensorsWeights::open_sharded(&index)
                .unwrap()
                .contains("w")
        );
        let cases = [
            (r#"{"x": "a.safetensors"}"#, "tensor `x` is not in it"),
            (r#"{"x": "../a.safetensors"}"#, "not a file beside it"),
            (r#"{"x": "b.safetensors"}"#, "b.safetensors: No such file"),
            ("{}", "weight_map is empty"),
            ("[]", "not an index"),
        ];
        for (map, expected) in cases {
            write(map);
            let error = SafetensorsWeights::open_sharded(&index)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{map}: {error}");
        }
    }

    proptest! {
        #[test]
        fn mutated_headers_never_panic(
            changes in prop::collection::vec((0..200usize, any::<u8>()), 1..8),
            cut in 0..300usize,
        ) {
            let mut bytes = file();
            bytes.truncate(cut.max(1));
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if let Ok(tensors) = header(&bytes) {
                for (_, _, range) in tensors.into_values() {
                    prop_assert!(range.end <= bytes.len());
                }
            }
        }
    }
}
