//! Replacements drawn uniformly from the vocabulary, in place of a generator's samples.

use electra_data::masking::MaskedBatch;
use electra_data::tokenizer::SpecialIds;
use electra_engine::rng::{Purpose, Rng};

/// One token for each masked row, any of `0 .. vocab_size` but the special ones (and, with
/// `disallow_correct`, but the row's own), each as likely.
///
/// A function of (seed, step, example, position), like the samples of a generator.
pub fn uniform_replacements(
    masked: &MaskedBatch,
    first_example: u32,
    vocab_size: usize,
    special: &SpecialIds,
    disallow_correct: bool,
    rng: &Rng,
) -> Vec<u32> {
    let SpecialIds {
        pad,
        unk,
        cls,
        sep,
        mask,
    } = *special;
    let mut out = Vec::with_capacity(masked.masked_rows.len());
    let mut sequence = 0;
    for (&row, &target) in masked.masked_rows.iter().zip(&masked.targets) {
        while masked.batch.cu_seqlens[sequence + 1] <= row {
            sequence += 1;
        }
        let position = row - masked.batch.cu_seqlens[sequence];
        let wrong = if disallow_correct { target } else { pad };
        let mut left_out = [pad, unk, cls, sep, mask, wrong];
        left_out.sort_unstable();
        let distinct = |i: usize| i == 0 || left_out[i] != left_out[i - 1];
        let count = (0..left_out.len()).filter(|&i| distinct(i)).count();
        let choices = (vocab_size - count).max(1) as u64;
        let example = first_example + sequence as u32;
        let mut token = rng.below(choices, Purpose::Sample, 0, example, position, 0) as u32;
        // The number counts the tokens that are not left out.
        for (i, &id) in left_out.iter().enumerate() {
            if distinct(i) && token >= id {
                token += 1;
            }
        }
        out.push(token);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use electra_engine::batch::PackedBatch;

    #[test]
    fn every_ordinary_token_is_drawn_alike_and_no_special_one() {
        let special = SpecialIds {
            pad: 0,
            unk: 3,
            cls: 4,
            sep: 5,
            mask: 9,
        };
        let rows = 30_000;
        let mut batch = PackedBatch::new();
        for _ in 0..rows {
            batch.push(&[7], &[0]);
        }
        let masked = MaskedBatch {
            original_ids: batch.token_ids.clone(),
            batch,
            masked_rows: (0..rows).collect(),
            targets: vec![7; rows as usize],
        };
        for (disallow, choices) in [(false, 7), (true, 6)] {
            let out = uniform_replacements(&masked, 0, 12, &special, disallow, &Rng::new(3, 4));
            let mut counts = [0f64; 12];
            out.iter().for_each(|&t| counts[t as usize] += 1.0);
            for (token, &count) in counts.iter().enumerate() {
                let never = [0, 3, 4, 5, 9].contains(&token) || (disallow && token == 7);
                let want = if never {
                    0.0
                } else {
                    f64::from(rows) / f64::from(choices)
                };
                assert!(
                    (count - want).abs() < 300.0,
                    "token {token}: {count} of {want}"
                );
            }
        }
    }
}
