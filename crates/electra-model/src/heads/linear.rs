//! The reference's head for texts, words and choices: dropout and one linear layer.

use super::layers::HeadLayers;
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::params::{Init, ParamLayout};

/// Its names are not transformers', which would read `classifier.weight` as a head for tokens.
pub const NAME: &str = "google_classifier";

/// Dropout, `outputs` logits.
pub fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    outputs: usize,
    site: u32,
) -> HeadLayers {
    let size = [outputs, config.hidden_size];
    let depth = config.num_hidden_layers + 2;
    let name = format!("{prefix}{NAME}");
    HeadLayers {
        input_dropout: config.head_dropout() as f32,
        dense: None,
        output_dropout: 0.0,
        output: declare_linear(layout, &name, size, Init::GlorotUniform, depth),
        site,
    }
}
