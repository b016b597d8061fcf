//! Packing from pairs of halves gives the words that packing from f32 gives, for sizes that fill panels
//! and blocks, and such that do not.

use super::*;
use crate::cpu::buffer::Buffer;

/// Rows and columns, both even: pairs are not cut.
const SHAPES: [[usize; 2]; 7] = [
    [2, 2],
    [32, 64],
    [34, 70],
    [128, 64],
    [16, 192],
    [8, 34],
    [70, 130],
];

fn bits(words: &[f32]) -> Vec<u32> {
    words.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn pairs_and_the_values_that_they_stand_for_are_packed_alike() {
    for isa in Isa::available().into_iter().filter(|isa| isa.has_halves()) {
        for [rows, cols] in SHAPES {
            // Whole numbers up to 255 are bf16.
            let values: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 256) as f32).collect();
            let exact = Source {
                form: Form::F32,
                data: values.as_ptr(),
                rows,
                cols,
                stride: cols,
            };
            let mut words = vec![0.0; rows * cols / 2];
            // SAFETY: as many rows and columns.
            unsafe { pack_rows_half(isa, exact, cols / 2, &mut words) };
            let pairs = Source {
                form: Form::Half,
                data: words.as_ptr(),
                stride: cols / 2,
                ..exact
            };
            for columns in [Columns::Columns, Columns::Rows] {
                let (depth, width) = match columns {
                    Columns::Columns => (rows / 2, cols),
                    Columns::Rows => (cols / 2, rows),
                };
                let packed = [exact, pairs].map(|source| {
                    let room = Buffer::zeroed(Panels::words(depth, width));
                    let to = Panels::new(isa, Form::Half, room.as_ptr(), [depth, width]);
                    for index in 0..to.count() {
                        // SAFETY: as many rows and columns; the panels are ours.
                        unsafe { pack_panel(isa, Form::Half, source, columns, to, index) };
                    }
                    bits(room.as_slice())
                });
                assert!(packed[0] == packed[1], "{isa:?} {rows}×{cols} {columns:?}");
            }
            let strips = Strips::new(rows / 2);
            let packed = [exact, pairs].map(|source| {
                let mut to = vec![0.0; strips.all(cols)];
                let mut sums = vec![0.0; cols];
                // SAFETY: as many rows and columns.
                unsafe { pack_strips(isa, source, strips, &mut to, &mut sums) };
                let column = |col| (0..rows).map(|row| values[row * cols + col]).sum::<f32>();
                assert!(
                    (0..cols).all(|col| sums[col] == column(col)),
                    "{isa:?} sums"
                );
                bits(&to)
            });
            assert!(packed[0] == packed[1], "{isa:?} {rows}×{cols} strips");
        }
    }
}
