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
    let tensors: Vec<NamedTensor> = tensors.into_iter().collect();
    let mut about = Vec::with_capacity(tensors.len());
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
        about.push(TensorHeader {
            name: t.name.into(),
            dtype: Dtype::F32,
            shape: t.shape.into(),
        });
    }
    let mut bytes = Vec::with_capacity(1 << 16);
    write_tensors(path, &about, |i, out| {
        for values in tensors[i].values.chunks(1 << 14) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            out.write_all(&bytes).map_err(FileError::write(path))?;
        }
        Ok(())
    })
}

/// What the header of a file says of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorHeader {
    pub name: String,
    /// f32, bf16 or i8.
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Writes a `.safetensors` of any types; `fill` writes the bytes of the tensor of a number, as many
/// as its header says, and is asked for them in order.
///
/// Errors: a name twice; `fill`'s; the disk.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[TensorHeader],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<(), FileError>,
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
    let mut header = BTreeMap::new();
    header.insert("__metadata__", Entry::About { format: "pt" });
    let mut end = 0usize;
    for t in tensors {
        let start = end;
        end += t.dtype.size() * t.shape.iter().product::<usize>();
        let entry = Entry::Tensor {
            dtype: match t.dtype {
                Dtype::Bf16 => "BF16",
                Dtype::I8 => "I8",
                _ => "F32",
            },
            shape: &t.shape,
            data_offsets: [start, end],
        };
        if header.insert(&t.name, entry).is_some() {
            let problem = format!("it would hold tensor {} twice", t.name);
            return Err(FileError::unsupported(path, problem));
        }
    }
    let mut text = serde_json::to_vec(&header).map_err(|e| FileError::write(path)(e.into()))?;
    // The format asks for data aligned to eight bytes; spaces are part of the JSON.
    text.resize(text.len().next_multiple_of(8), b' ');
    // Writing stops with an error of the system's kind; ours is kept beside it.
    let mut failed = None;
    let written = replace_file(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        (0..tensors.len())
            .try_for_each(|i| fill(i, out))
            .map_err(|error| {
                failed = Some(error);
                std::io::ErrorKind::Other.into()
            })
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, written) => written.map_err(|error| FileError::write(path)(error.source)),
    }
}
