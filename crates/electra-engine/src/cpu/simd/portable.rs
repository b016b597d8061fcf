//! Plain arrays, for every other CPU.

use super::{LANES, Simd};

/// Whatever the target has by default.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// An array made lane by lane.
macro_rules! lanes {
    ($i:ident => $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

impl Simd for Portable {
    type V = [f32; LANES];
    type U = [u32; LANES];
    const TILE: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: sixteen can be read, says the caller; an array of f32 has the alignment of one.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `n` can be read, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n) };
        lanes
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: sixteen can be written, says the caller.
        unsafe { *to.cast() = v }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        // SAFETY: `n` can be written, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, n) };
    }

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Rounded twice where the target has no fused form: a call a lane would cost far more.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            lanes!(i => a[i].mul_add(b[i], c[i]))
        } else {
            lanes!(i => a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(a: Self::V) -> Self::V {
        lanes!(i => a[i].sqrt())
    }
    #[inline(always)]
    fn abs(a: Self::V) -> Self::V {
        lanes!(i => a[i].abs())
    }
    #[inline(always)]
    fn round(a: Self::V) -> Self::V {
        // Adding and taking away 1.5 · 2^23 leaves the nearest whole number, up to 2^22.
        const SHIFT: f32 = 12_582_912.0;
        lanes!(i => if a[i].abs() < 4_194_304.0 { (a[i] + SHIFT) - SHIFT } else { a[i] })
    }
    #[inline(always)]
    fn scale(x: Self::V, n: Self::V) -> Self::V {
        // In two steps, each a power of two in the normal range.
        lanes!(i => {
            let half = (n[i] * 0.5) as i32;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            x[i] * power(half) * power(n[i] as i32 - half)
        })
    }
    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        lanes!(i => if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn splat_u(x: u32) -> Self::U {
        [x; LANES]
    }
    #[inline(always)]
    fn iota() -> Self::U {
        lanes!(i => i as u32)
    }
    #[inline(always)]
    fn add_u(a: Self::U, b: Self::U) -> Self::U {
        lanes!(i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn xor_u(a: Self::U, b: Self::U) -> Self::U {
        lanes!(i => a[i] ^ b[i])
    }
    #[inline(always)]
    fn mul_wide(a: Self::U, b: u32) -> (Self::U, Self::U) {
        (
            lanes!(i => ((u64::from(a[i]) * u64::from(b)) >> 32) as u32),
            lanes!(i => a[i].wrapping_mul(b)),
        )
    }
    #[inline(always)]
    fn keep(bits: Self::U, half: u32, threshold: u32, v: Self::V) -> Self::V {
        lanes!(i => if (bits[i] >> (16 * half)) & 0xffff < threshold { 0.0 } else { v[i] })
    }
}
