//! Weights in bytes: each row of a weight, an output of its layer, has a step of its own, and a
//! weight stands for `step · byte` with bytes from −127 to 127.
//!
//! Files of weights in bytes and products in bytes use the same code. So weights that come from
//! bytes become the same bytes and steps again.

/// The greatest byte.
const GREATEST: f32 = 127.0;

/// The step of a row: its greatest magnitude is 127 steps. 0 where all weights are 0, or so small
/// that their step has no full precision.
pub fn row_step(row: &[f32]) -> f32 {
    // The bits of magnitudes are ordered as the magnitudes are, and integers' maximum vectorises.
    let greatest = row
        .iter()
        .fold(0u32, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    let step = f32::from_bits(greatest) / GREATEST;
    if step < f32::MIN_POSITIVE {
        return 0.0;
    }
    // 127 steps may round such that a 127th of it is the step's neighbour, which has no such
    // neighbour itself: only steps that are kept by the round trip are given.
    step * GREATEST / GREATEST
}

/// The bytes of weights, and the sum of these bytes. `row` and `bytes` have one length.
pub fn quantize(row: &[f32], step: f32, bytes: &mut [i8]) -> i32 {
    // Added to it, a number is rounded to a whole one, to even ones of two as near, and stands in
    // the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    assert_eq!(row.len(), bytes.len());
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut sum = 0;
    for (byte, x) in bytes.iter_mut().zip(row) {
        *byte = (x * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*byte);
    }
    sum
}

/// The weights that bytes stand for.
pub fn dequantize(bytes: &[i8], step: f32, row: &mut [f32]) {
    for (x, byte) in row.iter_mut().zip(bytes) {
        *x = f32::from(*byte) * step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_survives_its_own_round_trip() {
        for mantissa in 0..1u32 << 23 {
            let greatest = f32::from_bits(0x3f80_0000 | mantissa);
            let step = row_step(&[greatest]);
            assert_eq!(row_step(&[127.0 * step]).to_bits(), step.to_bits());
            assert!((127.0 * step - greatest).abs() <= 2.0 * f32::EPSILON * greatest);
        }
    }

    #[test]
    fn bytes_are_the_nearest_and_come_back_the_same() {
        let row: Vec<f32> = (0..1000)
            .map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0)
            .collect();
        for scale in [1.0, 3e-20, 7e18, 1e-34] {
            let row: Vec<f32> = row.iter().map(|x| x * scale).collect();
            let step = row_step(&row);
            let mut bytes = vec![0; row.len()];
            let sum = quantize(&row, step, &mut bytes);
            assert_eq!(sum, bytes.iter().map(|&b| i32::from(b)).sum());
            assert_eq!(bytes.iter().map(|b| b.unsigned_abs()).max(), Some(127));
            let mut back = vec![0.0; row.len()];
            dequantize(&bytes, step, &mut back);
            for (x, y) in row.iter().zip(&back) {
                assert!((x - y).abs() <= step * 0.5001, "{x} {y} {step}");
            }
            let mut again = vec![0; row.len()];
            assert_eq!(row_step(&back).to_bits(), step.to_bits());
            quantize(&back, row_step(&back), &mut again);
            assert_eq!(bytes, again);
        }
    }

    #[test]
    fn rows_without_a_step_are_zero() {
        for row in [[0.0, -0.0], [1e-40, -1e-39]] {
            let mut bytes = [1; 2];
            assert_eq!(row_step(&row), 0.0);
            assert_eq!(quantize(&row, 0.0, &mut bytes), 0);
            assert_eq!(bytes, [0; 2]);
        }
    }
}
