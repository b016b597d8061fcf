//! AVX-512: one register a vector.

use super::{LANES, Simd};
use std::arch::x86_64::*;
use std::mem::transmute;

/// AVX-512 (F, BW, DQ, VL). Halves are bf16, multiplied with BF16; or f16 where `F16` says so, with
/// FP16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const F16: bool>;

/// Pairs of f16 that are multiplied and added in f16 before their sum is widened. An addition's error is
/// about 2^-13 of the sum, which after k products of size p is √k p; the n of a lane so have √(Σ k) 2^-13 p =
/// n 2^-13.5 p, and both lanes of a column n 2^-13 p. Factors that are rounded to bf16 give each of those 2 n
/// products an error of 2^-9.8 p, together √(2 n) 2^-9.8 p: as much where n is 170.
const F16_SPAN: usize = 128;

/// To the nearest number, silently.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Calls an intrinsic.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: as the trait says, a kernel runs only where the CPU has the instructions.
        unsafe { $call }
    };
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl<const F16: bool> Simd for Avx512<F16> {
    type V = __m512;
    type U = __m512i;
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> __m512 {
        op!(_mm512_maskz_loadu_ps(first(n), from))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        op!(_mm512_storeu_ps(to, v))
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: __m512) {
        op!(_mm512_mask_storeu_ps(to, first(n), v))
    }

    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(a: __m512) -> __m512 {
        op!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn round(a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(a))
    }
    #[inline(always)]
    fn scale(x: __m512, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(x, n))
    }
    #[inline(always)]
    fn select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b),
            y,
            x
        ))
    }

    #[inline(always)]
    fn transpose(rows: &mut [__m512; LANES]) {
        // Pairs of rows, then of pairs: 4 × 4 blocks are transposed inside each 128-bit quarter.
        for i in (0..LANES).step_by(4) {
            let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
            op!({
                let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                rows[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                rows[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                rows[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                rows[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            });
        }
        // Then the 4 × 4 quarters among each other.
        for i in 0..4 {
            let [a, b, c, d] = [rows[i], rows[i + 4], rows[i + 8], rows[i + 12]];
            op!({
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                rows[i] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
                rows[i + 8] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
                rows[i + 4] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                rows[i + 12] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
            });
        }
    }

    #[inline(always)]
    fn splat_u(x: u32) -> __m512i {
        op!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn iota() -> __m512i {
        op!(_mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        ))
    }
    #[inline(always)]
    fn add_u(a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn xor_u(a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn mul_wide(a: __m512i, b: u32) -> (__m512i, __m512i) {
        op!({
            let b = _mm512_set1_epi32(b as i32);
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), b);
            // By shuffles: a product that is shifted becomes, in the compiler's hands, a slow one of
            // 64 bits.
            (
                _mm512_mask_shuffle_epi32::<0xf5>(odd, 0x5555, even),
                _mm512_mask_shuffle_epi32::<0xa0>(even, 0xaaaa, odd),
            )
        })
    }
    #[inline(always)]
    fn keep(bits: __m512i, half: u32, threshold: u32, v: __m512) -> __m512 {
        op!({
            let bits = if half == 0 {
                _mm512_and_si512(bits, _mm512_set1_epi32(0xffff))
            } else {
                _mm512_srli_epi32::<16>(bits)
            };
            let threshold = _mm512_set1_epi32(threshold as i32);
            _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(bits, threshold), v)
        })
    }

    #[inline(always)]
    fn dot_half(acc: __m512, a: __m512, b: __m512) -> __m512 {
        if F16 {
            return op!({
                let (a, b) = (_mm512_castps_ph(a), _mm512_castps_ph(b));
                _mm512_castph_ps(_mm512_fmadd_ph(a, b, _mm512_castps_ph(acc)))
            });
        }
        op!(_mm512_dpbf16_ps(
            acc,
            transmute::<__m512, __m512bh>(a),
            transmute::<__m512, __m512bh>(b)
        ))
    }
    const HALF_SPAN: usize = if F16 { F16_SPAN } else { usize::MAX };
    #[inline(always)]
    fn sum_of_halves(sum: __m512) -> __m512 {
        if !F16 {
            return sum;
        }
        op!({
            let upper = _mm512_srli_epi32::<16>(_mm512_castps_si512(sum));
            let sums = _mm512_add_ph(_mm512_castps_ph(sum), _mm512_castsi512_ph(upper));
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castph_si512(sums)))
        })
    }
    #[inline(always)]
    fn pair_half(low: __m512, high: __m512) -> __m512 {
        // Half-words i and 16 + i of the sixteen of `low` and the sixteen of `high`.
        const ORDER: [u16; 32] = pair_order();
        op!({
            let words = _mm512_castps_si512(Self::row_half(low, high));
            let order = _mm512_loadu_epi16(ORDER.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, words))
        })
    }
    #[inline(always)]
    fn row_half(first: __m512, second: __m512) -> __m512 {
        if F16 {
            return op!({
                let first = _mm512_castsi256_si512(_mm512_cvtps_ph::<NEAREST>(first));
                let second = _mm512_cvtps_ph::<NEAREST>(second);
                _mm512_castsi512_ps(_mm512_inserti64x4::<1>(first, second))
            });
        }
        op!(transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(
            second, first
        )))
    }
    #[inline(always)]
    fn values_half(pairs: __m512) -> (__m512, __m512) {
        op!({
            let words = _mm512_castps_si512(pairs);
            if F16 {
                return (
                    _mm512_cvtph_ps(_mm512_castsi512_si256(words)),
                    _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(words)),
                );
            }
            let first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
            let second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(words));
            (
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(second)),
            )
        })
    }
    #[inline(always)]
    fn zip_half(low: __m512, high: __m512) -> (__m512, __m512) {
        // Lane i of the first: half-words i of both rows; of the second: half-words 16 + i.
        const FIRST: [u16; 32] = zip_order(0);
        const SECOND: [u16; 32] = zip_order(16);
        op!({
            let (low, high) = (_mm512_castps_si512(low), _mm512_castps_si512(high));
            let first = _mm512_loadu_epi16(FIRST.as_ptr().cast());
            let second = _mm512_loadu_epi16(SECOND.as_ptr().cast());
            (
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, first, high)),
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, second, high)),
            )
        })
    }

    #[inline(always)]
    fn dot_int8(acc: __m512, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_dpbusd_epi32(
            _mm512_castps_si512(acc),
            _mm512_castps_si512(a),
            _mm512_castps_si512(b)
        )))
    }
    #[inline(always)]
    fn from_int(v: __m512) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_castps_si512(v)))
    }
    #[inline(always)]
    fn bytes(values: [__m512; 4]) -> __m512 {
        op!({
            let [a, b, c, d] = values;
            // Both steps saturate; each works on quarters of registers.
            let ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            let cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
            let bytes = _mm512_packus_epi16(ab, cd);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_castsi512_ps(_mm512_permutexvar_epi32(order, bytes))
        })
    }
    #[inline(always)]
    fn sum(v: __m512) -> f32 {
        // The same tree as everywhere: halves, quarters, pairs.
        op!({
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn greatest(v: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(v))
    }
}

/// For `vpermw`: half-words i and 16 + i side by side.
const fn pair_order() -> [u16; 32] {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i] = i as u16;
        order[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    order
}

/// For `vpermt2w`: half-words `first + i` of both sides, side by side.
const fn zip_order(first: u16) -> [u16; 32] {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i] = first + i as u16;
        order[2 * i + 1] = 32 + first + i as u16;
        i += 1;
    }
    order
}
