//! Products against sums in f64, on every instruction set and in every form, for rows, columns and
//! depths that fill tiles, registers and blocks, and such that do not.

use super::super::linear::packed_step;
use super::*;
use crate::backend::Activation;
use crate::cpu::buffer::Buffer;
use crate::cpu::elementwise::Accuracy;
use crate::cpu::epilogue::{ActivationGradient, PanelEpilogue, Place, Store};
use crate::cpu::pack::{
    Columns, Source, pack_panel, pack_panel_int8, pack_rows_half, quantize_rows, zip_rows,
};
use crate::cpu::view::View;

/// Rows, depth, columns.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [5, 7, 3],
    [16, 32, 16],
    [33, 70, 65],
    [64, 64, 128],
    [70, 1100, 130],
    [32, 2050, 48],
    [7, 2300, 20],
];
/// Columns of the result that no product may touch.
const BEYOND: usize = 5;

/// Values from −1 to 1.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_add(seed) ^ 0x5bd1).wrapping_mul(2_654_435_761) >> 16;
    (0..count as u32)
        .map(|i| hash(i) as f32 / 32_768.0 - 1.0)
        .collect()
}

/// The nearest of the halves that an instruction set multiplies, for a value that is normal in these.
fn half(isa: Isa, x: f32) -> f64 {
    let dropped = if isa.has_f16() { 13 } else { 16 };
    let bits = x.to_bits();
    let below = (1 << dropped) - 1;
    let rounded = bits.wrapping_add((below >> 1) + (bits >> dropped & 1)) & !below;
    f32::from_bits(rounded).into()
}

fn source(form: Form, data: &[f32], rows: usize, cols: usize) -> Source {
    Source {
        form,
        data: data.as_ptr(),
        rows,
        cols,
        stride: form.units(cols),
    }
}

/// A left side in a form, and the values that it stands for.
struct LeftSide {
    words: Vec<f32>,
    row_step: usize,
    unit_step: usize,
    ranges: Vec<f32>,
    stands_for: Vec<f64>,
}

fn left(isa: Isa, form: Form, x: &[f32], [rows, depth]: [usize; 2]) -> LeftSide {
    // Between the rows stands what no product may read.
    let step = match form {
        Form::F32 => depth,
        _ => packed_step(form, depth),
    };
    let mut words = vec![f32::NAN; rows * step];
    let mut ranges = vec![0.0; 2 * rows];
    // SAFETY: x has so many rows and columns.
    unsafe {
        match form {
            Form::F32 => words.copy_from_slice(x),
            Form::Half => {
                pack_rows_half(isa, source(Form::F32, x, rows, depth), step, &mut words);
            }
            Form::Int8 => {
                quantize_rows(
                    isa,
                    source(Form::F32, x, rows, depth),
                    step,
                    &mut words,
                    &mut ranges,
                );
            }
        }
    }
    let byte = |row: usize, k: usize| words[row * step + k / 4].to_bits().to_le_bytes()[k % 4];
    let stands_for = (0..rows * depth).map(|at| {
        let (row, k) = (at / depth, at % depth);
        match form {
            Form::F32 => x[at].into(),
            Form::Half => half(isa, x[at]),
            Form::Int8 => {
                let [scale, offset] = [ranges[2 * row], ranges[2 * row + 1]].map(f64::from);
                let value = scale * f64::from(byte(row, k)) + offset;
                let off = (value - f64::from(x[at])).abs();
                assert!(off <= 0.501 * scale, "{isa:?}: {} became {value}", x[at]);
                value
            }
        }
    });
    LeftSide {
        stands_for: stands_for.collect(),
        words,
        row_step: step,
        unit_step: 1,
        ranges,
    }
}

/// The same left side with neighbouring rows side by side.
fn turned(isa: Isa, form: Form, x: &[f32], shape @ [rows, depth]: [usize; 2]) -> LeftSide {
    let across: Vec<f32> = (0..rows * depth)
        .map(|at| x[at % rows * depth + at / rows])
        .collect();
    let mut words = vec![0.0; form.units(depth) * rows];
    match form {
        Form::F32 => words.copy_from_slice(&across),
        // SAFETY: as many rows and columns.
        _ => unsafe {
            zip_rows(
                isa,
                source(Form::F32, &across, depth, rows),
                &mut words,
                rows,
            )
        },
    }
    LeftSide {
        words,
        row_step: 1,
        unit_step: rows,
        ..left(isa, form, x, shape)
    }
}

/// A right side `[depth, cols]` in a form, with scale and sum of each column, and the values that it
/// stands for.
struct RightSide {
    words: Buffer,
    scales: Vec<f32>,
    sums: Vec<f32>,
    stands_for: Vec<f64>,
}

fn right(isa: Isa, form: Form, w: &[f32], [depth, cols]: [usize; 2]) -> RightSide {
    let units = form.units(depth);
    let words = Buffer::zeroed(Panels::words(units, cols));
    let (mut scales, mut sums) = (vec![0.0; cols], vec![0.0; cols]);
    let panels = Panels::new(isa, form, words.as_ptr(), [units, cols]);
    let across: Vec<f32> = (0..depth * cols)
        .map(|at| w[at % depth * cols + at / depth])
        .collect();
    for index in 0..panels.count() {
        // SAFETY: w has so many rows and columns; the panels are ours.
        unsafe {
            match form {
                Form::Int8 => {
                    let rows = source(Form::F32, &across, cols, depth);
                    pack_panel_int8(rows, panels, index, scales.as_mut_ptr(), sums.as_mut_ptr());
                }
                form => {
                    let rows = source(Form::F32, w, depth, cols);
                    pack_panel(isa, form, rows, Columns::Columns, panels, index);
                }
            }
        }
    }
    let stands_for = (0..depth * cols).map(|at| {
        let (k, col) = (at / cols, at % cols);
        match form {
            Form::F32 => w[at].into(),
            Form::Half => half(isa, w[at]),
            Form::Int8 => {
                let (panel, place) = (col / PANEL, col % PANEL);
                let lanes = panels
                    .at(panel, k / 4)
                    .wrapping_add(place / LANES * panels.lanes_step());
                // SAFETY: a word of the panels, which are ours.
                let word = unsafe { *lanes.wrapping_add(place % LANES) };
                let byte = word.to_bits().to_le_bytes()[k % 4] as i8;
                f64::from(scales[col]) * f64::from(byte)
            }
        }
    });
    RightSide {
        stands_for: stands_for.collect(),
        words,
        scales,
        sums,
    }
}

/// The product of two sides into `c`: from zero, from what stands there, or from a bias, of bytes always
/// from that.
fn product(
    isa: Isa,
    form: Form,
    [rows, depth, cols]: [usize; 3],
    (a, b): (&LeftSide, &RightSide),
    (start, bias): (&str, &[f32]),
    (c, c_stride): (&mut [f32], usize),
) -> Product {
    let units = form.units(depth);
    let panels = Panels::new(isa, form, b.words.as_ptr(), [units, cols]);
    Product {
        rows,
        depth: units,
        a: a.words.as_ptr(),
        row_step: a.row_step,
        unit_step: a.unit_step,
        b: panels,
        first_unit: 0,
        panels: 0..panels.count(),
        c: c.as_mut_ptr(),
        c_stride,
        start: match (form, start) {
            (Form::Int8, _) => Start::Scaled {
                rows: a.ranges.as_ptr(),
                scales: b.scales.as_ptr(),
                sums: b.sums.as_ptr(),
                bias: bias.as_ptr(),
            },
            (_, "sum") => Start::Sum,
            (_, "bias") => Start::Bias(bias.as_ptr()),
            _ => Start::Zero,
        },
        ahead: 0..0,
    }
}

fn check(isa: Isa, form: Form, [rows, depth, cols]: [usize; 3], a: &LeftSide, start: &str) {
    let b = right(isa, form, &values(depth * cols, 2), [depth, cols]);
    let (bias, stride) = (values(cols, 3), cols + BEYOND);
    let mut c = values(rows * stride, 4);
    let before = c.clone();
    let shape = [rows, depth, cols];
    let product = product(isa, form, shape, (a, &b), (start, &bias), (&mut c, stride));
    // SAFETY: both sides and the result are as large as the shape says, and ours.
    unsafe { product.run(isa, form) };
    let lines = c.chunks_exact(stride).zip(before.chunks_exact(stride));
    for (row, (c, before)) in lines.enumerate() {
        let what = format!("{isa:?} {form:?} {rows}×{depth}×{cols} {start}, row {row}");
        let bits = |x: &[f32]| x[cols..].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(c),
            bits(before),
            "{what}: beyond the product's columns"
        );
        for (col, (&c, &before)) in c[..cols].iter().zip(before).enumerate() {
            let terms =
                (0..depth).map(|k| a.stands_for[row * depth + k] * b.stands_for[k * cols + col]);
            let (sum, size) = terms.fold((0.0, 1.0), |(s, n), t| (s + t, n + t.abs()));
            let from: f64 = match (form, start) {
                (Form::Int8, _) | (_, "bias") => bias[col].into(),
                (_, "sum") => before.into(),
                _ => 0.0,
            };
            let error = (f64::from(c) - (sum + from)).abs();
            // Sums of f16 are rounded at each term, by no more than the sum so far.
            let bound = match isa.has_f16() && form == Form::Half {
                true => 1e-3,
                false => 1e-5,
            };
            assert!(
                error <= bound * size,
                "{what}, {col}: {c} for {}",
                sum + from
            );
        }
    }
}

#[test]
fn every_product_is_the_sum_of_its_terms_and_touches_nothing_else() {
    for isa in Isa::available() {
        let mut forms = vec![Form::F32, Form::Int8];
        forms.extend(isa.has_halves().then_some(Form::Half));
        for form in forms {
            for shape @ [rows, depth, _] in SHAPES {
                let x = values(rows * depth, 1);
                let a = left(isa, form, &x, [rows, depth]);
                for start in ["zero", "sum", "bias"] {
                    check(isa, form, shape, &a, start);
                }
                if form != Form::Int8 {
                    let a = turned(isa, form, &x, [rows, depth]);
                    check(isa, form, shape, &a, "sum");
                }
            }
        }
    }
}

/// Some words, as places of results: of f32, or pairs of halves.
fn place(form: Form, words: &mut [f32], [rows, cols]: [usize; 2]) -> Place {
    assert!(words.len() >= rows * form.units(cols));
    Place::new(View::of(form, words.as_mut_ptr(), rows, cols), &(0..rows))
}

/// Applies an epilogue to a product's results, once to all of them after the product and once as far as it
/// can be while the product goes on, and compares what is in the places.
fn check_epilogue<F: Epilogue>(
    isa: Isa,
    form: Form,
    [rows, depth, cols]: [usize; 3],
    to: Form,
    biased: bool,
    epilogue: impl Fn([Place; 2]) -> F,
) {
    let x = values(rows * depth, 1);
    let (a, b) = (
        left(isa, form, &x, [rows, depth]),
        right(isa, form, &values(depth * cols, 2), [depth, cols]),
    );
    let bias = values(cols, 3);
    let mut results = vec![0.0; rows * cols];
    let start = if biased { "bias" } else { "zero" };
    let shape = [rows, depth, cols];
    let into =
        |c: &mut [f32], stride| product(isa, form, shape, (&a, &b), (start, &bias), (c, stride));
    let words = rows * to.units(cols);
    let mut places = [0, 1].map(|_| [5, 6].map(|seed| values(words, seed)));
    let epilogues = places
        .each_mut()
        .map(|both| epilogue(both.each_mut().map(|words| place(to, words, [rows, cols]))));
    // SAFETY: both sides and all places are as large as the shape says, and ours.
    let done = unsafe {
        into(&mut results, cols).run(isa, form);
        into(&mut [0.0; BESIDE_WORDS], PANEL).run_beside(isa, form, epilogues[1])
    };
    for (epilogue, first) in epilogues.into_iter().zip([0, done]) {
        isa.run_in(
            to,
            PanelEpilogue {
                epilogue,
                values: &results[first * cols..],
                stride: cols,
                cols,
                first: [first, 0],
            },
        );
    }
    let fills = isa.multiplies_tiles(form) && cols.is_multiple_of(PANEL);
    let fills = fills && form.units(depth).is_multiple_of(LANES) && form.units(depth) <= 512;
    let what = format!("{isa:?} {form:?} to {to:?} {rows}×{depth}×{cols}");
    assert_eq!(done, if fills { rows / LANES * LANES } else { 0 }, "{what}");
    let [after, beside] =
        places.map(|both| both.map(|words| words.iter().map(|x| x.to_bits()).collect::<Vec<_>>()));
    assert!(after == beside, "{what}");
}

#[test]
fn results_that_are_taken_while_the_product_goes_on_have_the_same_bits() {
    for isa in Isa::available().into_iter().filter(|isa| isa.has_halves()) {
        for form in [Form::Half, Form::Int8] {
            for [rows, depth, cols] in [
                [1, 64, 64],
                [16, 32, 64],
                [33, 256, 192],
                [128, 64, 128],
                [79, 1024, 64],
                [150, 320, 64],
                [40, 70, 64],
                [40, 64, 70],
                [20, 4160, 64],
            ] {
                for to in [Form::F32, Form::Half] {
                    let shape = [rows, depth, cols];
                    let kind = (Activation::Gelu, Accuracy::Half);
                    check_epilogue(isa, form, shape, to, true, |[plain, _]| Store::plain(plain));
                    check_epilogue(isa, form, shape, to, true, |[plain, activated]| Store {
                        plain: Some(plain),
                        activated: Some((activated, kind.0, kind.1)),
                    });
                    check_epilogue(isa, form, shape, to, false, |[z, d]| ActivationGradient {
                        activation: kind.0,
                        accuracy: kind.1,
                        z,
                        d,
                    });
                }
            }
        }
    }
}
