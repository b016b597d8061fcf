//! Embedding sums, and their gradient over rows sorted by id.

use super::error::OrFail;
use super::kernels::{self, Ptr, Shape};
use super::memory::{CudaParams, Use};
use super::{Cuda, Flat};
use crate::backend::{Array, Ints};
use crate::params::ParamView;

/// Rows of a tile of the sort.
const TILE: usize = 256;
/// Sorted rows of a block of sums; twin of `RUN` in embedding.cu.
const RUN: usize = 64;
/// Most tables that are summed at once.
const TABLES: usize = 4;

impl Cuda {
    pub(super) fn embed_sum(
        &mut self,
        params: &CudaParams,
        tables: &[(ParamView, Ints)],
        y: Array,
    ) {
        assert!((1..=TABLES).contains(&tables.len()));
        let of = |i: usize| match tables.get(i) {
            Some(&(view, ids)) => {
                assert!(view.cols == y.cols && ids.len == y.rows);
                (params.slice(view), self.ids(ids))
            }
            None => (Ptr::NONE, Ptr::NONE),
        };
        let [t0, t1, t2, t3] = std::array::from_fn(of);
        kernels::embed(
            &*self.device,
            Shape::rows(y.rows),
            t0.0,
            t0.1,
            t1.0,
            t1.1,
            t2.0,
            t2.1,
            t3.0,
            t3.1,
            tables.len() as u32,
            self.mat(y),
            y.rows as u32,
            y.cols as u32,
        )
        .or_fail();
    }

    pub(super) fn embed_gradient(
        &mut self,
        tables: &[(ParamView, Ints)],
        dy: Array,
        grads: &mut Flat,
    ) {
        let (rows, cols, d) = (dy.rows, dy.cols, self.mat(dy));
        if rows == 0 {
            return;
        }
        let blocks = rows.div_ceil(RUN);
        let sum = Shape::new([blocks, cols.div_ceil(128), 1], 128);
        let finish = Shape::new([blocks, cols.div_ceil(32), 1], 256);
        for &(view, ints) in tables {
            assert!(view.cols == cols && ints.len == rows);
            let ids = self.ids(ints);
            let order = self.sorted(ids, rows, view.rows);
            let partials = self.scratch.room::<f32>(Use::Partials, 2 * blocks * cols);
            let grad = grads.ptr::<f32>().add(view.offset);
            let (device, rows, cols) = (&*self.device, rows as u32, cols as u32);
            kernels::embed_sum_runs(device, sum, ids, order, d, grad, partials, rows, cols)
                .or_fail();
            kernels::embed_finish_runs(device, finish, ids, order, partials, grad, rows, cols)
                .or_fail();
        }
    }

    /// Rows in the order of their ids, equal ones in their own order.
    fn sorted(&mut self, ids: Ptr<u32>, rows: usize, entries: usize) -> Ptr<u32> {
        let tiles = rows.div_ceil(TILE);
        let counts = self.scratch.room::<u32>(Use::Counts, 256 * tiles);
        let mut order = Ptr::NONE;
        let mut next = self.scratch.room::<u32>(Use::Order, rows);
        let mut other = self.scratch.room::<u32>(Use::Ordered, rows);
        let device = &*self.device;
        let shape = Shape::new([tiles, 1, 1], TILE);
        let (n, tiles) = (rows as u32, tiles as u32);
        let bits = usize::BITS - entries.saturating_sub(1).leading_zeros();
        for shift in (0..bits.max(1)).step_by(8) {
            kernels::sort_count(device, shape, ids, order, n, shift, counts, tiles).or_fail();
            kernels::sort_scan(device, Shape::new([1; 3], 1024), counts, 256 * tiles).or_fail();
            kernels::sort_place(device, shape, ids, order, n, shift, counts, tiles, next).or_fail();
            order = next;
            std::mem::swap(&mut next, &mut other);
        }
        order
    }
}
