//! transformers' head for answers: `ElectraForQuestionAnswering`.

use super::layers::HeadLayers;
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::params::{Init, ParamLayout};

/// Two logits a token, of the answer's first and of its last.
pub fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    site: u32,
) -> HeadLayers {
    let size = [2, config.hidden_size];
    let init = Init::TruncatedNormal(config.initializer_range as f32);
    let depth = config.num_hidden_layers + 2;
    HeadLayers {
        input_dropout: 0.0,
        dense: None,
        output_dropout: 0.0,
        output: declare_linear(layout, &format!("{prefix}qa_outputs"), size, init, depth),
        site,
    }
}
