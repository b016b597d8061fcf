//! Where an epilogue reads and writes: rows of f32, or of pairs of halves.

use crate::cpu::gemm::Form;
use crate::cpu::simd::{LANES, Simd};
use crate::cpu::view::{LINE, View, prefetch_to_write};
use std::ops::Range;

/// Words of a form, two vectors of values at a time.
pub(super) trait Words: Copy {
    const FORM: Form;
    fn read<S: Simd>(from: &[f32]) -> [S::V; 2];
    fn write<S: Simd>(to: &mut [f32], values: [S::V; 2]);
}

#[derive(Clone, Copy)]
pub(super) struct F32Words;

#[derive(Clone, Copy)]
pub(super) struct HalfWords;

impl Words for F32Words {
    const FORM: Form = Form::F32;

    #[inline(always)]
    fn read<S: Simd>(from: &[f32]) -> [S::V; 2] {
        [S::read(from), S::read(&from[from.len().min(LANES)..])]
    }

    #[inline(always)]
    fn write<S: Simd>(to: &mut [f32], values: [S::V; 2]) {
        let (first, second) = to.split_at_mut(to.len().min(LANES));
        S::write(first, values[0]);
        S::write(second, values[1]);
    }
}

impl Words for HalfWords {
    const FORM: Form = Form::Half;

    #[inline(always)]
    fn read<S: Simd>(from: &[f32]) -> [S::V; 2] {
        S::values_half(S::read(from)).into()
    }

    #[inline(always)]
    fn write<S: Simd>(to: &mut [f32], values: [S::V; 2]) {
        S::write(to, S::row_half(values[0], values[1]));
    }
}

/// An expression with the words of a form as a type.
macro_rules! with_words {
    ($form:expr, $words:ident => $body:expr) => {
        match $form {
            Form::F32 => {
                type $words = $crate::cpu::epilogue::place::F32Words;
                $body
            }
            Form::Half => {
                type $words = $crate::cpu::epilogue::place::HalfWords;
                $body
            }
            Form::Int8 => unreachable!("no epilogue writes bytes"),
        }
    };
}
pub(super) use with_words;

/// Where rows of results lie.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Place {
    pub(super) form: Form,
    pub(in crate::cpu) data: *mut f32,
    rows: usize,
    cols: usize,
    /// Words from row to row.
    pub(in crate::cpu) stride: usize,
}

impl Place {
    /// Some rows of a view.
    pub(in crate::cpu) fn new(view: View, rows: &Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= view.rows);
        Place {
            form: view.form,
            data: view.word(rows.start, 0),
            rows: rows.len(),
            cols: view.cols,
            stride: view.stride,
        }
    }

    pub(super) fn fits(&self, rows: usize, cols: usize) -> bool {
        rows <= self.rows && cols <= self.cols
    }

    #[inline(always)]
    fn at(&self, form: Form, row: usize, column: usize) -> *mut f32 {
        self.data
            .wrapping_add(row * self.stride + form.units(column))
    }

    /// `count` values of a row, from `column` on, of words that are `W`.
    ///
    /// # Safety
    /// As for [`TypedEpilogue::apply`](super::TypedEpilogue::apply).
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd, W: Words>(
        &self,
        row: usize,
        column: usize,
        count: usize,
    ) -> [S::V; 2] {
        let (from, words) = (self.at(W::FORM, row, column), W::FORM.units(count));
        // SAFETY: as the caller says.
        W::read::<S>(unsafe { std::slice::from_raw_parts(from, words) })
    }

    /// # Safety
    /// As for [`TypedEpilogue::apply`](super::TypedEpilogue::apply).
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd, W: Words>(
        &self,
        values: [S::V; 2],
        row: usize,
        column: usize,
        count: usize,
    ) {
        let (to, words) = (self.at(W::FORM, row, column), W::FORM.units(count));
        // SAFETY: as the caller says.
        W::write::<S>(unsafe { std::slice::from_raw_parts_mut(to, words) }, values);
    }

    pub(super) fn prefetch(&self, row: usize, column: usize, count: usize) {
        let from = self.at(self.form, row, column);
        for word in (0..self.form.units(count)).step_by(LINE) {
            prefetch_to_write(from.wrapping_add(word));
        }
    }
}
