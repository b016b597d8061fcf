//! Epilogues of products: what becomes of results while they are in the L1 cache, thirty-two values of a
//! row at a time; with the matrix unit, while it multiplies on.

use super::elementwise::activate;
use super::gemm::{Form, STRIP};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use super::view::{LINE, View, prefetch_to_write};
use crate::backend::Activation;
use std::ops::Range;

/// Values that an epilogue is applied to at once.
pub(super) const AT_ONCE: usize = 2 * LANES;
/// Rows of a panel between product and epilogue, at most: they stay in the L1 cache.
pub(super) const TILE_ROWS: usize = 4 * STRIP;

/// What is fused to a product. Rows and columns are counted from the product's first.
pub(super) trait Epilogue: Copy {
    /// Rows of a panel between product and epilogue: fewer where more would be prefetched than can be
    /// under way.
    const ROWS: usize = TILE_ROWS;

    /// Form of what is read and written, which decides the instruction set.
    fn form(&self) -> Form;

    /// Whether the places have room for so many rows and columns.
    fn fits(&self, rows: usize, cols: usize) -> bool;

    /// Where results go that stay as they are, in f32: the product can leave them there itself.
    fn as_they_are(&self) -> Option<Place> {
        None
    }

    /// Takes `count` ≤ [`AT_ONCE`] values of a row, from an even column on. It is `#[inline(always)]`, and
    /// so is what it calls with vectors: a part of a kernel that is not inlined lacks the instruction set.
    ///
    /// # Safety
    /// The places [`fit`](Epilogue::fits) the row and the columns, and nobody else uses them.
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize);

    /// Prefetches the places of `count` values of a row.
    fn prefetch(&self, row: usize, column: usize, count: usize);
}

/// How closely an activation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accuracy {
    /// As closely as f32 can.
    F32,
    /// As closely as products of bf16 or bytes can tell.
    Bf16,
}

impl Accuracy {
    /// What products of this form can tell.
    pub(super) fn of(form: Form) -> Self {
        match form {
            Form::F32 => Accuracy::F32,
            Form::Bf16 | Form::Int8 => Accuracy::Bf16,
        }
    }
}

/// Where rows of results lie.
#[derive(Clone, Copy)]
pub(super) struct Place {
    form: Form,
    pub(super) data: *mut f32,
    rows: usize,
    cols: usize,
    /// Words from row to row.
    pub(super) stride: usize,
}

impl Place {
    /// Some rows of a view.
    pub(super) fn new(view: View, rows: &Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= view.rows);
        Place {
            form: view.form,
            data: view.word(rows.start, 0),
            rows: rows.len(),
            cols: view.cols,
            stride: view.stride,
        }
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        rows <= self.rows && cols <= self.cols
    }

    #[inline(always)]
    fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.data
            .wrapping_add(row * self.stride + self.form.units(column))
    }

    /// # Safety
    /// As for [`Epilogue::apply`].
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, row: usize, column: usize, count: usize) -> [S::V; 2] {
        let words = self.form.units(count);
        // SAFETY: as the caller says.
        let from = unsafe { std::slice::from_raw_parts(self.at(row, column), words) };
        if self.form == Form::Bf16 {
            let (first, second) = S::values_bf16(S::read(from));
            return [first, second];
        }
        [S::read(from), S::read(&from[words.min(LANES)..])]
    }

    /// # Safety
    /// As for [`Epilogue::apply`].
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        let words = self.form.units(count);
        // SAFETY: as the caller says.
        let to = unsafe { std::slice::from_raw_parts_mut(self.at(row, column), words) };
        if self.form == Form::Bf16 {
            return S::write(to, S::row_bf16(values[0], values[1]));
        }
        let (first, second) = to.split_at_mut(words.min(LANES));
        S::write(first, values[0]);
        S::write(second, values[1]);
    }

    fn prefetch(&self, row: usize, column: usize, count: usize) {
        let from = self.at(row, column);
        for word in (0..self.form.units(count)).step_by(LINE) {
            prefetch_to_write(from.wrapping_add(word));
        }
    }
}

/// Results to their place; through an activation to another, or there alone.
#[derive(Clone, Copy)]
pub(super) struct Store {
    /// As they are.
    pub(super) plain: Option<Place>,
    pub(super) activated: Option<(Place, Activation, Accuracy)>,
}

impl Store {
    /// As they are.
    pub(super) fn plain(to: Place) -> Self {
        Store {
            plain: Some(to),
            activated: None,
        }
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let activated = self.activated.map(|(place, ..)| place);
        self.plain.into_iter().chain(activated)
    }
}

impl Epilogue for Store {
    fn form(&self) -> Form {
        match self.places().any(|place| place.form == Form::Bf16) {
            true => Form::Bf16,
            false => Form::F32,
        }
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        self.places().all(|place| place.fits(rows, cols))
    }

    fn as_they_are(&self) -> Option<Place> {
        self.plain
            .filter(|place| place.form == Form::F32 && self.activated.is_none())
    }

    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        // SAFETY: as the caller says.
        unsafe {
            if let Some(place) = &self.plain {
                place.write::<S>(values, row, column, count);
            }
            if let Some((place, activation, accuracy)) = self.activated {
                let [first, second] = values;
                let values = [
                    activate::<S>(activation, accuracy, first).0,
                    activate::<S>(activation, accuracy, second).0,
                ];
                place.write::<S>(values, row, column, count);
            }
        }
    }

    /// What goes through the activation is read again at once, and near.
    fn prefetch(&self, row: usize, column: usize, count: usize) {
        if let Some(place) = &self.plain {
            place.prefetch(row, column, count);
        }
    }
}

/// Results are gradients by activated values: `d = f'(z) · result`, and `z = f(z)`. Both places have one
/// form.
#[derive(Clone, Copy)]
pub(super) struct ActivationGradient {
    pub(super) activation: Activation,
    pub(super) accuracy: Accuracy,
    pub(super) z: Place,
    pub(super) d: Place,
}

impl Epilogue for ActivationGradient {
    /// Both places lie far away, and of four strips they are 96 cache lines in bf16.
    const ROWS: usize = STRIP;

    fn form(&self) -> Form {
        assert!(self.z.form == self.d.form);
        self.d.form
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        self.z.fits(rows, cols) && self.d.fits(rows, cols)
    }

    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        // SAFETY: as the caller says.
        unsafe {
            let [first, second] = self.z.read::<S>(row, column, count);
            let (first, first_slope) = activate::<S>(self.activation, self.accuracy, first);
            let (second, second_slope) = activate::<S>(self.activation, self.accuracy, second);
            self.z.write::<S>([first, second], row, column, count);
            let d = [
                S::mul(first_slope, values[0]),
                S::mul(second_slope, values[1]),
            ];
            self.d.write::<S>(d, row, column, count);
        }
    }

    fn prefetch(&self, row: usize, column: usize, count: usize) {
        self.z.prefetch(row, column, count);
        self.d.prefetch(row, column, count);
    }
}

/// An epilogue applied to some rows of a panel.
pub(super) struct PanelEpilogue<'a, F> {
    pub(super) epilogue: F,
    /// `stride` words a row.
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    /// Columns in use.
    pub(super) cols: usize,
    /// Row and column of the first.
    pub(super) first: [usize; 2],
}

impl<F: Epilogue> Kernel for PanelEpilogue<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let [first, column] = self.first;
        for (values, row) in self.values.chunks_exact(self.stride.max(1)).zip(first..) {
            let values = &values[..self.cols];
            for (at, values) in values.chunks(AT_ONCE).enumerate() {
                let pair = [S::read(values), S::read(&values[values.len().min(LANES)..])];
                let column = column + at * AT_ONCE;
                // SAFETY: whoever makes the kernel vouches for the places.
                unsafe { self.epilogue.apply::<S>(pair, row, column, values.len()) };
            }
        }
    }
}

/// Rows of `cols` values to their place.
///
/// # Safety
/// Nobody else uses it.
///
/// # Panics
/// If it has fewer rows or columns.
pub(super) unsafe fn store_rows(isa: Isa, values: &[f32], cols: usize, to: Place) {
    assert!(to.fits(values.len() / cols.max(1), cols));
    let rows = PanelEpilogue {
        epilogue: Store::plain(to),
        values,
        stride: cols,
        cols,
        first: [0; 2],
    };
    isa.run_in(to.form, rows);
}

/// Prefetches the places of some rows of a panel.
pub(super) fn prefetch_rows<F: Epilogue>(
    epilogue: &F,
    rows: Range<usize>,
    column: usize,
    cols: usize,
) {
    for row in rows {
        epilogue.prefetch(row, column, cols);
    }
}
