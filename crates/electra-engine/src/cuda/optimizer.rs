//! Sums, norms, AdamW and LAMB over chunks of flat arrays.

use super::device::{bytes_of, bytes_of_mut};
use super::error::OrFail;
use super::kernels::{self, Chunk, Ptr, Shape};
use super::memory::{CudaParams, Use};
use super::{Cuda, Flat};
use crate::backend::{Adam, Array, ParamUpdate, trust_ratio};
use crate::params::ParamView;

/// Elements of a chunk, one block's work.
const CHUNK: usize = 8192;
/// Most blocks that share a sum.
const BLOCKS: usize = 256;

/// Cuts views into chunks, each view's side by side.
fn chunks(updates: impl Iterator<Item = ParamUpdate>) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for update in updates {
        let range = update.view.range();
        for first in range.clone().step_by(CHUNK) {
            chunks.push(Chunk {
                offset: first as u64,
                len: (range.end - first).min(CHUNK) as u32,
                lr: update.lr,
                decay: update.decay,
                unused: 0,
            });
        }
    }
    chunks
}

impl Cuda {
    pub(super) fn total(&mut self, x: Array) -> f64 {
        if x.rows == 0 {
            return 0.0;
        }
        let blocks = match x.cols {
            1 => x.rows.div_ceil(256),
            _ => x.rows,
        };
        let blocks = blocks.min(BLOCKS);
        let partials = self.scratch.room::<f64>(Use::Partials, blocks);
        let shape = Shape::new([blocks, 1, 1], 256);
        let (device, mat, rows) = (&*self.device, self.mat(x), x.rows as u32);
        match x.cols {
            1 => kernels::sum_column(device, shape, mat, rows, partials),
            cols => kernels::sum_matrix(device, shape, mat, rows, cols as u32, partials),
        }
        .or_fail();
        self.partial_sums(partials, blocks).iter().sum()
    }

    fn partial_sums(&self, partials: Ptr<f64>, count: usize) -> Vec<f64> {
        let mut sums = vec![0.0f64; count];
        self.device
            .download(partials.0, bytes_of_mut(&mut sums))
            .or_fail();
        sums
    }

    /// Takes chunks to the device.
    fn described(&mut self, chunks: &[Chunk]) -> Ptr<Chunk> {
        let room = self.scratch.room::<Chunk>(Use::Chunks, chunks.len());
        self.device.upload(room.0, bytes_of(chunks)).or_fail();
        room
    }

    pub(super) fn norms(&mut self, flat: &Flat, views: &[ParamView], norms: &mut [f64]) {
        assert_eq!(views.len(), norms.len());
        let count = views.iter().map(|view| view.len().div_ceil(CHUNK)).sum();
        if count == 0 {
            norms.fill(0.0);
            return;
        }
        let list = self.scratch.room::<Chunk>(Use::NormChunks, count);
        if self.norm_chunks != views {
            let update = |&view: &ParamView| ParamUpdate {
                view,
                lr: 0.0,
                decay: 0.0,
            };
            let all = chunks(views.iter().map(update));
            self.device.upload(list.0, bytes_of(&all)).or_fail();
            views.clone_into(&mut self.norm_chunks);
        }
        let ends = views.iter().map(|view| view.range().end);
        assert!(4 * ends.max().unwrap_or(0) <= flat.bytes());
        let partials = self.scratch.room::<f64>(Use::Partials, count);
        kernels::sum_squares(
            &*self.device,
            Shape::new([count, 1, 1], 256),
            flat.ptr(),
            list,
            partials,
        )
        .or_fail();
        let sums = self.partial_sums(partials, count);
        let mut rest = sums.as_slice();
        for (norm, view) in norms.iter_mut().zip(views) {
            let (own, after) = rest.split_at(view.len().div_ceil(CHUNK));
            rest = after;
            *norm = own.iter().sum();
        }
    }

    pub(super) fn adam_step(
        &mut self,
        params: &mut CudaParams,
        grads: &Flat,
        first: &mut Flat,
        second: &mut Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
    ) {
        let all = chunks(updates.iter().copied());
        if all.is_empty() {
            return;
        }
        check_bounds(&all, &[&params.master, grads, first, second]);
        let list = self.described(&all);
        kernels::adamw(
            &*self.device,
            Shape::new([all.len(), 1, 1], 256),
            params.master.ptr(),
            params.rounded.as_ref().map_or(Ptr::NONE, |r| r.ptr()),
            grads.ptr(),
            first.ptr(),
            second.ptr(),
            list,
            grad_scale,
            adam.beta1,
            adam.beta2,
            adam.epsilon,
        )
        .or_fail();
    }

    pub(super) fn lamb_step(
        &mut self,
        params: &mut CudaParams,
        grads: &mut Flat,
        first: &mut Flat,
        second: &mut Flat,
        adam: &Adam,
        grad_scale: f32,
        updates: &[ParamUpdate],
        adapted: &[bool],
    ) {
        assert_eq!(updates.len(), adapted.len());
        let all = chunks(updates.iter().copied());
        if all.is_empty() {
            return;
        }
        check_bounds(&all, &[&params.master, grads, first, second]);
        let shape = Shape::new([all.len(), 1, 1], 256);
        let list = self.described(&all);
        kernels::adam_direction(
            &*self.device,
            shape,
            params.master.ptr(),
            grads.ptr(),
            first.ptr(),
            second.ptr(),
            list,
            grad_scale,
            adam.beta1,
            adam.beta2,
            adam.epsilon,
        )
        .or_fail();
        let views: Vec<ParamView> = updates.iter().map(|u| u.view).collect();
        let [mut sizes, mut lengths] = [0, 1].map(|_| vec![0.0; views.len()]);
        self.norms(&params.master, &views, &mut sizes);
        self.norms(grads, &views, &mut lengths);
        let ratios = sizes.iter().zip(&lengths).zip(adapted);
        let scaled = updates
            .iter()
            .zip(ratios)
            .map(|(update, ((&size, &length), &adapted))| ParamUpdate {
                lr: match adapted {
                    true => update.lr * trust_ratio(size, length),
                    false => update.lr,
                },
                ..*update
            });
        let list = self.described(&chunks(scaled));
        kernels::descend(
            &*self.device,
            shape,
            params.master.ptr(),
            params.rounded.as_ref().map_or(Ptr::NONE, |r| r.ptr()),
            grads.ptr(),
            list,
        )
        .or_fail();
    }
}

/// # Panics
/// If a chunk ends beyond one of the arrays.
fn check_bounds(chunks: &[Chunk], flats: &[&Flat]) {
    let end = chunks.iter().map(|c| c.offset as usize + c.len as usize);
    let bytes = 4 * end.max().unwrap_or(0);
    assert!(flats.iter().all(|flat| bytes <= flat.bytes()));
}
