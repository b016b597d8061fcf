//! Dynamic masking: which positions of a batch the generator must fill in.
//!
//! As in the reference (`pretrain_helpers.py`), but drawn without replacement: of a row of `len`
//! tokens, special ones counted, `n = max(1, min(max_predictions, round(len * mask_prob)))` of the
//! positions that hold no special token are chosen, or all of them if there are fewer. 85% of the
//! chosen become `[MASK]`, the others keep their token; all of them are predicted.

use electra_engine::batch::PackedBatch;
use electra_engine::rng::{Purpose, Rng};

use crate::tokenizer::SpecialIds;

/// Probability that a chosen position becomes `[MASK]`.
const REPLACED: f64 = 0.85;

/// How batches are masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// Share of a row's tokens that is chosen.
    pub mask_prob: f64,
    /// Most positions chosen in a row.
    pub max_predictions: usize,
    /// Tokens that are never chosen.
    pub special: SpecialIds,
}

/// A batch with tokens masked. `T` tokens, `M` chosen positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskedBatch {
    /// The batch with `[MASK]` in place.
    pub batch: PackedBatch,
    /// `[T]` tokens before masking.
    pub original_ids: Vec<u32>,
    /// `[M]` chosen rows of the flat run, ascending.
    pub masked_rows: Vec<u32>,
    /// `[M]` tokens before masking of the chosen rows.
    pub targets: Vec<u32>,
}

impl Masking {
    /// The reference's masking: `max_predictions = int((mask_prob + 0.005) * max_seq_length)`.
    pub fn new(mask_prob: f64, max_seq_length: usize, special: SpecialIds) -> Self {
        Masking {
            mask_prob,
            max_predictions: ((mask_prob + 0.005) * max_seq_length as f64) as usize,
            special,
        }
    }

    /// Positions chosen in a row of `len` tokens with `candidates` that may be. Rounds half to
    /// even, in f32, as TensorFlow does.
    pub fn count(&self, len: usize, candidates: usize) -> usize {
        let wanted = (len as f32 * self.mask_prob as f32).round_ties_even() as usize;
        wanted.min(self.max_predictions).max(1).min(candidates)
    }

    /// Masks a batch whose first sequence is number `first_slot` of the global batch. `rng` is that
    /// of (seed, step); the draws of a position are a function of them, its sequence's number and
    /// its place in the sequence.
    pub fn mask(&self, mut batch: PackedBatch, first_slot: u32, rng: &Rng) -> MaskedBatch {
        let original_ids = batch.token_ids.clone();
        let (mut masked_rows, mut targets) = (Vec::new(), Vec::new());
        let SpecialIds {
            pad,
            cls,
            sep,
            mask,
            ..
        } = self.special;
        let mut candidates = Vec::new();
        for s in 0..batch.sequences() {
            let rows = batch.rows(s);
            let slot = first_slot.wrapping_add(s as u32);
            candidates.clear();
            for (position, row) in (0u32..).zip(rows.clone()) {
                if ![pad, cls, sep, mask].contains(&original_ids[row]) {
                    let w = rng.words(Purpose::Mask, 0, slot, position, 0);
                    let key = u64::from(w[0]) << 32 | u64::from(w[1]);
                    candidates.push((key, row, w[2]));
                }
            }
            let n = self.count(rows.len(), candidates.len());
            if n == 0 {
                continue;
            }
            if n < candidates.len() {
                candidates.select_nth_unstable(n - 1);
                candidates.truncate(n);
            }
            candidates.sort_unstable_by_key(|&(_, row, _)| row);
            for &(_, row, coin) in &candidates {
                masked_rows.push(row as u32);
                targets.push(original_ids[row]);
                if f64::from(coin) < REPLACED * 2f64.powi(32) {
                    batch.token_ids[row] = mask;
                }
            }
        }
        MaskedBatch {
            batch,
            original_ids,
            masked_rows,
            targets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use electra_engine::rng::Rng;
    use proptest::prelude::*;

    const SPECIAL: SpecialIds = SpecialIds {
        pad: 0,
        unk: 1,
        cls: 2,
        sep: 3,
        mask: 4,
    };

    fn batch(rows: &[Vec<u32>]) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for row in rows {
            batch.push(row, &vec![0; row.len()]);
        }
        batch
    }

    proptest! {
        #[test]
        fn counts_places_and_targets_are_right(
            rows in prop::collection::vec(prop::collection::vec(0u32..12, 1..150), 1..8),
            seed: u64,
            step in 0u64..1000,
            mask_prob in 0.01f64..0.9,
        ) {
            let masking = Masking::new(mask_prob, 128, SPECIAL);
            let original = batch(&rows);
            let masked = masking.mask(original.clone(), 7, &Rng::new(seed, step));
            prop_assert_eq!(&masked.original_ids, &original.token_ids);
            prop_assert!(masked.masked_rows.is_sorted_by(|a, b| a < b));
            for (row, target) in masked.masked_rows.iter().zip(&masked.targets) {
                prop_assert_eq!(original.token_ids[*row as usize], *target);
                prop_assert!(![0, 2, 3, 4].contains(target));
            }
            for row in 0..original.tokens() {
                let (now, before) = (masked.batch.token_ids[row], original.token_ids[row]);
                let chosen = masked.masked_rows.contains(&(row as u32));
                prop_assert!(now == before || (chosen && now == 4));
            }
            for (s, row) in rows.iter().enumerate() {
                let candidates = row.iter().filter(|t| ![0, 2, 3, 4].contains(*t)).count();
                let range = original.rows(s);
                let got = masked.masked_rows.iter().filter(|r| range.contains(&(**r as usize)));
                let rounded = (row.len() as f32 * mask_prob as f32).round_ties_even() as usize;
                let wanted = rounded.min(((mask_prob + 0.005) * 128.0) as usize).max(1);
                prop_assert_eq!(got.count(), wanted.min(candidates));
            }
        }

        /// The rows of a batch are masked alike whatever else is in it.
        #[test]
        fn a_split_batch_is_masked_as_the_whole(
            rows in prop::collection::vec(prop::collection::vec(0u32..100, 1..60), 2..8),
            seed: u64,
        ) {
            let masking = Masking::new(0.15, 128, SPECIAL);
            let rng = Rng::new(seed, 3);
            let whole = masking.mask(batch(&rows), 0, &rng);
            let first = masking.mask(batch(&rows[..1]), 0, &rng);
            let rest = masking.mask(batch(&rows[1..]), 1, &rng);
            prop_assert_eq!(whole.targets, [first.targets, rest.targets].concat());
            prop_assert_eq!(
                whole.batch.token_ids,
                [first.batch.token_ids, rest.batch.token_ids].concat()
            );
        }
    }

    #[test]
    fn the_reference_s_counts() {
        let masking = Masking::new(0.15, 128, SPECIAL);
        assert_eq!(masking.max_predictions, 19);
        assert_eq!(Masking::new(0.15, 512, SPECIAL).max_predictions, 79);
        // round(3 * 0.15) = 0, raised to 1; 10 * 0.15 = 1.5, to the even 2; 30 * 0.15 = 4.5, to 4.
        let counts = [3, 10, 30, 128].map(|len| masking.count(len, len));
        assert_eq!(counts, [1, 2, 4, 19]);
        assert_eq!(masking.count(100, 3), 3);
    }

    #[test]
    fn rows_of_special_tokens_only_are_left_alone() {
        let masking = Masking::new(0.15, 128, SPECIAL);
        let masked = masking.mask(batch(&[vec![2, 3], vec![2, 9, 3]]), 0, &Rng::new(1, 1));
        assert_eq!((masked.masked_rows, masked.targets), (vec![3], vec![9]));
    }

    #[test]
    fn positions_are_uniform_and_85_percent_become_the_mask() {
        let masking = Masking::new(0.15, 128, SPECIAL);
        let row = [vec![2], (10..72).collect(), vec![3]].concat();
        let original = batch(&[row]);
        let mut hits = vec![0f64; 64];
        let (mut chosen, mut replaced) = (0f64, 0f64);
        let steps = 40_000;
        for step in 0..steps {
            let masked = masking.mask(original.clone(), 0, &Rng::new(5, step));
            assert_eq!(masked.masked_rows.len(), 10);
            for &r in &masked.masked_rows {
                hits[r as usize] += 1.0;
                chosen += 1.0;
                replaced += f64::from(u8::from(masked.batch.token_ids[r as usize] == 4));
            }
        }
        assert!(
            (replaced / chosen - 0.85).abs() < 0.003,
            "{}",
            replaced / chosen
        );
        let expected = steps as f64 * 10.0 / 62.0;
        for &hit in &hits[1..63] {
            assert!((hit / expected - 1.0).abs() < 0.06, "{hit} of {expected}");
        }
    }
}
