//! Numbers for tests, and a check of derivatives by differences.

use super::losses::Loss;
use electra_engine::rng::{Purpose, Rng};

/// `count` numbers between −2 and 2.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let rng = Rng::new(seed, 0);
    (0..count as u32)
        .map(|i| (4.0 * rng.uniform(Purpose::Test, 0, 0, i, 0) - 2.0) as f32)
        .collect()
}

/// Asserts that the gradient at `scale` is `scale` times the central difference of the sum.
pub fn assert_is_derivative(x: &[f32], scale: f64, f: impl Fn(&[f32], f64) -> Loss) {
    let gradient = f(x, scale).gradient;
    assert_eq!(gradient.len(), x.len());
    for i in 0..x.len() {
        // Exact in f32, so that the difference is that of the stored numbers.
        let step = 1.0 / 1024.0;
        let moved = |by: f32| {
            let mut x = x.to_vec();
            x[i] += by;
            (f64::from(x[i]), f(&x, scale).sum)
        };
        let ((high, above), (low, below)) = (moved(step), moved(-step));
        let want = scale * (above - below) / (high - low);
        assert!(
            (gradient[i] - want).abs() < 2e-6,
            "{i}: {} is not {want}",
            gradient[i]
        );
    }
}
