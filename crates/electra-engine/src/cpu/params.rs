//! Parameters as the operators read them: values and packed weights.

use super::Cpu;
use super::buffer::Buffer;
use super::gemm::{Form, Panels, Start};
use super::isa::Isa;
use super::linear::Left;
use super::pack::{Columns, Source, pack_panel, pack_panel_int8};
use super::pool::Pool;
use super::view::Shared;
use crate::backend::Linear;
use crate::params::{ParamLayout, ParamView};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// What a weight is packed for.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// `x Wᵀ`.
    Forward,
    /// `dy W`.
    Backward,
    /// `x Wᵀ` in bytes.
    Bytes,
}

impl Side {
    const ALL: [Side; 3] = [Side::Forward, Side::Backward, Side::Bytes];

    /// Which side of the weight becomes columns.
    fn columns(self) -> Columns {
        match self {
            Side::Backward => Columns::Columns,
            Side::Forward | Side::Bytes => Columns::Rows,
        }
    }

    /// The form, where others' is `form`; units of depth; columns.
    fn shape(self, form: Form, weight: ParamView) -> (Form, usize, usize) {
        let form = match self {
            Side::Bytes => Form::Int8,
            _ => form,
        };
        let (depth, cols) = match self.columns() {
            Columns::Columns => (weight.rows, weight.cols),
            Columns::Rows => (weight.cols, weight.rows),
        };
        (form, form.units(depth), cols)
    }
}

/// A packed right side.
#[derive(Debug)]
pub(crate) struct Packed {
    form: Form,
    panels: Panels,
    /// Of bytes, the scale of each column, then the sum of each.
    scales: Buffer,
}

impl Packed {
    pub(crate) fn panels(&self) -> Panels {
        self.panels
    }

    /// Packs panel `index` anew.
    ///
    /// # Safety
    /// The source can be read, and nobody else uses the panel meanwhile.
    unsafe fn pack(&self, isa: Isa, source: Source, columns: Columns, index: usize) {
        // SAFETY: as the caller says.
        unsafe {
            match self.form {
                Form::Int8 => {
                    let scales = self.scales.as_ptr();
                    let sums = scales.add(self.panels.cols);
                    pack_panel_int8(source, self.panels(), index, scales, sums);
                }
                form => pack_panel(isa, form, source, columns, self.panels(), index),
            }
        }
    }
}

/// A weight as right side of `x Wᵀ`, with its bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    pub(super) form: Form,
    pub(super) panels: Panels,
    bias: Shared,
    scales: Shared,
    sums: Shared,
}

impl Weight {
    /// What its product starts from, given the left side.
    pub(super) fn start(&self, left: &Left) -> Start {
        assert!(left.form == self.form);
        match self.form {
            Form::Int8 => Start::Scaled {
                rows: left.ranges,
                scales: self.scales.0,
                sums: self.sums.0,
                bias: self.bias.0,
            },
            _ => Start::Bias(self.bias.0),
        }
    }
}

/// The packed forms of a weight; each is made when first asked for, so that a use pays for its own.
#[derive(Debug)]
struct PackedLinear {
    view: ParamView,
    /// By [`Side`].
    packed: [OnceLock<Packed>; 3],
    /// Where in the memory for a side its panels lie.
    offsets: [usize; 3],
    /// Whether it is multiplied in bytes where layers are.
    in_bytes: bool,
}

impl PackedLinear {
    /// What it is packed for in inference, where layers are computed in `form`.
    fn inference_side(&self, form: Form) -> Side {
        match form {
            Form::Int8 if self.in_bytes => Side::Bytes,
            _ => Side::Forward,
        }
    }

    /// What is packed, and which side of the weight became its columns.
    fn made(&self) -> impl Iterator<Item = (&Packed, Columns)> {
        let sides = self.packed.iter().zip(Side::ALL);
        sides.filter_map(|(packed, side)| Some((packed.get()?, side.columns())))
    }
}

/// The values of parameters: all of a layout, or those that operators read as they are.
#[derive(Debug)]
struct Values {
    kept: Buffer,
    /// The ranges of the layout that are left out, in order.
    gaps: Vec<Gap>,
}

#[derive(Debug)]
struct Gap {
    range: Range<usize>,
    /// Elements that are left out up to its end.
    left_out: usize,
}

impl Values {
    /// Room for the values of a layout but for those of `left_out`, in the order of their places.
    fn without(layout: &ParamLayout, left_out: &[ParamView]) -> Self {
        let mut sum = 0;
        let gaps = left_out.iter().map(|view| {
            sum += view.len();
            Gap {
                range: view.range(),
                left_out: sum,
            }
        });
        let gaps = gaps.collect();
        Values {
            kept: Buffer::zeroed(layout.len() - sum),
            gaps,
        }
    }

    /// Where the values of a range of the layout are.
    fn place(&self, range: Range<usize>) -> Range<usize> {
        let next = self
            .gaps
            .partition_point(|gap| gap.range.end <= range.start);
        let left_out = next
            .checked_sub(1)
            .map_or(0, |last| self.gaps[last].left_out);
        let gap = self.gaps.get(next);
        assert!(
            gap.is_none_or(|gap| range.end <= gap.range.start),
            "of a weight for inference only what products read is kept"
        );
        range.start - left_out..range.end - left_out
    }
}

/// Parameters on the CPU.
#[derive(Debug)]
pub struct CpuParams {
    values: Values,
    linears: Vec<PackedLinear>,
    /// The panels of all weights, by [`Side`], side by side: large pages fit, and what is not packed
    /// takes no memory.
    panels: [Buffer; 3],
    /// What products are computed in.
    form: Form,
    index: HashMap<ParamView, usize>,
    /// Panels to pack after a change: linear, which of its forms, panel.
    jobs: Vec<(usize, usize, usize)>,
}

impl CpuParams {
    /// Parameters with these values, for products in `form`; nothing is packed yet.
    pub(super) fn new(layout: &ParamLayout, form: Form, values: &[f32]) -> Self {
        let mut params = Self::empty(layout, form, &[]);
        params.values.kept.as_mut_slice().copy_from_slice(values);
        params
    }

    /// Room for parameters, of which nothing but packed forms is kept of the weights `left_out`.
    pub(super) fn empty(layout: &ParamLayout, form: Form, left_out: &[ParamView]) -> Self {
        let mut ends = [0; 3];
        let linears = layout.linears().iter().map(|&view| PackedLinear {
            view,
            packed: [const { OnceLock::new() }; 3],
            offsets: Side::ALL.map(|side| {
                let (_, depth, cols) = side.shape(form, view);
                let end = &mut ends[side as usize];
                *end += Panels::words(depth, cols);
                *end - Panels::words(depth, cols)
            }),
            in_bytes: layout.in_bytes().contains(&view),
        });
        let linears = linears.collect();
        let index = layout.linears().iter().enumerate().map(|(i, &v)| (v, i));
        CpuParams {
            values: Values::without(layout, left_out),
            linears,
            panels: ends.map(Buffer::zeroed),
            form,
            index: index.collect(),
            jobs: Vec::new(),
        }
    }

    /// All values, in the layout's order.
    ///
    /// # Panics
    /// Parameters for inference.
    pub(super) fn master(&self) -> &Buffer {
        assert!(
            self.values.gaps.is_empty(),
            "parameters for inference are neither trained nor read back"
        );
        &self.values.kept
    }

    /// Says whether the products of the linear layer with this weight stay in bf16 or f32 where the
    /// other layers' are computed in bytes. [`ParamLayout::keep_exact`] says so from the start, and
    /// alone for parameters for inference.
    ///
    /// # Panics
    /// A weight that the layout does not register as linear.
    pub fn keep_exact(&mut self, weight: ParamView, exact: bool) {
        let index = self.index[&weight];
        self.linears[index].in_bytes = !exact;
    }

    pub(super) fn slice(&self, view: ParamView) -> &[f32] {
        &self.values.kept.as_slice()[self.values.place(view.range())]
    }

    fn linear(&self, weight: ParamView) -> &PackedLinear {
        let index = self.index.get(&weight);
        &self.linears[*index.expect("a weight that is multiplied with is registered as linear")]
    }

    fn source(&self, view: ParamView) -> Source {
        source(self.slice(view), view)
    }

    /// The values of a range of the layout of which nothing is left out.
    pub(super) fn kept_mut(&mut self, range: Range<usize>) -> &mut [f32] {
        let place = self.values.place(range);
        &mut self.values.kept.as_mut_slice()[place]
    }

    /// Number of values that are kept.
    #[cfg(test)]
    pub(super) fn kept_len(&self) -> usize {
        self.values.kept.len()
    }

    /// Packs again the weights that overlap one of `changed`.
    pub(super) fn repack(&mut self, pool: &mut Pool, isa: Isa, changed: &[ParamView]) {
        let overlap = |a: ParamView| changed.iter().any(|b| a.overlaps(b));
        self.jobs.clear();
        for (i, linear) in self.linears.iter().enumerate() {
            if overlap(linear.view) {
                for (which, (packed, _)) in linear.made().enumerate() {
                    let panels = 0..packed.panels().count();
                    self.jobs.extend(panels.map(|p| (i, which, p)));
                }
            }
        }
        let this = &*self;
        pool.run(this.jobs.len(), |job, _| {
            let (i, which, panel) = this.jobs[job];
            let linear = &this.linears[i];
            let mut made = linear.made();
            let (packed, columns) = made.nth(which).expect("counted above");
            // SAFETY: the values live, and each panel is one job's; `self` is borrowed
            // mutably, so no product reads panels.
            unsafe { packed.pack(isa, this.source(linear.view), columns, panel) };
        });
    }
}

/// A weight's values, to pack.
fn source(values: &[f32], view: ParamView) -> Source {
    debug_assert_eq!(values.len(), view.len());
    Source {
        form: Form::F32,
        data: values.as_ptr(),
        rows: view.rows,
        cols: view.cols,
        stride: view.cols,
    }
}

impl Cpu {
    /// The weight as right side of `x Wᵀ`.
    pub(super) fn forward_panels(&mut self, params: &CpuParams, weight: ParamView) -> Panels {
        self.packed(params, weight, Side::Forward).panels()
    }

    /// The weight as right side of `dy W`.
    pub(super) fn backward_panels(&mut self, params: &CpuParams, weight: ParamView) -> Panels {
        self.packed(params, weight, Side::Backward).panels()
    }

    /// A weight and its bias in a form, or where that is bytes and it is kept exact, in the form of
    /// all other products.
    pub(super) fn weight(&mut self, params: &CpuParams, linear: &Linear, form: Form) -> Weight {
        let side = params.linear(linear.weight).inference_side(form);
        let packed = self.packed(params, linear.weight, side);
        let scales = Shared(packed.scales.as_ptr());
        Weight {
            form: packed.form,
            panels: packed.panels(),
            bias: Shared(params.slice(linear.bias).as_ptr().cast_mut()),
            scales,
            sums: Shared(scales.add(packed.panels.cols)),
        }
    }

    /// Packs a weight that has these values for what inference multiplies it in.
    pub(super) fn pack_for_inference(
        &mut self,
        params: &CpuParams,
        weight: ParamView,
        values: &[f32],
    ) {
        let linear = params.linear(weight);
        let side = linear.inference_side(self.layer_form);
        linear.packed[side as usize]
            .get_or_init(|| self.pack(params, linear, side, source(values, weight)));
    }

    fn packed<'a>(&mut self, params: &'a CpuParams, weight: ParamView, side: Side) -> &'a Packed {
        let linear = params.linear(weight);
        linear.packed[side as usize]
            .get_or_init(|| self.pack(params, linear, side, params.source(weight)))
    }

    /// A weight, whose values are `source`, in one of its packed forms; no other of this form is
    /// alive.
    fn pack(
        &mut self,
        params: &CpuParams,
        linear: &PackedLinear,
        side: Side,
        source: Source,
    ) -> Packed {
        let (form, depth, cols) = side.shape(params.form, linear.view);
        let room = Shared(params.panels[side as usize].as_ptr());
        let data = room.offset(linear.offsets[side as usize]).0;
        let packed = Packed {
            form,
            panels: Panels::new(self.isa, form, data, [depth, cols]),
            scales: Buffer::zeroed(if form == Form::Int8 { 2 * cols } else { 0 }),
        };
        let isa = self.isa;
        self.pool.run(packed.panels().count(), |panel, _| {
            // SAFETY: the values live, and each panel is one task's.
            unsafe { packed.pack(isa, source, side.columns(), panel) };
        });
        packed
    }
}
