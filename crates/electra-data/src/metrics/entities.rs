//! Scores of entities, as `seqeval` has them.
//!
//! In its default mode tags that break the scheme are read as `conlleval` reads them
//! ([`crate::tasks::tagging::entities`]); in strict mode what is not written as the scheme has it
//! is no entity ([`strict_entities`]).

use std::collections::BTreeMap;

use super::Prf;
use crate::tasks::tagging::Entity;

/// How often entities of each kind were there, were predicted, and both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Right, predicted, gold.
    kinds: BTreeMap<String, [u64; 3]>,
}

impl EntityCounts {
    /// Counts the entities of a sentence. One that is predicted twice counts once.
    pub fn add(&mut self, gold: &[Entity], predicted: &[Entity]) {
        let unique = |list: &[Entity]| -> Vec<Entity> {
            let mut list = list.to_vec();
            list.sort();
            list.dedup();
            list
        };
        let (gold, predicted) = (unique(gold), unique(predicted));
        for entity in &gold {
            self.kinds.entry(entity.kind.clone()).or_default()[2] += 1;
        }
        for entity in predicted {
            let right = gold.binary_search(&entity).is_ok();
            let counts = self.kinds.entry(entity.kind).or_default();
            counts[1] += 1;
            counts[0] += u64::from(right);
        }
    }

    /// Scores of each kind that occurs, by name.
    pub fn per_kind(&self) -> Vec<(String, Prf)> {
        self.kinds
            .iter()
            .map(|(kind, c)| (kind.clone(), Prf::new(c[0], c[1], c[2])))
            .collect()
    }

    /// Scores over all entities.
    pub fn micro_average(&self) -> Prf {
        let sum = |i: usize| self.kinds.values().map(|c| c[i]).sum();
        Prf::new(sum(0), sum(1), sum(2))
    }

    /// Mean over the kinds that occur.
    pub fn macro_average(&self) -> Prf {
        let kinds: Vec<Prf> = self.per_kind().into_iter().map(|(_, prf)| prf).collect();
        Prf::mean(&kinds)
    }
}

/// The schemes of `seqeval`'s strict mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictScheme {
    /// `B-` only between neighbours of one kind.
    Iob1,
    /// `B-` begins every entity.
    Iob2,
    /// `E-` only between neighbours of one kind.
    Ioe1,
    /// `E-` ends every entity.
    Ioe2,
    /// `B-` begins, `E-` ends, `S-` is a single word.
    Iobes,
    /// `B-` begins, `L-` ends, `U-` is a single word.
    Bilou,
}

/// Prefixes of the tag before, prefixes of this tag, and whether their kinds must be the same
/// (`=`), differ (`!`) or do not matter (`*`).
type Pattern = (&'static str, &'static str, char);

const ANY: &str = "IOBESUL";

/// What begins, continues and ends an entity.
struct Patterns {
    allowed: &'static str,
    start: &'static [Pattern],
    inside: &'static [Pattern],
    end: &'static [Pattern],
}

impl StrictScheme {
    /// The scheme that `seqeval` takes tags to be in, by their prefixes; `None` if it knows none.
    pub fn detect<S: AsRef<str>>(sentences: &[Vec<S>]) -> Option<Self> {
        let mut prefixes: Vec<char> = sentences
            .iter()
            .flatten()
            .filter_map(|tag| tag.as_ref().chars().next())
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let found: String = prefixes.into_iter().collect();
        // Sorted sets of prefixes, as listed in seqeval.
        Some(match found.as_str() {
            "BIO" | "BI" | "BO" | "B" => StrictScheme::Iob2,
            "EIO" | "EI" | "EO" | "E" => StrictScheme::Ioe2,
            "BEIOS" | "BEIS" | "BEIO" | "BEOS" | "BEI" | "BES" | "BEO" | "BE" | "S" => {
                StrictScheme::Iobes
            }
            "BILOU" | "BILU" | "BILO" | "BLOU" | "BIL" | "BLU" | "BLO" | "BL" | "U" => {
                StrictScheme::Bilou
            }
            _ => return None,
        })
    }

    fn patterns(self) -> Patterns {
        match self {
            StrictScheme::Iob1 => Patterns {
                allowed: "IOB",
                start: &[
                    ("O", "I", '*'),
                    ("I", "I", '!'),
                    ("B", "I", '*'),
                    ("I", "B", '='),
                    ("B", "B", '='),
                ],
                inside: &[("B", "I", '='), ("I", "I", '=')],
                end: &[
                    ("I", "I", '!'),
                    ("I", "O", '*'),
                    ("I", "B", '*'),
                    ("B", "O", '*'),
                    ("B", "I", '!'),
                    ("B", "B", '='),
                ],
            },
            StrictScheme::Iob2 => Patterns {
                allowed: "IOB",
                start: &[(ANY, "B", '*')],
                inside: &[("B", "I", '='), ("I", "I", '=')],
                end: &[
                    ("I", "O", '*'),
                    ("I", "I", '!'),
                    ("I", "B", '*'),
                    ("B", "O", '*'),
                    ("B", "I", '!'),
                    ("B", "B", '*'),
                ],
            },
            StrictScheme::Ioe1 => Patterns {
                allowed: "IOE",
                start: &[
                    ("O", "I", '*'),
                    ("I", "I", '!'),
                    ("E", "I", '*'),
                    ("E", "E", '='),
                ],
                inside: &[("I", "I", '='), ("I", "E", '=')],
                end: &[
                    ("I", "I", '!'),
                    ("I", "O", '*'),
                    ("I", "E", '!'),
                    ("E", "I", '='),
                    ("E", "E", '='),
                ],
            },
            StrictScheme::Ioe2 => Patterns {
                allowed: "IOE",
                start: &[
                    ("O", "I", '*'),
                    ("O", "E", '*'),
                    ("E", "I", '*'),
                    ("E", "E", '*'),
                    ("I", "I", '!'),
                    ("I", "E", '!'),
                ],
                inside: &[("I", "E", '='), ("I", "I", '=')],
                end: &[("E", ANY, '*')],
            },
            StrictScheme::Iobes => Patterns {
                allowed: "IOBES",
                start: &[(ANY, "B", '*'), (ANY, "S", '*')],
                inside: &[
                    ("B", "I", '='),
                    ("B", "E", '='),
                    ("I", "I", '='),
                    ("I", "E", '='),
                ],
                end: &[("S", ANY, '*'), ("E", ANY, '*')],
            },
            StrictScheme::Bilou => Patterns {
                allowed: "IOBLU",
                start: &[(ANY, "B", '*'), (ANY, "U", '*')],
                inside: &[
                    ("B", "I", '='),
                    ("B", "L", '='),
                    ("I", "I", '='),
                    ("I", "L", '='),
                ],
                end: &[("U", ANY, '*'), ("L", ANY, '*')],
            },
        }
    }
}

/// The entities of a sentence that are written as the scheme has it; `None` if a tag has a prefix
/// that the scheme does not know.
pub fn strict_entities<S: AsRef<str>>(tags: &[S], scheme: StrictScheme) -> Option<Vec<Entity>> {
    let patterns = scheme.patterns();
    let split = |tag: &'_ str| -> Option<(char, String)> {
        let mut chars = tag.chars();
        let prefix = chars.next()?;
        let kind = chars.as_str().trim_matches('-');
        patterns.allowed.contains(prefix).then(|| {
            let kind = if kind.is_empty() { "_" } else { kind };
            (prefix, kind.to_owned())
        })
    };
    let outside = ('O', "_".to_owned());
    let mut tags = tags
        .iter()
        .map(|tag| split(tag.as_ref()))
        .collect::<Option<Vec<_>>>()?;
    tags.push(outside.clone());
    let fits = |list: &[Pattern], before: &(char, String), now: &(char, String)| {
        list.iter().any(|(first, second, kinds)| {
            first.contains(before.0)
                && second.contains(now.0)
                && match kinds {
                    '=' => before.1 == now.1,
                    '!' => before.1 != now.1,
                    _ => true,
                }
        })
    };
    let mut found = Vec::new();
    let mut i = 0;
    let mut before = outside;
    while i < tags.len() {
        if fits(patterns.start, &before, &tags[i]) {
            let mut end = i + 1;
            while end < tags.len() && fits(patterns.inside, &tags[end - 1], &tags[end]) {
                end += 1;
            }
            let end = end.min(tags.len() - 1);
            if fits(patterns.end, &tags[end - 1], &tags[end]) {
                found.push(Entity {
                    kind: tags[i].1.clone(),
                    start: i,
                    end,
                });
            }
            i = end;
        } else {
            i += 1;
        }
        before = tags[i - 1].clone();
    }
    Some(found)
}
