//! Weights in bytes: each row of a weight, an output of its layer, has a scale of its own, and a
//! weight stands for `scale · byte` with bytes from −127 to 127.
//!
//! Files of weights in bytes and products in bytes use the same code. So weights that come from
//! bytes become the same bytes and scales again.

/// The greatest byte.
const GREATEST: f32 = 127.0;

/// The scale of a row: its greatest magnitude is 127 scales. 0 where all weights are 0, or so small
/// that their scale has no full precision.
pub fn row_scale(row: &[f32]) -> f32 {
    // The bits of magnitudes are ordered as the magnitudes are, and integers' maximum vectorises.
    let greatest = row
        .iter()
        .fold(0u32, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(greatest) / GREATEST;
    if scale < f32::MIN_POSITIVE {
        return 0.0;
    }
    // 127 scales may round such that a 127th of it is the scale's neighbour, which has no such
    // neighbour itself: only scales that are kept by the round trip are given.
    scale * GREATEST / GREATEST
}

/// The bytes of weights, and the sum of these bytes. `row` and `bytes` have one length.
pub fn quantize(row: &[f32], scale: f32, bytes: &mut [i8]) -> i32 {
    // Added to it, a number is rounded to a whole one, to even ones of two as near, and stands in
    // the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    assert_eq!(row.len(), bytes.len());
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut sum = 0;
    for (byte, x) in bytes.iter_mut().zip(row) {
        *byte = (x * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*byte);
    }
    sum
}

/// The weights that bytes stand for.
pub fn dequantize(bytes: &[i8], scale: f32, row: &mut [f32]) {
    for (x, byte) in row.iter_mut().zip(bytes) {
        *x = f32::from(*byte) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_survives_its_own_round_trip() {
        for mantissa in 0..1u32 << 23 {
            let greatest = f32::from_bits(0x3f80_0000 | mantissa);
            let scale = row_scale(&[greatest]);
            assert_eq!(row_scale(&[127.0 * scale]).to_bits(), scale.to_bits());
            assert!((127.0 * scale - greatest).abs() <= 2.0 * f32::EPSILON * greatest);
        }
    }

    #[test]
    fn bytes_are_the_nearest_and_come_back_the_same() {
        let row: Vec<f32> = (0..1000)
            .map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0)
            .collect();
        for factor in [1.0, 3e-20, 7e18, 1e-34] {
            let row: Vec<f32> = row.iter().map(|x| x * factor).collect();
            let scale = row_scale(&row);
            let mut bytes = vec![0; row.len()];
            let sum = quantize(&row, scale, &mut bytes);
            assert_eq!(sum, bytes.iter().map(|&b| i32::from(b)).sum());
            assert_eq!(bytes.iter().map(|b| b.unsigned_abs()).max(), Some(127));
            let mut back = vec![0.0; row.len()];
            dequantize(&bytes, scale, &mut back);
            for (x, y) in row.iter().zip(&back) {
                assert!((x - y).abs() <= scale * 0.5001, "{x} {y} {scale}");
            }
            let mut again = vec![0; row.len()];
            assert_eq!(row_scale(&back).to_bits(), scale.to_bits());
            quantize(&back, row_scale(&back), &mut again);
            assert_eq!(bytes, again);
        }
    }

    #[test]
    fn rows_without_a_scale_are_zero() {
        for row in [[0.0, -0.0], [1e-40, -1e-39]] {
            let mut bytes = [1; 2];
            assert_eq!(row_scale(&row), 0.0);
            assert_eq!(quantize(&row, 0.0, &mut bytes), 0);
            assert_eq!(bytes, [0; 2]);
        }
    }
}
