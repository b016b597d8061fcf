//! transformers' head for whole texts: `ElectraForSequenceClassification`.

use super::layers::HeadLayers;
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::backend::Activation;
use electra_engine::params::{Init, ParamLayout};

/// On `[CLS]`: dropout, dense, GELU, dropout, `outputs` logits.
pub fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    outputs: usize,
    site: u32,
) -> HeadLayers {
    let (hidden, depth) = (config.hidden_size, config.num_hidden_layers + 2);
    let init = Init::TruncatedNormal(config.initializer_range as f32);
    let name = |part: &str| format!("{prefix}classifier.{part}");
    let output = declare_linear(layout, &name("out_proj"), [outputs, hidden], init, depth);
    let dense = declare_linear(layout, &name("dense"), [hidden, hidden], init, depth);
    let dropout = config.head_dropout() as f32;
    HeadLayers {
        input_dropout: dropout,
        // Always this one, whatever `hidden_act` says.
        dense: Some((dense, Some(Activation::Gelu))),
        output_dropout: dropout,
        output,
        site,
    }
}
