//! The multiply-add rate of one core, measured in registers: what products are compared with.

use super::isa::{Isa, Kernel};
use super::simd::Simd;
use std::hint::black_box;
use std::time::Instant;

/// Independent sums: enough to hide the latency of a multiply-add.
const SUMS: usize = 12;
const ROUNDS: usize = 2_000_000;

struct MultiplyAdd<const BF16: bool>;

impl<const BF16: bool> Kernel for MultiplyAdd<BF16> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let (a, b) = (S::splat(black_box(0.5)), S::splat(black_box(0.25)));
        let mut sums = [S::splat(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = if BF16 {
                    S::dot_bf16(*sum, a, b)
                } else {
                    S::fma(a, *sum, b)
                };
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += S::sum(sum);
        }
        total
    }
}

impl Isa {
    /// Billions of floating-point operations a second of one core, in f32 or in products of bf16.
    /// Takes a few milliseconds.
    pub fn peak_gflops(self, bf16: bool) -> f64 {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            black_box(if bf16 {
                self.run_bf16(MultiplyAdd::<true>)
            } else {
                self.run(MultiplyAdd::<false>)
            });
            best = best.min(start.elapsed().as_secs_f64());
        }
        let lanes = if bf16 { 32 } else { 16 };
        (2 * lanes * SUMS * ROUNDS) as f64 / best / 1e9
    }
}
