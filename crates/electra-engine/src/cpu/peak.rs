//! The multiply-add rate of one core, measured in registers: what products are compared with.

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::gemm::Form;
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use std::hint::black_box;
use std::time::Instant;

/// Independent sums: enough to hide the latency of a multiply-add.
const SUMS: usize = 12;
const ROUNDS: usize = 2_000_000;
/// Rounds of the matrix unit: as long.
#[cfg(target_arch = "x86_64")]
const TILE_ROUNDS: usize = 100_000;

struct MultiplyAdd(Form);

impl Kernel for MultiplyAdd {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let (a, b) = (S::splat(black_box(0.5)), S::splat(black_box(0.25)));
        let mut sums = [S::splat(0.0); SUMS];
        macro_rules! rounds {
            ($sum:ident => $next:expr) => {
                for _ in 0..ROUNDS {
                    for $sum in &mut sums {
                        *$sum = $next;
                    }
                }
            };
        }
        match self.0 {
            Form::F32 => rounds!(sum => S::fma(a, *sum, b)),
            Form::Bf16 => rounds!(sum => S::dot_bf16(*sum, a, b)),
            Form::Int8 => rounds!(sum => S::dot_int8(*sum, a, b)),
        }
        let mut total = 0.0;
        for sum in sums {
            total += S::sum(sum);
        }
        total
    }
}

impl Isa {
    /// Billions of operations a second of one core in products of this precision. Takes a few
    /// milliseconds.
    ///
    /// # Panics
    /// Unless it is one of [`available`](Isa::available).
    pub fn peak_gflops(self, precision: Precision) -> f64 {
        assert!(self.is_here(), "this CPU has no {}", self.name());
        let form = match precision {
            Precision::Bf16 if self.has_bf16() => Form::Bf16,
            Precision::Int8 => Form::Int8,
            Precision::F32 | Precision::Bf16 => Form::F32,
        };
        let mut best = f64::INFINITY;
        let mut time = |work: &dyn Fn()| {
            for _ in 0..3 {
                let start = Instant::now();
                work();
                best = best.min(start.elapsed().as_secs_f64());
            }
        };
        #[cfg(target_arch = "x86_64")]
        if self.multiplies_tiles(form) {
            time(&|| amx::rounds(form, TILE_ROUNDS));
            return (amx::round_operations(form) * TILE_ROUNDS) as f64 / best / 1e9;
        }
        time(&|| {
            black_box(self.run_in(form, MultiplyAdd(form)));
        });
        let values = match form {
            Form::F32 => LANES,
            Form::Bf16 => 2 * LANES,
            Form::Int8 => 4 * LANES,
        };
        (2 * values * SUMS * ROUNDS) as f64 / best / 1e9
    }
}
