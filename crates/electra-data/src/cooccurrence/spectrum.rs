//! A sparse matrix and the leading eigenvectors of its square part.

use electra_engine::rng::{Purpose, Rng};
use nalgebra::{DMatrix, SymmetricEigen};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Dimensions beyond those asked for, so that the last of these converge.
const OVERSAMPLING: usize = 32;
/// Rounds of subspace iteration.
const ROUNDS: usize = 5;
/// Rows that a thread multiplies at a time; in tests likewise.
const PRODUCT_ROWS: usize = if cfg!(test) { 3 } else { 256 };

/// A sparse matrix by rows.
pub(super) struct Sparse {
    /// Where each row's entries begin, and their number.
    pub starts: Vec<usize>,
    pub columns: Vec<u32>,
    pub values: Vec<f32>,
}

impl Sparse {
    /// Entries of a row.
    pub fn entries(&self, row: usize) -> usize {
        self.starts[row + 1] - self.starts[row]
    }

    /// The product of the first `rows` rows with the transpose of `right`, `[size, columns]`; row-major,
    /// `[rows, size]`.
    pub fn times(&self, right: &DMatrix<f32>, rows: usize, threads: usize) -> Vec<f32> {
        let size = right.nrows();
        let vectors = right.as_slice();
        let blocks = in_parallel(rows.div_ceil(PRODUCT_ROWS), threads, |block| {
            let first = block * PRODUCT_ROWS;
            let last = (first + PRODUCT_ROWS).min(rows);
            let mut out = vec![0.0f32; (last - first) * size];
            for (row, out) in (first..last).zip(out.chunks_exact_mut(size)) {
                let entries = self.starts[row]..self.starts[row + 1];
                for (&column, &value) in self.columns[entries.clone()]
                    .iter()
                    .zip(&self.values[entries])
                {
                    let vector = &vectors[column as usize * size..][..size];
                    for (sum, &x) in out.iter_mut().zip(vector) {
                        *sum += value * x;
                    }
                }
            }
            out
        });
        blocks.concat()
    }
}

/// The `size` leading eigenvectors of the core's square, `[size, core]`, each divided by the root of its
/// eigenvalue, by subspace iteration (Halko, Martinsson and Tropp 2011). A row of the matrix times
/// this is that token's vector, of the core or not.
pub(super) fn leading(matrix: &Sparse, core: usize, size: usize, threads: usize) -> DMatrix<f32> {
    let width = (size + OVERSAMPLING).min(core);
    let rng = Rng::new(0, 0);
    let start = |row: usize, column: usize| {
        rng.uniform(Purpose::Init, u32::MAX, row as u32, column as u32, 0) as f32 - 0.5
    };
    let mut vectors = orthonormal(DMatrix::from_fn(width, core, start));
    let times = |vectors: &DMatrix<f32>| {
        DMatrix::from_vec(width, core, matrix.times(vectors, core, threads))
    };
    for _ in 0..ROUNDS {
        vectors = orthonormal(times(&vectors));
    }
    let projected = &times(&vectors) * vectors.transpose();
    let eigen = SymmetricEigen::new((&projected + projected.transpose()) * 0.5);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (eigen.eigenvalues[a].abs(), eigen.eigenvalues[b].abs());
        b.total_cmp(&a)
    });
    let chosen = DMatrix::from_fn(size, width, |row, column| {
        let value = eigen.eigenvalues[order[row]];
        let scale = match value.abs() > f32::MIN_POSITIVE {
            true => value.signum() / value.abs().sqrt(),
            false => 0.0,
        };
        eigen.eigenvectors[(column, order[row])] * scale
    });
    chosen * vectors
}

/// Makes the rows orthonormal.
fn orthonormal(rows: DMatrix<f32>) -> DMatrix<f32> {
    rows.transpose().qr().q().transpose()
}

/// `work(0)`, `work(1)`, … `work(count - 1)` on so many threads, in order.
pub(super) fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    done.lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
