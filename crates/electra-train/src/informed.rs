//! A beginning that is informed by the text: `initialization=counts`.
//!
//! A network with random parameters first has to find that words differ in use, that a position has
//! neighbours, and that what stands there can be passed on. Each of these is worth learning only once
//! the other two are there, so a masked language model that has none of them stays at the frequencies
//! of its vocabulary for millions of tokens. Here it begins with all three:
//!
//! - word embeddings are vectors of which tokens stand near each other ([`TokenCounts`]), and the output
//!   bias of the generator is the logarithm of the frequencies;
//! - positions have the last dimensions of the embeddings to themselves, as cosines and sines (Vaswani
//!   et al. 2017), and the queries and keys of the first heads compare these turned by a distance, so
//!   that a head looks at the token before, or after, or one further (after the idea of Trockman and
//!   Kolter 2023, to begin with what trained attention looks like);
//! - values and outputs of these heads pass on what they look at at about its own magnitude.
//!
//! All of it are parameters like others, and learned from there.

use crate::export::Network;
use electra_data::cooccurrence::TokenCounts;
use electra_engine::params::{ParamLayout, ParamView};
use electra_model::config::ElectraConfig;

/// Where the first heads look, from the first head of the first layer on.
const DISTANCES: [i32; 4] = [-1, 1, -2, 2];
/// Angle a position of the fastest cosine, and of the slowest.
const FASTEST: f64 = 2.4;
const SLOWEST: f64 = 0.04;
/// Cosines at the most.
const MOST_WAVES: usize = 8;
/// Logit of the position looked at, for each cosine: with eight of them it has nine tenths of the
/// attention among a hundred tokens, and three quarters among 512.
const SHARPNESS: f64 = 1.5;
/// What values and outputs of such a head together multiply the variance of a token by.
const PASSED_ON: f64 = 0.5;

/// A network, its configuration and its parameters in the layout.
struct Net<'a> {
    prefix: &'static str,
    config: &'a ElectraConfig,
    layout: &'a ParamLayout,
}

/// How the last dimensions of embeddings tell positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Waves {
    count: usize,
}

impl Waves {
    /// As many as suit all of `networks`: an eighth of a width, so that words have three quarters.
    pub fn of<'a>(networks: impl Iterator<Item = &'a ElectraConfig>) -> Self {
        let room = |config: &ElectraConfig| {
            let head = config.hidden_size / config.num_attention_heads;
            (config.embedding_size / 8)
                .min(config.hidden_size / 8)
                .min(head / 2)
        };
        let count = networks.map(room).min().unwrap_or(0);
        Waves {
            count: count.min(MOST_WAVES),
        }
    }

    /// Dimensions that they take.
    pub fn dimensions(self) -> usize {
        2 * self.count
    }

    /// The angle that each turns from a position to the next.
    fn angles(self) -> impl Iterator<Item = f64> {
        let last = self.count.saturating_sub(1).max(1) as f64;
        (0..self.count).map(move |i| FASTEST * (SLOWEST / FASTEST).powf(i as f64 / last))
    }
}

/// Lets the fresh parameters `values` of `networks` begin with `counts`, whose vectors leave room for
/// `waves` in the embeddings. Tokens too rare for a vector keep their random numbers.
pub(crate) fn begin<'a>(
    networks: impl Iterator<Item = (Network, &'a ElectraConfig)>,
    layout: &ParamLayout,
    counts: &TokenCounts,
    waves: Waves,
    values: &mut [f32],
) {
    for (network, config) in networks {
        let net = Net {
            prefix: network.prefix(),
            config,
            layout,
        };
        net.embed(counts, waves, values);
        net.project(waves, values);
        if waves.count == 0 {
            continue;
        }
        // Mean squares of a value of a word and of a wave: 1 after the norm of the embeddings.
        let (mut word, mut wave) = (1.0, 1.0);
        let share = waves.dimensions() as f64 / config.hidden_size as f64;
        let layers = DISTANCES.chunks(config.num_attention_heads);
        for (layer, distances) in layers.take(config.num_hidden_layers).enumerate() {
            for (head, &distance) in distances.iter().enumerate() {
                net.look(layer, head, distance, wave, waves, values);
            }
            // What the heads pass on adds to the words; the norm after them shrinks both.
            word *= 1.0 + PASSED_ON * distances.len() as f64;
            let mean = (1.0 - share) * word + share * wave;
            (word, wave) = (word / mean, wave / mean);
        }
    }
}

impl Net<'_> {
    fn view(&self, name: &str) -> Option<ParamView> {
        let param = self.layout.get(&format!("{}{name}", self.prefix));
        param.map(|param| param.view)
    }

    /// Words, positions and the output bias.
    fn embed(&self, counts: &TokenCounts, waves: Waves, values: &mut [f32]) {
        let deviation = self.config.initializer_range as f32;
        let words = self.config.embedding_size - waves.dimensions();
        if let Some(view) = self.view("electra.embeddings.word_embeddings.weight") {
            for (token, row) in rows(values, view).enumerate() {
                for (value, &x) in row.iter_mut().zip(counts.vector(token).unwrap_or_default()) {
                    *value = deviation * x;
                }
                row[words..].fill(0.0);
            }
        }
        if let Some(view) = self.view("electra.embeddings.token_type_embeddings.weight") {
            // What is added to every token would only make all of them alike.
            values[view.range()].fill(0.0);
        }
        if let Some(view) = self.view("electra.embeddings.position_embeddings.weight") {
            // A cosine's mean square is a half.
            let amplitude = f64::from(deviation) * std::f64::consts::SQRT_2;
            for (position, row) in rows(values, view).enumerate() {
                let (rest, told) = row.split_at_mut(words);
                rest.fill(0.0);
                for (pair, angle) in told.chunks_exact_mut(2).zip(waves.angles()) {
                    let (sine, cosine) = (angle * position as f64).sin_cos();
                    pair[0] = (amplitude * cosine) as f32;
                    pair[1] = (amplitude * sine) as f32;
                }
            }
        }
        if let Some(view) = self.view("generator_lm_head.bias") {
            for (token, value) in values[view.range()].iter_mut().enumerate() {
                *value = counts.log_frequency(token);
            }
        }
    }

    /// Where layers are of another width than embeddings: words keep their variance, positions stay
    /// what they are.
    fn project(&self, waves: Waves, values: &mut [f32]) {
        let Some(view) = self.view("electra.embeddings_project.weight") else {
            return;
        };
        let told = waves.dimensions();
        let (outputs, inputs) = (view.rows - told, view.cols - told);
        rescale(values, view, 0..outputs, 0..inputs, 1.0 / inputs as f64);
        for (output, row) in rows(values, view).enumerate() {
            match output.checked_sub(outputs) {
                None => row[inputs..].fill(0.0),
                Some(dimension) => {
                    row.fill(0.0);
                    row[inputs + dimension] = 1.0;
                }
            }
        }
    }

    /// Lets a head look `distance` tokens further, and pass on what is there. `square`: the mean square
    /// of a wave's values where the head reads them.
    fn look(
        &self,
        layer: usize,
        head: usize,
        distance: i32,
        square: f64,
        waves: Waves,
        values: &mut [f32],
    ) {
        let base = format!("electra.encoder.layer.{layer}.attention");
        let weight = |name: &str| self.view(&format!("{base}.{name}.weight"));
        let (Some(query), Some(key), Some(value), Some(output)) = (
            weight("self.query"),
            weight("self.key"),
            weight("self.value"),
            weight("output.dense"),
        ) else {
            return;
        };
        let hidden = self.config.hidden_size;
        let size = hidden / self.config.num_attention_heads;
        let (first, words) = (head * size, hidden - waves.dimensions());
        // The product of two cosines and sines, scaled by the root of the head's size, is to have the
        // sharpness at the distance.
        let scale = (SHARPNESS * (size as f64).sqrt() / (2.0 * square)).sqrt();
        for (wave, angle) in waves.angles().enumerate() {
            let (sine, cosine) = (angle * f64::from(distance)).sin_cos();
            let (row, column) = (first + 2 * wave, words + 2 * wave);
            // cos ω(i + d) = cos ωi cos ωd − sin ωi sin ωd, and the sine likewise.
            let turned = [[cosine, -sine], [sine, cosine]];
            for (view, turn) in [(query, turned), (key, [[1.0, 0.0], [0.0, 1.0]])] {
                for (i, pair) in turn.into_iter().enumerate() {
                    let row = &mut values[view.offset + (row + i) * view.cols..][..view.cols];
                    row.fill(0.0);
                    for (place, factor) in row[column..].iter_mut().zip(pair) {
                        *place = (scale * factor) as f32;
                    }
                }
            }
        }
        let each = PASSED_ON.sqrt();
        let (of_head, of_words) = (first..first + size, 0..words);
        let variance = each / words as f64;
        rescale(values, value, of_head.clone(), of_words.clone(), variance);
        for row in rows(values, value).skip(first).take(size) {
            row[words..].fill(0.0);
        }
        let variance = each / size as f64;
        rescale(values, output, of_words, of_head.clone(), variance);
        for row in rows(values, output).skip(words) {
            row[of_head.clone()].fill(0.0);
        }
    }
}

/// The rows of a tensor.
fn rows(values: &mut [f32], view: ParamView) -> std::slice::ChunksExactMut<'_, f32> {
    values[view.range()].chunks_exact_mut(view.cols)
}

/// Gives a part of a tensor a mean square of `variance`.
fn rescale(
    values: &mut [f32],
    view: ParamView,
    of_rows: std::ops::Range<usize>,
    of_columns: std::ops::Range<usize>,
    variance: f64,
) {
    let count = of_rows.len() * of_columns.len();
    let part = || of_rows.clone().map(|row| view.offset + row * view.cols);
    let square: f64 = part()
        .flat_map(|row| &values[row..][of_columns.clone()])
        .map(|&x| f64::from(x).powi(2))
        .sum();
    if square == 0.0 {
        return;
    }
    let factor = (variance * count as f64 / square).sqrt() as f32;
    for row in part() {
        for x in &mut values[row..][of_columns.clone()] {
            *x *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_leave_room_for_words() {
        let config = |embedding_size, hidden_size, num_attention_heads| ElectraConfig {
            embedding_size,
            hidden_size,
            num_attention_heads,
            ..ElectraConfig::default()
        };
        let count = |configs: &[ElectraConfig]| Waves::of(configs.iter()).count;
        assert_eq!(count(&[config(128, 256, 4), config(128, 64, 1)]), 8);
        assert_eq!(count(&[config(128, 256, 4), config(128, 32, 1)]), 4);
        assert_eq!(count(&[config(128, 256, 64)]), 2);
        assert_eq!(count(&[config(4, 256, 4)]), 0);
        let angles: Vec<f64> = Waves { count: 8 }.angles().collect();
        assert!((angles[0] - FASTEST).abs() < 1e-9 && (angles[7] - SLOWEST).abs() < 1e-9);
        assert_eq!(Waves { count: 1 }.angles().collect::<Vec<_>>(), [FASTEST]);
    }

    #[test]
    fn one_distance_is_nearer_than_all_others() {
        let waves = Waves { count: MOST_WAVES };
        let logit = |distance: i32| -> f64 {
            let cosines = waves.angles().map(|a| (a * f64::from(distance)).cos());
            SHARPNESS * cosines.sum::<f64>()
        };
        let weight = |distance: i32| (logit(distance) - logit(0)).exp();
        let others = |reach: i32| (1..reach).map(|d| 2.0 * weight(d)).sum::<f64>();
        assert!(others(50) < 0.1, "{}", others(50));
        assert!(others(512) < 0.33, "{}", others(512));
    }
}
