//! Activations, sums with dropout, binary cross-entropy.

use super::Cuda;
use super::error::OrFail;
use super::kernels::{self, DropSpec, Mat, Shape, wide};
use crate::backend::{Activation, Array, Dropout, Ints, RowKeys};
use crate::rng::{Purpose, stream};

/// An activation's number in elementwise.cu.
pub(super) fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
    }
}

impl Cuda {
    /// A dropout as kernels take it.
    pub(super) fn drop_spec(
        &self,
        dropout: Option<(&Dropout, &RowKeys)>,
        purpose: Purpose,
        rows: usize,
    ) -> DropSpec {
        let Some((dropout, keys)) = dropout else {
            return DropSpec::NONE;
        };
        assert!(keys.example.len >= rows && keys.position.len >= rows);
        DropSpec {
            examples: self.ids(keys.example).0,
            positions: self.ids(keys.position).0,
            key: dropout.rng.key(),
            threshold: dropout.threshold(),
            stream: stream(purpose, dropout.site),
            scale: dropout.scale() as f32,
            unused: 0,
        }
    }

    /// `y = f(z)`, or with `d`, `y = f'(z) d`.
    pub(super) fn activate(
        &mut self,
        activation: Activation,
        z: Array,
        d: Option<Array>,
        y: Array,
    ) {
        assert!(z.rows == y.rows && z.cols == y.cols);
        let (zm, ym) = (self.mat(z), self.mat(y));
        let dm = d.map_or(Mat::NONE, |d| self.mat(d));
        let kernel = match wide(z.cols, &[zm, dm, ym]) {
            true => kernels::activation_8,
            false => kernels::activation_1,
        };
        let kind = activation_number(activation);
        kernel(
            &*self.device,
            Shape::rows(z.rows),
            kind,
            zm,
            dm,
            ym,
            z.rows as u32,
            z.cols as u32,
        )
        .or_fail();
    }

    /// `y = residual + dropout(x)`.
    pub(super) fn add_dropped(
        &mut self,
        residual: Option<Array>,
        x: Array,
        dropout: Option<(&Dropout, &RowKeys)>,
        y: Array,
    ) {
        assert!(x.rows == y.rows && x.cols == y.cols);
        assert!(residual.is_none_or(|r| r.rows == y.rows && r.cols == y.cols));
        let drop = self.drop_spec(dropout, Purpose::Dropout, x.rows);
        let (xm, ym) = (self.mat(x), self.mat(y));
        let rm = residual.map_or(Mat::NONE, |r| self.mat(r));
        let kernel = match wide(x.cols, &[rm, xm, ym]) {
            true => kernels::add_dropped_8,
            false => kernels::add_dropped_1,
        };
        kernel(
            &*self.device,
            Shape::rows(x.rows),
            rm,
            xm,
            drop,
            ym,
            x.rows as u32,
            x.cols as u32,
        )
        .or_fail();
    }

    pub(super) fn cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array) {
        assert!(logits.cols == 1 && loss.cols == 1 && labels.len == logits.rows);
        kernels::cross_entropy(
            &*self.device,
            Shape::elements(logits.rows),
            self.mat(logits),
            self.ids(labels),
            self.mat(loss),
            logits.rows as u32,
        )
        .or_fail();
    }

    pub(super) fn cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    ) {
        assert!(logits.cols == 1 && d_logits.cols == 1 && labels.len == logits.rows);
        kernels::cross_entropy_backward(
            &*self.device,
            Shape::elements(logits.rows),
            self.mat(logits),
            self.ids(labels),
            scale,
            self.mat(d_logits),
            logits.rows as u32,
        )
        .or_fail();
    }
}
