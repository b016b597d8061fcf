//! Every operator as a small program, run on a backend and on the reference in f64.
//!
//! A program makes its inputs from a case (shapes, ragged lengths, magnitude), calls one operator
//! or a pair, and returns what came out. Errors are relative to the greatest value of the
//! reference's output; each output states its bound.

mod programs;
pub mod training;

use crate::backend::{Array, Backend, Ints, RowKeys, Sequences};
use crate::reference::Reference;
use crate::rng::{Purpose, Rng};

/// In what a backend computes the products of linear layers and the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// f32.
    F32,
    /// f32 rounded to 19 bits, summed in f32.
    Tf32,
    /// bf16, summed in f32.
    Bf16,
    /// The same, and what operators put out is kept in bf16 too.
    Bf16Kept,
    /// f16, partly summed in f16; magnitudes near its ends are left out.
    F16,
    /// Those of layers in inference in bytes, all others in bf16.
    Int8,
    /// Those of layers in inference in bytes, all others as in `F16`.
    Int8AndF16,
}

impl Products {
    /// Whether inputs of this magnitude, their squares and what becomes of them in attention are
    /// numbers.
    fn hold(self, magnitude: f32) -> bool {
        match self {
            Products::F16 | Products::Int8AndF16 => (1e-3..=1e2).contains(&magnitude),
            _ => true,
        }
    }
}

/// How one output of one program compares.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Program, case and output.
    pub name: String,
    /// Greatest error, relative to the greatest value of the reference.
    pub error: f64,
    /// The error that it may have.
    pub bound: f64,
}

impl Outcome {
    /// Whether the error is within its bound.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

/// One output of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Program, case and output.
    pub name: String,
    /// The values.
    pub values: Vec<f32>,
    /// How close they must be.
    pub bound: Bound,
    /// Of the case's inputs.
    pub(crate) magnitude: f32,
}

/// How close an output must be to the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Equal: ids, and which values are dropped.
    Exact,
    /// Moved, not computed: equal where arrays are f32.
    Moved,
    /// Computed in f32 in every precision: this error.
    F32(f64),
    /// Depends on products: this error, and in bf16, whose values have eight bits, 0.02.
    Product(f64),
    /// Depends on a chain of products: this error, and otherwise 0.05.
    Chain(f64),
}

impl Bound {
    fn of(self, products: Products) -> f64 {
        match (self, products) {
            (Bound::Exact, _) => 0.0,
            // Half of the distance from one number of bf16 to the next.
            (Bound::Moved, Products::Bf16Kept) => 1.0 / 256.0,
            (Bound::Moved, _) => 0.0,
            (Bound::F32(_) | Bound::Product(_), Products::Bf16Kept) => 0.03,
            (Bound::Chain(_), Products::Bf16Kept) => 0.08,
            (Bound::F32(bound), _)
            | (Bound::Product(bound) | Bound::Chain(bound), Products::F32) => bound,
            (Bound::Product(_), Products::Tf32) => 0.005,
            (Bound::Chain(_), Products::Tf32) => 0.02,
            (Bound::Product(_), _) => 0.02,
            (Bound::Chain(_), _) => 0.05,
        }
    }
}

/// Sizes and magnitude of a program's inputs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name in reports.
    pub name: String,
    /// Length of each sequence.
    pub lengths: Vec<usize>,
    /// Attention heads.
    pub heads: usize,
    /// Columns of a head.
    pub head_size: usize,
    /// Width of a second matrix: feed-forward, embedding.
    pub width: usize,
    /// Vocabulary entries.
    pub entries: usize,
    /// Factor on unit inputs.
    pub magnitude: f32,
    /// Whether every fifth row is zero.
    pub zero_rows: bool,
}

impl Case {
    /// Sizes and magnitude drawn at random: small sizes as often as large ones.
    fn random(number: u64) -> Self {
        let rng = Rng::new(2, number);
        let mut draws = 0;
        // From 1 to `most`, by the logarithm.
        let mut draw = |most: usize| {
            draws += 1;
            let u = rng.uniform(Purpose::Test, 0, draws, 0, 0);
            (((most + 1) as f64).powf(u) as usize).clamp(1, most)
        };
        let mut lengths = Vec::new();
        for _ in 0..draw(6) {
            let room = RANDOM_TOKENS - lengths.iter().sum::<usize>();
            if room > 0 {
                lengths.push(draw(room));
            }
        }
        Case {
            name: format!("random {number}"),
            lengths,
            heads: draw(3),
            // Of one or two values a norm leaves nothing to differentiate.
            head_size: 3 + draw(61),
            width: draw(150),
            entries: 2 + draw(500),
            // Above 1 the softmax of rounded scores has little in common with that of exact ones.
            magnitude: draw(1000) as f32 / 1000.0,
            zero_rows: draw(2) == 1,
        }
    }
}

/// Cases of random sizes, and their tokens at the most.
const RANDOM: u64 = 6;
const RANDOM_TOKENS: usize = 150;

/// The cases that [`run`] goes through: every head size, lengths from 1 to 512 and shapes that are
/// no multiple of a vector, a tile or a block, values from tiny to large, and random ones, the same
/// each time.
pub fn cases() -> Vec<Case> {
    let case = |name: &str, lengths: &[usize], heads, head_size, width, entries| Case {
        name: name.to_owned(),
        lengths: lengths.to_vec(),
        heads,
        head_size,
        width,
        entries,
        magnitude: 1.0,
        zero_rows: false,
    };
    let ragged: &[usize] = &[3, 17, 1, 64, 40];
    let mut cases = vec![
        case("one token", &[1], 1, 8, 5, 3),
        case("ragged", ragged, 2, 12, 40, 700),
        case("longest", &[512, 1], 2, 16, 96, 385),
        case("wide", &[49, 130], 4, 64, 200, 2500),
        case("two heads of 128", &[33], 2, 128, 72, 1000),
        case("heads of 32", &[100, 5, 60], 3, 32, 33, 64),
        Case {
            magnitude: 1e4,
            ..case("large", ragged, 2, 16, 48, 100)
        },
        Case {
            magnitude: 1e-6,
            ..case("tiny", ragged, 2, 16, 48, 100)
        },
        Case {
            zero_rows: true,
            ..case("zero rows", ragged, 4, 8, 48, 100)
        },
    ];
    cases.extend((0..RANDOM).map(Case::random));
    cases
}

/// Runs every program on `backend`, and on the reference in f64. Beside the operators one by one
/// there is a network in training: [`training::run`].
pub fn run<B: Backend>(backend: &mut B, products: Products) -> Vec<Outcome> {
    compare(&outputs(backend), &exact(), products)
}

/// What every program puts out on the reference in f64.
pub fn exact() -> Vec<Output> {
    outputs(&mut Reference::<f64>::new())
}

/// Compares a backend's outputs with the reference's.
pub fn compare(ours: &[Output], exact: &[Output], products: Products) -> Vec<Outcome> {
    assert_eq!(ours.len(), exact.len());
    let pairs = ours.iter().zip(exact);
    pairs
        .filter(|(ours, _)| products.hold(ours.magnitude))
        .map(|(ours, exact)| Outcome {
            name: ours.name.clone(),
            error: error(&ours.values, &exact.values),
            bound: ours.bound.of(products),
        })
        .collect()
}

/// What every program puts out on `backend`.
pub fn outputs<B: Backend>(backend: &mut B) -> Vec<Output> {
    let mut all = Vec::new();
    for (index, case) in cases().iter().enumerate() {
        let mut context = Context {
            backend: &mut *backend,
            case,
            rng: Rng::new(1, index as u64),
            draws: 0,
            program: "",
            outputs: Vec::new(),
        };
        programs::all(&mut context);
        all.append(&mut context.outputs);
    }
    all
}

/// Greatest difference over the greatest value; infinite if one is no number or shapes differ.
fn error(ours: &[f32], exact: &[f32]) -> f64 {
    if ours.len() != exact.len() {
        return f64::INFINITY;
    }
    let greatest = exact.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let mut worst = 0.0f64;
    for (&a, &b) in ours.iter().zip(exact) {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if difference.is_nan() {
            return f64::INFINITY;
        }
        worst = worst.max(difference);
    }
    if worst == 0.0 {
        0.0
    } else {
        worst / greatest.max(f64::MIN_POSITIVE)
    }
}

/// What a program works with.
struct Context<'a, B> {
    backend: &'a mut B,
    case: &'a Case,
    rng: Rng,
    draws: u32,
    program: &'static str,
    outputs: Vec<Output>,
}

impl<B: Backend> Context<'_, B> {
    fn tokens(&self) -> usize {
        self.case.lengths.iter().sum()
    }

    fn hidden(&self) -> usize {
        self.case.heads * self.case.head_size
    }

    /// `count` numbers in ±1.7, of variance about 1; the same for every backend.
    fn units(&mut self, count: usize) -> Vec<f32> {
        self.draws += 1;
        (0..count)
            .map(|i| {
                let words = self.rng.words(Purpose::Test, 0, self.draws, i as u32, 0);
                ((f64::from(words[0]) / f64::from(u32::MAX) - 0.5) * 3.4) as f32
            })
            .collect()
    }

    fn below(&mut self, n: usize, count: usize) -> Vec<u32> {
        self.draws += 1;
        (0..count)
            .map(|i| {
                let draw = self.draws;
                self.rng
                    .below(n as u64, Purpose::Test, 1, draw, i as u32, 0) as u32
            })
            .collect()
    }

    /// An array of the case's magnitude, with its rows of zeros.
    fn input(&mut self, rows: usize, cols: usize) -> Array {
        let magnitude = self.case.magnitude;
        self.scaled(rows, cols, magnitude)
    }

    fn scaled(&mut self, rows: usize, cols: usize, magnitude: f32) -> Array {
        let mut values = self.units(rows * cols);
        for (r, row) in values.chunks_exact_mut(cols).enumerate() {
            let zero = self.case.zero_rows && r % 5 == 1;
            for value in row {
                *value *= if zero { 0.0 } else { magnitude };
            }
        }
        let array = self.backend.array(rows, cols);
        self.backend.write(array, &values);
        array
    }

    fn ints(&mut self, values: &[u32]) -> Ints {
        let ints = self.backend.ints(values.len());
        self.backend.write_ints(ints, values);
        ints
    }

    fn keys(&mut self) -> RowKeys {
        let lengths = &self.case.lengths;
        let examples: Vec<u32> = lengths
            .iter()
            .enumerate()
            .flat_map(|(s, &n)| std::iter::repeat_n(100 + s as u32, n))
            .collect();
        let positions: Vec<u32> = lengths.iter().flat_map(|&n| 0..n as u32).collect();
        RowKeys {
            example: self.ints(&examples),
            position: self.ints(&positions),
        }
    }

    fn sequences(&mut self) -> Sequences {
        let lengths = &self.case.lengths;
        let mut cu_seqlens = vec![0];
        for &n in lengths.iter() {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n as u32);
        }
        Sequences {
            cu_seqlens: self.ints(&cu_seqlens),
            keys: self.keys(),
            longest: lengths.iter().copied().max().unwrap_or(0),
        }
    }

    fn keep(&mut self, output: &str, values: Vec<f32>, bound: Bound) {
        self.outputs.push(Output {
            name: format!("{} ({}): {output}", self.program, self.case.name),
            values,
            bound,
            magnitude: self.case.magnitude,
        });
    }

    fn keep_array(&mut self, output: &str, array: Array, bound: Bound) {
        let mut values = vec![0.0; array.rows * array.cols];
        self.backend.read(array, &mut values);
        self.keep(output, values, bound);
    }

    fn keep_ints(&mut self, output: &str, ints: Ints, bound: Bound) {
        let mut values = vec![0; ints.len];
        self.backend.read_ints(ints, &mut values);
        self.keep(output, values.iter().map(|&v| v as f32).collect(), bound);
    }

    fn keep_flat(&mut self, output: &str, flat: &B::Flat, len: usize, bound: Bound) {
        let mut values = vec![0.0; len];
        self.backend.read_flat(flat, &mut values);
        self.keep(output, values, bound);
    }
}
