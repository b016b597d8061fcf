//! Tagging: words to tokens, tags to entities.

mod features;
mod scheme;
mod scores;

pub(super) use features::features;
pub use scheme::{Entity, Scheme, entities, in_scheme};
pub use scores::TagScores;
