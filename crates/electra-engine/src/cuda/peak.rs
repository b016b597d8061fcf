//! The rate of products that a device reaches, to compare with.

use super::device::Product;
use super::kernels::{Kind, Mat};
use super::memory::Scratch;
use super::{Cuda, Precision};
use crate::backend::Backend;
use std::time::{Duration, Instant};

/// Side of the square matrices.
const SIDE: usize = 4096;
/// Products that are timed together.
const RUNS: usize = 20;
/// How long rounds of them are timed; the best one counts.
const ENOUGH: Duration = Duration::from_millis(400);

impl Cuda {
    /// Operations a second of large products in the precision in use, on random values, measured
    /// in a moment. Frees every array.
    pub fn peak_flops(&mut self) -> f64 {
        let kind = match self.precision {
            Precision::Bf16 => Kind::Bf16,
            _ => Kind::F32,
        };
        let mut state = 1u32;
        let values: Vec<f32> = (0..SIDE * SIDE)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        let [a, b, c] = [(); 3].map(|()| self.array(SIDE, SIDE));
        self.write(a, &values);
        self.write(b, &values);
        let [am, bm, cm]: [Mat; 3] = [a, b, c].map(|array| self.mat(array));
        debug_assert_eq!(am.kind, kind);
        let product = Product {
            m: SIDE,
            n: SIDE,
            k: SIDE,
            a: am,
            a_transposed: false,
            b: bm,
            b_transposed: true,
            c: cm,
            accumulate: false,
            bias: None,
        };
        let mut one = [0.0; 1];
        let corner = c.first_rows(1).columns(0, 1);
        let mut seconds = f64::INFINITY;
        // Long enough for an idle device to raise its clock.
        let begin = Instant::now();
        while begin.elapsed() < ENOUGH {
            let start = Instant::now();
            for _ in 0..RUNS {
                self.product(&product);
            }
            // Reading waits for all of them.
            self.read(corner, &mut one);
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        self.release_arrays();
        self.scratch = Scratch::new(&self.device);
        self.norm_chunks.clear();
        (2 * SIDE * SIDE * SIDE * RUNS) as f64 / seconds
    }
}
