//! Attention: tensor cores where types and head size allow, else kernels for anything.

use super::Cuda;
use super::error::OrFail;
use super::kernels::{self, Kind, Mat, Shape, wide};
use super::memory::Use;
use crate::backend::{Array, Dropout, Sequences};
use crate::rng::Purpose;

/// Queries or keys of a block on tensor cores; twin of `TILE` in attention_tensor.cu.
const TILE: usize = 64;
/// Queries or keys of a block of the others, a warp each.
const WARPS: usize = 8;

/// Whether the kernels on tensor cores take these.
fn on_tensor_cores(size: usize, mats: &[Mat]) -> bool {
    matches!(size, 32 | 64 | 96 | 128)
        && mats.iter().all(|m| m.kind == Kind::Bf16)
        && wide(size, mats)
}

/// Bytes of so many tiles in shared memory, rows apart by eight more than they hold.
fn tiles_room(tiles: usize, size: usize) -> usize {
    tiles * TILE * (size + 8) * 2
}

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
        let scale = (1.0 / (size as f64).sqrt()) as f32;
        let cu = self.ids(sequences.cu_seqlens);
        let [qm, km, vm, ym] = [q, k, v, y].map(|a| self.mat(a));
        let (sums, device) = (self.mat(log_sum), &*self.device);
        if on_tensor_cores(size, &[qm, km, vm, ym]) {
            let kernel = match size {
                32 => kernels::attention_tensor_32,
                64 => kernels::attention_tensor_64,
                96 => kernels::attention_tensor_96,
                _ => kernels::attention_tensor_128,
            };
            let (tiles, shape) = shape(sequences, heads, TILE, 128);
            let shape = shape.with_shared(tiles_room(3, size));
            kernel(device, shape, qm, km, vm, cu, tiles, drop, ym, sums, scale).or_fail();
            return;
        }
        let (tiles, shape) = shape(sequences, heads, WARPS, 32 * WARPS);
        let shape = shape.with_shared(WARPS * 2 * size * 4);
        let n = size as u32;
        kernels::attention_any(
            device, shape, qm, km, vm, cu, tiles, drop, ym, sums, n, scale,
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
        assert!(log_sum.rows == rows && log_sum.cols == heads);
        let dropout = dropout.map(|d| (d, &sequences.keys));
        let drop = self.drop_spec(dropout, Purpose::AttentionDropout, rows);
        let scale = (1.0 / (size as f64).sqrt()) as f32;
        let cu = self.ids(sequences.cu_seqlens);
        let [q, k, v] = qkv.map(|a| self.mat(a));
        let [dq, dk, dv] = d_qkv.map(|a| self.mat(a));
        let (ym, dym, sums) = (self.mat(y), self.mat(dy), self.mat(log_sum));
        let delta = self.scratch.room::<f32>(Use::Delta, rows * heads);
        let device = &*self.device;
        let (h, n) = (heads as u32, size as u32);
        let all = Shape::rows(rows);
        kernels::attention_delta(device, all, ym, dym, delta, rows as u32, h, n).or_fail();
        if on_tensor_cores(size, &[q, k, v, dym, dq, dk, dv]) {
            let queries = match size {
                32 => kernels::attention_tensor_dq_32,
                64 => kernels::attention_tensor_dq_64,
                96 => kernels::attention_tensor_dq_96,
                _ => kernels::attention_tensor_dq_128,
            };
            let keys = match size {
                32 => kernels::attention_tensor_dkv_32,
                64 => kernels::attention_tensor_dkv_64,
                96 => kernels::attention_tensor_dkv_96,
                _ => kernels::attention_tensor_dkv_128,
            };
            let (tiles, shape) = shape(sequences, heads, TILE, 128);
            let room = tiles_room(4, size);
            let plain = shape.with_shared(room);
            queries(
                device, plain, q, k, v, cu, tiles, drop, sums, delta, dym, dq, h, scale,
            )
            .or_fail();
            let more = shape.with_shared(room + TILE * (4 + 4 + 16));
            keys(
                device, more, q, k, v, cu, tiles, drop, sums, delta, dym, dk, dv, h, scale,
            )
            .or_fail();
            return;
        }
        let (tiles, shape) = shape(sequences, heads, WARPS, 32 * WARPS);
        let room = WARPS * size * 4;
        let (three, four) = (shape.with_shared(3 * room), shape.with_shared(4 * room));
        kernels::attention_any_dq(
            device, three, q, k, v, cu, tiles, drop, sums, delta, dym, dq, h, n, scale,
        )
        .or_fail();
        kernels::attention_any_dkv(
            device, four, q, k, v, cu, tiles, drop, sums, delta, dym, dk, dv, h, n, scale,
        )
        .or_fail();
    }
}

/// Blocks of `rows` rows, over sequences and heads, and how many of them a sequence has.
fn shape(sequences: &Sequences, heads: usize, rows: usize, threads: usize) -> (u32, Shape) {
    let tiles = sequences.longest.div_ceil(rows);
    let count = sequences.cu_seqlens.len - 1;
    let shape = Shape::new([tiles * count, heads, 1], threads);
    (tiles as u32, shape)
}
