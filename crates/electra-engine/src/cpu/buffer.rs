//! Memory of f32 words from the system itself, each buffer shifted by some lines more than the one before.

use memmap2::{MmapMut, MmapOptions};
use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes from which on memory is asked for in huge pages, of which one takes the place of hundreds:
/// the system hands them out faster, and the CPU finds them faster.
const HUGE: usize = 4 << 20;

/// Bytes from the beginning of one buffer's memory to its first element, more than of the one before
/// by a page and some lines, up to [`SHIFTS`] times: memory from the system begins at multiples of
/// large powers of two, and rows of several arrays would contend for the same places of the caches.
const SHIFT: usize = 4096 + 5 * 64;
/// See [`SHIFT`].
const SHIFTS: usize = 29;
/// Buffers made so far.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// A zeroed run of f32 of fixed length, from the system itself: what is never touched takes no
/// memory.
///
/// Packed bf16 pairs lie in the same kind of buffer, one pair a word: only the kernels look at
/// the bits.
#[derive(Debug)]
pub struct Buffer {
    data: NonNull<f32>,
    len: usize,
    /// What `data` points to; none for no elements.
    _memory: Option<MmapMut>,
}

// SAFETY: a buffer owns its memory as a `Vec<f32>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, as with `Vec<f32>`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Buffer {
            data: NonNull::dangling(),
            len,
            _memory: None,
        };
        if len > 0 {
            let layout = Layout::array::<f32>(len).expect("an array fits the address space");
            let shift = MADE.fetch_add(1, Ordering::Relaxed) % SHIFTS * SHIFT;
            let size = layout.size() + shift;
            let Ok(mut memory) = MmapOptions::new().len(size).map_anon() else {
                handle_alloc_error(layout)
            };
            #[cfg(target_os = "linux")]
            if layout.size() >= HUGE {
                // Where there are no huge pages, small ones do.
                let _ = memory.advise(memmap2::Advice::HugePage);
            }
            let data = memory.as_mut_ptr().wrapping_add(shift);
            buffer.data = NonNull::new(data).expect("a mapping").cast();
            buffer._memory = Some(memory);
        }
        buffer
    }

    /// How many buffers this process has made. It decides no value, only where the next one begins; a
    /// step that is warmed up makes none.
    pub fn made() -> usize {
        MADE.load(Ordering::Relaxed)
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
        // SAFETY: the memory holds `len` elements, zero at first.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: the memory holds `len` elements, zero at first, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }

    /// Makes room for at least `len` elements; what was inside is lost if it must grow.
    pub(crate) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Buffer::zeroed(len.next_multiple_of(1024));
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
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert_eq!(buffer.as_slice(), [0.0; 17]);
        let mut scratch = Scratch::new();
        let [a, b, c] = scratch.split([3, 0, 40]);
        assert_eq!((a.len(), b.len(), c.len()), (3, 0, 40));
        a.fill(1.0);
        c.fill(2.0);
        assert_eq!(a, [1.0; 3]);
        assert_eq!(c.as_ptr() as usize % 64, 0);
    }
}
