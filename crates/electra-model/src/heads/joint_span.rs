//! The reference's head for answers: the end depends on the start, and a third output says
//! whether there is an answer at all.
//!
//! With `h` the encoder's output at the tokens that may belong to an answer, `[CLS]` first:
//! `start = linear(h)`; `end = linear(gelu(dense([h_start; h])))`, where `h_start` stands at the
//! given start in training and at each of the best starts in prediction; `impossible =
//! linear(gelu(dense([h_CLS; Σ softmax(start) h])))`. Loss of a window:
//! `½ (CE(start) + CE(end)) + ½ BCE(impossible)`.
//!
//! States are put side by side on the host: a copy of the rows, little beside the encoder's work.

use super::losses::{Loss, binary, grouped_cross_entropy, softmax};
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout};

/// Width of the dense layers in the reference.
pub const WIDTH: usize = 512;
/// Weight of the loss that there is no answer.
const ANSWERABLE_WEIGHT: f64 = 0.5;
/// Starts that are looked at in prediction, and ends of each.
pub const BEAM: usize = 20;

/// Dense layer over two states, GELU, one logit.
#[derive(Clone, Copy, Debug)]
struct PairScore {
    /// `[W, 2H]`.
    dense: Linear,
    /// `[1, W]`.
    output: Linear,
}

/// The head's parameters.
#[derive(Clone, Copy, Debug)]
pub struct JointSpanHead {
    start: Linear,
    end: PairScore,
    answerable: PairScore,
    hidden: usize,
}

#[derive(Clone, Copy, Debug)]
struct PairArrays {
    x: Array,
    z: Array,
    y: Array,
    logits: Array,
    d_logits: Array,
    d_z: Array,
    d_x: Array,
}

/// What the head computes on `M` rows of `G` windows, and its gradients.
#[derive(Clone, Copy, Debug)]
pub struct JointSpanArrays {
    start: Array,
    end: PairArrays,
    answerable: PairArrays,
}

/// A span that may be the answer; rows are numbers within the window's rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanCandidate {
    /// First row.
    pub first: u32,
    /// Last row; it may stand before the first.
    pub last: u32,
    /// Log-probability of the start plus that of the end.
    pub score: f64,
}

/// What the head says about one window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowSpans {
    /// The best ends of the best starts, the best start first.
    pub candidates: Vec<SpanCandidate>,
    /// Logit that there is no answer.
    pub impossible: f64,
}

/// Forward's values on the host that backward reads.
struct Forward {
    x: Vec<f32>,
    start: Vec<f64>,
    weights: Vec<f64>,
    impossible: Vec<f64>,
}

impl PairScore {
    fn declare(
        layout: &mut ParamLayout,
        name: &str,
        hidden: usize,
        width: usize,
        init: Init,
        depth: usize,
    ) -> Self {
        let glorot = Init::GlorotUniform;
        PairScore {
            output: declare_linear(layout, &format!("{name}.output"), [1, width], glorot, depth),
            dense: declare_linear(
                layout,
                &format!("{name}.dense"),
                [width, 2 * hidden],
                init,
                depth,
            ),
        }
    }

    fn arrays<B: Backend>(&self, backend: &mut B, rows: usize) -> PairArrays {
        let (width, pair) = (self.dense.weight.rows, self.dense.weight.cols);
        PairArrays {
            x: backend.array(rows, pair),
            z: backend.array(rows, width),
            y: backend.array(rows, width),
            logits: backend.array(rows, 1),
            d_logits: backend.array(rows, 1),
            d_z: backend.array(rows, width),
            d_x: backend.array(rows, pair),
        }
    }

    /// Logits of `pairs`, row-major `[rows, 2H]`.
    fn forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        pairs: &[f32],
        a: &PairArrays,
    ) -> Vec<f64> {
        backend.write(a.x, pairs);
        backend.linear(params, a.x, &self.dense, a.z);
        backend.activation(Activation::Gelu, a.z, a.y);
        backend.linear(params, a.y, &self.output, a.logits);
        column(backend, a.logits)
    }

    /// Gradient by the pairs.
    fn backward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        d_logits: &[f64],
        a: &PairArrays,
        grads: &mut B::Flat,
    ) -> Vec<f32> {
        write_column(backend, a.d_logits, d_logits);
        backend.linear_backward_params(a.y, a.d_logits, &self.output, grads);
        backend.linear_backward_input(params, a.d_logits, &self.output, a.d_z, false);
        backend.activation_backward(Activation::Gelu, a.z, a.d_z);
        backend.linear_backward_params(a.x, a.d_z, &self.dense, grads);
        backend.linear_backward_input(params, a.d_z, &self.dense, a.d_x, false);
        read(backend, a.d_x)
    }
}

impl PairArrays {
    fn first_rows(&self, rows: usize) -> Self {
        PairArrays {
            x: self.x.first_rows(rows),
            z: self.z.first_rows(rows),
            y: self.y.first_rows(rows),
            logits: self.logits.first_rows(rows),
            d_logits: self.d_logits.first_rows(rows),
            d_z: self.d_z.first_rows(rows),
            d_x: self.d_x.first_rows(rows),
        }
    }
}

fn read<B: Backend>(backend: &mut B, array: Array) -> Vec<f32> {
    let mut values = vec![0.0; array.rows * array.cols];
    backend.read(array, &mut values);
    values
}

fn column<B: Backend>(backend: &mut B, array: Array) -> Vec<f64> {
    read(backend, array).into_iter().map(f64::from).collect()
}

fn write_column<B: Backend>(backend: &mut B, array: Array, values: &[f64]) {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    backend.write(array, &values);
}

impl JointSpanArrays {
    /// Arrays for up to `rows` rows of up to `windows` windows.
    pub fn new<B: Backend>(
        backend: &mut B,
        head: &JointSpanHead,
        rows: usize,
        windows: usize,
    ) -> Self {
        JointSpanArrays {
            start: backend.array(rows, 1),
            end: head.end.arrays(backend, rows),
            answerable: head.answerable.arrays(backend, windows),
        }
    }

    /// The same arrays for the first `rows` rows and `windows` windows.
    pub fn first_rows(&self, rows: usize, windows: usize) -> Self {
        JointSpanArrays {
            start: self.start.first_rows(rows),
            end: self.end.first_rows(rows),
            answerable: self.answerable.first_rows(windows),
        }
    }
}

impl JointSpanHead {
    /// Declares the head's tensors under `prefix`; `width` of the dense layers.
    pub fn declare(
        layout: &mut ParamLayout,
        prefix: &str,
        config: &ElectraConfig,
        width: usize,
    ) -> Self {
        let (hidden, depth) = (config.hidden_size, config.num_hidden_layers + 2);
        let init = Init::TruncatedNormal(config.initializer_range as f32);
        let name = |part: &str| format!("{prefix}google_spans.{part}");
        let answerable =
            PairScore::declare(layout, &name("answerable"), hidden, width, init, depth);
        let end = PairScore::declare(layout, &name("end"), hidden, width, init, depth);
        let start = declare_linear(
            layout,
            &name("start"),
            [1, hidden],
            Init::GlorotUniform,
            depth,
        );
        JointSpanHead {
            start,
            end,
            answerable,
            hidden,
        }
    }

    /// Start and answerable logits of rows of the encoder's output `[M, H]`.
    fn starts<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        bounds: &[u32],
        a: &JointSpanArrays,
    ) -> Forward {
        backend.linear(params, hidden, &self.start, a.start);
        let x = read(backend, hidden);
        let start = column(backend, a.start);
        let size = self.hidden;
        let mut weights = Vec::with_capacity(start.len());
        let mut pairs = Vec::with_capacity(2 * size * (bounds.len() - 1));
        for window in bounds.windows(2) {
            let (from, to) = (window[0] as usize, window[1] as usize);
            let (_, p) = softmax(&start[from..to]);
            let mut mean = vec![0.0f64; size];
            for (row, &p) in x[from * size..to * size].chunks_exact(size).zip(&p) {
                for (mean, &h) in mean.iter_mut().zip(row) {
                    *mean += p * f64::from(h);
                }
            }
            weights.extend(p);
            pairs.extend_from_slice(&x[from * size..][..size]);
            pairs.extend(mean.into_iter().map(|m| m as f32));
        }
        let impossible = self
            .answerable
            .forward(backend, params, &pairs, &a.answerable);
        Forward {
            x,
            start,
            weights,
            impossible,
        }
    }

    /// Rows paired with the row that each window's answer begins with.
    fn end_pairs(&self, x: &[f32], bounds: &[u32], starts: &[u32]) -> Vec<f32> {
        let size = self.hidden;
        let mut pairs = Vec::with_capacity(2 * x.len());
        for (window, &start) in bounds.windows(2).zip(starts) {
            let (from, to) = (window[0] as usize, window[1] as usize);
            let state = &x[(from + start as usize) * size..][..size];
            for row in x[from * size..to * size].chunks_exact(size) {
                pairs.extend_from_slice(state);
                pairs.extend_from_slice(row);
            }
        }
        pairs
    }

    /// Sum of the windows' losses; with `grads`, adds the gradient of `scale` times it there; that by the
    /// rows goes to the array beside it. `bounds` `[G + 1]` cut the rows into windows whose
    /// first row is `[CLS]`; `spans` are the answers, first and last row of the window, (0, 0)
    /// where there is none.
    pub fn loss<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        bounds: &[u32],
        spans: &[(u32, u32)],
        scale: f64,
        a: &JointSpanArrays,
        grads: Option<(Array, &mut B::Flat)>,
    ) -> f64 {
        let forward = self.starts(backend, params, hidden, bounds, a);
        let (firsts, lasts): (Vec<u32>, Vec<u32>) = spans.iter().copied().unzip();
        let pairs = self.end_pairs(&forward.x, bounds, &firsts);
        let end = self.end.forward(backend, params, &pairs, &a.end);
        let by_start = grouped_cross_entropy(&forward.start, bounds, &firsts, 0.5 * scale);
        let by_end = grouped_cross_entropy(&end, bounds, &lasts, 0.5 * scale);
        let mut by_answer = Loss::default();
        for (&logit, &span) in forward.impossible.iter().zip(spans) {
            let (loss, derivative) = binary(logit, span == (0, 0));
            by_answer.sum += loss;
            let gradient = scale * ANSWERABLE_WEIGHT * derivative;
            by_answer.gradient.push(gradient);
        }
        if let Some((d_hidden, grads)) = grads {
            let d_end = self
                .end
                .backward(backend, params, &by_end.gradient, &a.end, grads);
            let d_answer = self.answerable.backward(
                backend,
                params,
                &by_answer.gradient,
                &a.answerable,
                grads,
            );
            let mut d_start = by_start.gradient;
            let d_x = self.row_gradient(&forward, bounds, &firsts, &d_end, &d_answer, &mut d_start);
            backend.write(d_hidden, &d_x);
            // The array of the logits is free by now.
            write_column(backend, a.start, &d_start);
            backend.linear_backward_params(hidden, a.start, &self.start, grads);
            backend.linear_backward_input(params, a.start, &self.start, d_hidden, true);
        }
        0.5 * (by_start.sum + by_end.sum) + ANSWERABLE_WEIGHT * by_answer.sum
    }

    /// Gradient by the rows from those by both kinds of pairs; adds to `d_start` what passes
    /// through the weights of the mean state.
    fn row_gradient(
        &self,
        forward: &Forward,
        bounds: &[u32],
        starts: &[u32],
        d_end: &[f32],
        d_answer: &[f32],
        d_start: &mut [f64],
    ) -> Vec<f32> {
        let size = self.hidden;
        let mut d_x = vec![0.0f64; forward.x.len()];
        for (g, window) in bounds.windows(2).enumerate() {
            let (from, to) = (window[0] as usize, window[1] as usize);
            let (d_cls, d_mean) = d_answer[2 * g * size..][..2 * size].split_at(size);
            let mut through = Vec::with_capacity(to - from);
            for row in from..to {
                let (d_state, d_own) = d_end[2 * row * size..][..2 * size].split_at(size);
                let begin = (from + starts[g] as usize) * size;
                let (mut dot, p) = (0.0, forward.weights[row]);
                for i in 0..size {
                    d_x[begin + i] += f64::from(d_state[i]);
                    d_x[row * size + i] += f64::from(d_own[i]) + p * f64::from(d_mean[i]);
                    dot += f64::from(d_mean[i]) * f64::from(forward.x[row * size + i]);
                }
                through.push(dot);
            }
            for (i, &d) in d_cls.iter().enumerate() {
                d_x[from * size + i] += f64::from(d);
            }
            let weights = &forward.weights[from..to];
            let mean: f64 = weights.iter().zip(&through).map(|(p, t)| p * t).sum();
            for (row, t) in through.into_iter().enumerate() {
                d_start[from + row] += weights[row] * (t - mean);
            }
        }
        d_x.into_iter().map(|d| d as f32).collect()
    }

    /// The best ends of each of the best starts of every window.
    pub fn predict<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        bounds: &[u32],
        a: &JointSpanArrays,
    ) -> Vec<WindowSpans> {
        let forward = self.starts(backend, params, hidden, bounds, a);
        let mut found: Vec<WindowSpans> = forward
            .impossible
            .iter()
            .map(|&impossible| WindowSpans {
                candidates: Vec::new(),
                impossible,
            })
            .collect();
        let windows = || bounds.windows(2).map(|w| w[0] as usize..w[1] as usize);
        let best: Vec<Vec<(u32, f64)>> = windows()
            .map(|w| most_probable(&forward.start[w]))
            .collect();
        let rounds = best.iter().map(Vec::len).max().unwrap_or(0);
        for round in 0..rounds {
            // A window of fewer rows has run out of starts; what it computes is not read.
            let starts: Vec<(u32, f64)> = best
                .iter()
                .map(|b| *b.get(round).unwrap_or(&b[0]))
                .collect();
            let firsts: Vec<u32> = starts.iter().map(|s| s.0).collect();
            let pairs = self.end_pairs(&forward.x, bounds, &firsts);
            let end = self.end.forward(backend, params, &pairs, &a.end);
            for (g, window) in windows().enumerate() {
                if round >= best[g].len() {
                    continue;
                }
                let (first, log_p) = starts[g];
                let ends = most_probable(&end[window]);
                let candidates = ends.into_iter().map(|(last, p)| SpanCandidate {
                    first,
                    last,
                    score: log_p + p,
                });
                found[g].candidates.extend(candidates);
            }
        }
        found
    }
}

/// Numbers and log-probabilities of the likeliest, the first of equals first.
fn most_probable(logits: &[f64]) -> Vec<(u32, f64)> {
    let (log_sum, _) = softmax(logits);
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|x| x - log_sum)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(BEAM);
    all
}
