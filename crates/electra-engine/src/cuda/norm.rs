//! Layer norm, fused with the residual sum and dropout around it, and the layer made of such parts.

use super::elementwise::activation_number;
use super::error::OrFail;
use super::kernels::{self, DropSpec, Mat, Shape, wide};
use super::linear::Columns;
use super::memory::{CudaParams, Use};
use super::{Cuda, Flat};
use crate::backend::*;
use crate::params::ParamView;
use crate::rng::Purpose;

/// Most blocks that share the rows where sums over them are left.
const NORM_BLOCKS: usize = 528;

impl Cuda {
    /// `sum = residual + dropout(x)`, `y = norm(sum)`; without a residual `y = norm(x)`, and `sum`
    /// is not touched.
    pub(super) fn norm_forward(
        &mut self,
        params: &CudaParams,
        residual: Option<Array>,
        x: Array,
        dropout: Option<(&Dropout, &RowKeys)>,
        sum: Array,
        norm: &Norm,
        y: Array,
        stats: Array,
    ) {
        assert!(x.rows == y.rows && x.cols == y.cols && stats.rows == x.rows && stats.cols == 2);
        assert!(sum.rows == x.rows && sum.cols == x.cols && norm.weight.len() == x.cols);
        assert!(residual.is_none_or(|r| r.rows == x.rows && r.cols == x.cols));
        let drop = self.drop_spec(dropout, Purpose::Dropout, x.rows);
        let rm = residual.map_or(Mat::NONE, |r| self.mat(r));
        let (xm, sm, ym) = (self.mat(x), self.mat(sum), self.mat(y));
        let (weight, bias) = (params.slice(norm.weight), params.slice(norm.bias));
        let vectors = [Mat::dense(weight.0, 0), Mat::dense(bias.0, 0)];
        let kernel = match wide(x.cols, &[rm, xm, sm, ym, vectors[0], vectors[1]]) {
            false => kernels::add_norm_any,
            true => match x.cols.div_ceil(256) {
                1 => kernels::add_norm_256,
                2 => kernels::add_norm_512,
                3 => kernels::add_norm_768,
                4 => kernels::add_norm_1024,
                _ => kernels::add_norm_any,
            },
        };
        kernel(
            &*self.device,
            Shape::rows(x.rows),
            rm,
            xm,
            drop,
            sm,
            weight,
            bias,
            norm.eps,
            ym,
            self.mat(stats),
            x.rows as u32,
            x.cols as u32,
        )
        .or_fail();
    }

    /// Sets dx, and with `dropped` its dropout too; adds to the gradients of weight and bias.
    pub(super) fn norm_backward(
        &mut self,
        params: &CudaParams,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        dropped: Option<(&Dropout, &RowKeys, Array)>,
        grads: &mut Flat,
    ) {
        assert!(x.rows == dy.rows && x.cols == dy.cols && x.rows == dx.rows && x.cols == dx.cols);
        assert!(stats.rows == x.rows && stats.cols == 2 && norm.weight.len() == x.cols);
        let (xm, sm, dm) = (self.mat(x), self.mat(stats), self.mat(dy));
        let columns = Columns::Norm { x: xm, stats: sm };
        let flat = grads.ptr::<f32>();
        let out = [flat.add(norm.bias.offset), flat.add(norm.weight.offset)];
        self.column_sums(dm, columns, x.rows, x.cols, &out);
        let (drop, om) = match dropped {
            Some((dropout, keys, out)) => {
                assert!(out.rows == x.rows && out.cols == x.cols);
                let keys = Some((dropout, keys));
                (
                    self.drop_spec(keys, Purpose::Dropout, x.rows),
                    self.mat(out),
                )
            }
            None => (DropSpec::NONE, Mat::NONE),
        };
        let (weight, dxm) = (params.slice(norm.weight), self.mat(dx));
        let kernel = match wide(x.cols, &[xm, dm, dxm, om, Mat::dense(weight.0, 0)]) {
            false => kernels::norm_backward_any,
            true => match x.cols.div_ceil(256) {
                1 => kernels::norm_backward_256,
                2 => kernels::norm_backward_512,
                3 => kernels::norm_backward_768,
                4 => kernels::norm_backward_1024,
                _ => kernels::norm_backward_any,
            },
        };
        kernel(
            &*self.device,
            Shape::rows(x.rows),
            xm,
            sm,
            weight,
            dm,
            dxm,
            drop,
            om,
            x.rows as u32,
            x.cols as u32,
        )
        .or_fail();
    }

    /// [`norm_backward`](Cuda::norm_backward), and adds to the gradient of `below`, the bias of the
    /// linear layer that put out what went through dropout.
    fn norm_backward_with_bias(
        &mut self,
        params: &CudaParams,
        x: Array,
        stats: Array,
        norm: &Norm,
        dy: Array,
        dx: Array,
        dropped: Option<(&Dropout, &RowKeys, Array)>,
        below: ParamView,
        grads: &mut Flat,
    ) {
        let (rows, cols) = (x.rows, x.cols);
        assert!(below.len() == cols);
        let (xm, sm, dm, dxm) = (self.mat(x), self.mat(stats), self.mat(dy), self.mat(dx));
        let om = dropped.map_or(Mat::NONE, |(_, _, out)| self.mat(out));
        let weight = params.slice(norm.weight);
        let fits = wide(cols, &[xm, dm, dxm, om, Mat::dense(weight.0, 0)]);
        let kernel = match cols.div_ceil(256) {
            1 if fits => kernels::norm_sums_256,
            2 if fits => kernels::norm_sums_512,
            3 if fits => kernels::norm_sums_768,
            4 if fits => kernels::norm_sums_1024,
            _ => {
                self.norm_backward(params, x, stats, norm, dy, dx, dropped, grads);
                let d = dropped.map_or(dx, |(_, _, out)| out);
                let bias = grads.ptr::<f32>().add(below.offset);
                self.column_sums(self.mat(d), Columns::Sum, rows, cols, &[bias]);
                return;
            }
        };
        let keys = dropped.map(|(dropout, keys, _)| (dropout, keys));
        let drop = self.drop_spec(keys, Purpose::Dropout, rows);
        let blocks = rows.div_ceil(8).min(NORM_BLOCKS);
        let partials = self.scratch.room::<f32>(Use::Partials, 3 * blocks * cols);
        let (n, width) = (rows as u32, cols as u32);
        kernel(
            &*self.device,
            Shape::new([blocks, 1, 1], 256),
            xm,
            sm,
            weight,
            dm,
            dxm,
            drop,
            om,
            partials,
            n,
            width,
        )
        .or_fail();
        let out = [norm.bias, norm.weight, below].map(|v| grads.ptr::<f32>().add(v.offset));
        self.add_partials(partials, blocks, &out, cols);
    }

    /// `d = f'(z) d`, and adds the sums of its columns to the gradient of `bias`.
    fn activation_backward_with_bias(
        &mut self,
        activation: Activation,
        z: Array,
        d: Array,
        bias: ParamView,
        grads: &mut Flat,
    ) {
        let (rows, cols) = (z.rows, z.cols);
        assert!(d.rows == rows && d.cols == cols && bias.len() == cols);
        let (zm, dm) = (self.mat(z), self.mat(d));
        let out = grads.ptr::<f32>().add(bias.offset);
        if !wide(cols, &[zm, dm]) {
            self.activate(activation, z, Some(d), d);
            self.column_sums(dm, Columns::Sum, rows, cols, &[out]);
            return;
        }
        let splits = rows.div_ceil(32).min(NORM_BLOCKS);
        let partials = self.scratch.room::<f32>(Use::Partials, splits * cols);
        kernels::activation_sums(
            &*self.device,
            Shape::new([splits, cols.div_ceil(256), 1], 256),
            activation_number(activation),
            zm,
            dm,
            partials,
            rows as u32,
            cols as u32,
        )
        .or_fail();
        self.add_partials(partials, splits, &[out], cols);
    }

    /// [`Backend::layer`] with residual, dropout and norm in one kernel.
    pub(super) fn fused_layer(
        &mut self,
        params: &CudaParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
    ) {
        let thirds = [0, 1, 2].map(|i| keep.qkv.columns(i * spec.hidden, spec.hidden));
        self.linear_forward(params, input, &layer.qkv, keep.qkv);
        self.attend(
            thirds[0],
            thirds[1],
            thirds[2],
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
        );
        let behind = BehindAttention::gathered(self, rows, sequences, input, keep);
        let (input, context, keys) = (behind.input, behind.context, &behind.keys);
        // The branch is written where the layer's output will stand, and is gone by then.
        let branch = keep.output;
        self.linear_forward(params, context, &layer.attention_output, branch);
        self.norm_forward(
            params,
            Some(input),
            branch,
            dropout.map(|d| (&d.attention_output, keys)),
            keep.attention_sum,
            &layer.attention_norm,
            keep.attention_normed,
            keep.attention_stats,
        );
        let normed = keep.attention_normed;
        self.linear_forward(params, normed, &layer.intermediate, keep.intermediate);
        self.activate(spec.activation, keep.intermediate, None, keep.activated);
        self.linear_forward(params, keep.activated, &layer.output, branch);
        self.norm_forward(
            params,
            Some(normed),
            branch,
            dropout.map(|d| (&d.output, keys)),
            keep.output_sum,
            &layer.output_norm,
            keep.output,
            keep.output_stats,
        );
    }

    /// [`Backend::layer_backward`] with the norm's backward and dropout in one kernel.
    pub(super) fn fused_layer_backward(
        &mut self,
        params: &CudaParams,
        spec: &LayerSpec,
        layer: &LayerParams,
        sequences: &Sequences,
        dropout: Option<&LayerDropout>,
        rows: Option<&OutputRows>,
        input: Array,
        keep: &LayerArrays,
        d: &LayerGradients,
        grads: &mut Flat,
    ) {
        let BehindAttention { context, keys, .. } =
            BehindAttention::new(rows, sequences, input, keep);
        let (keys, all, d) = (&keys, d, &d.behind_attention(rows));
        let (normed, inner) = (keep.attention_normed, d.intermediate);
        self.norm_backward_with_bias(
            params,
            keep.output_sum,
            keep.output_stats,
            &layer.output_norm,
            d.hidden,
            d.residual,
            dropout.map(|dropout| (&dropout.output, keys, d.output_branch)),
            layer.output.bias,
            grads,
        );
        let branch = dropout.map_or(d.residual, |_| d.output_branch);
        self.weight_gradient(keep.activated, branch, &layer.output, grads);
        self.linear_backward(params, branch, &layer.output, inner, false);
        let bias = layer.intermediate.bias;
        self.activation_backward_with_bias(spec.activation, keep.intermediate, inner, bias, grads);
        self.weight_gradient(normed, inner, &layer.intermediate, grads);
        self.linear_backward(params, inner, &layer.intermediate, d.residual, true);
        self.norm_backward_with_bias(
            params,
            keep.attention_sum,
            keep.attention_stats,
            &layer.attention_norm,
            d.residual,
            d.hidden,
            dropout.map(|dropout| (&dropout.attention_output, keys, d.attention_branch)),
            layer.attention_output.bias,
            grads,
        );
        let branch = dropout.map_or(d.hidden, |_| d.attention_branch);
        self.weight_gradient(context, branch, &layer.attention_output, grads);
        self.linear_backward(params, branch, &layer.attention_output, d.residual, false);
        all.scatter(self, rows);
        let d = all;
        let thirds = |a: Array| [0, 1, 2].map(|i| a.columns(i * spec.hidden, spec.hidden));
        self.attend_backward(
            thirds(keep.qkv),
            spec.heads,
            sequences,
            dropout.map(|d| &d.attention),
            keep.context,
            keep.log_sum,
            d.residual,
            thirds(d.qkv),
        );
        self.linear_gradient(input, d.qkv, &layer.qkv, grads);
        self.linear_backward(params, d.qkv, &layer.qkv, d.hidden, true);
    }
}
