//! Linear layers: products, and sums over rows.

use super::device::Product;
use super::error::OrFail;
use super::kernels::{self, Kind, Mat, Ptr, Shape, wide};
use super::memory::{CudaParams, Use};
use super::{Cuda, Flat};
use crate::backend::{Array, Linear};

/// Layers of at most this many outputs have kernels of their own; twin of `THIN` in linear.cu.
const THIN: usize = 16;

/// What is summed over rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Columns {
    /// The matrix itself.
    Sum,
    /// Beside it, the matrix times the normalised values of `x`.
    Norm { x: Mat, stats: Mat },
    /// The matrix times column `which` of `x`.
    Weighted { x: Mat, which: usize },
}

impl Cuda {
    pub(super) fn linear_forward(
        &mut self,
        params: &CudaParams,
        x: Array,
        linear: &Linear,
        y: Array,
    ) {
        let (outputs, inputs) = (linear.weight.rows, linear.weight.cols);
        assert!(x.cols == inputs && y.cols == outputs && x.rows == y.rows);
        assert_eq!(linear.bias.len(), outputs);
        let (xm, ym) = (self.mat(x), self.mat(y));
        if outputs <= THIN {
            kernels::thin_forward(
                &*self.device,
                Shape::rows(x.rows),
                xm,
                params.slice(linear.weight),
                params.slice(linear.bias),
                ym,
                x.rows as u32,
                inputs as u32,
                outputs as u32,
            )
            .or_fail();
            return;
        }
        self.product(&Product {
            m: x.rows,
            n: outputs,
            k: inputs,
            a: xm,
            a_transposed: false,
            b: params.matrix(linear.weight, xm.kind),
            b_transposed: true,
            c: ym,
            accumulate: false,
            bias: Some(params.bias(linear.bias)),
        });
    }

    pub(super) fn linear_backward(
        &mut self,
        params: &CudaParams,
        dy: Array,
        linear: &Linear,
        dx: Array,
        accumulate: bool,
    ) {
        let (outputs, inputs) = (linear.weight.rows, linear.weight.cols);
        assert!(dx.cols == inputs && dy.cols == outputs && dx.rows == dy.rows);
        let (dm, xm) = (self.mat(dy), self.mat(dx));
        if outputs <= THIN {
            kernels::thin_backward_input(
                &*self.device,
                Shape::rows(dx.rows),
                dm,
                params.slice(linear.weight),
                xm,
                accumulate.into(),
                dx.rows as u32,
                inputs as u32,
                outputs as u32,
            )
            .or_fail();
            return;
        }
        self.product(&Product {
            m: dx.rows,
            n: inputs,
            k: outputs,
            a: dm,
            a_transposed: false,
            b: params.matrix(linear.weight, dm.kind),
            b_transposed: false,
            c: xm,
            accumulate,
            bias: None,
        });
    }

    pub(super) fn linear_gradient(
        &mut self,
        x: Array,
        dy: Array,
        linear: &Linear,
        grads: &mut Flat,
    ) {
        let (outputs, inputs) = (linear.weight.rows, linear.weight.cols);
        assert!(x.cols == inputs && dy.cols == outputs && x.rows == dy.rows);
        self.weight_gradient(x, dy, linear, grads);
        let bias = grads.ptr::<f32>().add(linear.bias.offset);
        self.column_sums(self.mat(dy), Columns::Sum, dy.rows, outputs, &[bias]);
    }

    /// The same without the bias.
    pub(super) fn weight_gradient(
        &mut self,
        x: Array,
        dy: Array,
        linear: &Linear,
        grads: &mut Flat,
    ) {
        let (outputs, inputs) = (linear.weight.rows, linear.weight.cols);
        let (xm, dm) = (self.mat(x), self.mat(dy));
        let weight = grads.ptr::<f32>().add(linear.weight.offset);
        if outputs <= THIN {
            for which in 0..outputs {
                let columns = Columns::Weighted { x: dm, which };
                let out = weight.add(which * inputs);
                self.column_sums(xm, columns, x.rows, inputs, &[out]);
            }
        } else {
            self.product(&Product {
                m: outputs,
                n: inputs,
                k: x.rows,
                a: dm,
                a_transposed: true,
                b: xm,
                b_transposed: false,
                c: Mat::dense(weight.0, inputs),
                accumulate: true,
                bias: None,
            });
        }
    }

    /// Adds sums over the rows of `d` `[rows, cols]` to each of `out`, `[cols]`.
    pub(super) fn column_sums(
        &mut self,
        d: Mat,
        columns: Columns,
        rows: usize,
        cols: usize,
        out: &[Ptr<f32>],
    ) {
        if rows == 0 {
            return;
        }
        let (x, stats, which) = match columns {
            Columns::Sum => (Mat::NONE, Mat::NONE, 0),
            Columns::Norm { x, stats } => (x, stats, 0),
            Columns::Weighted { x, which } => (x, Mat::NONE, which as u32),
        };
        let wide = match columns {
            Columns::Norm { x, .. } => wide(cols, &[d, x]),
            _ => wide(cols, &[d]),
        };
        let kernel = match (columns, wide) {
            (Columns::Sum, false) => kernels::column_sum_1,
            (Columns::Sum, true) => kernels::column_sum_8,
            (Columns::Norm { .. }, false) => kernels::column_norm_1,
            (Columns::Norm { .. }, true) => kernels::column_norm_8,
            (Columns::Weighted { .. }, false) => kernels::column_weighted_1,
            (Columns::Weighted { .. }, true) => kernels::column_weighted_8,
        };
        let per_block = if wide { 256 } else { 32 };
        let splits = rows.div_ceil(32).min(256);
        let count = splits * out.len();
        let partials = self.scratch.room::<f32>(Use::Partials, count * cols);
        let shape = Shape::new([splits, cols.div_ceil(per_block), 1], 256);
        let device = &*self.device;
        kernel(
            device,
            shape,
            d,
            x,
            stats,
            which,
            partials,
            rows as u32,
            cols as u32,
        )
        .or_fail();
        self.add_partials(partials, splits, out, cols);
    }

    /// Adds `count` parts, each with a row of `cols` for each of `out`, to these.
    pub(super) fn add_partials(
        &mut self,
        partials: Ptr<f32>,
        count: usize,
        out: &[Ptr<f32>],
        cols: usize,
    ) {
        let at = |i: usize| out.get(i).copied().unwrap_or(Ptr::NONE);
        kernels::add_partials(
            &*self.device,
            Shape::new([cols.div_ceil(32), out.len(), 1], 256),
            partials,
            count as u32,
            at(0),
            at(1),
            at(2),
            cols as u32,
        )
        .or_fail();
    }

    /// A product by the device's library, or by our own kernel.
    pub(super) fn product(&mut self, p: &Product) {
        if p.m == 0 || p.n == 0 {
            return;
        }
        let one_type = p.a.kind == p.b.kind && (p.a.kind == Kind::Bf16 || p.c.kind == Kind::F32);
        if one_type && p.k > 0 && self.device.product(p).or_fail() {
            return;
        }
        kernels::product(
            &*self.device,
            Shape::new([p.n.div_ceil(64), p.m.div_ceil(64), 1], 256),
            p.a,
            p.a_transposed.into(),
            p.b,
            p.b_transposed.into(),
            p.c,
            p.bias.map_or(Ptr::NONE, |(bias, _)| bias),
            p.accumulate.into(),
            p.m as u32,
            p.n as u32,
            p.k as u32,
        )
        .or_fail();
    }
}
