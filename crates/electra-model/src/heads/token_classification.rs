//! transformers' head for every token: `ElectraForTokenClassification`.

use super::layers::HeadLayers;
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::params::{Init, ParamLayout};

/// Dropout, `outputs` logits.
pub fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    outputs: usize,
    site: u32,
) -> HeadLayers {
    let size = [outputs, config.hidden_size];
    let init = Init::TruncatedNormal(config.initializer_range as f32);
    let depth = config.num_hidden_layers + 2;
    HeadLayers {
        input_dropout: config.head_dropout() as f32,
        dense: None,
        output_dropout: 0.0,
        output: declare_linear(layout, &format!("{prefix}classifier"), size, init, depth),
        site,
    }
}
