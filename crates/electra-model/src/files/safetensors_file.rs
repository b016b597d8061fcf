//! The safetensors form: an eight-byte header length, a JSON header, then the tensors.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype as Theirs;
use serde::Serialize;

use super::atomic::replace_file;
use super::dtype::Dtype;
use super::error::FileError;
use super::mapped::MappedFile;
use super::tensors::Stored;

/// Read the header. Every tensor is inside the file, which is exactly as long as it says.
pub(crate) fn read(file: &MappedFile) -> Result<BTreeMap<String, Stored>, FileError> {
    let path = file.path();
    let bytes = file.bytes();
    let declared = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    if declared.is_none_or(|n| n < 2) || bytes.get(8).is_some_and(|b| *b != b'{') {
        return Err(FileError::unsupported(
            path,
            "it is neither a safetensors file nor a PyTorch checkpoint; \
             give a model.safetensors or a pytorch_model.bin",
        ));
    }
    let (header, about) = SafeTensors::read_metadata(bytes).map_err(|e| {
        FileError::damaged(
            path,
            format!("its header and its {} bytes disagree ({e})", bytes.len()),
        )
    })?;
    let data = 8 + header;
    let mut tensors = BTreeMap::new();
    for (name, info) in about.tensors() {
        let Some(dtype) = ours(info.dtype) else {
            return Err(FileError::unsupported(
                path,
                format!(
                    "tensor {name} has element type {}; save it as float32",
                    info.dtype
                ),
            ));
        };
        let (from, to) = info.data_offsets;
        let stored = Stored::checked(dtype, info.shape.clone(), None, 0, data + from, to - from)
            .map_err(|problem| FileError::damaged(path, format!("tensor {name}: {problem}")))?;
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

fn ours(dtype: Theirs) -> Option<Dtype> {
    Some(match dtype {
        Theirs::F64 => Dtype::F64,
        Theirs::F32 => Dtype::F32,
        Theirs::F16 => Dtype::F16,
        Theirs::BF16 => Dtype::Bf16,
        Theirs::I64 => Dtype::I64,
        Theirs::I32 => Dtype::I32,
        Theirs::I16 => Dtype::I16,
        Theirs::I8 => Dtype::I8,
        Theirs::U8 => Dtype::U8,
        Theirs::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct NamedTensor<'a> {
    /// Its name in the state dict.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its values, row-major; as many as the shape says.
    pub values: &'a [f32],
}

/// Write a `.safetensors` of f32 tensors as transformers does (`{"format": "pt"}`), aside, synced
/// and renamed: whatever happens, `path` holds the old file or the new one.
///
/// Errors: a name twice; a shape that does not fit its values; the disk.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = NamedTensor<'a>>,
) -> Result<(), FileError> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Entry<'a> {
        About {
            format: &'a str,
        },
        Tensor {
            dtype: &'a str,
            shape: &'a [usize],
            data_offsets: [usize; 2],
        },
    }
    let tensors: Vec<NamedTensor> = tensors.into_iter().collect();
    let mut header = BTreeMap::new();
    header.insert("__metadata__", Entry::About { format: "pt" });
    let mut end = 0usize;
    for t in &tensors {
        let elements = t.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(t.values.len()) {
            return Err(FileError::BufferSize {
                path: path.into(),
                tensor: t.name.into(),
                found: elements.unwrap_or(usize::MAX),
                wanted: t.values.len(),
            });
        }
        let start = end;
        end += 4 * t.values.len();
        let entry = Entry::Tensor {
            dtype: "F32",
            shape: t.shape,
            data_offsets: [start, end],
        };
        if header.insert(t.name, entry).is_some() {
            let problem = format!("it would hold tensor {} twice", t.name);
            return Err(FileError::unsupported(path, problem));
        }
    }
    let mut text = serde_json::to_vec(&header).map_err(|e| FileError::write(path)(e.into()))?;
    // The format asks for data aligned to eight bytes; spaces are part of the JSON.
    text.resize(text.len().next_multiple_of(8), b' ');
    replace_file(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        let mut chunk = Vec::with_capacity(1 << 16);
        for t in &tensors {
            for values in t.values.chunks(1 << 14) {
                chunk.clear();
                chunk.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                out.write_all(&chunk)?;
            }
        }
        Ok(())
    })
    .map_err(|error| FileError::write(path)(error.source))
}
