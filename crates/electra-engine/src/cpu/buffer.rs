//! Memory of f32 words at cache-line boundaries.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment in bytes: a cache line, and a vector of AVX-512.
const ALIGN: usize = 64;

/// A zeroed, 64-byte aligned run of f32 of fixed length.
///
/// Packed bf16 pairs lie in the same kind of buffer, one pair a word: only the kernels look at
/// the bits.
#[derive(Debug)]
pub struct Buffer {
    /// First element.
    data: NonNull<f32>,
    /// What was allocated.
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a buffer owns its memory as a `Vec<f32>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, as with `Vec<f32>`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory from the system is aligned to less than a cache line, so there is room to move up.
    /// Asking for the alignment itself would have the allocator write the zeros: pages that are
    /// never used would still take memory.
    fn layout(len: usize) -> Layout {
        Layout::array::<f32>(len + ALIGN / size_of::<f32>())
            .expect("an array fits the address space")
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Buffer {
                data: NonNull::dangling(),
                base: NonNull::dangling(),
                len,
            };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        // SAFETY: moves up by less than `ALIGN` bytes, which the layout holds beyond `len` elements.
        let data = unsafe { base.add(base.align_offset(ALIGN)) }.cast();
        Buffer { data, base, len }
    }

    /// Number of f32 elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element. Writing through it is for who owns the buffer or a part of it.
    pub(crate) fn as_ptr(&self) -> *mut f32 {
        self.data.as_ptr()
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` elements were allocated and set to zero.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: `len` elements were allocated and set to zero, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }

    /// Makes room for at least `len` elements; what was inside is lost if it must grow.
    pub(crate) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Buffer::zeroed(len.next_multiple_of(1024));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) }
        }
    }
}

/// A worker's memory for intermediate values: grows to what the largest task needs, then stays.
#[derive(Debug)]
pub(crate) struct Scratch(Buffer);

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch(Buffer::zeroed(0))
    }

    /// Disjoint slices of these lengths, each at a cache line, with unspecified contents.
    pub(crate) fn split<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let padded = lengths.map(|n| n.next_multiple_of(16));
        self.0.reserve(padded.iter().sum());
        let mut rest = self.0.as_mut_slice();
        let mut parts = lengths.into_iter().zip(padded);
        std::array::from_fn(|_| {
            let (len, padded) = parts.next().expect("one part a length");
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(padded);
            rest = tail;
            &mut part[..len]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_scratch_parts_are_disjoint() {
        let buffer = Buffer::zeroed(17);
        assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
        assert_eq!(buffer.as_slice(), [0.0; 17]);
        let mut scratch = Scratch::new();
        let [a, b, c] = scratch.split([3, 0, 40]);
        assert_eq!((a.len(), b.len(), c.len()), (3, 0, 40));
        a.fill(1.0);
        c.fill(2.0);
        assert_eq!(a, [1.0; 3]);
        assert_eq!(c.as_ptr() as usize % ALIGN, 0);
    }
}
