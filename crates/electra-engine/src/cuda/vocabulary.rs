//! Softmax over the vocabulary, some rows at a time, so that no array of all rows and entries is
//! there.

use super::device::Product;
use super::error::OrFail;
use super::kernels::{self, Kind, Mat, Ptr, Shape};
use super::linear::Columns;
use super::memory::{CudaParams, Use};
use super::{Cuda, Flat};
use crate::backend::{Array, Ints, Linear, VocabularySample};
use crate::rng::{Purpose, stream};

/// Bytes of logits that are there at once.
const ROOM: usize = 128 << 20;
/// Most entries, from the segments that sampling keeps in shared memory.
const MAX_ENTRIES: usize = 1 << 20;
/// Threads that share a row.
const THREADS: usize = 512;

/// Logits of some rows.
#[derive(Clone, Copy)]
struct Logits {
    at: Ptr<f32>,
    stride: usize,
    first: usize,
    rows: usize,
}

impl Cuda {
    /// Computes the logits of `x` part by part, and hands each part to `then`.
    fn logits(
        &mut self,
        params: &CudaParams,
        x: Array,
        head: &Linear,
        mut then: impl FnMut(&mut Cuda, Logits),
    ) {
        let entries = head.weight.rows;
        assert!(head.weight.cols == x.cols && head.bias.len() == entries);
        assert!(entries <= MAX_ENTRIES, "a vocabulary of {entries}");
        let stride = entries.next_multiple_of(8);
        let most = (ROOM / (4 * stride)).max(16).min(x.rows);
        let xm = self.mat(x);
        for first in (0..x.rows).step_by(most.max(1)) {
            let rows = most.min(x.rows - first);
            let at = self.scratch.room::<f32>(Use::Logits, most * stride);
            self.product(&Product {
                m: rows,
                n: entries,
                k: x.cols,
                a: xm.rows_from(first),
                a_transposed: false,
                b: params.matrix(head.weight, xm.kind),
                b_transposed: true,
                c: Mat::dense(at.0, stride),
                accumulate: false,
                bias: Some(params.bias(head.bias)),
            });
            then(
                self,
                Logits {
                    at,
                    stride,
                    first,
                    rows,
                },
            );
        }
    }

    pub(super) fn log_prob(
        &mut self,
        params: &CudaParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
        sample: Option<&VocabularySample>,
    ) {
        assert!(targets.len == x.rows && predicted.is_none_or(|p| p.len == x.rows));
        for a in [log_prob, log_sum] {
            assert!(a.rows == x.rows && a.cols == 1);
        }
        if let Some(s) = sample {
            assert!(s.rows.len == x.rows && s.sampled.len == x.rows);
            assert!(s.exclude.is_none_or(|e| e.len == x.rows));
        }
        self.logits(params, x, head, |cuda, logits| {
            let predicted = predicted.map_or(Ptr::NONE, |p| cuda.ids(p).add(logits.first));
            kernels::vocabulary_rows(
                &*cuda.device,
                Shape::new([logits.rows, 1, 1], THREADS),
                logits.at,
                logits.stride as u32,
                head.weight.rows as u32,
                cuda.ids(targets).add(logits.first),
                cuda.mat(log_prob).rows_from(logits.first),
                cuda.mat(log_sum).rows_from(logits.first),
                predicted,
            )
            .or_fail();
            if let Some(sample) = sample {
                cuda.sample(sample, head.weight.rows, logits);
            }
        });
    }

    /// Draws an entry for each row of these logits.
    fn sample(&mut self, sample: &VocabularySample, entries: usize, logits: Logits) {
        let (key, keys) = (sample.rng.key(), &sample.keys);
        kernels::vocabulary_sample(
            &*self.device,
            Shape::new([logits.rows, 1, 1], THREADS),
            logits.at,
            logits.stride as u32,
            entries as u32,
            1.0 / sample.temperature,
            sample
                .exclude
                .map_or(Ptr::NONE, |e| self.ids(e).add(logits.first)),
            key[0],
            key[1],
            stream(Purpose::Sample, 0),
            self.ids(keys.example),
            self.ids(keys.position),
            self.ids(sample.rows).add(logits.first),
            self.ids(sample.sampled).add(logits.first),
        )
        .or_fail();
    }

    pub(super) fn log_prob_backward(
        &mut self,
        params: &CudaParams,
        x: Array,
        head: &Linear,
        targets: Ints,
        log_sum: Array,
        scale: f32,
        dx: Array,
        grads: &mut Flat,
    ) {
        assert!(targets.len == x.rows && dx.rows == x.rows && dx.cols == x.cols);
        assert!(log_sum.rows == x.rows && log_sum.cols == 1);
        let (entries, size) = (head.weight.rows, head.weight.cols);
        let (xm, dxm) = (self.mat(x), self.mat(dx));
        let flat = grads.ptr::<f32>();
        let (weight, bias) = (flat.add(head.weight.offset), flat.add(head.bias.offset));
        self.logits(params, x, head, |cuda, logits| {
            let room = logits.rows * logits.stride;
            let data = match xm.kind {
                Kind::Bf16 => cuda.scratch.room::<u16>(Use::LogitGradient, room).0,
                Kind::F32 => cuda.scratch.room::<f32>(Use::LogitGradient, room).0,
            };
            let d = Mat {
                data,
                stride: logits.stride as u32,
                kind: xm.kind,
            };
            kernels::vocabulary_gradient(
                &*cuda.device,
                Shape::new([logits.rows, 1, 1], THREADS),
                logits.at,
                logits.stride as u32,
                entries as u32,
                cuda.ids(targets).add(logits.first),
                cuda.mat(log_sum).rows_from(logits.first),
                scale,
                d,
            )
            .or_fail();
            cuda.product(&Product {
                m: logits.rows,
                n: size,
                k: entries,
                a: d,
                a_transposed: false,
                b: params.matrix(head.weight, d.kind),
                b_transposed: false,
                c: dxm.rows_from(logits.first),
                accumulate: false,
                bias: None,
            });
            cuda.product(&Product {
                m: entries,
                n: size,
                k: logits.rows,
                a: d,
                a_transposed: true,
                b: xm.rows_from(logits.first),
                b_transposed: false,
                c: Mat::dense(weight.0, size),
                accumulate: true,
                bias: None,
            });
            cuda.column_sums(d, Columns::Sum, logits.rows, entries, &[bias]);
        });
    }
}
