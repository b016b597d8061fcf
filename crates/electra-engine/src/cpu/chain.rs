//! What happens to rows of tokens between two attentions, a block of them at a time, so that
//! nothing in between leaves the cache: products whose results are taken up panel by panel,
//! residual sums with their norm, activations.

use super::elementwise::activate;
use super::gemm::{Form, PANEL, Product};
use super::isa::{Isa, Kernel};
use super::linear::Left;
use super::norm;
use super::params::{CpuParams, Weight};
use super::simd::{LANES, Simd};
use crate::backend::{Activation, LayerParams, LayerSpec, Norm};

/// Words of a block's widest intermediate values: with a panel of weights they stay in the L2 cache.
const BLOCK_WORDS: usize = 132 << 10;
/// Rows of a block, at least and at most.
const MIN_ROWS: usize = 24;
const MAX_ROWS: usize = 132;

/// Rows that are taken through a chain at once, at most: as many as the L2 cache allows, since the
/// weights of a layer come by once for each block.
pub(super) fn block_rows(isa: Isa, form: Form, spec: &LayerSpec) -> usize {
    let multiple = isa.row_multiple(form);
    let rows = (BLOCK_WORDS / spec.intermediate.max(1)).clamp(MIN_ROWS, MAX_ROWS);
    (rows / multiple).max(1) * multiple
}

/// A norm's parameters where kernels read them.
#[derive(Clone, Copy)]
pub(super) struct NormWeights<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl<'a> NormWeights<'a> {
    pub(super) fn new(params: &'a CpuParams, norm: &Norm) -> Self {
        NormWeights {
            weight: params.slice(norm.weight),
            bias: params.slice(norm.bias),
            eps: norm.eps,
        }
    }
}

/// A layer's parameters where kernels read them.
#[derive(Clone, Copy)]
pub(super) struct LayerWeights<'a> {
    pub(super) qkv: Weight,
    pub(super) attention_output: Weight,
    pub(super) attention_norm: NormWeights<'a>,
    pub(super) intermediate: Weight,
    pub(super) output: Weight,
    pub(super) output_norm: NormWeights<'a>,
}

impl super::Cpu {
    /// A layer's parameters in a form.
    pub(super) fn layer_weights<'a>(
        &mut self,
        params: &'a CpuParams,
        layer: &LayerParams,
        form: Form,
    ) -> LayerWeights<'a> {
        LayerWeights {
            qkv: self.weight(params, &layer.qkv, form),
            attention_output: self.weight(params, &layer.attention_output, form),
            attention_norm: NormWeights::new(params, &layer.attention_norm),
            intermediate: self.weight(params, &layer.intermediate, form),
            output: self.weight(params, &layer.output, form),
            output_norm: NormWeights::new(params, &layer.output_norm),
        }
    }
}

/// `to = x Wᵀ + b` for a block of rows; `to` has `stride` words a row.
///
/// # Safety
/// The left side and the weight can be read, and nobody else uses the result meanwhile.
pub(super) unsafe fn multiply_rows(
    isa: Isa,
    left: Left,
    weight: &Weight,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: as the caller says.
    unsafe { product(left, weight, 0..weight.panels.count(), to, stride).run(isa, weight.form) };
}

fn product(
    left: Left,
    weight: &Weight,
    panels: std::ops::Range<usize>,
    to: *mut f32,
    stride: usize,
) -> Product {
    Product {
        rows: left.rows,
        depth: left.units,
        a: left.data,
        row_step: left.row_step,
        unit_step: 1,
        b: weight.panels,
        first_unit: 0,
        panels,
        c: to,
        c_stride: stride,
        start: weight.start(&left),
    }
}

/// `x Wᵀ + b` for a block of rows, panel by panel: `finish` gets the first column of each and a
/// tile of `PANEL` words a row, of which as many count as there are columns left.
///
/// # Safety
/// The left side and the weight can be read.
pub(super) unsafe fn by_panels(
    isa: Isa,
    left: Left,
    weight: &Weight,
    tile: &mut [f32],
    mut finish: impl FnMut(usize, Tile),
) {
    assert!(tile.len() >= left.rows * PANEL);
    let cols = weight.panels.cols;
    for panel in 0..weight.panels.count() {
        let first = panel * PANEL;
        let to = tile.as_mut_ptr().wrapping_sub(first);
        // SAFETY: as the caller says; the panel's columns land in the tile.
        unsafe { product(left, weight, panel..panel + 1, to, PANEL).run(isa, weight.form) };
        let tile = Tile {
            values: &mut tile[..left.rows * PANEL],
            stride: PANEL,
            cols: PANEL.min(cols - first),
        };
        finish(first, tile);
    }
}

/// Results for a block of rows.
pub(super) struct Tile<'a> {
    /// `stride` words a row.
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
    /// Columns in use.
    pub(super) cols: usize,
}

/// Takes a tile to its place, through an activation if there is one.
pub(super) struct StoreTile<'a> {
    pub(super) tile: Tile<'a>,
    pub(super) activation: Option<(Activation, Accuracy)>,
    /// Form of the result: f32, or pairs of bf16.
    pub(super) form: Form,
    /// Word of the first row and column.
    pub(super) to: *mut f32,
    /// Words from row to row.
    pub(super) stride: usize,
}

/// How closely an activation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accuracy {
    /// As closely as f32 can.
    F32,
    /// As closely as products of bf16 or bytes can tell.
    Bf16,
}

impl Accuracy {
    /// What products of this form can tell.
    pub(super) fn of(form: Form) -> Self {
        match form {
            Form::F32 => Accuracy::F32,
            Form::Bf16 | Form::Int8 => Accuracy::Bf16,
        }
    }
}

impl StoreTile<'_> {
    /// # Safety
    /// Nobody else uses the result meanwhile.
    pub(super) unsafe fn run_on(self, isa: Isa) {
        isa.run_in(self.form, self);
    }

    #[inline(always)]
    fn value<S: Simd>(&self, x: S::V) -> S::V {
        match self.activation {
            None => x,
            Some((activation, accuracy)) => activate::<S>(activation, accuracy, x).0,
        }
    }
}

impl Kernel for StoreTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (r, row) in self.tile.values.chunks_exact(self.tile.stride).enumerate() {
            let row = &row[..self.tile.cols];
            let to = self.to.wrapping_add(r * self.stride);
            // SAFETY: the caller of `run_on` says that this row of the result is ours.
            let to = unsafe { std::slice::from_raw_parts_mut(to, self.form.units(self.tile.cols)) };
            if self.form == Form::Bf16 {
                for (x, to) in row.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
                    let first = self.value::<S>(S::read(x));
                    let second = self.value::<S>(S::read(&x[x.len().min(LANES)..]));
                    S::write(to, S::row_bf16(first, second));
                }
            } else {
                for (x, to) in row.chunks(LANES).zip(to.chunks_mut(LANES)) {
                    S::write(to, self.value::<S>(S::read(x)));
                }
            }
        }
    }
}

/// `x = norm(x + y)`, row by row; both have `x`'s columns.
pub(super) struct AddNorm<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) y: &'a mut [f32],
    pub(super) norm: NormWeights<'a>,
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let cols = self.norm.weight.len();
        for (x, y) in self
            .x
            .chunks_exact_mut(cols)
            .zip(self.y.chunks_exact_mut(cols))
        {
            for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
                let sum = S::add(S::read(x), S::read(y));
                S::write(y, sum);
            }
            norm::Forward {
                x: y,
                weight: self.norm.weight,
                bias: self.norm.bias,
                eps: self.norm.eps,
                y: x,
            }
            .run::<S>();
        }
    }
}
