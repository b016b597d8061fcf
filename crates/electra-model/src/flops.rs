//! Floating-point operations and parameters, counted, with the assumptions stated.
//!
//! Two counts that answer different questions:
//!
//! - [`matmul_flops_per_token`] and [`train_flops_per_token`]: what the hardware has to do. Only
//!   matrix products, a multiply and an add each; embedding lookups are free; behind the last
//!   attention only tokens count that the head reads; backward is twice forward. Divided by time and by
//!   the peak rate this is the utilization (MFU).
//! - [`published`]: what the authors of ELECTRA counted for the figures of their paper, to
//!   compare with those. Every elementwise operation counts, a lookup is a product with a one-hot
//!   vector over the whole vocabulary, and backward costs as much as forward.

use crate::config::ElectraConfig;

/// The sizes of one network that counts depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetSize {
    /// Layers.
    pub layers: usize,
    /// Width of the encoder.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward blocks.
    pub ffn: usize,
    /// Width of the embedding tables.
    pub embedding: usize,
    /// Rows of the word table.
    pub vocab: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token type table.
    pub types: usize,
}

impl From<&ElectraConfig> for NetSize {
    fn from(config: &ElectraConfig) -> Self {
        Self {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            ffn: config.intermediate_size,
            embedding: config.embedding_size,
            vocab: config.vocab_size,
            max_positions: config.max_position_embeddings,
            types: config.type_vocab_size,
        }
    }
}

/// What stands on the encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Head {
    /// Nothing.
    None,
    /// Replaced token detection: dense, activation, one logit, at every token.
    Discriminator,
    /// Masked language modelling: dense to the embedding width, norm, the word table.
    Generator {
        /// Share of the tokens that it predicts, 0 to 1.
        predicted: f64,
    },
    /// Classes, or a number, for a whole text: dense on its first token, then `outputs` logits.
    Text {
        /// Classes, or 1.
        outputs: usize,
    },
}

impl NetSize {
    /// Parameters of embeddings, projection and layers.
    pub fn encoder_parameters(&self) -> u64 {
        let [l, h, f, e, v, p, t] = [
            self.layers,
            self.hidden,
            self.ffn,
            self.embedding,
            self.vocab,
            self.max_positions,
            self.types,
        ]
        .map(|x| x as u64);
        let norm = 2 * h;
        let attention = 4 * (h * h + h);
        let feed_forward = h * f + f + f * h + h;
        let projection = if e == h { 0 } else { e * h + h };
        (v + p + t + 2) * e + projection + l * (attention + feed_forward + 2 * norm)
    }

    /// Parameters of the head alone. The generator's output matrix is the word table, so only
    /// its bias counts.
    pub fn head_parameters(&self, head: Head) -> u64 {
        let [h, e, v] = [self.hidden, self.embedding, self.vocab].map(|x| x as u64);
        match head {
            Head::None => 0,
            Head::Discriminator => h * h + h + h + 1,
            Head::Generator { .. } => h * e + e + 2 * e + v,
            Head::Text { outputs } => h * h + h + outputs as u64 * (h + 1),
        }
    }

    /// Parameters of encoder and head.
    pub fn parameters(&self, head: Head) -> u64 {
        self.encoder_parameters() + self.head_parameters(head)
    }
}

/// Multiply-adds × 2 in the matrix products of one forward pass, per token, in sequences of
/// `length` tokens (attention grows with it).
pub fn matmul_flops_per_token(net: &NetSize, head: Head, length: usize) -> f64 {
    let [l, h, f, e, v, s] = [
        net.layers,
        net.hidden,
        net.ffn,
        net.embedding,
        net.vocab,
        length,
    ]
    .map(|x| x as f64);
    // Query, key, value; scores and weighted values; output and the two feed-forward products.
    let after_attention = h * h + 2.0 * h * f;
    let layer = 3.0 * h * h + 2.0 * s * h + after_attention;
    let projection = if net.embedding == net.hidden {
        0.0
    } else {
        e * h
    };
    // The share of the tokens that are read of the last layer, and the head's work on one of them.
    let (read, head) = match head {
        Head::None => (1.0, 0.0),
        Head::Discriminator => (1.0, h * h + h),
        Head::Generator { predicted } => (predicted, h * e + e * v),
        Head::Text { outputs } => (1.0 / s, h * h + outputs as f64 * h),
    };
    2.0 * (l * layer + projection - (1.0 - read) * after_attention + read * head)
}

/// Matrix-product operations of one pre-training step, per token of the batch: forward and
/// backward (twice forward) of the discriminator and, unless replacements are drawn without a
/// network, of the generator, which predicts `predicted` of the tokens.
pub fn train_flops_per_token(
    discriminator: Option<&NetSize>,
    generator: Option<&NetSize>,
    predicted: f64,
    length: usize,
) -> f64 {
    let forward = |net: Option<&NetSize>, head| {
        net.map_or(0.0, |net| matmul_flops_per_token(net, head, length))
    };
    3.0 * (forward(discriminator, Head::Discriminator)
        + forward(generator, Head::Generator { predicted }))
}

/// The count behind the paper's figures.
pub mod published {
    use super::NetSize;

    /// Draw, compare, mask, rescale.
    const DROPOUT: f64 = 4.0;
    /// Mean, variance (two), shift, scale.
    const NORM: f64 = 5.0;
    /// The tanh form of GELU.
    const GELU: f64 = 8.0;
    /// Largest, subtract, exponential, sum, divide.
    const SOFTMAX: f64 = 5.0;
    /// Share of the tokens that a generator predicts in every one of the published figures, also
    /// those with 25% masking: 80 of 512.
    pub const PREDICTED: f64 = 0.15625;

    /// Operations of one layer for one token among `s`.
    fn layer(net: &NetSize, s: f64) -> f64 {
        let [h, f, heads] = [net.hidden, net.ffn, net.heads].map(|x| x as f64);
        let products = 2.0 * (4.0 * h * h + 2.0 * s * h + 2.0 * h * f);
        let biases = 3.0 * h + h + f + h;
        let weights = s * heads * (SOFTMAX + DROPOUT + 1.0);
        // Dropout and residual twice. Of the layer norm after attention the published figures
        // count one element only, which is far below their last digit.
        let around = 2.0 * (DROPOUT + 1.0) * h + NORM * h + NORM;
        products + biases + weights + around + GELU * f
    }

    /// Operations of the embeddings for one token: products with one-hot vectors.
    fn embeddings(net: &NetSize, s: f64) -> f64 {
        let [h, e, v] = [net.hidden, net.embedding, net.vocab].map(|x| x as f64);
        let tables = 2.0 * e * v + 2.0 * e * (s + 2.0) + 2.0 * e;
        let projection = if net.embedding == net.hidden {
            0.0
        } else {
            2.0 * h * e + h
        };
        tables + (NORM + DROPOUT) * e + projection
    }

    /// Operations of the output over the vocabulary for one predicted token.
    fn vocabulary_head(net: &NetSize) -> f64 {
        let [h, e, v] = [net.hidden, net.embedding, net.vocab].map(|x| x as f64);
        2.0 * e * v + 2.0 * h * e + e + (GELU + NORM) * e + (SOFTMAX + 2.0) * v
    }

    /// Operations of the discriminator's head for one token.
    fn detection_head(net: &NetSize) -> f64 {
        let h = net.hidden as f64;
        2.0 * h * h + h + GELU * h + 2.0 * h
    }

    /// Operations to pre-train with ELECTRA on `sequences` sequences of `length` tokens.
    pub fn electra(
        discriminator: &NetSize,
        generator: &NetSize,
        length: usize,
        sequences: f64,
    ) -> f64 {
        let s = length as f64;
        let d = discriminator.layers as f64 * layer(discriminator, s)
            + embeddings(discriminator, s)
            + detection_head(discriminator);
        2.0 * sequences * s * d + masked_lm(generator, length, sequences)
    }

    /// Operations to pre-train one network as a masked language model (BERT, or the generator).
    pub fn masked_lm(net: &NetSize, length: usize, sequences: f64) -> f64 {
        let s = length as f64;
        let per_token = net.layers as f64 * layer(net, s)
            + embeddings(net, s)
            + PREDICTED * vocabulary_head(net);
        2.0 * sequences * s * per_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(layers: usize, hidden: usize, embedding: usize) -> NetSize {
        NetSize {
            layers,
            hidden,
            heads: (hidden / 64).max(1),
            ffn: 4 * hidden,
            embedding,
            vocab: 30522,
            max_positions: 512,
            types: 2,
        }
    }

    fn within_a_thousandth(got: f64, published: f64) {
        let off = (got / published - 1.0).abs();
        assert!(off < 1e-3, "{got:.4e} is not the published {published:.4e}");
    }

    #[test]
    fn the_published_training_costs_are_met() {
        let electra = |d: NetSize, g: NetSize, length, batch: f64, steps: f64| {
            published::electra(&d, &g, length, batch * steps)
        };
        let large = (net(24, 1024, 1024), net(24, 256, 1024));
        within_a_thousandth(
            electra(net(12, 256, 128), net(12, 64, 128), 128, 128.0, 1e6),
            1.294e18,
        );
        within_a_thousandth(
            electra(net(12, 768, 768), net(12, 256, 768), 512, 256.0, 766e3),
            6.425e19,
        );
        within_a_thousandth(electra(large.0, large.1, 512, 2048.0, 400e3), 7.118e20);
        within_a_thousandth(electra(large.0, large.1, 512, 2048.0, 1.75e6), 3.114e21);
        within_a_thousandth(
            published::masked_lm(&net(12, 768, 768), 512, 256e6),
            6.428e19,
        );
    }

    #[test]
    fn electra_small_has_the_known_number_of_parameters() {
        let small = NetSize::from(&ElectraConfig::default());
        assert_eq!(small.parameters(Head::Discriminator), 13_549_057);
        assert_eq!(small.encoder_parameters(), 13_483_008);
        let generator = net(12, 64, 128).parameters(Head::Generator { predicted: 0.15 });
        assert_eq!(generator, 4_620_026);
    }

    #[test]
    fn electra_small_costs_20_5_mflop_a_token_forward_and_69_trained() {
        let (d, g) = (net(12, 256, 128), net(12, 64, 128));
        let forward = matmul_flops_per_token(&d, Head::None, 128);
        assert!((forward / 20.5e6 - 1.0).abs() < 5e-3, "{forward}");
        // Of a text's last layer, output and feed-forward are the first token's alone.
        let text = matmul_flops_per_token(&d, Head::Text { outputs: 2 }, 128);
        let unread = 127.0 / 128.0 * 2.0 * 9.0 * 256.0 * 256.0;
        let head = 2.0 * 258.0 * 256.0 / 128.0;
        assert!((text - (forward - unread + head)).abs() < 1.0, "{text}");
        let trained = train_flops_per_token(Some(&d), Some(&g), 19.0 / 128.0, 128);
        assert!((trained / 69e6 - 1.0).abs() < 2e-2, "{trained}");
    }
}
