//! PyTorch's `.bin` files: a zip archive since PyTorch 1.6, a run of pickles before.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::dtype::Dtype;
use super::error::FileError;
use super::mapped::MappedFile;
use super::pickle::{self, Pickle, PickleError, Value};
use super::tensors::Stored;

/// `0x1950a86a20f9469cfc6c`, the first pickle of the legacy form, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const BIG_ENDIAN: &str = "it was written on a big-endian machine; save it again as safetensors";

/// Whether `bytes` begin as the legacy form does.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64)];
    matches!(pickle::load(head), Ok(p) if p.root() == &Value::BigInt(MAGIC.to_vec()))
}

/// Read the directory of a zip-form checkpoint.
pub(crate) fn read_zip(file: &MappedFile) -> Result<BTreeMap<String, Stored>, FileError> {
    let path = file.path();
    let damaged = |e: &dyn std::fmt::Display| {
        FileError::damaged(path, format!("its archive does not open ({e})"))
    };
    let mut archive = ZipArchive::new(Cursor::new(file.bytes())).map_err(|e| damaged(&e))?;
    // Storage key to the bytes of the mapped file.
    let mut storages: HashMap<String, Range<usize>> = HashMap::new();
    let mut program = None;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|e| damaged(&e))?;
        let (name, size) = (entry.name().to_string(), entry.size());
        let Some((_, inner)) = name.split_once('/') else {
            continue;
        };
        let range = (|| {
            let start = usize::try_from(entry.data_start()?).ok()?;
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            (end <= file.bytes().len()).then_some(start..end)
        })();
        let Some(range) = range else {
            return Err(FileError::damaged(
                path,
                format!("its entry {name} ends beyond the file"),
            ));
        };
        if inner == "data.pkl" || inner.starts_with("data/") {
            if entry.compression() != CompressionMethod::Stored {
                let problem = format!(
                    "its entry {name} is compressed, which PyTorch never does; save it again"
                );
                return Err(FileError::unsupported(path, problem));
            }
            if inner == "data.pkl" {
                program = Some(range);
            } else {
                storages.insert(inner["data/".len()..].to_string(), range);
            }
        } else if inner == "byteorder" {
            let mut order = String::new();
            entry
                .by_ref()
                .take(16)
                .read_to_string(&mut order)
                .map_err(|e| damaged(&e))?;
            if order != "little" {
                return Err(FileError::unsupported(path, BIG_ENDIAN));
            }
        }
    }
    let Some(program) = program else {
        return Err(FileError::unsupported(
            path,
            "it is a zip archive but no PyTorch checkpoint: it has no data.pkl",
        ));
    };
    let pickle = pickle::load(&file.bytes()[program]).map_err(|e| refused(path, e))?;
    tensors_of(path, &pickle, |storage| {
        let range = storages.get(storage.key)?;
        Some((range.start, range.len()))
    })
}

/// Read the pickles of a legacy checkpoint: magic number, version, system, the state dict and
/// the storages' keys; then per key a count of eight bytes and the elements.
pub(crate) fn read_legacy(file: &MappedFile) -> Result<BTreeMap<String, Stored>, FileError> {
    let path = file.path();
    let bytes = file.bytes();
    let mut at = 0;
    let mut next = || {
        let pickle =
            pickle::load(bytes.get(at..).unwrap_or_default()).map_err(|e| refused(path, e))?;
        at += pickle.length;
        Ok::<_, FileError>((pickle, at))
    };
    next()?;
    next()?;
    let (system, _) = next()?;
    if let Value::Dict(facts) = system.root() {
        let little = facts
            .iter()
            .find(|(k, _)| system.str(*k) == Some("little_endian"));
        if little.is_some_and(|(_, v)| system.get(*v) == &Value::Int(0)) {
            return Err(FileError::unsupported(path, BIG_ENDIAN));
        }
    }
    let (state, _) = next()?;
    let (keys, mut at) = next()?;
    let Value::List(keys_in_order) = keys.root() else {
        return Err(FileError::damaged(
            path,
            "the list of its storages is missing",
        ));
    };
    // The element types stand in the state dict only, so the sizes are known storage by storage.
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    for (_, tensor) in state_dict(path, &state)? {
        if let Some(storage) = storage_of(&state, tensor.storage) {
            sizes.insert(storage.key, storage.dtype.size());
        }
    }
    let mut storages: HashMap<&str, (usize, usize)> = HashMap::new();
    for id in keys_in_order {
        let (Some(key), Some(count)) = (
            keys.str(*id),
            bytes.get(at..).and_then(|b| b.first_chunk::<8>()),
        ) else {
            return Err(FileError::damaged(path, "it ends before its last storage"));
        };
        // A storage that no tensor of the state dict uses cannot be stepped over.
        let Some(size) = sizes.get(key) else {
            return Err(FileError::unsupported(
                path,
                format!("nothing says the element type of its storage {key}"),
            ));
        };
        let room = usize::try_from(u64::from_le_bytes(*count))
            .ok()
            .and_then(|n| n.checked_mul(*size));
        let end = room.and_then(|room| at.checked_add(8 + room));
        match (room, end) {
            (Some(room), Some(end)) if end <= bytes.len() => {
                storages.insert(key, (at + 8, room));
                at = end;
            }
            _ => {
                return Err(FileError::damaged(
                    path,
                    format!("it ends in the middle of its storage {key}"),
                ));
            }
        }
    }
    tensors_of(path, &state, |storage| {
        let (start, room) = *storages.get(storage.key)?;
        let skipped = storage
            .offset
            .checked_mul(storage.dtype.size())
            .filter(|s| *s <= room)?;
        Some((start + skipped, room - skipped))
    })
}

fn refused(path: &Path, error: PickleError) -> FileError {
    match error {
        PickleError::Damaged(problem) => FileError::damaged(path, problem),
        PickleError::Unsupported(problem) => FileError::unsupported(path, problem),
    }
}

/// A storage by its persistent id: `("storage", type, key, place, elements[, view])`.
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    /// Elements to skip of it.
    offset: usize,
}

struct Tensor {
    storage: pickle::Id,
    offset: pickle::Id,
    shape: pickle::Id,
    strides: pickle::Id,
}

fn storage_of(pickle: &Pickle, id: pickle::Id) -> Option<Storage<'_>> {
    let Value::Persistent(id) = pickle.get(id) else {
        return None;
    };
    let parts = pickle.tuple(*id)?;
    let Value::Global(kind) = pickle.get(*parts.get(1)?) else {
        return None;
    };
    let dtype = match kind.as_str() {
        "torch.DoubleStorage" => Dtype::F64,
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::Bf16,
        "torch.LongStorage" => Dtype::I64,
        "torch.IntStorage" => Dtype::I32,
        "torch.ShortStorage" => Dtype::I16,
        "torch.CharStorage" => Dtype::I8,
        "torch.ByteStorage" => Dtype::U8,
        "torch.BoolStorage" => Dtype::Bool,
        _ => return None,
    };
    let key = pickle.str(*parts.get(2)?)?;
    // A sixth part, (key of the view, offset, length), was written before PyTorch 0.4.
    let offset = match parts.get(5).and_then(|view| pickle.tuple(*view)) {
        Some(view) => pickle.size(*view.get(1)?)?,
        None => 0,
    };
    Some(Storage { dtype, key, offset })
}

/// The named tensors of a checkpoint: of its root, or of the dict in it that is the state dict.
fn state_dict<'a>(path: &Path, pickle: &'a Pickle) -> Result<Vec<(&'a str, Tensor)>, FileError> {
    let mut entries = match pickle.root() {
        Value::Dict(entries) => entries,
        _ => return Err(FileError::unsupported(path, "it holds no dict of tensors")),
    };
    let nested = entries.iter().find(|(key, _)| {
        matches!(
            pickle.str(*key),
            Some("state_dict" | "model_state_dict" | "model")
        )
    });
    if let Some(Value::Dict(inner)) = nested.map(|(_, value)| pickle.get(*value)) {
        entries = inner;
    }
    let named = entries
        .iter()
        .filter_map(|(key, value)| match pickle.get(*value) {
            Value::Tensor {
                storage,
                offset,
                shape,
                strides,
            } => {
                let (storage, offset, shape, strides) = (*storage, *offset, *shape, *strides);
                Some((
                    pickle.str(*key)?,
                    Tensor {
                        storage,
                        offset,
                        shape,
                        strides,
                    },
                ))
            }
            _ => None,
        });
    Ok(named.collect())
}

/// `place` gives a storage's first byte and number of bytes.
fn tensors_of(
    path: &Path,
    pickle: &Pickle,
    place: impl Fn(&Storage) -> Option<(usize, usize)>,
) -> Result<BTreeMap<String, Stored>, FileError> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in state_dict(path, pickle)? {
        let damaged =
            |problem: String| FileError::damaged(path, format!("tensor {name}: {problem}"));
        let storage = storage_of(pickle, tensor.storage)
            .ok_or_else(|| damaged("its storage is not described".into()))?;
        let parts = (
            pickle.size(tensor.offset),
            pickle.sizes(tensor.shape),
            pickle.sizes(tensor.strides),
        );
        let (Some(offset), Some(shape), Some(strides)) = parts else {
            return Err(damaged("its shape is no tuple of sizes".into()));
        };
        let (base, room) = place(&storage)
            .ok_or_else(|| damaged(format!("its storage {} is missing", storage.key)))?;
        let stored = Stored::checked(storage.dtype, shape, Some(strides), offset, base, room)
            .map_err(damaged)?;
        tensors.insert(name.to_string(), stored);
    }
    Ok(tensors)
}
