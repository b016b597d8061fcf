//! transformers' head for choices: `ElectraForMultipleChoice`.

use super::layers::HeadLayers;
use crate::config::ElectraConfig;
use crate::encoder::declare_linear;
use electra_engine::backend::Activation;
use electra_engine::params::{Init, ParamLayout};

/// On `[CLS]`: dense, GELU, dropout, one logit; `summary_*` of the configuration say whether.
pub fn declare(
    layout: &mut ParamLayout,
    prefix: &str,
    config: &ElectraConfig,
    site: u32,
) -> HeadLayers {
    let (hidden, depth) = (config.hidden_size, config.num_hidden_layers + 2);
    let init = Init::TruncatedNormal(config.initializer_range as f32);
    let classifier = format!("{prefix}classifier");
    let output = declare_linear(layout, &classifier, [1, hidden], init, depth);
    let dropout = config.summary_last_dropout as f32;
    let dense = config.summary_use_proj.then(|| {
        let name = format!("{prefix}sequence_summary.summary");
        let dense = declare_linear(layout, &name, [hidden, hidden], init, depth);
        let gelu = config.summary_activation.as_deref() == Some("gelu");
        (dense, gelu.then_some(Activation::Gelu))
    });
    HeadLayers {
        input_dropout: if dense.is_some() { 0.0 } else { dropout },
        dense,
        output_dropout: dropout,
        output,
        site,
    }
}
