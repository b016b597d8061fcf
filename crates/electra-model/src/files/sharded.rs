//! Weights in several files: the `….index.json` beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::error::FileError;
use super::tensors::TensorFile;

#[derive(Deserialize)]
struct Index {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

fn read(path: &Path) -> Result<Index, FileError> {
    let text = std::fs::read_to_string(path).map_err(FileError::read(path))?;
    serde_json::from_str(&text)
        .map_err(|e| FileError::damaged(path, format!("it is no index of shards ({e})")))
}

/// The names of the shards that an index needs.
pub(crate) fn shard_names(path: &Path) -> Result<BTreeSet<String>, FileError> {
    Ok(read(path)?.weight_map.into_values().collect())
}

/// Open every shard named in an index; the tensors of all of them as one file.
pub(crate) fn open(path: &Path) -> Result<TensorFile, FileError> {
    let index = read(path)?;
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut shards = Vec::new();
    let mut wanted = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        let number = match numbers.get(shard.as_str()) {
            Some(number) => *number,
            None => {
                // Only a plain name: an index must not reach outside its folder.
                let mut parts = Path::new(shard).components();
                let plain =
                    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
                if !plain || shard.ends_with(".json") {
                    return Err(FileError::damaged(
                        path,
                        format!("{shard:?} is no name of a shard"),
                    ));
                }
                shards.push(TensorFile::open(path.with_file_name(shard))?);
                numbers.insert(shard, shards.len() - 1);
                shards.len() - 1
            }
        };
        wanted.insert(tensor.clone(), number);
    }
    TensorFile::join(path, shards, &wanted)
}
