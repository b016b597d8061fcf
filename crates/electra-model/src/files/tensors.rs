//! One way to read the tensors of a model, whatever file form they are in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::dtype::{Dtype, first_not_finite};
use super::error::FileError;
use super::mapped::MappedFile;
use super::{pytorch, safetensors_file, sharded};

const MOST_DIMENSIONS: usize = 8;

/// Where a tensor lies in a mapped file. Built only through [`Stored::checked`], which has seen
/// that every element is inside `file`.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Index into [`TensorFile::files`].
    pub file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    strides: Vec<usize>,
    /// First byte of element 0 in the file.
    start: usize,
    elements: usize,
}

impl Stored {
    /// A tensor whose storage is the `room` bytes from `base` on, its first element `offset`
    /// elements in. `Err` says what contradicts what.
    pub fn checked(
        dtype: Dtype,
        shape: Vec<usize>,
        strides: Option<Vec<usize>>,
        offset: usize,
        base: usize,
        room: usize,
    ) -> Result<Self, String> {
        let outside = || {
            format!(
                "its shape {shape:?} ({dtype}) does not fit into the {room} bytes stored for it"
            )
        };
        if shape.len() > MOST_DIMENSIONS {
            return Err(format!("it has {} dimensions; no weight has", shape.len()));
        }
        let elements = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .ok_or_else(outside)?;
        let strides = match strides {
            Some(strides) if strides.len() == shape.len() => strides,
            Some(strides) => {
                return Err(format!("it has shape {shape:?} but strides {strides:?}"));
            }
            None => contiguous(&shape).ok_or_else(outside)?,
        };
        // An expanded tensor (stride 0) could claim any number of elements of a few bytes.
        if elements
            .checked_mul(dtype.size())
            .is_none_or(|bytes| bytes > room)
        {
            return Err(outside());
        }
        let mut last = offset;
        if elements > 0 {
            for (d, s) in shape.iter().zip(&strides) {
                last = (d - 1)
                    .checked_mul(*s)
                    .and_then(|steps| last.checked_add(steps))
                    .ok_or_else(outside)?;
            }
            let end = last
                .checked_add(1)
                .and_then(|n| n.checked_mul(dtype.size()));
            if end.is_none_or(|end| end > room) {
                return Err(outside());
            }
        }
        let start = if elements == 0 {
            base
        } else {
            base + offset * dtype.size()
        };
        Ok(Self {
            file: 0,
            dtype,
            shape,
            strides,
            start,
            elements,
        })
    }
}

fn contiguous(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(shape[i].max(1))?;
    }
    Some(strides)
}

/// The tensors of a file or of a set of shards, memory-mapped; nothing is read before
/// [`TensorFile::read_f32`].
///
/// Reads safetensors, PyTorch's `.bin` in its zip form and in the one before PyTorch 1.6, and
/// the `….index.json` of either's shards. Pickles are interpreted by a reader that knows only
/// what a state dict needs and never runs anything.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
}

impl TensorFile {
    /// Open a weights file or an `….index.json`. The form is found from the content.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        if path.extension().is_some_and(|e| e == "json") {
            return sharded::open(path);
        }
        let file = MappedFile::open(path)?;
        let tensors = if file.bytes().starts_with(b"PK\x03\x04") {
            pytorch::read_zip(&file)?
        } else if file.bytes().starts_with(&[0x80]) && pytorch::is_legacy(file.bytes()) {
            pytorch::read_legacy(&file)?
        } else {
            safetensors_file::read(&file)?
        };
        Ok(Self {
            path: path.into(),
            files: vec![file],
            tensors,
        })
    }

    /// Several files as one; `wanted` says which shard each tensor should come from.
    pub(crate) fn join(
        path: &Path,
        shards: Vec<Self>,
        wanted: &BTreeMap<String, usize>,
    ) -> Result<Self, FileError> {
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (number, shard) in shards.into_iter().enumerate() {
            let before = files.len();
            files.extend(shard.files);
            for (name, mut stored) in shard.tensors {
                if wanted.get(&name) == Some(&number) {
                    stored.file += before;
                    tensors.insert(name, stored);
                }
            }
        }
        let lost: Vec<String> = wanted
            .keys()
            .filter(|n| !tensors.contains_key(*n))
            .cloned()
            .collect();
        if !lost.is_empty() {
            let problem = format!("its shards lack {}", super::error::listed(&lost, "tensor"));
            return Err(FileError::damaged(path, problem));
        }
        Ok(Self {
            path: path.into(),
            files,
            tensors,
        })
    }

    /// The file this was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// A tensor's element type.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    /// A tensor's number of elements, never more than its file has room for.
    pub fn elements(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|t| t.elements)
    }

    /// The length of all its files, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|file| file.bytes().len() as u64)
            .sum()
    }

    /// The tensor and its bytes from its first element on.
    fn find(&self, name: &str) -> Result<(&Stored, &[u8]), FileError> {
        let found = self
            .tensors
            .get(name)
            .and_then(|t| Some((t, self.files.get(t.file)?.bytes().get(t.start..)?)));
        found.ok_or_else(|| FileError::MissingTensors {
            path: self.path.clone(),
            names: vec![name.into()],
        })
    }

    /// Read a tensor into `out` (row-major, as long as the tensor), converted to f32.
    ///
    /// Errors: no such tensor; `out` of another length. NaN is not an error here, see
    /// [`TensorFile::read_finite`].
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), FileError> {
        let (tensor, bytes) = self.find(name)?;
        self.check_len(name, tensor, out.len())?;
        gather(tensor.dtype, &tensor.shape, &tensor.strides, bytes, out);
        Ok(())
    }

    fn check_len(&self, name: &str, tensor: &Stored, wanted: usize) -> Result<(), FileError> {
        if wanted == tensor.elements {
            return Ok(());
        }
        Err(FileError::BufferSize {
            path: self.path.clone(),
            tensor: name.into(),
            found: tensor.elements,
            wanted,
        })
    }

    /// [`TensorFile::read_f32`], and an error that names the first NaN or infinity.
    pub fn read_finite(&self, name: &str, out: &mut [f32]) -> Result<(), FileError> {
        self.read_all(vec![Read {
            name,
            scales: None,
            out,
        }])
    }

    /// Reads several tensors, large ones by several threads.
    ///
    /// Errors: those of [`TensorFile::read_finite`], of the first tensor that has one.
    pub(crate) fn read_all(&self, reads: Vec<Read>) -> Result<(), FileError> {
        let names: Vec<&str> = reads.iter().map(|read| read.name).collect();
        let mut pieces = Vec::new();
        for (number, read) in reads.into_iter().enumerate() {
            let (tensor, bytes) = self.find(read.name)?;
            self.check_len(read.name, tensor, read.out.len())?;
            pieces.extend(Piece::of(number, tensor, bytes, read.scales, read.out));
        }
        match read_pieces(pieces) {
            None => Ok(()),
            Some(bad) => Err(FileError::NotFinite {
                path: self.path.clone(),
                tensor: names[bad.number].into(),
                index: bad.index,
                value: bad.value,
            }),
        }
    }
}

/// A tensor to be read.
pub(crate) struct Read<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Of a matrix in bytes, what each row is multiplied with.
    pub scales: Option<&'a [f32]>,
    /// As long as the tensor.
    pub out: &'a mut [f32],
}

/// Elements that a thread converts at once.
const PIECE: usize = 1 << 18;
/// Elements that are converted and looked at while they are in the L1 cache.
const BLOCK: usize = 1 << 12;
/// Threads beyond which memory is no faster.
const MOST_THREADS: usize = 8;

/// Adjacent elements of a tensor.
struct Piece<'a> {
    /// Number of the tensor.
    number: usize,
    /// Number of the first element.
    first: usize,
    tensor: &'a Stored,
    /// From the first element on.
    bytes: &'a [u8],
    /// Of whole rows in bytes.
    scales: Option<&'a [f32]>,
    out: &'a mut [f32],
}

/// An element that is no number.
struct Bad {
    number: usize,
    index: usize,
    value: f32,
}

impl<'a> Piece<'a> {
    fn of(
        number: usize,
        tensor: &'a Stored,
        bytes: &'a [u8],
        scales: Option<&'a [f32]>,
        out: &'a mut [f32],
    ) -> Vec<Self> {
        let row = scales
            .map_or(1, |scales| out.len() / scales.len().max(1))
            .max(1);
        let size = if contiguous(&tensor.shape).as_ref() == Some(&tensor.strides) {
            PIECE.next_multiple_of(row)
        } else {
            out.len().max(1)
        };
        let cut = |(i, out): (usize, &'a mut [f32])| Piece {
            number,
            first: i * size,
            tensor,
            bytes: bytes
                .get(i * size * tensor.dtype.size()..)
                .unwrap_or_default(),
            scales: scales
                .and_then(|scales| scales.get(i * size / row..(i * size + out.len()) / row)),
            out,
        };
        out.chunks_mut(size).enumerate().map(cut).collect()
    }

    /// Reads the piece; gives the first element that is no number.
    fn read(self) -> Option<Bad> {
        let Stored {
            dtype,
            shape,
            strides,
            ..
        } = self.tensor;
        let strided = contiguous(shape).as_ref() != Some(strides);
        if strided {
            gather(*dtype, shape, strides, self.bytes, self.out);
        }
        let row = self
            .scales
            .map_or(BLOCK, |scales| self.out.len() / scales.len().max(1));
        let row = row.max(1);
        for (i, out) in self.out.chunks_mut(row).enumerate() {
            if !strided {
                let bytes = self.bytes.get(i * row * dtype.size()..).unwrap_or_default();
                dtype.decode_run(bytes, out);
            }
            if let Some(scale) = self.scales.and_then(|scales| scales.get(i)) {
                out.iter_mut().for_each(|x| *x *= scale);
            }
            if let Some(at) = first_not_finite(out) {
                return Some(Bad {
                    number: self.number,
                    index: self.first + i * row + at,
                    value: out[at],
                });
            }
        }
        None
    }
}

/// Reads pieces; gives the first element that is no number.
fn read_pieces(pieces: Vec<Piece>) -> Option<Bad> {
    let elements: usize = pieces.iter().map(|piece| piece.out.len()).sum();
    let threads = match elements / PIECE {
        0 => 1,
        worth => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(worth)
            .min(MOST_THREADS),
    };
    let queue = Mutex::new(pieces.into_iter());
    let first: Mutex<Option<Bad>> = Mutex::new(None);
    let work = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(piece) = next else { break };
            if let Some(bad) = piece.read() {
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                let at = |bad: &Bad| (bad.number, bad.index);
                if first.as_ref().is_none_or(|old| at(&bad) < at(old)) {
                    *first = Some(bad);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Copy a strided tensor row-major; as deep as it has dimensions, which [`Stored::checked`] bounds.
fn gather(dtype: Dtype, shape: &[usize], strides: &[usize], bytes: &[u8], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    if contiguous(shape).as_deref() == Some(strides) {
        return dtype.decode_run(bytes, out);
    }
    let (Some((&d, shape)), Some((&stride, strides))) =
        (shape.split_first(), strides.split_first())
    else {
        return;
    };
    if shape.is_empty() {
        for (i, x) in out.iter_mut().enumerate() {
            *x = dtype.decode(bytes.get(i * stride * dtype.size()..).unwrap_or_default());
        }
        return;
    }
    let inner = out.len() / d.max(1);
    for (i, rows) in out.chunks_exact_mut(inner.max(1)).enumerate() {
        let from = i * stride * dtype.size();
        gather(
            dtype,
            shape,
            strides,
            bytes.get(from..).unwrap_or_default(),
            rows,
        );
    }
}
