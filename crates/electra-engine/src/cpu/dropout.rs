//! Dropout, sixteen Philox blocks side by side, and the residual sum with it.

use super::Cpu;
use super::isa::Kernel;
use super::simd::{LANES, Simd};
use crate::backend::{Array, Dropout, RowKeys};
use crate::rng::{Purpose, stream};

/// Columns that sixteen blocks decide on.
pub(super) const GROUP: usize = 128;

/// The dropout of one row.
#[derive(Clone, Copy)]
pub(super) struct RowDropout {
    key: [u32; 2],
    /// Position, example and stream of the Philox counter.
    place: [u32; 3],
    first_block: u32,
    threshold: u32,
    scale: f32,
}

impl RowDropout {
    pub(super) fn new(
        dropout: &Dropout,
        purpose: Purpose,
        example: u32,
        position: u32,
        first_block: u32,
    ) -> Self {
        RowDropout {
            key: dropout.rng.key(),
            place: [position, example, stream(purpose, dropout.site)],
            first_block,
            threshold: dropout.threshold(),
            scale: dropout.scale() as f32,
        }
    }

    /// What multiplies columns `128 · group` and following: eight vectors.
    #[inline(always)]
    pub(super) fn factors<S: Simd>(&self, group: usize) -> [S::V; GROUP / LANES] {
        let first = self.first_block + (group * LANES) as u32;
        let words = philox::<S>(S::add_u(S::iota(), S::splat_u(first)), self.place, self.key);
        let scale = S::splat(self.scale);
        let mut factors = [scale; GROUP / LANES];
        for word in 0..4 {
            for half in 0..2 {
                factors[2 * word + half] = S::keep(words[word], half as u32, self.threshold, scale);
            }
        }
        factors
    }
}

/// Philox-4x32-10 of sixteen blocks; see [`crate::rng::philox`].
#[inline(always)]
fn philox<S: Simd>(block: S::U, place: [u32; 3], mut key: [u32; 2]) -> [S::U; 4] {
    let [a, b, c] = place;
    let mut counter = [block, S::splat_u(a), S::splat_u(b), S::splat_u(c)];
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let (a_high, a_low) = S::mul_wide(counter[0], 0xD251_1F53);
        let (b_high, b_low) = S::mul_wide(counter[2], 0xCD9E_8D57);
        counter = [
            S::xor_u(S::xor_u(b_high, counter[1]), S::splat_u(key[0])),
            b_low,
            S::xor_u(S::xor_u(a_high, counter[3]), S::splat_u(key[1])),
            a_low,
        ];
    }
    counter
}

/// `row = residual + dropout(row)`.
struct DropRow<'a> {
    row: &'a mut [f32],
    residual: Option<&'a [f32]>,
    dropout: RowDropout,
}

impl Kernel for DropRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (group, values) in self.row.chunks_mut(GROUP).enumerate() {
            let factors = self.dropout.factors::<S>(group);
            match self.residual {
                None => {
                    for (values, factor) in values.chunks_mut(LANES).zip(factors) {
                        let kept = S::mul(S::read(values), factor);
                        S::write(values, kept);
                    }
                }
                Some(residual) => {
                    let residual = residual[group * GROUP..].chunks(LANES);
                    for ((values, factor), r) in values.chunks_mut(LANES).zip(factors).zip(residual)
                    {
                        // Product, then sum, as two roundings: what is kept is the dropped value.
                        let kept = S::mul(S::read(values), factor);
                        S::write(values, S::add(S::read(r), kept));
                    }
                }
            }
        }
    }
}

/// `y += x`
struct AddRow<'a>(&'a mut [f32], &'a [f32]);

impl Kernel for AddRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (y, x) in self.0.chunks_mut(LANES).zip(self.1.chunks(LANES)) {
            let sum = S::add(S::read(y), S::read(x));
            S::write(y, sum);
        }
    }
}

impl Cpu {
    /// `y = residual + dropout(x)`, each of both optional. `y` may be `x` or `residual`, not a
    /// part of either.
    pub(super) fn add_dropped(
        &mut self,
        residual: Option<Array>,
        x: Array,
        dropout: Option<(&Dropout, &RowKeys)>,
        y: Array,
    ) {
        assert!(x.rows == y.rows && x.cols == y.cols);
        assert!(residual.is_none_or(|r| r.rows == y.rows && r.cols == y.cols));
        let (in_place, onto) = (x == y, residual == Some(y));
        let (x, y) = (self.view(x), self.view(y));
        let residual = residual.map(|r| self.view(r));
        assert!(in_place || !x.overlaps(&y));
        assert!(onto || residual.is_none_or(|r| !r.overlaps(&y)));
        let isa = self.isa;
        let ints = &self.ints;
        let keys = dropout.map(|(d, keys)| {
            let [example, position] =
                [keys.example, keys.position].map(|i| &ints[i.slot as usize][..i.len.min(y.rows)]);
            (d, example, position)
        });
        self.pool.rows(y.rows, y.cols, |rows, scratch| {
            let [saved] = scratch.split([y.cols]);
            for r in rows {
                // SAFETY: row r of y is this task's; x and residual are that row or are not
                // written to, and no slice of them lives while y's is used.
                let (row, residual) = unsafe {
                    if onto {
                        saved.copy_from_slice(y.row(r));
                    }
                    let row = y.row_mut(r);
                    if !in_place {
                        row.copy_from_slice(x.row(r));
                    }
                    let residual = match residual {
                        Some(_) if onto => Some(&*saved),
                        Some(residual) => Some(residual.row(r)),
                        None => None,
                    };
                    (row, residual)
                };
                match (keys, residual) {
                    (Some((d, examples, positions)), residual) => isa.run(DropRow {
                        row,
                        residual,
                        dropout: RowDropout::new(d, Purpose::Dropout, examples[r], positions[r], 0),
                    }),
                    (None, Some(residual)) => isa.run(AddRow(row, residual)),
                    (None, None) => {}
                }
            }
        });
    }
}
