//! Scores of tags.

use crate::metrics::entities::{EntityCounts, StrictScheme, strict_entities};
use crate::tasks::TaskError;
use crate::tasks::classification::{Scores, collect, of_average};
use crate::tasks::metric::Metric;
use crate::tasks::tagging::entities;

/// Scores of sentences' tags. Precision, recall and F1 are those of entities in `seqeval`'s default
/// mode, `f1_strict` that of its strict mode; accuracy is that of words. Gold tags are to be written
/// in the scheme of the predicted ones ([`super::in_scheme`]).
#[derive(Clone, Debug, Default)]
pub struct TagScores {
    words: u64,
    right: u64,
    counts: EntityCounts,
    gold: Vec<Vec<String>>,
    predicted: Vec<Vec<String>>,
}

impl TagScores {
    /// Counts a sentence.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn add(&mut self, gold: Vec<String>, predicted: Vec<String>) {
        assert_eq!(gold.len(), predicted.len(), "a tag a word");
        self.words += gold.len() as u64;
        self.right += gold.iter().zip(&predicted).filter(|(g, p)| g == p).count() as u64;
        self.counts.add(&entities(&gold), &entities(&predicted));
        self.gold.push(gold);
        self.predicted.push(predicted);
    }

    /// Entities by kind.
    pub fn entities(&self) -> &EntityCounts {
        &self.counts
    }

    /// Entities by kind in strict mode; `None` where the tags are in no scheme of entities.
    pub fn strict_entities(&self) -> Option<EntityCounts> {
        let scheme = self.strict_scheme()?;
        let mut counts = EntityCounts::default();
        for (gold, predicted) in self.gold.iter().zip(&self.predicted) {
            counts.add(
                &strict_entities(gold, scheme)?,
                &strict_entities(predicted, scheme)?,
            );
        }
        Some(counts)
    }

    /// The scheme of all tags: the one `seqeval` names, else the first of IOB2, IOBES and BILOU
    /// that has their prefixes.
    fn strict_scheme(&self) -> Option<StrictScheme> {
        let all: Vec<Vec<&str>> = self
            .gold
            .iter()
            .chain(&self.predicted)
            .map(|tags| tags.iter().map(String::as_str).collect())
            .collect();
        StrictScheme::detect(&all).or_else(|| {
            let known = |prefixes: &str| {
                all.iter()
                    .flatten()
                    .all(|tag| tag.starts_with(|c| prefixes.contains(c)))
            };
            [
                (StrictScheme::Iob2, "IOB"),
                (StrictScheme::Iobes, "IOBES"),
                (StrictScheme::Bilou, "IOBLU"),
            ]
            .into_iter()
            .find(|(_, prefixes)| known(prefixes))
            .map(|(scheme, _)| scheme)
        })
    }

    /// The asked-for metrics.
    ///
    /// # Errors
    /// A metric that tags do not have.
    pub fn scores(&self, metrics: &[Metric]) -> Result<Scores, TaskError> {
        let entities = self.counts.micro_average();
        let averages = [entities, self.counts.macro_average()];
        collect(metrics, |metric| match metric {
            Metric::Accuracy => Some(self.right as f64 / self.words.max(1) as f64),
            Metric::F1Strict => {
                let strict = self.strict_entities();
                Some(strict.map_or(f64::NAN, |counts| counts.micro_average().f1))
            }
            _ => of_average(metric, entities, averages),
        })
    }
}
