//! Activation functions and the binary cross-entropy.

use super::Cpu;
use super::gemm::Form;
use super::isa::Kernel;
use super::math::{gelu_slope_half, normal_cdf, normal_cdf_half, sigmoid};
use super::simd::{LANES, Simd};
use crate::backend::{Activation, Array, Ints};
use std::marker::PhantomData;

/// √(2 / π)
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044715;
/// 1 / √(2 π)
const DENSITY: f32 = 0.398_942_3;

/// How closely an activation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accuracy {
    /// As closely as f32 can.
    F32,
    /// As closely as products of bf16 or bytes can tell.
    Half,
}

impl Accuracy {
    /// What products of this form can tell.
    pub(super) fn of(form: Form) -> Self {
        match form {
            Form::F32 => Accuracy::F32,
            Form::Half | Form::Int8 => Accuracy::Half,
        }
    }
}

/// An activation at an accuracy, as a type, so that a loop over values does not ask for it.
pub(super) trait Function: Copy {
    /// f(z) and f'(z).
    fn value_and_slope<S: Simd>(z: S::V) -> (S::V, S::V);
}

/// GELU within 3e-7 · max(1, |z|), its slope within 3e-6.
#[derive(Clone, Copy)]
pub(super) struct Gelu;

/// GELU where products of bf16 or bytes can tell no more, as [`math`](super::math) says.
#[derive(Clone, Copy)]
pub(super) struct RoughGelu;

/// GELU by its approximation with tanh, as closely as [`Gelu`].
#[derive(Clone, Copy)]
pub(super) struct TanhGelu;

impl Function for Gelu {
    #[inline(always)]
    fn value_and_slope<S: Simd>(z: S::V) -> (S::V, S::V) {
        let (cdf, bell) = normal_cdf::<S>(z);
        let slope = S::fma(z, S::mul(bell, S::splat(DENSITY)), cdf);
        (S::mul(z, cdf), slope)
    }
}

impl Function for RoughGelu {
    #[inline(always)]
    fn value_and_slope<S: Simd>(z: S::V) -> (S::V, S::V) {
        (S::mul(z, normal_cdf_half::<S>(z)), gelu_slope_half::<S>(z))
    }
}

impl Function for TanhGelu {
    #[inline(always)]
    fn value_and_slope<S: Simd>(z: S::V) -> (S::V, S::V) {
        // (1 + tanh u) / 2 is the sigmoid s of 2 u; its slope is 2 s (1 − s) u'.
        let square = S::mul(z, z);
        let inner = S::fma(square, S::splat(CUBIC), S::splat(1.0));
        let s = sigmoid::<S>(S::mul(S::mul(z, inner), S::splat(2.0 * ROOT)));
        let slope = S::fma(square, S::splat(3.0 * CUBIC), S::splat(1.0));
        let slope = S::mul(slope, S::splat(2.0 * ROOT));
        let rise = S::mul(S::mul(s, S::sub(S::splat(1.0), s)), slope);
        // z · rise vanishes for large |z|, where z³ may not be finite.
        let rise = S::select_less(S::abs(z), S::splat(30.0), rise, S::splat(0.0));
        (S::mul(z, s), S::fma(z, rise, s))
    }
}

/// An expression with an activation at an accuracy as a type.
macro_rules! with_function {
    ($activation:expr, $accuracy:expr, $function:ident => $body:expr) => {
        match ($activation, $accuracy) {
            (Activation::Gelu, Accuracy::F32) => {
                type $function = $crate::cpu::elementwise::Gelu;
                $body
            }
            (Activation::Gelu, Accuracy::Half) => {
                type $function = $crate::cpu::elementwise::RoughGelu;
                $body
            }
            (Activation::GeluTanh, _) => {
                type $function = $crate::cpu::elementwise::TanhGelu;
                $body
            }
        }
    };
}
pub(super) use with_function;

struct Activate<'a, A>(&'a [f32], &'a mut [f32], PhantomData<A>);

impl<A: Function> Kernel for Activate<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (z, y) in self.0.chunks(LANES).zip(self.1.chunks_mut(LANES)) {
            S::write(y, A::value_and_slope::<S>(S::read(z)).0);
        }
    }
}

struct ActivateBackward<'a, A>(&'a [f32], &'a mut [f32], PhantomData<A>);

impl<A: Function> Kernel for ActivateBackward<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (z, d) in self.0.chunks(LANES).zip(self.1.chunks_mut(LANES)) {
            let slope = A::value_and_slope::<S>(S::read(z)).1;
            let product = S::mul(slope, S::read(d));
            S::write(d, product);
        }
    }
}

impl Cpu {
    pub(super) fn activate(&mut self, activation: Activation, z: Array, y: Array) {
        assert!(z.rows == y.rows && z.cols == y.cols);
        let (z, y, isa) = (self.view(z), self.view(y), self.isa);
        assert!(!z.overlaps(&y));
        self.pool.rows(y.rows, y.cols, |rows, _| {
            for r in rows {
                // SAFETY: row r of y is this task's, and nobody writes to z.
                let (z, y) = unsafe { (z.row(r), y.row_mut(r)) };
                with_function!(activation, Accuracy::F32, A => {
                    isa.run(Activate::<A>(z, y, PhantomData))
                });
            }
        });
    }

    pub(super) fn activate_backward(&mut self, activation: Activation, z: Array, d: Array) {
        assert!(z.rows == d.rows && z.cols == d.cols);
        let (z, d, isa) = (self.view(z), self.view(d), self.isa);
        assert!(!z.overlaps(&d));
        self.pool.rows(d.rows, d.cols, |rows, _| {
            for r in rows {
                // SAFETY: row r of d is this task's, and nobody writes to z.
                let (z, d) = unsafe { (z.row(r), d.row_mut(r)) };
                with_function!(activation, Accuracy::F32, A => {
                    isa.run(ActivateBackward::<A>(z, d, PhantomData))
                });
            }
        });
    }

    /// Calls `f(x, label)` for each logit. There is one a token: nothing to split.
    fn each_logit(&mut self, logits: Array, labels: Ints, out: Array, f: impl Fn(f32, f32) -> f32) {
        assert!(logits.cols == 1 && out.cols == 1);
        assert!(logits.rows == out.rows && labels.len == out.rows);
        let (x, y) = (self.view(logits), self.view(out));
        for (r, &label) in self.ids(labels).iter().enumerate() {
            // SAFETY: one thread reads an element, then writes one.
            unsafe {
                let value = x.at(r, 0).read();
                y.at(r, 0).write(f(value, label as f32));
            }
        }
    }

    pub(super) fn cross_entropy(&mut self, logits: Array, labels: Ints, loss: Array) {
        self.each_logit(logits, labels, loss, |x, label| {
            x.max(0.0) - x * label + (-x.abs()).exp().ln_1p()
        });
    }

    pub(super) fn cross_entropy_backward(
        &mut self,
        logits: Array,
        labels: Ints,
        scale: f32,
        d_logits: Array,
    ) {
        self.each_logit(logits, labels, d_logits, |x, label| {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            scale * (sigmoid - label)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    struct Both<'a, A>(&'a [f32], [&'a mut [f32]; 2], PhantomData<A>);

    impl<A: Function> Kernel for Both<'_, A> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            let [y, slope] = self.1.map(|to| to.chunks_mut(LANES));
            for (z, (y, slope)) in self.0.chunks(LANES).zip(y.zip(slope)) {
                let (value, by_z) = A::value_and_slope::<S>(S::read(z));
                S::write(y, value);
                S::write(slope, by_z);
            }
        }
    }

    /// Value and slope in f64.
    fn exact(activation: Activation, z: f64) -> (f64, f64) {
        match activation {
            Activation::Gelu => {
                let cdf = 0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2);
                let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (z * cdf, cdf + z * density)
            }
            Activation::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let tanh = (root * (z + 0.044715 * z.powi(3))).tanh();
                let inner = root * (1.0 + 3.0 * 0.044715 * z * z);
                let value = 0.5 * z * (1.0 + tanh);
                (
                    value,
                    0.5 * (1.0 + tanh) + 0.5 * z * (1.0 - tanh * tanh) * inner,
                )
            }
        }
    }

    #[test]
    fn activations_stay_within_their_bounds() {
        let z: Vec<f32> = (-200_000..=200_000).map(|i| i as f32 * 1e-4).collect();
        let [mut y, mut slope] = [0, 1].map(|_| vec![0.0; z.len()]);
        for isa in Isa::available() {
            for activation in [Activation::Gelu, Activation::GeluTanh] {
                let to = [&mut y[..], &mut slope[..]];
                with_function!(activation, Accuracy::F32, A => {
                    isa.run(Both::<A>(&z, to, PhantomData))
                });
                let (mut worst, mut worst_slope) = (0.0f64, 0.0f64);
                for ((&z, &y), &slope) in z.iter().zip(&y).zip(&slope) {
                    let z = f64::from(z);
                    let (value, by_z) = exact(activation, z);
                    worst = worst.max((f64::from(y) - value).abs() / z.abs().max(1.0));
                    worst_slope = worst_slope.max((f64::from(slope) - by_z).abs());
                }
                assert!(worst < 3e-7, "{isa:?} {activation:?} {worst:e}");
                assert!(
                    worst_slope < 3e-6,
                    "{isa:?} slope of {activation:?} {worst_slope:e}"
                );
            }
        }
    }
}
