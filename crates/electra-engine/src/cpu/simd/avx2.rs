//! AVX2 with FMA: two registers a vector.

use super::{LANES, Simd};
use std::arch::x86_64::*;

/// AVX2 with FMA, and with dot products of bytes where `VNNI` says so.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

/// To the nearest whole number, silently.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Applies an intrinsic to both halves.
macro_rules! halves {
    ($function:ident $(::<$constant:tt>)? ( $($arg:expr),* )) => {
        // SAFETY: as the trait says, a kernel runs only where the CPU has the instructions.
        unsafe { [$function$(::<$constant>)?($($arg[0]),*), $function$(::<$constant>)?($($arg[1]),*)] }
    };
}

/// Calls intrinsics.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: as the trait says, a kernel runs only where the CPU has the instructions.
        unsafe { $call }
    };
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = [__m256; 2];
    type U = [__m256i; 2];
    const TILE: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        op!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        op!({
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        op!({
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        })
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        op!({
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        })
    }

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        op!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        halves!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(a: Self::V) -> Self::V {
        halves!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(a: Self::V) -> Self::V {
        let sign = Self::splat(-0.0);
        halves!(_mm256_andnot_ps(sign, a))
    }
    #[inline(always)]
    fn round(a: Self::V) -> Self::V {
        halves!(_mm256_round_ps::<NEAREST>(a))
    }
    #[inline(always)]
    fn scale(x: Self::V, n: Self::V) -> Self::V {
        // In two steps, each a power of two in the normal range.
        let half = Self::round(Self::mul(n, Self::splat(0.5)));
        let mut x = x;
        for part in [half, Self::sub(n, half)] {
            let biased = Self::add(part, Self::splat(127.0));
            let bits = halves!(_mm256_cvtps_epi32(biased));
            let bits = halves!(_mm256_slli_epi32::<23>(bits));
            x = Self::mul(x, halves!(_mm256_castsi256_ps(bits)));
        }
        x
    }
    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        let less = halves!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        halves!(_mm256_blendv_ps(y, x, less))
    }

    #[inline(always)]
    fn splat_u(x: u32) -> Self::U {
        op!([_mm256_set1_epi32(x as i32); 2])
    }
    #[inline(always)]
    fn iota() -> Self::U {
        op!([
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15),
        ])
    }
    #[inline(always)]
    fn add_u(a: Self::U, b: Self::U) -> Self::U {
        halves!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn xor_u(a: Self::U, b: Self::U) -> Self::U {
        halves!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn mul_wide(a: Self::U, b: u32) -> (Self::U, Self::U) {
        let b = Self::splat_u(b);
        let even = halves!(_mm256_mul_epu32(a, b));
        let above = halves!(_mm256_srli_epi64::<32>(a));
        let odd = halves!(_mm256_mul_epu32(above, b));
        // By shuffles: a product that is shifted becomes, in the compiler's hands, one of 64 bits.
        let even_high = halves!(_mm256_shuffle_epi32::<0xf5>(even));
        let odd_low = halves!(_mm256_shuffle_epi32::<0xa0>(odd));
        (
            halves!(_mm256_blend_epi32::<0xaa>(even_high, odd)),
            halves!(_mm256_blend_epi32::<0xaa>(even, odd_low)),
        )
    }
    #[inline(always)]
    fn keep(bits: Self::U, half: u32, threshold: u32, v: Self::V) -> Self::V {
        let bits = if half == 0 {
            let low = Self::splat_u(0xffff);
            halves!(_mm256_and_si256(bits, low))
        } else {
            halves!(_mm256_srli_epi32::<16>(bits))
        };
        // Both are below 2^16, so the comparison of signed numbers serves.
        let threshold = Self::splat_u(threshold);
        let dropped = halves!(_mm256_cmpgt_epi32(threshold, bits));
        let dropped = halves!(_mm256_castsi256_ps(dropped));
        halves!(_mm256_andnot_ps(dropped, v))
    }

    #[inline(always)]
    fn bytes(values: [Self::V; 4]) -> Self::V {
        let mut packed = [op!(_mm256_setzero_ps()); 2];
        for (packed, [a, b]) in packed
            .iter_mut()
            .zip([[values[0], values[1]], [values[2], values[3]]])
        {
            // Both steps saturate; each works on halves of registers.
            *packed = op!({
                let a = _mm256_packs_epi32(_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1]));
                let b = _mm256_packs_epi32(_mm256_cvtps_epi32(b[0]), _mm256_cvtps_epi32(b[1]));
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_packus_epi16(a, b);
                _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(bytes, order))
            });
        }
        packed
    }
    #[inline(always)]
    fn dot_int8(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let [acc, a, b] = [acc, a, b].map(|v| halves!(_mm256_castps_si256(v)));
        if VNNI {
            let sum = halves!(_mm256_dpbusd_avx_epi32(acc, a, b));
            return halves!(_mm256_castsi256_ps(sum));
        }
        // Even and odd bytes apart, as i16: no sum of theirs overflows.
        let low = op!([_mm256_set1_epi16(0xff); 2]);
        let a_even = halves!(_mm256_and_si256(a, low));
        let a_odd = halves!(_mm256_srli_epi16::<8>(a));
        let b_even = halves!(_mm256_slli_epi16::<8>(b));
        let b_even = halves!(_mm256_srai_epi16::<8>(b_even));
        let b_odd = halves!(_mm256_srai_epi16::<8>(b));
        let even = halves!(_mm256_madd_epi16(a_even, b_even));
        let odd = halves!(_mm256_madd_epi16(a_odd, b_odd));
        let sum = halves!(_mm256_add_epi32(even, odd));
        let sum = halves!(_mm256_add_epi32(acc, sum));
        halves!(_mm256_castsi256_ps(sum))
    }
    #[inline(always)]
    fn from_int(v: Self::V) -> Self::V {
        let v = halves!(_mm256_castps_si256(v));
        halves!(_mm256_cvtepi32_ps(v))
    }
}
