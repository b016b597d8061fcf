//! Epilogues of products: what becomes of results while they are in the L1 cache, thirty-two values of a
//! row at a time; with the matrix unit, while it multiplies on.

use super::elementwise::{Accuracy, Function, with_function};
use super::gemm::{Form, STRIP};
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use crate::backend::Activation;
use place::{F32Words, Words, with_words};
use std::marker::PhantomData;
use std::ops::Range;

mod place;

pub(super) use place::Place;

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

    /// Prefetches the places of `count` values of a row.
    fn prefetch(&self, row: usize, column: usize, count: usize);

    /// Runs a loop over the epilogue with form and activation as types.
    fn run_loop<L: EpilogueLoop>(self, over_values: L);
}

/// An epilogue whose form and activation are types, so that a loop over values does not ask for them.
pub(super) trait TypedEpilogue: Copy {
    /// Takes `count` ≤ [`AT_ONCE`] values of a row, from an even column on. It is `#[inline(always)]`, and
    /// so is what it calls with vectors: a part of a kernel that is not inlined lacks the instruction set.
    ///
    /// # Safety
    /// The places [`fit`](Epilogue::fits) the row and the columns, and nobody else uses them.
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize);
}

/// A loop over values that an epilogue is applied to, inside a kernel.
pub(super) trait EpilogueLoop {
    fn run<E: TypedEpilogue>(self, epilogue: E);
}

/// Results to their place; through an activation to another, or there alone. Both places have one form.
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
        let mut forms = self.places().map(|place| place.form);
        let form = forms.next().unwrap_or(Form::F32);
        assert!(forms.all(|other| other == form));
        form
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        self.places().all(|place| place.fits(rows, cols))
    }

    fn as_they_are(&self) -> Option<Place> {
        self.plain
            .filter(|place| place.form == Form::F32 && self.activated.is_none())
    }

    /// What goes through the activation is read again at once, and near.
    fn prefetch(&self, row: usize, column: usize, count: usize) {
        if let Some(place) = &self.plain {
            place.prefetch(row, column, count);
        }
    }

    #[inline(always)]
    fn run_loop<L: EpilogueLoop>(self, over_values: L) {
        with_words!(self.form(), W => match (self.plain, self.activated) {
            (Some(to), None) => over_values.run(StoreIn::<W>(to, PhantomData)),
            (plain, Some((to, activation, accuracy))) => with_function!(activation, accuracy, A => {
                match plain {
                    None => over_values.run(StoreActivated::<W, A>(to, PhantomData)),
                    Some(plain) => over_values.run(StoreBoth::<W, A> {
                        plain: StoreIn(plain, PhantomData),
                        activated: StoreActivated(to, PhantomData),
                    }),
                }
            }),
            (None, None) => {}
        });
    }
}

/// Results to a place.
#[derive(Clone, Copy)]
struct StoreIn<W>(Place, PhantomData<W>);

impl<W: Words> TypedEpilogue for StoreIn<W> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        // SAFETY: as the caller says.
        unsafe { self.0.write::<S, W>(values, row, column, count) };
    }
}

/// Results through an activation to a place.
#[derive(Clone, Copy)]
struct StoreActivated<W, A>(Place, PhantomData<(W, A)>);

impl<W: Words, A: Function> TypedEpilogue for StoreActivated<W, A> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        let [first, second] = values;
        let values = [
            A::value_and_slope::<S>(first).0,
            A::value_and_slope::<S>(second).0,
        ];
        // SAFETY: as the caller says.
        unsafe { self.0.write::<S, W>(values, row, column, count) };
    }
}

/// Results to both.
#[derive(Clone, Copy)]
struct StoreBoth<W, A> {
    plain: StoreIn<W>,
    activated: StoreActivated<W, A>,
}

impl<W: Words, A: Function> TypedEpilogue for StoreBoth<W, A> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        // SAFETY: as the caller says.
        unsafe {
            self.plain.apply::<S>(values, row, column, count);
            self.activated.apply::<S>(values, row, column, count);
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

    fn prefetch(&self, row: usize, column: usize, count: usize) {
        self.z.prefetch(row, column, count);
        self.d.prefetch(row, column, count);
    }

    #[inline(always)]
    fn run_loop<L: EpilogueLoop>(self, over_values: L) {
        let Self { z, d, .. } = self;
        with_words!(self.form(), W => with_function!(self.activation, self.accuracy, A => {
            over_values.run(GradientIn::<W, A> { z, d, types: PhantomData })
        }));
    }
}

/// [`ActivationGradient`] in words, of a function.
#[derive(Clone, Copy)]
struct GradientIn<W, A> {
    z: Place,
    d: Place,
    types: PhantomData<(W, A)>,
}

impl<W: Words, A: Function> TypedEpilogue for GradientIn<W, A> {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, values: [S::V; 2], row: usize, column: usize, count: usize) {
        // SAFETY: as the caller says.
        unsafe {
            let [first, second] = self.z.read::<S, W>(row, column, count);
            let (first, first_slope) = A::value_and_slope::<S>(first);
            let (second, second_slope) = A::value_and_slope::<S>(second);
            self.z.write::<S, W>([first, second], row, column, count);
            let d = [
                S::mul(first_slope, values[0]),
                S::mul(second_slope, values[1]),
            ];
            self.d.write::<S, W>(d, row, column, count);
        }
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
        let epilogue = self.epilogue;
        epilogue.run_loop(PanelLoop::<F, S>(self, PhantomData));
    }
}

/// The loop of [`PanelEpilogue`] over vectors.
struct PanelLoop<'a, F, S>(PanelEpilogue<'a, F>, PhantomData<S>);

impl<F, S: Simd> EpilogueLoop for PanelLoop<'_, F, S> {
    #[inline(always)]
    fn run<E: TypedEpilogue>(self, epilogue: E) {
        let panel = self.0;
        let [first, column] = panel.first;
        for (values, row) in panel.values.chunks_exact(panel.stride.max(1)).zip(first..) {
            let (pairs, rest) = values[..panel.cols].as_chunks::<AT_ONCE>();
            // SAFETY: whoever makes the kernel vouches for the places.
            unsafe {
                let mut column = column;
                for pair in pairs {
                    epilogue.apply::<S>(F32Words::read::<S>(pair), row, column, AT_ONCE);
                    column += AT_ONCE;
                }
                if !rest.is_empty() {
                    epilogue.apply::<S>(F32Words::read::<S>(rest), row, column, rest.len());
                }
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
