//! Arrays as tasks see them: raw, so that tasks can write to disjoint rows side by side.

use super::buffer::Buffer;
use super::gemm::Form;
use crate::backend::Array;
use std::ops::Range;

/// A matrix inside a buffer, of f32 or of pairs of halves; in bounds by construction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) form: Form,
    data: *mut f32,
    pub(crate) rows: usize,
    /// Values of a row.
    pub(crate) cols: usize,
    /// Words from row to row.
    pub(crate) stride: usize,
    slot: u32,
    column: usize,
}

// SAFETY: a view is an address; who reads or writes through it says why that is sound.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The elements of `array` in the buffer of its slot.
    pub(crate) fn new(buffer: &Buffer, form: Form, array: Array) -> Self {
        let (column, stride) = (array.column as usize, array.stride as usize);
        assert!(column + array.cols <= stride.max(array.cols));
        assert!(form == Form::F32 || column % 2 == 0, "half a pair of bf16");
        let (first, stride) = (form.units(column), form.units(stride));
        let end = match array.rows {
            0 => 0,
            rows => (rows - 1) * stride + first + form.units(array.cols),
        };
        assert!(end <= buffer.len(), "an array of another backend");
        View {
            form,
            data: buffer.as_ptr().wrapping_add(first),
            rows: array.rows,
            cols: array.cols,
            stride,
            slot: array.slot,
            column,
        }
    }

    /// A matrix at an address, its rows close together; in no array.
    pub(crate) fn of(form: Form, data: *mut f32, rows: usize, cols: usize) -> Self {
        Self::spread(form, data, rows, cols, form.units(cols))
    }

    /// The same with `stride` words from row to row.
    pub(crate) fn spread(
        form: Form,
        data: *mut f32,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Self {
        View {
            form,
            data,
            rows,
            cols,
            stride,
            slot: u32::MAX,
            column: 0,
        }
    }

    /// Columns `first .. first + cols` of every row.
    pub(crate) fn columns(self, first: usize, cols: usize) -> Self {
        assert!(first + cols <= self.cols && (self.form == Form::F32 || first.is_multiple_of(2)));
        View {
            data: self.data.wrapping_add(self.form.units(first)),
            column: self.column + first,
            cols,
            ..self
        }
    }

    /// Address of an element of f32.
    pub(crate) fn at(&self, row: usize, col: usize) -> *mut f32 {
        assert!(row < self.rows && col < self.cols && self.form == Form::F32);
        self.data.wrapping_add(row * self.stride + col)
    }

    /// Address of the word that begins with an element.
    pub(crate) fn word(&self, row: usize, col: usize) -> *mut f32 {
        assert!(
            row < self.rows && col < self.cols && (self.form == Form::F32 || col.is_multiple_of(2))
        );
        self.data
            .wrapping_add(row * self.stride + self.form.units(col))
    }

    /// Whether the two share an element.
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        self.slot == other.slot
            && self.column < other.column + other.cols
            && other.column < self.column + self.cols
    }

    /// # Safety
    /// Nobody writes to the row meanwhile.
    pub(crate) unsafe fn row<'a>(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.form == Form::F32);
        // SAFETY: in bounds by construction; not written to, says the caller.
        unsafe { std::slice::from_raw_parts(self.data.add(row * self.stride), self.cols) }
    }

    /// Copies a row to one of another matrix of the same form and width.
    ///
    /// # Safety
    /// Nobody writes to the one, nor uses the other meanwhile. They may be one row.
    pub(crate) unsafe fn copy_row(&self, row: usize, to: &View, to_row: usize) {
        assert!(self.form == to.form && self.cols == to.cols);
        if self.cols == 0 {
            return;
        }
        let words = self.form.units(self.cols);
        // SAFETY: in bounds by construction, and as the caller says.
        unsafe { std::ptr::copy(self.word(row, 0), to.word(to_row, 0), words) };
    }

    /// # Safety
    /// Nobody else uses the row meanwhile.
    pub(crate) unsafe fn zero_row(&self, row: usize) {
        if self.cols > 0 {
            // SAFETY: in bounds by construction, and as the caller says.
            unsafe { std::ptr::write_bytes(self.word(row, 0), 0, self.form.units(self.cols)) };
        }
    }

    /// # Safety
    /// Nobody else reads or writes the row meanwhile.
    pub(crate) unsafe fn row_mut<'a>(&self, row: usize) -> &'a mut [f32] {
        assert!(row < self.rows && self.form == Form::F32);
        // SAFETY: in bounds by construction; not used by others, says the caller.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride), self.cols) }
    }
}

/// Words of a cache line.
pub(crate) const LINE: usize = 16;

/// Asks for a cache line that will be read, into the L2 cache.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for a cache line that will be written: where another core holds it too, that takes longest.
#[inline(always)]
pub(crate) fn prefetch_to_write(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no CPU with x86-64 faults at the instruction, whatever the address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// An address that tasks share; who reads or writes through it says why that is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: an address, no more.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The address `offset` elements on.
    pub(crate) fn add(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }

    /// The same memory from `offset` elements on.
    pub(crate) fn offset(self, offset: usize) -> Shared {
        Shared(self.add(offset))
    }

    /// # Safety
    /// `offset .. offset + len` lies in the allocation, and nobody else uses it meanwhile.
    pub(crate) unsafe fn slice_mut<'a>(self, offset: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.add(offset), len) }
    }
}

/// Part `index` of `0..len` in parts of `size`.
pub(crate) fn part(len: usize, size: usize, index: usize) -> std::ops::Range<usize> {
    index * size..len.min((index + 1) * size)
}

/// Rows in blocks as equal as can be, each a multiple of some rows but for the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    rows: usize,
    multiple: usize,
    count: usize,
}

impl Blocks {
    /// Blocks of at most `most` rows, a multiple of `multiple`.
    pub(crate) fn of(rows: usize, multiple: usize, most: usize) -> Self {
        Blocks::new(rows, multiple, rows.div_ceil(most.max(multiple)))
    }

    /// As [`of`](Blocks::of), and where there are more than two, as many as go round four threads.
    pub(crate) fn in_fours(rows: usize, multiple: usize, most: usize) -> Self {
        match Blocks::of(rows, multiple, most).count {
            count @ 0..=2 => Blocks::new(rows, multiple, count),
            count => Blocks::new(rows, multiple, count.next_multiple_of(4)),
        }
    }

    /// `count` blocks, or fewer where there are too few rows for so many.
    pub(crate) fn new(rows: usize, multiple: usize, count: usize) -> Self {
        Blocks {
            rows,
            multiple,
            count: count.min(rows.div_ceil(multiple)),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Rows of a block.
    pub(crate) fn rows(&self, index: usize) -> Range<usize> {
        let multiples = self.rows.div_ceil(self.multiple);
        let first = |index: usize| (multiples * index / self.count * self.multiple).min(self.rows);
        first(index)..first(index + 1)
    }
}

/// Words from row to row where rows of so many words are to spread over the cache: an odd number of
/// cache lines.
pub(crate) fn spread(words: usize) -> usize {
    (words.div_ceil(LINE) | 1) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_equal_whole_and_no_larger_than_asked() {
        for rows in 0..700 {
            for (multiple, most) in [(1, 1), (1, 50), (6, 6), (6, 132), (32, 128)] {
                for blocks in [
                    Blocks::of(rows, multiple, most),
                    Blocks::in_fours(rows, multiple, most),
                    Blocks::new(rows, multiple, 7),
                ] {
                    let all: Vec<_> = (0..blocks.count()).map(|i| blocks.rows(i)).collect();
                    let lens: Vec<_> = all.iter().map(|rows| rows.len()).collect();
                    assert_eq!(lens.iter().sum::<usize>(), rows);
                    assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
                    let (Some((last, others)), false) = (lens.split_last(), rows == 0) else {
                        assert!(all.is_empty());
                        continue;
                    };
                    assert!(*last > 0 && others.iter().all(|len| len.is_multiple_of(multiple)));
                    let (least, most) = (others.iter().min(), others.iter().max());
                    assert!(least.zip(most).is_none_or(|(a, b)| b - a <= multiple));
                }
                let blocks = Blocks::of(rows, multiple, most);
                assert!((0..blocks.count()).all(|i| blocks.rows(i).len() <= most));
            }
        }
    }
}
