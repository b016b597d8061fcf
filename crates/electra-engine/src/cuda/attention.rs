//! Attention: tensor cores where types and head size allow, else kernels for anything.

use super::Cuda;
use super::error::OrFail;
use super::kernels::{self, Shape};
use super::memory::Use;
use crate::backend::{Array, Dropout, Sequences};
use crate::rng::Purpose;

impl Cuda {
    pub(super) fn attend(
        &mut self,
        q: Array,
        k: Array,
        v: Array,
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
    ) {
        let size = y.cols / heads;
        for a in [q, k, v, y] {
            assert!(a.rows == y.rows && a.cols == heads * size);
        }
        assert!(log_sum.rows == y.rows && log_sum.cols == heads);
        let dropout = dropout.map(|d| (d, &sequences.keys));
        let drop = self.drop_spec(dropout, Purpose::AttentionDropout, y.rows);
        let count = sequences.cu_seqlens.len - 1;
        let scale = (1.0 / (size as f64).sqrt()) as f32;
        let cu_seqlens = self.ids(sequences.cu_seqlens);
        let [qm, km, vm, ym] = [q, k, v, y].map(|a| self.mat(a));
        let sums = self.mat(log_sum);
        let shape = any_shape(sequences.longest, heads, count).with_shared(8 * 2 * size * 4);
        kernels::attention_any(
            &*self.device,
            shape,
            qm,
            km,
            vm,
            cu_seqlens,
            drop,
            ym,
            sums,
            size as u32,
            scale,
        )
        .or_fail();
    }

    pub(super) fn attend_backward(
        &mut self,
        qkv: [Array; 3],
        heads: usize,
        sequences: &Sequences,
        dropout: Option<&Dropout>,
        y: Array,
        log_sum: Array,
        dy: Array,
        d_qkv: [Array; 3],
    ) {
        let (rows, size) = (y.rows, y.cols / heads);
        for a in qkv.into_iter().chain(d_qkv).chain([y, dy]) {
            assert!(a.rows == rows && a.cols == heads * size);
        }
        let dropout = dropout.map(|d| (d, &sequences.keys));
        let drop = self.drop_spec(dropout, Purpose::AttentionDropout, rows);
        let count = sequences.cu_seqlens.len - 1;
        let scale = (1.0 / (size as f64).sqrt()) as f32;
        let cu_seqlens = self.ids(sequences.cu_seqlens);
        let [q, k, v] = qkv.map(|a| self.mat(a));
        let [dq, dk, dv] = d_qkv.map(|a| self.mat(a));
        let (ym, dym, sums) = (self.mat(y), self.mat(dy), self.mat(log_sum));
        let delta = self.scratch.room::<f32>(Use::Delta, rows * heads);
        let device = &*self.device;
        let (h, s) = (heads as u32, size as u32);
        kernels::attention_delta(device, Shape::rows(rows), ym, dym, delta, rows as u32, h, s)
            .or_fail();
        let shape = any_shape(sequences.longest, heads, count);
        kernels::attention_any_dq(
            device,
            shape.with_shared(8 * 3 * size * 4),
            q,
            k,
            v,
            cu_seqlens,
            drop,
            sums,
            delta,
            dym,
            dq,
            h,
            s,
            scale,
        )
        .or_fail();
        kernels::attention_any_dkv(
            device,
            shape.with_shared(8 * 4 * size * 4),
            q,
            k,
            v,
            cu_seqlens,
            drop,
            sums,
            delta,
            dym,
            dk,
            dv,
            h,
            s,
            scale,
        )
        .or_fail();
    }
}

/// Eight rows a block, over heads and sequences.
fn any_shape(longest: usize, heads: usize, sequences: usize) -> Shape {
    Shape::new([longest.div_ceil(8), heads, sequences], 256)
}
