//! What an encoder layer is and works in.
//!
//! `M` is the number of rows of the output that are read, `I` the width of the feed-forward block.

use super::{Activation, Array, Backend, Dropout, Ints, Linear, Norm, RowKeys, Sequences};

/// The shape of an encoder layer: post-norm, full attention, absolute positions.
#[derive(Clone, Copy, Debug)]
pub struct LayerSpec {
    /// Hidden size.
    pub hidden: usize,
    /// Attention heads; they divide `hidden`.
    pub heads: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Activation of the feed-forward block.
    pub activation: Activation,
}

/// The parameters of an encoder layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerParams {
    /// Query, key and value as one product, `[3H, H]`.
    pub qkv: Linear,
    /// Output projection of attention.
    pub attention_output: Linear,
    /// Norm after attention and its residual.
    pub attention_norm: Norm,
    /// First linear layer of the feed-forward block.
    pub intermediate: Linear,
    /// Second linear layer of the feed-forward block.
    pub output: Linear,
    /// Norm after the feed-forward block and its residual.
    pub output_norm: Norm,
}

/// Dropout of an encoder layer in training.
#[derive(Clone, Copy, Debug)]
pub struct LayerDropout {
    /// Of attention probabilities.
    pub attention: Dropout,
    /// Of what attention adds to the residual.
    pub attention_output: Dropout,
    /// Of what the feed-forward block adds to the residual.
    pub output: Dropout,
}

/// What an encoder layer computes, and backward reads again.
#[derive(Clone, Copy, Debug)]
pub struct LayerArrays {
    /// `[T, 3H]` query, key, value.
    pub qkv: Array,
    /// `[T, H]` attention before its output projection.
    pub context: Array,
    /// `[T, heads]` log of the sum of the exponentials of each row of scores.
    pub log_sum: Array,
    /// `[T, H]` input of the first norm.
    pub attention_sum: Array,
    /// `[T, 2]` mean and reciprocal deviation of the first norm.
    pub attention_stats: Array,
    /// `[T, H]` output of the first norm.
    pub attention_normed: Array,
    /// `[T, I]` feed-forward before the activation.
    pub intermediate: Array,
    /// `[T, I]` and after.
    pub activated: Array,
    /// `[T, H]` input of the second norm.
    pub output_sum: Array,
    /// `[T, 2]` its statistics.
    pub output_stats: Array,
    /// `[T, H]` output of the layer.
    pub output: Array,
}

impl LayerArrays {
    /// The same arrays for the first `tokens` tokens.
    pub fn first_rows(&self, tokens: usize) -> Self {
        LayerArrays {
            qkv: self.qkv.first_rows(tokens),
            context: self.context.first_rows(tokens),
            log_sum: self.log_sum.first_rows(tokens),
            attention_sum: self.attention_sum.first_rows(tokens),
            attention_stats: self.attention_stats.first_rows(tokens),
            attention_normed: self.attention_normed.first_rows(tokens),
            intermediate: self.intermediate.first_rows(tokens),
            activated: self.activated.first_rows(tokens),
            output_sum: self.output_sum.first_rows(tokens),
            output_stats: self.output_stats.first_rows(tokens),
            output: self.output.first_rows(tokens),
        }
    }

    /// The same arrays where only `rows` rows go on behind attention.
    pub fn with_output_rows(&self, rows: usize) -> Self {
        LayerArrays {
            qkv: self.qkv,
            context: self.context,
            log_sum: self.log_sum,
            ..self.first_rows(rows)
        }
    }
}

/// Arrays of a layer for rows that are read alone; see [`OutputRows`].
#[derive(Clone, Copy, Debug)]
pub struct RowArrays {
    /// `[M, H]` the layer's input in these rows.
    pub input: Array,
    /// `[M, H]` attention before its output projection.
    pub context: Array,
    /// `[M, H]` gradient by the layer's output, and on the way back by its input beside attention.
    pub d_hidden: Array,
    /// `[M, H]` gradient by the context.
    pub d_context: Array,
}

impl RowArrays {
    /// The same arrays for the first `rows` rows.
    pub fn first_rows(&self, rows: usize) -> Self {
        RowArrays {
            input: self.input.first_rows(rows),
            context: self.context.first_rows(rows),
            d_hidden: self.d_hidden.first_rows(rows),
            d_context: self.d_context.first_rows(rows),
        }
    }
}

/// The rows of the last layer's output that are read. Every token is attended to, but behind attention
/// the layer computes these rows alone: of a text that is classified one in all, three quarters of a
/// layer less.
#[derive(Clone, Copy, Debug)]
pub struct OutputRows {
    /// `[M]`, each below `T` and greater than the one before.
    pub rows: Ints,
    /// Of these rows.
    pub keys: RowKeys,
    /// Where the layer works on them.
    pub arrays: RowArrays,
}

/// What the layer goes on with behind attention.
pub(crate) struct BehindAttention {
    /// `[M, H]` its input and attention's context, of all rows or of those that are read alone.
    pub(crate) input: Array,
    pub(crate) context: Array,
    pub(crate) keys: RowKeys,
}

impl BehindAttention {
    /// Where the layer goes on, for backward.
    pub(crate) fn new(
        rows: Option<&OutputRows>,
        sequences: &Sequences,
        input: Array,
        keep: &LayerArrays,
    ) -> Self {
        match rows {
            Some(OutputRows { keys, arrays, .. }) => BehindAttention {
                input: arrays.input,
                context: arrays.context,
                keys: *keys,
            },
            None => BehindAttention {
                input,
                context: keep.context,
                keys: sequences.keys,
            },
        }
    }

    /// The same once rows that are read alone have been gathered.
    pub(crate) fn gathered<B: Backend + ?Sized>(
        backend: &mut B,
        rows: Option<&OutputRows>,
        sequences: &Sequences,
        input: Array,
        keep: &LayerArrays,
    ) -> Self {
        if let Some(OutputRows { rows, arrays, .. }) = rows {
            backend.gather_rows(input, *rows, arrays.input);
            backend.gather_rows(keep.context, *rows, arrays.context);
        }
        Self::new(rows, sequences, input, keep)
    }
}

/// Gradients that pass through a layer; every layer of one shape can use the same.
#[derive(Clone, Copy, Debug)]
pub struct LayerGradients {
    /// `[T, H]` gradient by the layer's output, and after backward by its input.
    pub hidden: Array,
    /// `[T, H]` on the way.
    pub residual: Array,
    /// `[T, H]` gradient by what attention adds to the residual.
    pub attention_branch: Array,
    /// `[T, H]` gradient by what the feed-forward block adds to the residual.
    pub output_branch: Array,
    /// `[T, 3H]` gradient by query, key, value.
    pub qkv: Array,
    /// `[T, I]` gradient inside the feed-forward block.
    pub intermediate: Array,
}

impl LayerGradients {
    /// The same arrays for the first `tokens` tokens.
    pub fn first_rows(&self, tokens: usize) -> Self {
        LayerGradients {
            hidden: self.hidden.first_rows(tokens),
            residual: self.residual.first_rows(tokens),
            attention_branch: self.attention_branch.first_rows(tokens),
            output_branch: self.output_branch.first_rows(tokens),
            qkv: self.qkv.first_rows(tokens),
            intermediate: self.intermediate.first_rows(tokens),
        }
    }

    /// The gradients behind attention: of all rows, or of those that are read alone.
    pub(crate) fn behind_attention(&self, rows: Option<&OutputRows>) -> Self {
        match rows {
            Some(OutputRows { rows, arrays, .. }) => LayerGradients {
                hidden: arrays.d_hidden,
                residual: arrays.d_context,
                ..self.first_rows(rows.len)
            },
            None => *self,
        }
    }

    /// Once the gradients of rows that are read alone are known, makes them those of all rows.
    pub(crate) fn scatter<B: Backend + ?Sized>(&self, backend: &mut B, rows: Option<&OutputRows>) {
        if let Some(OutputRows { rows, arrays, .. }) = rows {
            let pairs = [
                (arrays.d_hidden, self.hidden),
                (arrays.d_context, self.residual),
            ];
            for (from, to) in pairs {
                backend.zero(to);
                backend.scatter_add_rows(from, *rows, to);
            }
        }
    }
}
