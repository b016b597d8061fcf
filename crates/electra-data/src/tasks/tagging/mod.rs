//! Tagging: words to tokens, tags to entities.

mod features;
mod pipeline;
mod scheme;
mod scores;

pub(super) use features::features;
pub use pipeline::{Aggregation, Asked, TaggedSpan, TaggedText, word_tags};
pub(super) use scheme::split;
pub use scheme::{Entity, Scheme, entities, in_scheme, of_entities};
pub use scores::TagScores;
