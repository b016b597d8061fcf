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
            Self::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes(first(bytes))) << 16),
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
            ($dtype:expr, $size:expr) => {
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact($size)) {
                    *x = $dtype.decode(b);
                }
            };
        }
        match self {
            Self::F32 => run!(Self::F32, 4),
            Self::F16 => run!(Self::F16, 2),
            Self::Bf16 => run!(Self::Bf16, 2),
            other => run!(other, other.size()),
        }
    }
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
