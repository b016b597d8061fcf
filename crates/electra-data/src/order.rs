//! A shuffle of any number of examples that needs no memory: a Feistel network over Philox, walked
//! until it lands in range (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", 2002).

use electra_engine::rng::{Purpose, Rng};

const ROUNDS: u32 = 8;

/// The order in which examples are read, epoch after epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By number, the same in every epoch.
    Sequential,
    /// Another permutation each epoch.
    Shuffled {
        /// Seed of the permutations.
        seed: u64,
    },
}

impl Order {
    /// The example at place `cursor` of the endless sequence of epochs over `count` examples,
    /// `count > 0`: `permutation(cursor / count)[cursor % count]`.
    pub fn example(&self, cursor: u64, count: u64) -> u64 {
        let place = cursor % count;
        match self {
            Order::Sequential => place,
            Order::Shuffled { seed } => permute(&Rng::new(*seed, cursor / count), place, count),
        }
    }
}

/// Place `at` of a permutation of `0..count`, `at < count`.
fn permute(rng: &Rng, mut at: u64, count: u64) -> u64 {
    let bits = u64::BITS - (count - 1).leading_zeros();
    let half = bits.div_ceil(2);
    let mask = (1u64 << half) - 1;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..ROUNDS {
            let words = rng.words(Purpose::Shuffle, round, right as u32, half, 0);
            (left, right) = (right, left ^ (u64::from(words[0]) & mask));
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation(count in 1u64..3000, seed: u64, epoch in 0u64..4) {
            let order = Order::Shuffled { seed };
            let mut seen = vec![false; count as usize];
            for place in 0..count {
                let example = order.example(epoch * count + place, count) as usize;
                prop_assert!(!seen[example]);
                seen[example] = true;
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let read = |seed, epoch: u64| -> Vec<u64> {
            let order = Order::Shuffled { seed };
            (0..100)
                .map(|i| order.example(epoch * 100 + i, 100))
                .collect()
        };
        assert_eq!(read(1, 0), read(1, 0));
        assert_ne!(read(1, 0), read(1, 1));
        assert_ne!(read(1, 0), read(2, 0));
        assert_eq!(Order::Sequential.example(205, 100), 5);
        let large = 1 << 62;
        assert!(Order::Shuffled { seed: 1 }.example(5, large) < large);
    }

    /// Each of n places holds each example about equally often: chi-square over 20,000 epochs.
    #[test]
    fn each_place_holds_each_example_equally_often() {
        let (n, epochs) = (13u64, 20_000u64);
        let order = Order::Shuffled { seed: 3 };
        let mut counts = vec![0f64; (n * n) as usize];
        for cursor in 0..n * epochs {
            counts[((cursor % n) * n + order.example(cursor, n)) as usize] += 1.0;
        }
        let expected = epochs as f64 / n as f64;
        let chi: f64 = counts
            .iter()
            .map(|c| (c - expected).powi(2) / expected)
            .sum();
        // 144 degrees of freedom: mean 144, standard deviation 17.
        assert!(chi < 144.0 + 5.0 * 17.0, "chi-square {chi}");
    }
}
