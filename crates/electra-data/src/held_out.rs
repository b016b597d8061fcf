//! Which documents are set aside for evaluation: a function of seed and document number.

use std::collections::BinaryHeap;

use electra_engine::rng::{Purpose, Rng};

use crate::examples::ExampleError;

/// How much is set aside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// Nothing.
    None,
    /// Each document with this probability, from 0 to below 1; at least one if above 0.
    Fraction(f64),
    /// This many documents.
    Documents(u64),
}

/// The set of held-out documents, without memory: those whose random number is low enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldOutSet {
    rng: Rng,
    threshold: Option<u64>,
}

impl HeldOutSet {
    /// Chooses among `documents` documents. At least one is held out (unless nothing is asked for)
    /// and at least one is not.
    ///
    /// # Errors
    /// A fraction outside [0, 1); more documents than there are, less one.
    pub fn new(documents: u64, held_out: HeldOut, seed: u64) -> Result<Self, ExampleError> {
        let mut set = HeldOutSet {
            rng: Rng::new(seed, 0),
            threshold: None,
        };
        let impossible = || ExampleError::HeldOut {
            held_out,
            documents,
        };
        set.threshold = match held_out {
            HeldOut::None => None,
            HeldOut::Documents(0) => None,
            HeldOut::Fraction(fraction) if !(0.0..1.0).contains(&fraction) => {
                return Err(impossible());
            }
            HeldOut::Fraction(0.0) => None,
            _ if documents < 2 => return Err(impossible()),
            HeldOut::Fraction(fraction) => {
                let threshold = (fraction * 2f64.powi(64)) as u64;
                let (mut least, mut most, mut second) = (u64::MAX, 0, 0);
                for number in (0..documents).map(|d| set.number(d)) {
                    least = least.min(number);
                    if number > most {
                        (most, second) = (number, most);
                    } else {
                        second = second.max(number);
                    }
                }
                let threshold = threshold.max(least);
                Some(if threshold >= most { second } else { threshold })
            }
            HeldOut::Documents(count) if count >= documents => return Err(impossible()),
            HeldOut::Documents(count) => {
                let mut lowest = BinaryHeap::new();
                for number in (0..documents).map(|d| set.number(d)) {
                    lowest.push(number);
                    if lowest.len() as u64 > count {
                        lowest.pop();
                    }
                }
                lowest.peek().copied()
            }
        };
        Ok(set)
    }

    fn number(&self, document: u64) -> u64 {
        let (low, high) = (document as u32, (document >> 32) as u32);
        let words = self.rng.words(Purpose::HeldOut, 0, low, high, 0);
        u64::from(words[0]) << 32 | u64::from(words[1])
    }

    /// Whether a document is held out.
    pub fn contains(&self, document: u64) -> bool {
        self.threshold
            .is_some_and(|threshold| self.number(document) <= threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(documents: u64, held_out: HeldOut, seed: u64) -> u64 {
        let set = HeldOutSet::new(documents, held_out, seed).unwrap();
        (0..documents).filter(|&d| set.contains(d)).count() as u64
    }

    #[test]
    fn about_the_fraction_is_held_out_at_least_one_and_never_all() {
        let n = count(100_000, HeldOut::Fraction(0.05), 1);
        assert!((4_800..5_200).contains(&n), "{n}");
        for seed in 0..50 {
            assert_eq!(count(10, HeldOut::Fraction(1e-9), seed), 1);
            assert_eq!(count(2, HeldOut::Fraction(0.999_999), seed), 1);
            assert_eq!(count(5, HeldOut::Documents(3), seed), 3);
        }
        assert_eq!(count(100, HeldOut::None, 1), 0);
        assert_eq!(count(1, HeldOut::Fraction(0.0), 1), 0);
    }

    #[test]
    fn impossible_parts_are_refused() {
        for (documents, held_out) in [
            (10, HeldOut::Fraction(1.0)),
            (10, HeldOut::Fraction(f64::NAN)),
            (10, HeldOut::Fraction(-0.1)),
            (10, HeldOut::Documents(10)),
            (1, HeldOut::Fraction(0.1)),
        ] {
            let error = HeldOutSet::new(documents, held_out, 0).unwrap_err();
            assert!(error.to_string().contains("cannot hold out"), "{error}");
        }
    }
}
