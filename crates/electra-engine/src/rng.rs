//! Counter-based random numbers: every draw is a function of (seed, step, example, position,
//! purpose), never of what was drawn before. So the number of threads, ranks or micro-batches and
//! a resumed run change nothing.
//!
//! Philox-4x32-10: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// What a draw is for; draws of two purposes are independent.
///
/// The low byte of the counter's last word. The rest of that word is a site: which of several
/// places of the same purpose (the layers of a network, say) draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// Order of the examples.
    Shuffle = 2,
    /// Which documents are held out.
    HeldOut = 3,
    /// Making examples from text (two-segment builder).
    Examples = 4,
    /// Which positions are masked, and which of them keep their token.
    Mask = 5,
    /// Tokens sampled from the generator.
    Sample = 6,
    /// Dropout of hidden values.
    Dropout = 7,
    /// Dropout of attention probabilities.
    AttentionDropout = 8,
    /// Whatever a test draws.
    Test = 255,
}

/// Philox-4x32 with ten rounds.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// The random numbers of one (seed, step): a key from which every draw follows by its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
}

impl Rng {
    /// The generator of step `step` of the run with seed `seed`.
    pub fn new(seed: u64, step: u64) -> Self {
        let words = philox(
            [step as u32, (step >> 32) as u32, 0, 0],
            [seed as u32, (seed >> 32) as u32],
        );
        Rng {
            key: [words[0], words[1]],
        }
    }

    /// The Philox key, for kernels that make the numbers themselves.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Four random words for (example, position, purpose, site, block).
    ///
    /// `block` numbers the draws of one such place; `site` is below 2^24.
    #[inline(always)]
    pub fn words(
        &self,
        purpose: Purpose,
        site: u32,
        example: u32,
        position: u32,
        block: u32,
    ) -> [u32; 4] {
        philox([block, position, example, stream(purpose, site)], self.key)
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn uniform(
        &self,
        purpose: Purpose,
        site: u32,
        example: u32,
        position: u32,
        block: u32,
    ) -> f64 {
        let w = self.words(purpose, site, example, position, block);
        let bits = (u64::from(w[0]) << 32 | u64::from(w[1])) >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `0..n`, `n > 0`, without modulo bias beyond 2^-64 · n.
    pub fn below(
        &self,
        n: u64,
        purpose: Purpose,
        site: u32,
        example: u32,
        position: u32,
        block: u32,
    ) -> u64 {
        let w = self.words(purpose, site, example, position, block);
        let bits = u64::from(w[0]) << 32 | u64::from(w[1]);
        ((u128::from(bits) * u128::from(n)) >> 64) as u64
    }
}

/// The counter's last word: site and purpose.
#[inline(always)]
pub fn stream(purpose: Purpose, site: u32) -> u32 {
    site << 8 | purpose as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution's `kat_vectors`.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn draws_are_uniform_and_differ_by_every_coordinate() {
        let rng = Rng::new(7, 3);
        let n = 100_000;
        let mean = (0..n)
            .map(|i| rng.uniform(Purpose::Test, 0, i, 0, 0))
            .sum::<f64>()
            / f64::from(n);
        assert!((mean - 0.5).abs() < 0.005, "mean {mean}");
        let base = rng.words(Purpose::Test, 1, 2, 3, 4);
        assert_ne!(base, rng.words(Purpose::Mask, 1, 2, 3, 4));
        assert_ne!(base, rng.words(Purpose::Test, 0, 2, 3, 4));
        assert_ne!(base, rng.words(Purpose::Test, 1, 0, 3, 4));
        assert_ne!(base, rng.words(Purpose::Test, 1, 2, 0, 4));
        assert_ne!(base, rng.words(Purpose::Test, 1, 2, 3, 0));
        assert_ne!(base, Rng::new(7, 4).words(Purpose::Test, 1, 2, 3, 4));
        assert_ne!(base, Rng::new(8, 3).words(Purpose::Test, 1, 2, 3, 4));
    }
}
