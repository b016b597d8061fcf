//! Parameters as the operators read them: the flat master copy and packed weights.

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
    /// Whether it is never multiplied in bytes.
    exact: bool,
}

impl PackedLinear {
    /// What is packed, and which side of the weight became its columns.
    fn made(&self) -> impl Iterator<Item = (&Packed, Columns)> {
        let sides = self.packed.iter().zip(Side::ALL);
        sides.filter_map(|(packed, side)| Some((packed.get()?, side.columns())))
    }
}

/// Parameters on the CPU.
#[derive(Debug)]
pub struct CpuParams {
    pub(super) master: Buffer,
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
    /// Parameters whose values are `master`, for products in `form`; nothing is packed yet.
    pub(super) fn new(layout: &ParamLayout, form: Form, master: Buffer) -> Self {
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
            exact: layout.exact().contains(&view),
        });
        let linears = linears.collect();
        let index = layout.linears().iter().enumerate().map(|(i, &v)| (v, i));
        CpuParams {
            master,
            linears,
            panels: ends.map(Buffer::zeroed),
            form,
            index: index.collect(),
            jobs: Vec::new(),
        }
    }

    /// Says whether the products of the linear layer with this weight stay in bf16 or f32 where the
    /// other layers' are computed in bytes. [`ParamLayout::keep_exact`] says so from the start.
    ///
    /// # Panics
    /// A weight that the layout does not register as linear.
    pub fn keep_exact(&mut self, weight: ParamView, exact: bool) {
        let index = self.index[&weight];
        self.linears[index].exact = exact;
    }

    pub(super) fn slice(&self, view: ParamView) -> &[f32] {
        &self.master.as_slice()[view.range()]
    }

    fn linear(&self, weight: ParamView) -> &PackedLinear {
        let index = self.index.get(&weight);
        &self.linears[*index.expect("a weight that is multiplied with is registered as linear")]
    }

    fn source(&self, view: ParamView) -> Source {
        Source {
            form: Form::F32,
            data: self.slice(view).as_ptr(),
            rows: view.rows,
            cols: view.cols,
            stride: view.cols,
        }
    }

    /// Packs again the weights that overlap one of `changed`.
    pub(super) fn repack(&mut self, pool: &mut Pool, isa: Isa, changed: &[ParamView]) {
        let overlap = |a: ParamView| {
            let (a, mut views) = (a.range(), changed.iter().map(|v| v.range()));
            views.any(|b| a.start < b.end && b.start < a.end)
        };
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
            // SAFETY: the master copy lives, and each panel is one job's; `self` is borrowed
            // mutably, so no product reads panels.
            unsafe { packed.pack(isa, this.source(linear.view), columns, panel) };
        });
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
        let side = match form {
            Form::Int8 if !params.linear(linear.weight).exact => Side::Bytes,
            _ => Side::Forward,
        };
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
        linear.packed[side as usize].get_or_init(|| {
            let (form, depth, cols) = side.shape(params.form, weight);
            let room = Shared(params.panels[side as usize].as_ptr());
            let data = room.offset(linear.offsets[side as usize]).0;
            let packed = Packed {
                form,
                panels: Panels::new(self.isa, form, data, [depth, cols]),
                scales: Buffer::zeroed(if form == Form::Int8 { 2 * cols } else { 0 }),
            };
            let (isa, source) = (self.isa, params.source(weight));
            self.pool.run(packed.panels().count(), |panel, _| {
                // SAFETY: the master copy lives, and each panel is one task's.
                unsafe { packed.pack(isa, source, side.columns(), panel) };
            });
            packed
        })
    }
}
