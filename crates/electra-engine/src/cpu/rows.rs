//! Rows by number: embedding sums, gather, scatter, and vectors of ids.

use super::params::CpuParams;
use super::view::{Shared, part};
use super::{Cpu, Flat};
use crate::backend::{Array, Ints};
use crate::params::ParamView;

/// Columns of the tables' gradients that one task adds to, for all tokens in their order.
const COLUMNS: usize = 32;

/// `y += x`
fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// Rows that are chosen of so many, in their order: tasks share them out by that.
///
/// # Panics
/// If there is no such row, or they do not ascend.
pub(super) fn chosen_rows(ints: &[Vec<u32>], rows: Ints, of: usize) -> &[u32] {
    let chosen = &ints[rows.slot as usize][..rows.len];
    assert!(chosen.is_sorted_by(|a, b| a < b) && chosen.last().is_none_or(|&r| (r as usize) < of));
    chosen
}

impl Cpu {
    pub(super) fn embed_sum(&mut self, params: &CpuParams, tables: &[(ParamView, Ints)], y: Array) {
        assert!(
            tables
                .iter()
                .all(|(t, i)| t.cols == y.cols && i.len == y.rows)
        );
        let (y, ints) = (self.view(y), &self.ints);
        self.pool
            .rows(y.rows, y.cols * tables.len().max(1), |rows, _| {
                for r in rows {
                    // SAFETY: row r of y is this task's.
                    let row = unsafe { y.row_mut(r) };
                    row.fill(0.0);
                    for (table, ids) in tables {
                        let id = ints[ids.slot as usize][r] as usize;
                        add(row, &params.slice(*table)[id * y.cols..][..y.cols]);
                    }
                }
            });
    }

    pub(super) fn embed_gradient(
        &mut self,
        tables: &[(ParamView, Ints)],
        dy: Array,
        grads: &mut Flat,
    ) {
        assert!(
            tables
                .iter()
                .all(|(t, i)| t.cols == dy.cols && i.len == dy.rows)
        );
        assert!(tables.iter().all(|(t, _)| t.range().end <= grads.len()));
        let (dy, ints) = (self.view(dy), &self.ints);
        let grads = Shared(grads.as_ptr());
        self.pool.run(dy.cols.div_ceil(COLUMNS), |task, _| {
            let columns = part(dy.cols, COLUMNS, task);
            for (table, ids) in tables {
                for (r, &id) in ints[ids.slot as usize][..ids.len].iter().enumerate() {
                    assert!((id as usize) < table.rows);
                    let at = table.offset + id as usize * dy.cols + columns.start;
                    // SAFETY: inside the table; these columns of every table are this task's, and
                    // nobody writes to dy.
                    unsafe {
                        add(
                            grads.slice_mut(at, columns.len()),
                            &dy.row(r)[columns.clone()],
                        );
                    }
                }
            }
        });
    }

    pub(super) fn gather(&mut self, x: Array, rows: Ints, y: Array) {
        assert!(rows.len == y.rows && x.cols == y.cols);
        let (x, y) = (self.view(x), self.view(y));
        assert!(!x.overlaps(&y));
        let ids = &self.ints[rows.slot as usize];
        self.pool.rows(y.rows, y.cols, |rows, _| {
            for m in rows {
                // SAFETY: row m of y is this task's, and nobody writes to x.
                unsafe { y.row_mut(m).copy_from_slice(x.row(ids[m] as usize)) };
            }
        });
    }

    pub(super) fn scatter_add(&mut self, dy: Array, rows: Ints, dx: Array) {
        assert!(rows.len == dy.rows && dx.cols == dy.cols);
        let (dy, dx) = (self.view(dy), self.view(dx));
        assert!(!dy.overlaps(&dx));
        // On one thread, so that rows which should be distinct and are not do no harm to memory.
        for (m, &r) in self.ids(rows).iter().enumerate() {
            // SAFETY: nobody else uses either array.
            unsafe { add(dx.row_mut(r as usize), dy.row(m)) };
        }
    }

    pub(super) fn replace_ids(&mut self, base: Ints, rows: Ints, values: Ints, y: Ints) {
        assert!(base.len == y.len && rows.len == values.len);
        assert!(y.slot != rows.slot && y.slot != values.slot);
        let mut out = std::mem::take(&mut self.ints[y.slot as usize]);
        if base.slot != y.slot {
            out[..y.len].copy_from_slice(self.ids(base));
        }
        for (&r, &value) in self.ids(rows).iter().zip(self.ids(values)) {
            out[..y.len][r as usize] = value;
        }
        self.ints[y.slot as usize] = out;
    }

    pub(super) fn compare_ids(&mut self, a: Ints, b: Ints, y: Ints) {
        assert!(a.len == y.len && b.len == y.len);
        for i in 0..y.len {
            let differ = self.ids(a)[i] != self.ids(b)[i];
            self.ints[y.slot as usize][i] = u32::from(differ);
        }
    }
}
