//! Element types of stored tensors and their conversion to f32.

use std::fmt;

/// The type of a stored tensor's elements, all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names say it
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether weights may have this type; the others are stray buffers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Decode one element; `bytes` has at least [`Dtype::size`] of them, missing ones are zero.
    pub(crate) fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F64 => f64::from_le_bytes(first(bytes)) as f32,
            Self::F32 => f32::from_le_bytes(first(bytes)),
            Self::F16 => f16_to_f32(u16::from_le_bytes(first(bytes))),
            Self::Bf16 => bf16_to_f32(first(bytes)),
            Self::I64 => i64::from_le_bytes(first(bytes)) as f32,
            Self::I32 => i32::from_le_bytes(first(bytes)) as f32,
            Self::I16 => f32::from(i16::from_le_bytes(first(bytes))),
            Self::I8 => f32::from(i8::from_le_bytes(first(bytes))),
            Self::U8 => f32::from(u8::from_le_bytes(first(bytes))),
            Self::Bool => f32::from(u8::from(u8::from_le_bytes(first(bytes)) != 0)),
        }
    }

    /// Decode `out.len()` adjacent elements.
    pub(crate) fn decode_run(self, bytes: &[u8], out: &mut [f32]) {
        // The type is matched once outside the loop so that each loop is a plain conversion.
        macro_rules! run {
            ($size:expr, $value:expr) => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<$size>().0) {
                    *x = $value(*b);
                }
            };
        }
        match self {
            Self::F32 => run!(4, f32::from_le_bytes),
            Self::Bf16 => run!(2, bf16_to_f32),
            Self::F16 => run!(2, |b| f16_to_f32(u16::from_le_bytes(b))),
            Self::I8 => run!(1, |b| f32::from(i8::from_le_bytes(b))),
            other => {
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(other.size())) {
                    *x = other.decode(b);
                }
            }
        }
    }
}

/// The place of the first value that is NaN or infinite.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Exponents of all ones; without branches it vectorises.
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = |x: &f32| u32::from(x.to_bits() & EXPONENT == EXPONENT);
    if values.iter().fold(0, |any, x| any | bad(x)) == 0 {
        return None;
    }
    values.iter().position(|x| !x.is_finite())
}

/// The nearest bf16, the even one of two as near; what is too large becomes infinite.
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let odd = bits >> 16 & 1;
    (bits.wrapping_add(0x7fff + odd) >> 16) as u16
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = *b;
    }
    out
}

fn bf16_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// IEEE 754 half to single precision, exact.
fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half >> 15) << 31;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half) & 0x3ff;
    match exponent {
        0 => {
            // Zero and subnormals: fraction · 2⁻²⁴.
            let magnitude = fraction as f32 * (1.0 / 16_777_216.0);
            f32::from_bits(magnitude.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_decoded_exactly() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x7c00, f32::INFINITY),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(
                f16_to_f32(bits).to_bits(),
                f32::to_bits(value),
                "{bits:#06x}"
            );
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn bf16_is_the_nearest_and_even_between_two() {
        for (value, bits) in [
            (1.0, 0x3f80u16),
            (-1.0, 0xbf80),
            // Halfway between 0x3f80 and 0x3f81, and between 0x3f81 and 0x3f82.
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (1.0 + 1.1 / 256.0, 0x3f81),
            (f32::MAX, 0x7f80),
            (-0.0, 0x8000),
        ] {
            assert_eq!(f32_to_bf16(value), bits, "{value}");
        }
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7f80 != 0x7f80) {
            assert_eq!(f32_to_bf16(bf16_to_f32(bits.to_le_bytes())), bits);
        }
    }

    #[test]
    fn the_first_that_is_not_finite_is_found() {
        let mut values = vec![f32::MAX; 100];
        assert_eq!(first_not_finite(&values), None);
        values[77] = f32::NAN;
        values[55] = f32::NEG_INFINITY;
        assert_eq!(first_not_finite(&values), Some(55));
    }

    #[test]
    fn runs_and_single_elements_agree() {
        let bytes: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37)).collect();
        for dtype in [
            Dtype::F64,
            Dtype::F32,
            Dtype::F16,
            Dtype::Bf16,
            Dtype::I64,
            Dtype::I8,
        ] {
            let mut run = vec![0.0; 64 / dtype.size()];
            dtype.decode_run(&bytes, &mut run);
            for (i, x) in run.iter().enumerate() {
                let alone = dtype.decode(&bytes[i * dtype.size()..]);
                assert_eq!(alone.to_bits(), x.to_bits());
            }
        }
    }
}
