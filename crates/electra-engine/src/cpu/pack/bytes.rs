//! Bytes: rows of activations, panels of weights.

use super::Source;
use crate::cpu::gemm::{Form, PANEL, Panels};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::{LANES, Simd};
use crate::quantize::{quantize, row_scale};

/// Weights of a row that are made bytes at once.
const QUANTIZED: usize = 256;

/// Rows of f32 as bytes: a value stands for `scale · byte + offset`. `to` gets `rows` rows of
/// `cols.div_ceil(4)` words, `step` words apart, `ranges` scale and offset of each row.
///
/// # Safety
/// The source can be read.
pub(crate) unsafe fn quantize_rows(
    isa: Isa,
    source: Source,
    step: usize,
    to: &mut [f32],
    ranges: &mut [f32],
) {
    assert!(source.form == Form::F32 && step >= source.cols.div_ceil(4));
    assert!(to.len() == source.rows * step && ranges.len() == 2 * source.rows);
    isa.run(Quantize {
        source,
        step,
        to,
        ranges,
    });
}

struct Quantize<'a> {
    source: Source,
    step: usize,
    to: &'a mut [f32],
    ranges: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Source {
            data, cols, stride, ..
        } = self.source;
        let units = cols.div_ceil(4);
        let rows = self.to.chunks_exact_mut(self.step.max(1));
        for (row, (to, range)) in rows.zip(self.ranges.chunks_exact_mut(2)).enumerate() {
            // SAFETY: the caller of `quantize_rows` says that the source can be read.
            let x = unsafe { std::slice::from_raw_parts(data.add(row * stride), cols) };
            quantize_row::<S>(x, &mut to[..units], range);
        }
    }
}

/// A row of f32 as bytes, four a word; `range` gets its scale and its offset, which is its least value.
#[inline(always)]
pub(crate) fn quantize_row<S: Simd>(x: &[f32], to: &mut [f32], range: &mut [f32]) {
    // Four vectors at a time: a sum of one would wait for itself.
    let (fours, rest) = x.as_chunks::<{ 4 * LANES }>();
    let mut least = [S::splat(f32::INFINITY); 4];
    let mut greatest = [S::splat(f32::NEG_INFINITY); 4];
    let mut poison = [S::splat(0.0); 4];
    for four in fours {
        for (i, x) in four.chunks_exact(LANES).enumerate() {
            let x = S::read(x);
            least[i] = S::min(least[i], x);
            greatest[i] = S::max(greatest[i], x);
            poison[i] = S::fma(x, S::splat(0.0), poison[i]);
        }
    }
    let [a, b, c, d] = least;
    let mut least = S::least(S::min(S::min(a, b), S::min(c, d)));
    let [a, b, c, d] = greatest;
    let mut greatest = S::greatest(S::max(S::max(a, b), S::max(c, d)));
    let [a, b, c, d] = poison;
    let mut poison = S::sum(S::add(S::add(a, b), S::add(c, d)));
    for &x in rest {
        least = least.min(x);
        greatest = greatest.max(x);
        poison += x * 0.0;
    }
    // What is no number, or infinite, makes the scale no number, and so all results.
    let scale = (greatest - least) / 255.0 + poison;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    range.copy_from_slice(&[scale, least]);
    let (inverse, offset) = (S::splat(inverse), S::splat(least));
    let (whole, last) = to.split_at_mut(fours.len() * LANES);
    for (four, to) in fours.iter().zip(whole.chunks_exact_mut(LANES)) {
        S::write(to, bytes::<S>(four, offset, inverse));
    }
    if !rest.is_empty() {
        S::write(last, bytes::<S>(rest, offset, inverse));
    }
}

/// Up to sixty-four values as bytes in a row.
#[inline(always)]
fn bytes<S: Simd>(x: &[f32], offset: S::V, inverse: S::V) -> S::V {
    let mut scaled = [S::splat(0.0); 4];
    for (i, scaled) in scaled.iter_mut().enumerate() {
        let x = S::read(&x[x.len().min(i * LANES)..]);
        *scaled = S::mul(S::sub(x, offset), inverse);
    }
    S::bytes(scaled)
}

/// Packs panel `index` of `to` with the rows of a matrix of f32 as columns of bytes: a value stands
/// for `scale · byte`. `scales` and `sums` get the scales and the sums of the values that the bytes
/// stand for, of every column of `to`.
///
/// # Safety
/// The source can be read, and nobody else uses the panel and its part of scales and sums meanwhile.
pub(crate) unsafe fn pack_panel_int8(
    source: Source,
    to: Panels,
    index: usize,
    scales: *mut f32,
    sums: *mut f32,
) {
    assert!(source.form == Form::F32);
    assert!(Form::Int8.units(source.cols) == to.depth && source.rows == to.cols);
    let first = index * PANEL;
    let (panel, unit_step, lanes_step) = (
        to.at(index, 0).cast_mut(),
        to.unit_step(index),
        to.lanes_step(),
    );
    for j in 0..PANEL.min(to.cols - first) {
        // SAFETY: as the caller says.
        unsafe {
            let from = source.data.add((first + j) * source.stride);
            let row = std::slice::from_raw_parts(from, source.cols);
            let scale = row_scale(row);
            let mut sum = 0;
            let mut bytes = [0; QUANTIZED];
            for (chunk, row) in row.chunks(QUANTIZED).enumerate() {
                bytes[row.len()..].fill(0);
                sum += quantize(row, scale, &mut bytes[..row.len()]);
                let fours = bytes.chunks_exact(4).take(row.len().div_ceil(4));
                for (unit, four) in fours.enumerate() {
                    let word =
                        u32::from_le_bytes([four[0], four[1], four[2], four[3]].map(|b| b as u8));
                    let unit = chunk * (QUANTIZED / 4) + unit;
                    let at = j / LANES * lanes_step + unit * unit_step + j % LANES;
                    panel.add(at).write(f32::from_bits(word));
                }
            }
            scales.add(first + j).write(scale);
            sums.add(first + j).write(scale * sum as f32);
        }
    }
}
