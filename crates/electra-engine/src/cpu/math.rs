//! Elementary functions over vectors.

use super::simd::Simd;

/// `e^x` within 2e-7 of itself; exactly 0 below −87.3, and `x` is cut at 88.7.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S::V) -> S::V {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that the difference is exact.
    // Both comparisons give their second argument where it is not a number, so that it stays one.
    let cut = S::min(S::splat(88.7), S::max(S::splat(-87.3), x));
    let n = S::round(S::mul(cut, S::splat(std::f32::consts::LOG2_E)));
    let r = S::fma(n, S::splat(-0.693_359_4), cut);
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
    // The Taylor series: the first term left out is below 6e-9.
    let mut p = S::splat(1.0 / 5040.0);
    p = S::fma(p, r, S::splat(1.0 / 720.0));
    p = S::fma(p, r, S::splat(1.0 / 120.0));
    p = S::fma(p, r, S::splat(1.0 / 24.0));
    p = S::fma(p, r, S::splat(1.0 / 6.0));
    p = S::fma(p, r, S::splat(0.5));
    p = S::fma(p, r, S::splat(1.0));
    p = S::fma(p, r, S::splat(1.0));
    let y = S::scale(p, n);
    S::select_less(x, S::splat(-87.3), S::splat(0.0), y)
}

/// `2^x` within 2e-7 of itself from −126 on; below that it is rounded to the few bits that are left, 0
/// below −150, and infinite from 128 on.
// The coefficient near ln 2 is the fit's own.
#[allow(clippy::approx_constant)]
#[inline(always)]
pub(crate) fn exp2<S: Simd>(x: S::V) -> S::V {
    // Both comparisons give their second argument where it is not a number, so that it stays one.
    let cut = S::min(S::splat(200.0), S::max(S::splat(-200.0), x));
    let n = S::round(cut);
    let f = S::sub(cut, n);
    // Fitted for |f| ≤ 1/2 to the least relative error, 9.2e-8, among those that are 1 at 0.
    let mut p = S::splat(0.001_326_472_7);
    p = S::fma(p, f, S::splat(0.009_671_513));
    p = S::fma(p, f, S::splat(0.055_507_336));
    p = S::fma(p, f, S::splat(0.240_222_42));
    p = S::fma(p, f, S::splat(0.693_147));
    p = S::fma(p, f, S::splat(1.0));
    S::scale(p, n)
}

/// `2^x` for `x` below 255, within 8e-5 of itself from −126 on, for values that are rounded to bf16 next;
/// 0 below −150, infinite from 129 on. Fitted to the least relative error for |f| ≤ 1/2.
#[inline(always)]
pub(crate) fn exp2_half<S: Simd>(x: S::V) -> S::V {
    // Gives its second argument where that is not a number.
    let cut = S::max(S::splat(-200.0), x);
    let n = S::round(cut);
    let f = S::sub(cut, n);
    let mut p = S::splat(0.055_171_67);
    p = S::fma(p, f, S::splat(0.242_611_13));
    p = S::fma(p, f, S::splat(0.693_261));
    p = S::fma(p, f, S::splat(0.999_928_06));
    S::scale(p, n)
}

/// Φ(x), the normal distribution function, within 3e-7 absolutely, and `e^(−x²/2)`.
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(x: S::V) -> (S::V, S::V) {
    // Φ(−|x|) = erfc(z) / 2 with z = |x| / √2; erfc(z) e^(z²) is a polynomial in
    // t = 1 / (1 + z / 2) without constant term, fitted for z in 0..12 to a relative 5e-8.
    let bell = exp2::<S>(S::mul(
        S::mul(x, x),
        S::splat(-0.5 * std::f32::consts::LOG2_E),
    ));
    let z_half = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2 / 2.0));
    let t = S::div(S::splat(1.0), S::add(S::splat(1.0), z_half));
    let mut p = S::splat(-0.059_364_154);
    p = S::fma(p, t, S::splat(0.286_015_46));
    p = S::fma(p, t, S::splat(-0.490_182_56));
    p = S::fma(p, t, S::splat(0.281_478_47));
    p = S::fma(p, t, S::splat(-0.028_974_092));
    p = S::fma(p, t, S::splat(0.203_679_3));
    p = S::fma(p, t, S::splat(0.242_853_42));
    p = S::fma(p, t, S::splat(0.282_409_6));
    p = S::fma(p, t, S::splat(0.282_084_47));
    let tail = S::mul(S::mul(S::mul(p, t), bell), S::splat(0.5));
    let above = S::sub(S::splat(1.0), tail);
    (S::select_less(x, S::splat(0.0), tail, above), bell)
}

/// `1/2 + x p(x²)`, with `x` cut at `limit`.
#[inline(always)]
fn odd<S: Simd, const N: usize>(x: S::V, limit: f32, coefficients: [f32; N]) -> S::V {
    let x = S::min(S::splat(limit), S::max(S::splat(-limit), x));
    let square = S::mul(x, x);
    let mut p = S::splat(coefficients[N - 1]);
    for &c in coefficients[..N - 1].iter().rev() {
        p = S::fma(p, square, S::splat(c));
    }
    S::fma(x, p, S::splat(0.5))
}

/// Φ(x) within 1e-4 absolutely, `x Φ(x)` within 1e-4 · max(1, |x|): for values that are rounded to
/// bf16 or bytes next. Fitted by minimax on −4..4.
#[inline(always)]
pub(crate) fn normal_cdf_half<S: Simd>(x: S::V) -> S::V {
    let coefficients = [
        3.986_734e-1,
        -6.588_784_6e-2,
        9.505_4e-3,
        -1.006_490_9e-3,
        7.485_511e-5,
        -3.657_137_5e-6,
        1.041_962_2e-7,
        -1.301_297_3e-9,
    ];
    odd::<S, 8>(x, 4.0, coefficients)
}

/// The derivative of `x Φ(x)` within 4e-4 absolutely: for values that are rounded to bf16 next.
/// Fitted by minimax on −4.2..4.2.
#[inline(always)]
pub(crate) fn gelu_slope_half<S: Simd>(x: S::V) -> S::V {
    let coefficients = [
        7.977_742_6e-1,
        -2.654_612_4e-1,
        5.916_876_7e-2,
        -9.078_463e-3,
        1.006_708_4e-3,
        -8.094_509e-5,
        4.580_550_5e-6,
        -1.716_560_4e-7,
        3.797_720_4e-9,
        -3.735_572_3e-11,
    ];
    odd::<S, 10>(x, 4.2, coefficients)
}

/// `1 / (1 + e^(−x))` within 3e-7.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: S::V) -> S::V {
    let e = exp::<S>(S::sub(S::splat(0.0), x));
    S::div(S::splat(1.0), S::add(S::splat(1.0), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Isa, Kernel};
    use std::ops::Range;

    struct Map<'a>(&'a [f32], &'a mut [f32], u8);

    impl Kernel for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            for (x, y) in self.0.chunks(16).zip(self.1.chunks_mut(16)) {
                let v = S::read(x);
                S::write(
                    y,
                    match self.2 {
                        0 => exp::<S>(v),
                        1 => normal_cdf::<S>(v).0,
                        2 => sigmoid::<S>(v),
                        3 => normal_cdf_half::<S>(v),
                        4 => gelu_slope_half::<S>(v),
                        6 => exp2_half::<S>(v),
                        _ => exp2::<S>(v),
                    },
                );
            }
        }
    }

    /// Greatest error of a function over a range, relative or absolute.
    fn worst(isa: Isa, which: u8, range: Range<f32>, relative: bool, exact: fn(f64) -> f64) -> f64 {
        let x: Vec<f32> = (0..=400_000)
            .map(|i| range.start + i as f32 / 400_000.0 * (range.end - range.start))
            .collect();
        let mut y = vec![0.0; x.len()];
        isa.run(Map(&x, &mut y, which));
        x.iter().zip(&y).fold(0.0, |worst: f64, (&x, &y)| {
            let exact = exact(f64::from(x));
            let error = (f64::from(y) - exact).abs();
            worst.max(if relative { error / exact } else { error })
        })
    }

    #[test]
    fn functions_stay_within_their_bounds() {
        let cdf = |x: f64| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        for isa in Isa::available() {
            let e = worst(isa, 0, -87.2..88.7, true, f64::exp);
            assert!(e < 2e-7, "{isa:?} exp {e:e}");
            let e = worst(isa, 1, -30.0..30.0, false, cdf);
            assert!(e < 3e-7, "{isa:?} cdf {e:e}");
            let e = worst(isa, 1, -3.0..3.0, true, cdf);
            assert!(e < 2e-6, "{isa:?} cdf, relative {e:e}");
            let e = worst(isa, 2, -100.0..100.0, false, |x| 1.0 / (1.0 + (-x).exp()));
            assert!(e < 3e-7, "{isa:?} sigmoid {e:e}");
            let e = worst(isa, 3, -20.0..20.0, false, cdf);
            assert!(e < 1e-4, "{isa:?} cdf for bf16 {e:e}");
            let slope = |x: f64| {
                let bell = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2) + x * bell
            };
            let e = worst(isa, 4, -20.0..20.0, false, slope);
            assert!(e < 4e-4, "{isa:?} slope for bf16 {e:e}");
            let e = worst(isa, 5, -126.0..127.9, true, f64::exp2);
            assert!(e < 2e-7, "{isa:?} exp2 {e:e}");
            let e = worst(isa, 6, -126.0..127.9, true, f64::exp2);
            assert!(e < 8e-5, "{isa:?} exp2 for bf16 {e:e}");
            let mut y = [1.0; 6];
            let x = [f32::NEG_INFINITY, -151.0, 0.0, 3.0, 128.0, f32::INFINITY];
            isa.run(Map(&x, &mut y, 5));
            assert_eq!(y, [0.0, 0.0, 1.0, 8.0, f32::INFINITY, f32::INFINITY]);
            isa.run(Map(&[f32::NEG_INFINITY, -151.0, 129.0], &mut y, 6));
            assert_eq!(y[..3], [0.0, 0.0, f32::INFINITY], "{isa:?}");
            for which in [5, 6] {
                isa.run(Map(&[f32::NAN], &mut y, which));
                assert!(y[0].is_nan(), "{isa:?}");
            }
            let mut y = [1.0; 3];
            isa.run(Map(&[f32::NEG_INFINITY, -1e4, 0.0], &mut y, 0));
            assert_eq!(y, [0.0, 0.0, 1.0], "{isa:?}");
        }
    }
}
