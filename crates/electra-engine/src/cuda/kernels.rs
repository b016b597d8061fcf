//! The kernels' sources and signatures, and their launch.
//!
//! A kernel's parameters are declared once, in [`kernels!`]: the launch takes exactly these, and a
//! test reads the `.cu` sources against them.

use super::device::Device;
use super::error::CudaError;
use std::ffi::c_void;
use std::marker::PhantomData;

/// Source files in the order in which they are compiled, as one program.
pub(super) const SOURCES: [(&str, &str); 10] = [
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("memory.cu", include_str!("kernels/memory.cu")),
    ("embedding.cu", include_str!("kernels/embedding.cu")),
    ("elementwise.cu", include_str!("kernels/elementwise.cu")),
    ("norm.cu", include_str!("kernels/norm.cu")),
    ("linear.cu", include_str!("kernels/linear.cu")),
    ("vocabulary.cu", include_str!("kernels/vocabulary.cu")),
    ("attention.cu", include_str!("kernels/attention.cu")),
    (
        "attention_tensor.cu",
        include_str!("kernels/attention_tensor.cu"),
    ),
    ("optimizer.cu", include_str!("kernels/optimizer.cu")),
];

/// All sources as one program; a compiler's message names file and line.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn program() -> String {
    let mut program = String::new();
    for (name, source) in SOURCES {
        program.push_str(&format!("#line 1 \"{name}\"\n{source}\n"));
    }
    program
}

/// Element type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    F32 = 0,
    Bf16 = 1,
}

impl Kind {
    pub(super) fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 => 2,
        }
    }
}

/// A row-major matrix on the device; twin of `Mat` in common.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Mat {
    pub(super) data: u64,
    /// Elements from row to row.
    pub(super) stride: u32,
    pub(super) kind: Kind,
}

impl Mat {
    /// No matrix, where a kernel takes one or none.
    pub(super) const NONE: Mat = Mat {
        data: 0,
        stride: 0,
        kind: Kind::F32,
    };

    /// A dense matrix of f32.
    pub(super) fn dense(data: u64, cols: usize) -> Mat {
        Mat {
            data,
            stride: cols as u32,
            kind: Kind::F32,
        }
    }

    /// From row `row` on.
    pub(super) fn rows_from(self, row: usize) -> Mat {
        let bytes = row * self.stride as usize * self.kind.bytes();
        Mat {
            data: self.data + bytes as u64,
            ..self
        }
    }
}

/// Whether kernels may read eight neighbouring columns of each of `mats` at once.
pub(super) fn wide(cols: usize, mats: &[Mat]) -> bool {
    let fits = |m: &Mat| m.data == 0 || m.data.is_multiple_of(16) && m.stride.is_multiple_of(8);
    cols.is_multiple_of(8) && mats.iter().all(fits)
}

/// A dropout; twin of `DropSpec` in common.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct DropSpec {
    pub(super) examples: u64,
    pub(super) positions: u64,
    pub(super) key: [u32; 2],
    pub(super) threshold: u32,
    pub(super) stream: u32,
    pub(super) scale: f32,
    pub(super) unused: u32,
}

impl DropSpec {
    /// Nothing is dropped.
    pub(super) const NONE: DropSpec = DropSpec {
        examples: 0,
        positions: 0,
        key: [0; 2],
        threshold: 0,
        stream: 0,
        scale: 1.0,
        unused: 0,
    };
}

/// A run of a flat array; twin of `Chunk` in optimizer.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) lr: f32,
    pub(super) decay: f32,
    pub(super) unused: u32,
}

/// An address on the device, of elements of one type; 0 where a kernel takes none.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Ptr<T>(pub(super) u64, PhantomData<T>);

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ptr<T> {}

impl<T> Ptr<T> {
    pub(super) const NONE: Ptr<T> = Ptr(0, PhantomData);

    pub(super) fn new(address: u64) -> Self {
        Ptr(address, PhantomData)
    }

    /// `elements` further on.
    pub(super) fn add(self, elements: usize) -> Self {
        Ptr::new(self.0 + (elements * size_of::<T>()) as u64)
    }
}

/// Something that a kernel takes, and its type in the sources.
pub(super) trait Argument {
    /// Its type in the sources, without `const`.
    const NAME: &'static str;
}

macro_rules! arguments {
    ($($ty:ty = $name:literal),*) => { $(impl Argument for $ty { const NAME: &'static str = $name; })* };
}
arguments!(
    u32 = "unsigned",
    u64 = "u64",
    f32 = "float",
    Mat = "Mat",
    DropSpec = "DropSpec",
    Ptr<f32> = "float*",
    Ptr<f64> = "double*",
    Ptr<u32> = "unsigned*",
    Ptr<u16> = "bf16*",
    Ptr<Chunk> = "Chunk*"
);

/// Blocks, threads a block, and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Shape {
    pub(super) fn new(grid: [usize; 3], threads: usize) -> Shape {
        Shape {
            grid: grid.map(|n| u32::try_from(n).expect("a grid that fits")),
            threads: threads as u32,
            shared: 0,
        }
    }

    /// A warp a row, eight a block.
    pub(super) fn rows(rows: usize) -> Shape {
        Shape::new([rows.div_ceil(8), 1, 1], 256)
    }

    /// A thread an element.
    pub(super) fn elements(count: usize) -> Shape {
        Shape::new([count.div_ceil(256), 1, 1], 256)
    }

    pub(super) fn with_shared(self, bytes: usize) -> Shape {
        Shape {
            shared: bytes as u32,
            ..self
        }
    }
}

/// A kernel's name and the types of its parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) parameters: &'static [&'static str],
}

macro_rules! kernels {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Index { $($name),* }

        /// Every kernel, by its number.
        pub(super) const KERNELS: &[Kernel] = &[$(Kernel {
            name: stringify!($name),
            parameters: &[$(<$ty as Argument>::NAME),*],
        }),*];

        $(pub(super) fn $name(device: &dyn Device, shape: Shape, $($arg: $ty),*) -> Result<(), CudaError> {
            if shape.grid.contains(&0) {
                return Ok(());
            }
            let mut arguments = [$((&raw const $arg).cast_mut().cast::<c_void>()),*];
            device.launch(Index::$name as usize, shape, &mut arguments)
        })*
    };
}

kernels! {
    copy_matrix_1(x: Mat, y: Mat, rows: u32, cols: u32);
    copy_matrix_8(x: Mat, y: Mat, rows: u32, cols: u32);
    zero_matrix(y: Mat, rows: u32, cols: u32);
    round_vector(x: Ptr<f32>, y: Ptr<u16>, len: u64);
    gather_rows(x: Mat, rows: Ptr<u32>, y: Mat, count: u32, cols: u32);
    scatter_add_rows(d: Mat, rows: Ptr<u32>, x: Mat, count: u32, cols: u32);
    put_ids(rows: Ptr<u32>, values: Ptr<u32>, y: Ptr<u32>, count: u32);
    not_equal(a: Ptr<u32>, b: Ptr<u32>, y: Ptr<u32>, count: u32);

    embed(
        table0: Ptr<f32>, ids0: Ptr<u32>, table1: Ptr<f32>, ids1: Ptr<u32>, table2: Ptr<f32>,
        ids2: Ptr<u32>, table3: Ptr<f32>, ids3: Ptr<u32>, tables: u32, y: Mat, rows: u32, cols: u32,
    );
    sort_count(
        ids: Ptr<u32>, order: Ptr<u32>, rows: u32, shift: u32, counts: Ptr<u32>, tiles: u32,
    );
    sort_scan(counts: Ptr<u32>, len: u32);
    sort_place(
        ids: Ptr<u32>, order: Ptr<u32>, rows: u32, shift: u32, counts: Ptr<u32>, tiles: u32,
        sorted: Ptr<u32>,
    );
    embed_sum_runs(
        ids: Ptr<u32>, order: Ptr<u32>, d: Mat, grads: Ptr<f32>, partials: Ptr<f32>, rows: u32,
        cols: u32,
    );
    embed_finish_runs(
        ids: Ptr<u32>, order: Ptr<u32>, partials: Ptr<f32>, grads: Ptr<f32>, rows: u32, cols: u32,
    );

    activation_1(kind: u32, z: Mat, d: Mat, y: Mat, rows: u32, cols: u32);
    activation_8(kind: u32, z: Mat, d: Mat, y: Mat, rows: u32, cols: u32);
    add_dropped_1(residual: Mat, x: Mat, drop: DropSpec, y: Mat, rows: u32, cols: u32);
    add_dropped_8(residual: Mat, x: Mat, drop: DropSpec, y: Mat, rows: u32, cols: u32);
    cross_entropy(logits: Mat, labels: Ptr<u32>, loss: Mat, rows: u32);
    cross_entropy_backward(logits: Mat, labels: Ptr<u32>, scale: f32, d: Mat, rows: u32);

    add_norm_any(
        residual: Mat, x: Mat, drop: DropSpec, sum: Mat, weight: Ptr<f32>, bias: Ptr<f32>, eps: f32,
        y: Mat, stats: Mat, rows: u32, cols: u32,
    );
    add_norm_256(
        residual: Mat, x: Mat, drop: DropSpec, sum: Mat, weight: Ptr<f32>, bias: Ptr<f32>, eps: f32,
        y: Mat, stats: Mat, rows: u32, cols: u32,
    );
    add_norm_512(
        residual: Mat, x: Mat, drop: DropSpec, sum: Mat, weight: Ptr<f32>, bias: Ptr<f32>, eps: f32,
        y: Mat, stats: Mat, rows: u32, cols: u32,
    );
    add_norm_768(
        residual: Mat, x: Mat, drop: DropSpec, sum: Mat, weight: Ptr<f32>, bias: Ptr<f32>, eps: f32,
        y: Mat, stats: Mat, rows: u32, cols: u32,
    );
    add_norm_1024(
        residual: Mat, x: Mat, drop: DropSpec, sum: Mat, weight: Ptr<f32>, bias: Ptr<f32>, eps: f32,
        y: Mat, stats: Mat, rows: u32, cols: u32,
    );
    norm_backward_any(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat, rows: u32,
        cols: u32,
    );
    norm_backward_256(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat, rows: u32,
        cols: u32,
    );
    norm_backward_512(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat, rows: u32,
        cols: u32,
    );
    norm_backward_768(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat, rows: u32,
        cols: u32,
    );
    norm_backward_1024(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat, rows: u32,
        cols: u32,
    );

    norm_sums_256(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat,
        partials: Ptr<f32>, rows: u32, cols: u32,
    );
    norm_sums_512(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat,
        partials: Ptr<f32>, rows: u32, cols: u32,
    );
    norm_sums_768(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat,
        partials: Ptr<f32>, rows: u32, cols: u32,
    );
    norm_sums_1024(
        x: Mat, stats: Mat, weight: Ptr<f32>, dy: Mat, dx: Mat, drop: DropSpec, dropped: Mat,
        partials: Ptr<f32>, rows: u32, cols: u32,
    );
    activation_sums(kind: u32, z: Mat, d: Mat, partials: Ptr<f32>, rows: u32, cols: u32);

    column_sum_1(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    column_sum_8(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    column_norm_1(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    column_norm_8(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    column_weighted_1(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    column_weighted_8(
        d: Mat, x: Mat, stats: Mat, which: u32, partials: Ptr<f32>, rows: u32, cols: u32,
    );
    add_partials(
        partials: Ptr<f32>, count: u32, out0: Ptr<f32>, out1: Ptr<f32>, out2: Ptr<f32>, cols: u32,
    );
    thin_forward(
        x: Mat, weight: Ptr<f32>, bias: Ptr<f32>, y: Mat, rows: u32, inputs: u32, outputs: u32,
    );
    thin_backward_input(
        dy: Mat, weight: Ptr<f32>, dx: Mat, accumulate: u32, rows: u32, inputs: u32, outputs: u32,
    );
    product(
        a: Mat, a_transposed: u32, b: Mat, b_transposed: u32, c: Mat, bias: Ptr<f32>,
        accumulate: u32, m: u32, n: u32, k: u32,
    );

    vocabulary_rows(
        logits: Ptr<f32>, stride: u32, entries: u32, targets: Ptr<u32>, log_prob: Mat, log_sum: Mat,
        predicted: Ptr<u32>,
    );
    vocabulary_gradient(
        logits: Ptr<f32>, stride: u32, entries: u32, targets: Ptr<u32>, log_sum: Mat, scale: f32,
        d: Mat,
    );
    vocabulary_sample(
        logits: Ptr<f32>, stride: u32, entries: u32, scale: f32, exclude: Ptr<u32>, key0: u32,
        key1: u32, stream: u32, examples: Ptr<u32>, positions: Ptr<u32>, rows: Ptr<u32>,
        sampled: Ptr<u32>,
    );

    attention_any(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, y: Mat, log_sum: Mat, size: u32,
        scale: f32,
    );
    attention_delta(y: Mat, dy: Mat, delta: Ptr<f32>, rows: u32, heads: u32, size: u32);
    attention_any_dq(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat, delta: Ptr<f32>,
        dy: Mat, dq: Mat, heads: u32, size: u32, scale: f32,
    );
    attention_any_dkv(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat, delta: Ptr<f32>,
        dy: Mat, dk: Mat, dv: Mat, heads: u32, size: u32, scale: f32,
    );

    attention_tensor_32(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, y: Mat,
        log_sum: Mat, scale: f32,
    );
    attention_tensor_dq_32(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dq: Mat, heads: u32, scale: f32,
    );
    attention_tensor_dkv_32(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dk: Mat, dv: Mat, heads: u32, scale: f32,
    );
    attention_tensor_64(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, y: Mat,
        log_sum: Mat, scale: f32,
    );
    attention_tensor_dq_64(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dq: Mat, heads: u32, scale: f32,
    );
    attention_tensor_dkv_64(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dk: Mat, dv: Mat, heads: u32, scale: f32,
    );
    attention_tensor_96(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, y: Mat,
        log_sum: Mat, scale: f32,
    );
    attention_tensor_dq_96(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dq: Mat, heads: u32, scale: f32,
    );
    attention_tensor_dkv_96(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dk: Mat, dv: Mat, heads: u32, scale: f32,
    );
    attention_tensor_128(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, y: Mat,
        log_sum: Mat, scale: f32,
    );
    attention_tensor_dq_128(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dq: Mat, heads: u32, scale: f32,
    );
    attention_tensor_dkv_128(
        q: Mat, k: Mat, v: Mat, cu_seqlens: Ptr<u32>, tiles: u32, drop: DropSpec, log_sum: Mat,
        delta: Ptr<f32>, dy: Mat, dk: Mat, dv: Mat, heads: u32, scale: f32,
    );

    sum_matrix(x: Mat, rows: u32, cols: u32, partials: Ptr<f64>);
    sum_column(x: Mat, rows: u32, partials: Ptr<f64>);
    sum_squares(flat: Ptr<f32>, chunks: Ptr<Chunk>, partials: Ptr<f64>);
    adamw(
        params: Ptr<f32>, rounded: Ptr<u16>, grads: Ptr<f32>, first: Ptr<f32>, second: Ptr<f32>,
        chunks: Ptr<Chunk>, grad_scale: f32, beta1: f32, beta2: f32, epsilon: f32,
    );
    adam_direction(
        params: Ptr<f32>, grads: Ptr<f32>, first: Ptr<f32>, second: Ptr<f32>, chunks: Ptr<Chunk>,
        grad_scale: f32, beta1: f32, beta2: f32, epsilon: f32,
    );
    descend(params: Ptr<f32>, rounded: Ptr<u16>, directions: Ptr<f32>, chunks: Ptr<Chunk>);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and parameter types of each kernel in a source, macros that make kernels unfolded.
    fn signatures(source: &str) -> Vec<(String, Vec<String>)> {
        let source = source.replace('\\', " ");
        let mut found = Vec::new();
        for part in source.split("extern \"C\" __global__ void ").skip(1) {
            let part = part.trim_start();
            let (name, rest) = part.split_once('(').expect("a parameter list");
            // Bounds on threads stand between result and name.
            let (name, rest) = match name.trim() {
                "__launch_bounds__" => {
                    let (_, rest) = rest.split_once(')').expect("the end of bounds");
                    let (name, rest) = rest.split_once('(').expect("a parameter list");
                    (name.trim(), rest)
                }
                name => (name, rest),
            };
            let (list, _) = rest.split_once(')').expect("the end of the list");
            let types: Vec<String> = list
                .split(',')
                .map(|parameter| {
                    let words: Vec<&str> = parameter
                        .split_whitespace()
                        .filter(|w| *w != "const")
                        .collect();
                    words[..words.len() - 1].concat()
                })
                .collect();
            if name == "NAME" {
                // The macro's uses follow it: `MACRO(name, ...)`.
                let before = source.split("#define ").skip(1).find(|d| d.contains(list));
                let before = before.expect("the macro");
                let (macro_name, _) = before.split_once('(').expect("the macro's parameters");
                for line in source.lines() {
                    if let Some(uses) = line.strip_prefix(&format!("{macro_name}(")) {
                        let (name, _) = uses.split_once(',').expect("its first argument");
                        found.push((name.trim().to_owned(), types.clone()));
                    }
                }
            } else {
                found.push((name.to_owned(), types));
            }
        }
        found
    }

    #[test]
    fn every_kernel_of_the_sources_is_launched_with_its_own_parameters() {
        let mut found: Vec<(String, Vec<String>)> = SOURCES
            .iter()
            .flat_map(|(_, source)| signatures(source))
            .collect();
        let mut declared: Vec<(String, Vec<String>)> = KERNELS
            .iter()
            .map(|k| {
                let types = k.parameters.iter().map(|&t| t.to_owned()).collect();
                (k.name.to_owned(), types)
            })
            .collect();
        found.sort();
        declared.sort();
        assert_eq!(found.len(), declared.len(), "{found:?}\n{declared:?}");
        for (found, declared) in found.iter().zip(&declared) {
            assert_eq!(found, declared);
        }
    }

    #[test]
    fn twins_have_the_layout_of_the_sources() {
        assert_eq!(size_of::<Mat>(), 16);
        assert_eq!(size_of::<DropSpec>(), 40);
        assert_eq!(size_of::<Chunk>(), 24);
    }
}
