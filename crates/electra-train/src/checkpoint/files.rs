//! The three files of one checkpoint.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Checkpoint, CheckpointError};
use electra_model::files::atomic::{WriteError, sync_directory};

const ARRAYS: &str = "arrays.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;
/// Values converted at a time: 1 MiB of bytes.
const CHUNK_VALUES: usize = 1 << 18;

/// Contents of `manifest.json`. It protects the other two files, and each of its own fields is
/// compared with something, so that an altered manifest is noticed too.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    arrays: Vec<ArrayEntry>,
    /// BLAKE3 of `state.json`, in hexadecimal.
    state_blake3: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArrayEntry {
    name: String,
    /// Values, not bytes.
    len: usize,
    /// BLAKE3 of the little-endian bytes, in hexadecimal.
    blake3: String,
}

/// Why a checkpoint could not be read.
pub(super) enum ReadFailure {
    /// Truncated or altered; an older one may do.
    Damaged(String),
    /// Of a model with other arrays.
    OtherModel(String),
    /// No fault of the checkpoint's.
    Io(io::Error),
}

impl ReadFailure {
    pub(super) fn into_error(self, dir: &Path) -> CheckpointError {
        let path = dir.to_path_buf();
        match self {
            Self::Damaged(detail) => CheckpointError::Damaged { path, detail },
            Self::OtherModel(detail) => CheckpointError::OtherModel { path, detail },
            Self::Io(source) => CheckpointError::Read { path, source },
        }
    }

    fn of_io(file: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Damaged(format!("{file} is missing")),
            io::ErrorKind::UnexpectedEof => Self::Damaged(format!("{file} is cut short")),
            io::ErrorKind::InvalidData
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory => {
                Self::Damaged(format!("{file} cannot be read: {error}"))
            }
            // A disk or a network that fails now may be well again at the next start.
            _ => Self::Io(error),
        }
    }
}

/// Writes the files of a checkpoint into a new directory `dir` and syncs them and it.
pub(super) fn write(
    dir: &Path,
    step: u64,
    arrays: &[(&str, &[f32])],
    state: &Value,
) -> Result<(), WriteError> {
    let state_bytes = state.to_string().into_bytes();
    let header = safetensors_header(arrays.iter().map(|(name, values)| (*name, values.len())));
    let values: usize = arrays.iter().map(|(_, values)| values.len()).sum();
    let needed = (header.len() + 4 * values + state_bytes.len() + 4096) as u64;
    let fail = |path: &Path, e| WriteError::new(path, e).with_needed(needed);

    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(dir, e)),
        _ => fs::create_dir(dir).map_err(|e| fail(dir, e))?,
    }
    let mut manifest = Manifest {
        format: FORMAT,
        step,
        arrays: Vec::with_capacity(arrays.len()),
        state_blake3: blake3::hash(&state_bytes).to_hex().to_string(),
    };
    write_synced(dir, ARRAYS, |file| {
        file.write_all(&header)?;
        let mut chunk = Vec::with_capacity(4 * CHUNK_VALUES);
        for (name, values) in arrays {
            let mut hasher = blake3::Hasher::new();
            for part in values.chunks(CHUNK_VALUES) {
                chunk.clear();
                chunk.extend(part.iter().flat_map(|value| value.to_le_bytes()));
                hasher.update(&chunk);
                file.write_all(&chunk)?;
            }
            let blake3 = hasher.finalize().to_hex().to_string();
            manifest.arrays.push(ArrayEntry {
                name: (*name).to_owned(),
                len: values.len(),
                blake3,
            });
        }
        Ok(())
    })
    .map_err(|e| fail(&dir.join(ARRAYS), e))?;
    write_synced(dir, STATE, |file| file.write_all(&state_bytes))
        .map_err(|e| fail(&dir.join(STATE), e))?;
    write_synced(dir, MANIFEST, |file| {
        file.write_all(&serde_json::to_vec(&manifest)?)
    })
    .map_err(|e| fail(&dir.join(MANIFEST), e))?;
    sync_directory(dir).map_err(|e| fail(dir, e))
}

fn write_synced(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = File::create_new(dir.join(name))?;
    fill(&mut file)?;
    file.sync_all()
}

/// Length prefix and JSON of a safetensors file that holds flat f32 arrays in this order.
fn safetensors_header<'a>(arrays: impl Iterator<Item = (&'a str, usize)>) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut begin = 0usize;
    for (name, len) in arrays {
        // A damaged manifest may say any length.
        let end = begin.saturating_add(len.saturating_mul(4));
        let name = Value::from(name);
        entries.push(format!(
            r#"{name}:{{"dtype":"F32","shape":[{len}],"data_offsets":[{begin},{end}]}}"#
        ));
        begin = end;
    }
    let mut json = format!("{{{}}}", entries.join(","));
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header
}

/// A checkpoint whose manifest and state are checked and whose arrays come next in `file`.
struct Opened {
    manifest: Manifest,
    state: Value,
    file: File,
}

fn open(dir: &Path) -> Result<Opened, ReadFailure> {
    let bytes = fs::read(dir.join(MANIFEST)).map_err(|e| ReadFailure::of_io(MANIFEST, e))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|e| ReadFailure::Damaged(format!("{MANIFEST} does not parse: {e}")))?;
    if manifest.format != FORMAT {
        return Err(ReadFailure::Damaged(format!(
            "{MANIFEST} says format {}, this version reads format {FORMAT}",
            manifest.format
        )));
    }
    if dir.file_name() != Some(super::directory_name(manifest.step).as_ref()) {
        return Err(ReadFailure::Damaged(format!(
            "{MANIFEST} says step {}, the directory's name does not",
            manifest.step
        )));
    }
    let bytes = fs::read(dir.join(STATE)).map_err(|e| ReadFailure::of_io(STATE, e))?;
    if blake3::hash(&bytes).to_hex().as_str() != manifest.state_blake3 {
        return Err(ReadFailure::Damaged(format!(
            "{STATE} does not match its checksum"
        )));
    }
    let state = serde_json::from_slice(&bytes)
        .map_err(|e| ReadFailure::Damaged(format!("{STATE} does not parse: {e}")))?;

    let failed = |e| ReadFailure::of_io(ARRAYS, e);
    let expected = safetensors_header(manifest.arrays.iter().map(|a| (a.name.as_str(), a.len)));
    let mut file = File::open(dir.join(ARRAYS)).map_err(failed)?;
    let found_bytes = file.metadata().map_err(failed)?.len();
    let expected_bytes = (manifest.arrays.iter()).try_fold(expected.len() as u64, |sum, a| {
        sum.checked_add(4u64.checked_mul(a.len as u64)?)
    });
    if Some(found_bytes) != expected_bytes {
        return Err(ReadFailure::Damaged(format!(
            "{ARRAYS} is {found_bytes} bytes long, {MANIFEST} says {}",
            expected_bytes.map_or("more than fits".to_owned(), |bytes| bytes.to_string()),
        )));
    }
    let mut header = vec![0; expected.len()];
    file.read_exact(&mut header).map_err(failed)?;
    if header != expected {
        return Err(ReadFailure::Damaged(format!(
            "the header of {ARRAYS} does not match {MANIFEST}"
        )));
    }
    Ok(Opened {
        manifest,
        state,
        file,
    })
}

/// Reads the next array of the file into `values` and compares its checksum.
fn read_array(file: &mut File, entry: &ArrayEntry, values: &mut [f32]) -> Result<(), ReadFailure> {
    let mut chunk = vec![0; 4 * CHUNK_VALUES.min(values.len())];
    let mut hasher = blake3::Hasher::new();
    for part in values.chunks_mut(CHUNK_VALUES) {
        let bytes = &mut chunk[..4 * part.len()];
        file.read_exact(bytes)
            .map_err(|e| ReadFailure::of_io(ARRAYS, e))?;
        hasher.update(bytes);
        let (quads, _) = bytes.as_chunks::<4>();
        for (value, quad) in part.iter_mut().zip(quads) {
            *value = f32::from_le_bytes(*quad);
        }
    }
    if hasher.finalize().to_hex().as_str() != entry.blake3 {
        return Err(ReadFailure::Damaged(format!(
            "array `{}` in {ARRAYS} does not match its checksum",
            entry.name
        )));
    }
    Ok(())
}

/// Reads a checkpoint into memory of its own.
pub(super) fn read_owned(dir: &Path) -> Result<Checkpoint, ReadFailure> {
    let Opened {
        manifest,
        state,
        mut file,
    } = open(dir)?;
    let mut arrays = Vec::with_capacity(manifest.arrays.len());
    for entry in &manifest.arrays {
        // `open` compared the sum of the lengths with the size of the file.
        let mut values = vec![0.0; entry.len];
        read_array(&mut file, entry, &mut values)?;
        arrays.push((entry.name.clone(), values));
    }
    Ok(Checkpoint {
        step: manifest.step,
        arrays,
        state,
    })
}

/// Reads a checkpoint into `arrays`, which must be those of the checkpoint in any order. Returns
/// the state. On failure the values in `arrays` are unspecified.
pub(super) fn read_into(
    dir: &Path,
    arrays: &mut [(&str, &mut [f32])],
) -> Result<Value, ReadFailure> {
    let Opened {
        manifest,
        state,
        mut file,
    } = open(dir)?;
    if let Some((name, _)) =
        (arrays.iter()).find(|(name, _)| !manifest.arrays.iter().any(|entry| entry.name == *name))
    {
        return Err(ReadFailure::OtherModel(format!("it has no array `{name}`")));
    }
    for entry in &manifest.arrays {
        let Some((_, values)) = arrays.iter_mut().find(|(name, _)| *name == entry.name) else {
            return Err(ReadFailure::OtherModel(format!(
                "it has an array `{}`, this run has none",
                entry.name
            )));
        };
        if values.len() != entry.len {
            return Err(ReadFailure::OtherModel(format!(
                "array `{}` has {} values there, {} here",
                entry.name,
                entry.len,
                values.len()
            )));
        }
        read_array(&mut file, entry, values)?;
    }
    Ok(state)
}
