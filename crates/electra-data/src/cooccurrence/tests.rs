use super::spectrum::leading;
use super::*;
use crate::examples::tests::{SPECIAL, documents, open, options};
use crate::examples::{Builder, Split};
use crate::held_out::HeldOut;
use electra_engine::rng::{Purpose, Rng};
use nalgebra::DMatrix;

/// Sentences of a subject, a verb and an object of one of two kinds: tokens 0 to 3 are subjects, 4
/// and 5 verbs, 6 to 9 objects; 10 was seen once, 11 never.
fn sentences() -> Vec<u32> {
    let rng = Rng::new(1, 0);
    let mut text = vec![BORDER, 10, BORDER];
    for i in 0..4000 {
        let draw = |which, below: f64| (rng.uniform(Purpose::Test, which, i, 0, 0) * below) as u32;
        let kind = draw(0, 2.0);
        text.extend([
            2 * kind + draw(1, 2.0),
            4 + kind,
            6 + 2 * kind + draw(2, 2.0),
            BORDER,
        ]);
    }
    text
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn tokens_of_like_use_have_like_vectors() {
    let counts = TokenCounts::of_text(sentences(), 12, 6, 1);
    let vector = |token| counts.vector(token).expect("seen often");
    for (one, same, other) in [(0, 1, 2), (2, 3, 0), (6, 7, 8), (8, 9, 7)] {
        let (same, other) = (
            cosine(vector(one), vector(same)),
            cosine(vector(one), vector(other)),
        );
        assert!(same > 0.9 && other < 0.5, "{one}: {same}, {other}");
    }
    assert_eq!(counts.vector(10), None);
    assert_eq!(counts.vector(11), None);
    assert_eq!(counts.vector(12), None);
    let values: Vec<f32> = (0..10).flat_map(vector).copied().collect();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    assert!(mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-5);
}

#[test]
fn threads_change_nothing() {
    let one = TokenCounts::of_text(sentences(), 12, 6, 1);
    for threads in [2, 3] {
        assert_eq!(one, TokenCounts::of_text(sentences(), 12, 6, threads));
    }
}

#[test]
fn shares_add_up_to_one() {
    let counts = TokenCounts::of_text(sentences(), 12, 6, 1);
    let shares = (0..12).map(|token| counts.log_frequency(token).exp());
    assert!((shares.sum::<f32>() - 1.0).abs() < 1e-5);
    assert!(counts.log_frequency(11) > f32::NEG_INFINITY);
    assert!(counts.log_frequency(10) > counts.log_frequency(11));
}

#[test]
fn text_without_frequent_tokens_has_no_vectors() {
    for text in [vec![], vec![BORDER], vec![0, 1, BORDER, 2]] {
        let counts = TokenCounts::of_text(text, 3, 6, 2);
        assert_eq!(counts.vector(0), None);
        assert!(counts.log_frequency(0).is_finite());
    }
}

#[test]
fn tokens_whose_neighbours_say_nothing_have_no_vectors() {
    // Token 0 stands alone, 1 beside itself.
    let text = [[0, BORDER, 1, 1, BORDER]; 20].concat();
    let counts = TokenCounts::of_text(text, 2, 2, 1);
    assert_eq!(counts.vector(0), None);
    assert_eq!(counts.vector(1), None);
    assert!(counts.log_frequency(1) > counts.log_frequency(0));
}

#[test]
fn a_single_token_with_neighbours_makes_nothing_infinite() {
    // Token 0 beside itself, each of many others once beside token 1.
    let mut text = [[0, 0, BORDER]; 20].concat();
    for other in 2..14 {
        text.extend([[1, other, BORDER], [other, BORDER, other]].concat());
        text.extend([BORDER, other, BORDER].repeat(9));
    }
    let counts = TokenCounts::of_text(text, 14, 4, 1);
    let vectors = (0..14).filter_map(|token| counts.vector(token));
    assert!(vectors.flatten().all(|x| x.is_finite()));
}

#[test]
fn a_context_without_a_share_of_its_own_says_nothing() {
    // A core of two; token 1 stands near token 2 alone, which is outside of it.
    let text = [[0, 0, 0, BORDER], [1, 2, BORDER, BORDER]]
        .concat()
        .repeat(20);
    let matrix = association(&text, 3, 2, 1);
    assert!(matrix.values.iter().all(|x| x.is_finite()));
}

#[test]
fn association_is_what_its_definition_says() {
    let mut text = sentences();
    let by_rank = rank(&mut text, &frequencies(&sentences(), 12));
    let (seen, core) = (by_rank.len(), 6);
    assert_eq!(seen, 10);
    let matrix = association(&text, seen, core, 2);
    let mut counts = vec![vec![0.0f64; core]; seen];
    for i in 0..text.len() {
        for j in 0..text.len() {
            let (from, to) = (text[i] as usize, text[j] as usize);
            let between = &text[i.min(j)..=i.max(j)];
            let near = i != j && i.abs_diff(j) <= WINDOW && !between.contains(&BORDER);
            if near && from < seen && to < core {
                counts[from][to] += 1.0;
            }
        }
    }
    let sum = |row: usize| counts[row].iter().sum::<f64>();
    let total: f64 = (0..core).map(|c| sum(c).powf(SMOOTHING)).sum();
    let ppmi = |row: usize, column: usize| {
        let share = sum(column).powf(SMOOTHING) / total;
        (counts[row][column] / (sum(row) * share)).ln().max(0.0)
    };
    let mut entries = 0;
    for row in 0..seen {
        let range = matrix.starts[row]..matrix.starts[row + 1];
        let mut dense = vec![0.0; core];
        for i in range {
            dense[matrix.columns[i] as usize] = f64::from(matrix.values[i]);
            entries += 1;
        }
        for (column, &found) in dense.iter().enumerate() {
            let expected = match row < core {
                true => 0.5 * (ppmi(row, column) + ppmi(column, row)),
                false => ppmi(row, column),
            };
            assert!((found - expected).abs() < 1e-5, "{row}, {column}");
        }
    }
    assert!(entries > seen);
}

#[test]
fn vectors_of_all_dimensions_multiply_to_the_matrix() {
    // Ones beside twos on the diagonal: positive definite.
    let core = 40usize;
    let mut matrix = Sparse {
        starts: vec![0],
        columns: Vec::new(),
        values: Vec::new(),
    };
    for row in 0..core {
        for column in row.saturating_sub(1)..(row + 2).min(core) {
            matrix.columns.push(column as u32);
            let diagonal = row == column;
            matrix
                .values
                .push(if diagonal { 2.0 + row as f32 } else { 1.0 });
        }
        matrix.starts.push(matrix.columns.len());
    }
    let leading = leading(&matrix, core, core, 2);
    let vectors = DMatrix::from_vec(core, core, matrix.times(&leading, core, 2));
    let product = vectors.transpose() * &vectors;
    for row in 0..core {
        for column in 0..core {
            let expected = match row.abs_diff(column) {
                0 => 2.0 + row as f32,
                1 => 1.0,
                _ => 0.0,
            };
            assert!((product[(row, column)] - expected).abs() < 1e-3);
        }
    }
}

#[test]
fn much_text_is_counted_in_groups_from_everywhere() {
    // 640 documents of one line of 10 tokens.
    let corpus = open(&documents(&vec![vec![10]; 640]));
    let options = options(12, Builder::Runs, HeldOut::None);
    let examples = Examples::new(corpus, SPECIAL, options, Split::Train).expect("examples");
    let words = |most: u64| {
        let text = sample(&examples, most).expect("text");
        text.into_iter().filter(|&token| token != BORDER).collect()
    };
    let all: Vec<u32> = words(u64::MAX);
    assert_eq!(all.len(), 6400);
    let half: Vec<u32> = words(examples.tokens() / 2);
    assert_eq!(half.len(), 3200);
    // Every second group of 64.
    let group = 64 * 10;
    assert_eq!(half[..group], all[group..2 * group]);
    assert_eq!(half[4 * group..], all[9 * group..]);
    // Neighbours do not reach from one example to the next.
    let text = sample(&examples, u64::MAX).expect("text");
    assert_eq!([text[0], text[11], text[12]], [BORDER; 3]);
}
