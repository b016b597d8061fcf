//! The multiply-add rate of one core, measured in registers: what products are compared with.

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::gemm::Form;
use super::isa::{Isa, Kernel};
use super::simd::{LANES, Simd};
use std::hint::black_box;
use std::time::Instant;

/// Independent sums where a register holds a vector: enough to hide the latency of a multiply-add.
const SUMS: usize = 12;
/// The same where a vector takes two registers or more, of which there are sixteen.
const SUMS_OF_HALVES: usize = 6;
const ROUNDS: usize = 2_000_000;
/// Rounds of the matrix unit: as long.
#[cfg(target_arch = "x86_64")]
const TILE_ROUNDS: usize = 100_000;

/// Rounds of multiply-adds; says how many vectors were multiplied in each.
struct MultiplyAdd(Form);

impl Kernel for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self) -> usize {
        match S::TILE {
            1 => rounds::<S, SUMS_OF_HALVES>(self.0),
            _ => rounds::<S, SUMS>(self.0),
        }
    }
}

/// Every sum is multiplied itself, so that no product is the same twice and could be kept.
#[inline(always)]
fn rounds<S: Simd, const N: usize>(form: Form) -> usize {
    let b = S::splat(black_box(0.25));
    let mut sums = black_box([S::splat(0.5); N]);
    macro_rules! rounds {
        ($sum:ident => $next:expr) => {
            for _ in 0..ROUNDS {
                for $sum in &mut sums {
                    *$sum = $next;
                }
            }
        };
    }
    match form {
        Form::F32 => rounds!(sum => S::fma(b, *sum, b)),
        Form::Half => rounds!(sum => S::dot_half(*sum, *sum, b)),
        Form::Int8 => rounds!(sum => S::dot_int8(*sum, *sum, b)),
    }
    for sum in sums {
        black_box(S::sum(sum));
    }
    N
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
            Precision::Bf16 if self.has_halves() => Form::Half,
            Precision::Int8 => Form::Int8,
            Precision::F32 | Precision::Bf16 => Form::F32,
        };
        let best = |work: &dyn Fn() -> usize| {
            let mut best = 0.0f64;
            for _ in 0..3 {
                let start = Instant::now();
                let operations = work();
                best = best.max(operations as f64 / start.elapsed().as_secs_f64());
            }
            best / 1e9
        };
        #[cfg(target_arch = "x86_64")]
        if self.multiplies_tiles(form) {
            return best(&|| {
                amx::rounds(form, TILE_ROUNDS);
                amx::round_operations(form) * TILE_ROUNDS
            });
        }
        let values = form.values() * LANES;
        best(&|| 2 * values * ROUNDS * self.run_in(form, MultiplyAdd(form)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No instruction set multiplies more than four bytes, or two halves, where it multiplies one f32: a
    /// loop whose products were moved out of it would seem to.
    #[test]
    fn the_peak_is_one_of_products() {
        for isa in Isa::available().into_iter().filter(|isa| !isa.has_tiles()) {
            let most = match isa {
                Isa::Avx512Fp16 | Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx2Vnni => 6.0,
                _ => 3.0,
            };
            // A neighbour may slow down one of them, but not each time.
            let held = (0..10).any(|_| {
                let [f32, bf16, int8] =
                    [Precision::F32, Precision::Bf16, Precision::Int8].map(|p| isa.peak_gflops(p));
                bf16 < 3.0 * f32 && int8 < most * f32
            });
            assert!(held, "{isa:?}");
        }
    }

    /// Where a CPU multiplies halves of both kinds, those come first that it multiplies faster, and they
    /// are faster than f32.
    #[test]
    fn the_best_comes_first() {
        let sets = Isa::available();
        let halves = sets
            .iter()
            .filter(|isa| isa.has_halves() && !isa.has_tiles());
        let [first, others @ ..] = &halves.copied().collect::<Vec<_>>()[..] else {
            return;
        };
        // The best of ten, in turn: a neighbour slows some of them.
        let mut best = [0.0f64; 3];
        for _ in 0..10 {
            let other = others.first().map(|isa| isa.peak_gflops(Precision::Bf16));
            let rates = [Precision::Bf16, Precision::F32].map(|p| first.peak_gflops(p));
            for (best, rate) in best.iter_mut().zip(rates.into_iter().chain(other)) {
                *best = best.max(rate);
            }
        }
        let [halves, f32, other] = best;
        // Sums in f32 are worth a little.
        assert!(
            halves > f32 && halves > 0.9 * other,
            "`has_slow_bf16` does not hold for this CPU: {halves} GFLOP/s of halves with {}, {f32} of \
             f32, {other} with {others:?}",
            first.name()
        );
    }
}
