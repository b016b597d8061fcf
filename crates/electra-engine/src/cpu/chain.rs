//! What happens to rows of tokens between two attentions, a block of them at a time, so that
//! nothing in between leaves the cache: products with their epilogue panel by panel,
//! residual sums with their norm, activations.

use super::epilogue::{Epilogue, PanelEpilogue, TILE_ROWS, prefetch_rows};
use super::gemm::{BESIDE_WORDS, Form, PANEL, Panels, Product, Start};
use super::isa::{Isa, Kernel};
use super::linear::{Left, Rounded};
use super::norm;
use super::params::{CpuParams, Weight};
use super::simd::{LANES, Simd};
use super::view::part;
use crate::backend::{LayerParams, LayerSpec, Norm};

/// A block's widest intermediate values: with a panel of weights they stay in the L2 cache, of which
/// each core with a matrix unit has 2 MB.
const BLOCK_VALUES: usize = 132 << 10;
const BLOCK_VALUES_OF_TILES: usize = 512 << 10;
/// Rows of a block, at least and at most.
const MIN_ROWS: usize = 24;
const MAX_ROWS: usize = 132;
/// Rows of a tile where products of the matrix unit do not fill its registers, in whole blocks; the
/// vectors' own are [`Epilogue::ROWS`].
const TILE_ROWS_OF_TILES: usize = 2 * LANES;

/// Rows that are taken through a chain at once, at most: as many as the L2 cache allows, since the
/// weights of a layer come by once for each block.
pub(super) fn block_rows(isa: Isa, form: Form, spec: &LayerSpec) -> usize {
    let multiple = isa.row_multiple(form);
    let values = match isa.multiplies_tiles(form) {
        true => BLOCK_VALUES_OF_TILES,
        false => BLOCK_VALUES,
    };
    let rows = (values / spec.intermediate.max(1)).clamp(MIN_ROWS, MAX_ROWS);
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

/// # Panics
/// If a layer's parameters are not as large as `spec` says.
pub(super) fn check_sizes(spec: &LayerSpec, layer: &LayerParams) {
    let (hidden, intermediate) = (spec.hidden, spec.intermediate);
    for (linear, rows, cols) in [
        (&layer.qkv, 3 * hidden, hidden),
        (&layer.attention_output, hidden, hidden),
        (&layer.intermediate, intermediate, hidden),
        (&layer.output, hidden, intermediate),
    ] {
        let weight = linear.weight;
        assert!(weight.rows == rows && weight.cols == cols && linear.bias.len() == rows);
    }
    for norm in [&layer.attention_norm, &layer.output_norm] {
        assert!(norm.weight.len() == hidden && norm.bias.len() == hidden);
    }
}

impl super::Cpu {
    /// A layer's parameters in a form.
    ///
    /// # Panics
    /// If they are not as large as `spec` says: kernels go by that.
    pub(super) fn layer_weights<'a>(
        &mut self,
        params: &'a CpuParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        form: Form,
    ) -> LayerWeights<'a> {
        check_sizes(spec, layer);
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
    let product = product(left, weight.panels, weight.start(&left), to, stride);
    // SAFETY: as the caller says.
    unsafe { product.run(isa, weight.form) };
}

/// A left side by all panels of a right side; `to` has `stride` words a row.
pub(super) fn product(
    left: Left,
    panels: Panels,
    start: Start,
    to: *mut f32,
    stride: usize,
) -> Product {
    Product {
        rows: left.rows,
        depth: left.units,
        a: left.data,
        row_step: left.row_step,
        unit_step: 1,
        b: panels,
        first_unit: 0,
        panels: 0..panels.count(),
        c: to,
        c_stride: stride,
        start,
        ahead: 0..left.units * PANEL,
    }
}

/// The right side of [`by_panels`].
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// A weight and its bias.
    Weight(&'a Weight),
    /// Panels alone.
    Panels(Panels),
}

impl Right<'_> {
    fn panels(self) -> Panels {
        match self {
            Right::Weight(weight) => weight.panels,
            Right::Panels(panels) => panels,
        }
    }

    fn start(self, left: &Left) -> Start {
        match self {
            Right::Weight(weight) => weight.start(left),
            Right::Panels(_) => Start::Zero,
        }
    }
}

/// Words of scratch that [`by_panels`] needs.
pub(super) fn tile_words(isa: Isa) -> usize {
    match isa.has_tiles() {
        true => BESIDE_WORDS.max(TILE_ROWS_OF_TILES * PANEL),
        false => TILE_ROWS * PANEL,
    }
}

/// A product for a block of rows whose epilogue is applied panel by panel, some rows at a time.
///
/// # Safety
/// Both sides and the bias can be read, and nobody else uses the places of `epilogue`.
///
/// # Panics
/// If these are not as large as the results.
pub(super) unsafe fn by_panels<F: Epilogue>(
    isa: Isa,
    left: Left,
    right: Right,
    tile: &mut [f32],
    epilogue: F,
) {
    const { assert!(F::ROWS <= TILE_ROWS, "a tile has no room for so many") };
    let panels = right.panels();
    assert!(tile.len() >= tile_words(isa) && epilogue.fits(left.rows, panels.cols));
    if let Some(to) = epilogue.as_they_are() {
        let all = product(left, panels, right.start(&left), to.data, to.stride);
        // SAFETY: as the caller says; the place is large enough.
        return unsafe { all.run(isa, left.form) };
    }
    let whole = product(left, panels, right.start(&left), tile.as_mut_ptr(), PANEL);
    // SAFETY: as the caller says; the tile is large enough.
    let done = unsafe { whole.run_beside(isa, left.form, epilogue) };
    if done == left.rows {
        return;
    }
    let (rows, left) = (left.rows - done, left.part(done..left.rows));
    let size = match isa.multiplies_tiles(left.form) {
        true => TILE_ROWS_OF_TILES,
        false => F::ROWS,
    };
    let parts = rows.div_ceil(size);
    let prefetch = |panel: usize, index: usize| {
        let (part, column) = (part(rows, size, index), panel * PANEL);
        let cols = PANEL.min(panels.cols - column);
        prefetch_rows(&epilogue, done + part.start..done + part.end, column, cols);
    };
    prefetch(0, 0);
    for panel in 0..panels.count() {
        let column = panel * PANEL;
        for index in 0..parts {
            match index + 1 {
                next if next < parts => prefetch(panel, next),
                _ if panel + 1 < panels.count() => prefetch(panel + 1, 0),
                _ => {}
            }
            let rows = part(rows, size, index);
            let left = left.part(rows.clone());
            let to = tile.as_mut_ptr().wrapping_sub(column);
            let words = left.units * PANEL;
            let product = Product {
                panels: panel..panel + 1,
                ahead: words * index / parts..words * (index + 1) / parts,
                ..product(left, panels, right.start(&left), to, PANEL)
            };
            // SAFETY: as the caller says; the panel's columns land in the tile.
            unsafe { product.run(isa, left.form) };
            isa.run_in(
                epilogue.form(),
                PanelEpilogue {
                    epilogue,
                    values: &tile[..rows.len() * PANEL],
                    stride: PANEL,
                    cols: PANEL.min(panels.cols - column),
                    first: [done + rows.start, column],
                },
            );
        }
    }
}

/// `x = norm(x + y)`, row by row; both have `x`'s columns. A row is rounded for the product that reads it
/// next while it is in the L1 cache.
pub(super) struct AddNorm<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) y: &'a [f32],
    pub(super) norm: NormWeights<'a>,
    /// None where the product reads f32, or there is none.
    pub(super) rounded: Option<Rounded<'a>>,
}

impl AddNorm<'_> {
    pub(super) fn run_on(self, isa: Isa) {
        match self.rounded.as_ref().map(|rounded| rounded.left().form) {
            Some(Form::Half) => isa.run_half(self),
            _ => isa.run(self),
        }
    }
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let NormWeights { weight, bias, eps } = self.norm;
        let rows = self.x.chunks_exact_mut(weight.len());
        for (row, (x, y)) in rows.zip(self.y.chunks_exact(weight.len())).enumerate() {
            for (x, y) in x.chunks_mut(LANES).zip(y.chunks(LANES)) {
                let sum = S::add(S::read(x), S::read(y));
                S::write(x, sum);
            }
            norm::forward_in_place::<S>(x, weight, bias, eps);
            if let Some(rounded) = &mut self.rounded {
                rounded.write::<S>(row, x);
            }
        }
    }
}
