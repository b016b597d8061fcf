//! Parameters as the operators read them: the flat master copy and packed weights.

use super::Cpu;
use super::buffer::Buffer;
use super::gemm::{Form, Panels};
use super::isa::Isa;
use super::pack::{Columns, Source, pack_panel};
use super::pool::Pool;
use crate::params::{ParamLayout, ParamView};
use std::collections::HashMap;
use std::sync::OnceLock;

/// A packed right side.
#[derive(Debug)]
pub(crate) struct Packed {
    words: Buffer,
    depth: usize,
    cols: usize,
}

impl Packed {
    fn new(form: Form, depth: usize, cols: usize) -> Self {
        let depth = form.units(depth);
        Packed {
            words: Buffer::zeroed(Panels::words(depth, cols)),
            depth,
            cols,
        }
    }

    pub(crate) fn panels(&self) -> Panels {
        Panels {
            data: self.words.as_ptr(),
            depth: self.depth,
            cols: self.cols,
        }
    }
}

#[derive(Debug)]
struct PackedLinear {
    view: ParamView,
    /// For `x Wᵀ`.
    forward: Packed,
    /// For `dy W`; made when first asked for, so that inference does without.
    backward: OnceLock<Packed>,
}

/// Parameters on the CPU.
#[derive(Debug)]
pub struct CpuParams {
    pub(super) master: Buffer,
    linears: Vec<PackedLinear>,
    index: HashMap<ParamView, usize>,
    /// Panels to pack after a change: linear, which side, panel.
    jobs: Vec<(usize, Columns, usize)>,
}

impl CpuParams {
    pub(super) fn slice(&self, view: ParamView) -> &[f32] {
        &self.master.as_slice()[view.range()]
    }

    fn linear(&self, weight: ParamView) -> &PackedLinear {
        let index = self.index.get(&weight);
        &self.linears[*index.expect("a weight that is multiplied with is registered as linear")]
    }

    /// The weight as right side of `x Wᵀ`.
    pub(super) fn forward(&self, weight: ParamView) -> Panels {
        self.linear(weight).forward.panels()
    }

    fn source(&self, view: ParamView) -> Source {
        Source {
            data: self.slice(view).as_ptr(),
            rows: view.rows,
            cols: view.cols,
            stride: view.cols,
        }
    }

    /// Packs again the weights that overlap one of `changed`.
    pub(super) fn repack(&mut self, pool: &mut Pool, isa: Isa, form: Form, changed: &[ParamView]) {
        let overlap = |a: ParamView| {
            let (a, mut views) = (a.range(), changed.iter().map(|v| v.range()));
            views.any(|b| a.start < b.end && b.start < a.end)
        };
        self.jobs.clear();
        for (i, linear) in self.linears.iter().enumerate() {
            if !overlap(linear.view) {
                continue;
            }
            let backward = linear.backward.get().map_or(0, |b| b.panels().count());
            self.jobs
                .extend((0..backward).map(|p| (i, Columns::Columns, p)));
            let forward = linear.forward.panels().count();
            self.jobs
                .extend((0..forward).map(|p| (i, Columns::Rows, p)));
        }
        let this = &*self;
        pool.run(this.jobs.len(), |job, _| {
            let (i, columns, panel) = this.jobs[job];
            let linear = &this.linears[i];
            let to = match columns {
                Columns::Rows => &linear.forward,
                Columns::Columns => linear.backward.get().expect("counted above"),
            };
            // SAFETY: the master copy lives, and each panel is one job's; `self` is borrowed
            // mutably, so no product reads panels.
            unsafe {
                pack_panel(
                    isa,
                    form,
                    this.source(linear.view),
                    columns,
                    to.panels(),
                    panel,
                )
            };
        });
    }
}

impl Cpu {
    pub(super) fn new_params(&mut self, layout: &ParamLayout, values: &[f32]) -> CpuParams {
        assert_eq!(values.len(), layout.len());
        let mut master = Buffer::zeroed(values.len());
        master.as_mut_slice().copy_from_slice(values);
        let linears = layout.linears().iter().map(|&view| PackedLinear {
            view,
            forward: Packed::new(self.form, view.cols, view.rows),
            backward: OnceLock::new(),
        });
        let index = layout.linears().iter().enumerate().map(|(i, &v)| (v, i));
        let mut params = CpuParams {
            master,
            linears: linears.collect(),
            index: index.collect(),
            jobs: Vec::new(),
        };
        params.repack(&mut self.pool, self.isa, self.form, layout.linears());
        params
    }

    /// The weight as right side of `dy W`.
    pub(super) fn backward_panels(&mut self, params: &CpuParams, weight: ParamView) -> Panels {
        let linear = params.linear(weight);
        let packed = linear.backward.get_or_init(|| {
            let packed = Packed::new(self.form, weight.rows, weight.cols);
            let (isa, form, to) = (self.isa, self.form, packed.panels());
            let source = params.source(weight);
            self.pool.run(to.count(), |panel, _| {
                // SAFETY: the master copy lives, and each panel is one task's.
                unsafe { pack_panel(isa, form, source, Columns::Columns, to, panel) };
            });
            packed
        });
        packed.panels()
    }
}
