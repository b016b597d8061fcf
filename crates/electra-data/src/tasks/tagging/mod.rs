//! Tagging: words to tokens, tags to entities.

mod features;
mod pipeline;
mod scheme;
mod scores;

pub(super) use features::features;
pub use pipeline::{Aggregation, Asked, TaggedSpan, TaggedText, word_tags};
pub use scheme::{Entity, Scheme, entities, in_scheme};
pub use scores::TagScores;
