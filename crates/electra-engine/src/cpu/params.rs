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
    /// Of bytes, the step of each column, then the sum of each.
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
                    let steps = self.scales.as_ptr();
                    let sums = steps.add(self.panels.cols);
                    pack_panel_int8(source, self.panels(), index, steps, sums);
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
    steps: Shared,
    sums: Shared,
}

impl Weight {
    /// What its product starts from, given the left side.
    pub(super) fn start(&self, left: &Left) -> Start {
        assert!(left.form == self.form);
        match self.form {
            Form::Int8 => Start::Scaled {
                rows: left.ranges,
                steps: self.steps.0,
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
    fn empty(layout: &ParamLayout, form: Form, left_out: &[ParamView]) -> Self {
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

/// Elements of weights that are read before they are packed, unless one weight has more: enough
/// that many threads have work, few enough to stay near.
const STAGED: usize = 4 << 20;

/// A range of a layout on its way into parameters for inference.
#[derive(Clone, Debug)]
struct Segment {
    range: Range<usize>,
    /// What is kept packed alone; none for values that stay as they are.
    weight: Option<ParamView>,
}

/// The whole layout in order, in groups that are read at once. Values that stay as they are come by
/// themselves where there are many.
fn groups(layout: &ParamLayout, weights: &[ParamView]) -> Vec<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut at = 0;
    let stay = |range: Range<usize>, segments: &mut Vec<Segment>| {
        if !range.is_empty() {
            let weight = None;
            segments.push(Segment { range, weight });
        }
    };
    for &view in weights {
        stay(at..view.offset, &mut segments);
        at = view.range().end;
        segments.push(Segment {
            range: view.range(),
            weight: Some(view),
        });
    }
    stay(at..layout.len(), &mut segments);
    let mut groups: Vec<Vec<Segment>> = Vec::new();
    let (mut room, mut alone) = (0, true);
    for segment in segments {
        let len = segment.range.len();
        let large = segment.weight.is_none() && len > STAGED / 8;
        match groups.last_mut() {
            Some(group) if len <= room && !large && !alone => {
                room -= len;
                group.push(segment);
            }
            _ => {
                room = STAGED.saturating_sub(len);
                groups.push(vec![segment]);
            }
        }
        alone = large;
    }
    groups
}

impl Cpu {
    /// Parameters for inference: a group of tensors after the other is read and packed, so that the
    /// values of weights never take more memory than one group's.
    pub(super) fn load_params<E>(
        &mut self,
        layout: &ParamLayout,
        mut fill: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<CpuParams, E> {
        let mut weights: Vec<ParamView> = layout.only_multiplied().collect();
        weights.sort_by_key(|view| view.offset);
        let mut params = CpuParams::empty(layout, self.form, &weights);
        let mut staged = Buffer::zeroed(0);
        for group in groups(layout, &weights) {
            let all = group[0].range.start..group[group.len() - 1].range.end;
            if let [Segment { weight: None, .. }] = &group[..] {
                let place = params.values.place(all.clone());
                fill(all, &mut params.values.kept.as_mut_slice()[place])?;
                continue;
            }
            staged.reserve(all.len());
            let staged = &mut staged.as_mut_slice()[..all.len()];
            fill(all.clone(), staged)?;
            for Segment { range, weight } in group {
                let values = &staged[range.start - all.start..range.end - all.start];
                if let Some(view) = weight {
                    let linear = params.linear(view);
                    let side = linear.inference_side(self.layer_form);
                    let made = self.pack(&params, linear, side, source(values, view));
                    let first = linear.packed[side as usize].set(made).is_ok();
                    debug_assert!(first, "a weight is packed once");
                } else {
                    let place = params.values.place(range);
                    params.values.kept.as_mut_slice()[place].copy_from_slice(values);
                }
            }
        }
        Ok(params)
    }

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
        let steps = Shared(packed.scales.as_ptr());
        Weight {
            form: packed.form,
            panels: packed.panels(),
            bias: Shared(params.slice(linear.bias).as_ptr().cast_mut()),
            steps,
            sums: Shared(steps.add(packed.panels.cols)),
        }
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

#[cfg(test)]
mod tests {
    use super::super::CpuOptions;
    use super::*;
    use crate::backend::Backend;
    use crate::params::Init;

    /// Two weights that are not read at once, and between them a table that is multiplied with.
    #[test]
    fn weights_for_inference_are_kept_packed_alone_and_give_the_same_bits() {
        let mut layout = ParamLayout::new();
        let mut linear = |name: &str, shape: [usize; 2]| {
            let weight = layout.push(name, &shape, Init::Zeros, 0);
            layout.register_layer_linear(weight);
            let bias = layout.push(&format!("{name} bias"), &shape[..1], Init::Zeros, 0);
            Linear { weight, bias }
        };
        let first = linear("first", [2051, 1100]);
        let table = linear("table", [6000, 96]);
        let last = linear("last", [2050, 1100]);
        let small = linear("small", [70, 96]);
        layout.register_table(table.weight);
        let value = |i: usize| (i as f32 * 0.37).sin();
        let values: Vec<f32> = (0..layout.len()).map(value).collect();
        let weights = [first.weight, last.weight, small.weight];
        let groups = groups(&layout, &weights);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 4]);

        let mut cpu = Cpu::new(CpuOptions::default()).expect("the best instruction set");
        let mut at = 0;
        let read = |range: Range<usize>, out: &mut [f32]| {
            assert_eq!(range.start, at);
            at = range.end;
            out.copy_from_slice(&values[range]);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(loaded) = cpu.inference_params(&layout, read);
        assert_eq!(at, layout.len());
        let kept = layout.len() - weights.iter().map(ParamView::len).sum::<usize>();
        assert_eq!(loaded.values.kept.len(), kept);
        let params = cpu.params(&layout, &values);
        for linear in [first, table, last, small] {
            let x = cpu.array(3, linear.weight.cols);
            let input: Vec<f32> = (0..3 * x.cols).map(value).collect();
            cpu.write(x, &input);
            let mut product = |params: &CpuParams| {
                let y = cpu.array(3, linear.weight.rows);
                cpu.linear(params, x, &linear, y);
                let mut out = vec![0.0; 3 * y.cols];
                cpu.read(y, &mut out);
                out
            };
            assert_eq!(product(&loaded), product(&params));
        }
        assert_eq!(loaded.slice(table.weight), &values[table.weight.range()]);
        assert_eq!(loaded.slice(small.bias), &values[small.bias.range()]);
    }

    #[test]
    #[should_panic(expected = "only what products read")]
    fn values_that_were_left_out_are_not_read() {
        let mut layout = ParamLayout::new();
        let weight = layout.push("weight", &[4, 4], Init::Zeros, 0);
        layout.register_linear(weight);
        let mut cpu = Cpu::new(CpuOptions::default()).expect("the best instruction set");
        let read = |_: Range<usize>, _: &mut [f32]| Ok::<(), std::convert::Infallible>(());
        let Ok(loaded) = cpu.inference_params(&layout, read);
        loaded.slice(weight);
    }
}
