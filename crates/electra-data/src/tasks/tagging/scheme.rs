//! How entities are written as tags.

use serde::{Deserialize, Serialize};

/// How entities are written as tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// `B-` begins an entity, `I-` goes on. Also called IOB2.
    #[default]
    Bio,
    /// As BIO, but `E-` ends an entity of several words and `S-` is one of one word.
    Bioes,
    /// `I-` begins an entity and goes on; `B-` begins one only where the last word ended another
    /// of the same kind.
    Iob1,
}

/// A run of words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Entity {
    /// Its kind.
    pub kind: String,
    /// First word.
    pub start: usize,
    /// One past the last word.
    pub end: usize,
}

/// Prefix and kind of a tag, as `seqeval` splits it: the first character, and what follows the
/// first `-` after it, or `_`.
pub(crate) fn split(tag: &str) -> (char, &str) {
    let mut chars = tag.chars();
    let prefix = chars.next().unwrap_or('O');
    let rest = chars.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (prefix, if kind.is_empty() { "_" } else { kind })
}

/// The entities of a sentence's tags, in order. Tags that break the scheme are read as
/// `conlleval` and `seqeval` (default mode) do: an `I-` or `E-` after another kind or `O` begins
/// an entity. So BIO, IOB1 and BIOES are all read right.
pub fn entities<S: AsRef<str>>(tags: &[S]) -> Vec<Entity> {
    let mut found = Vec::new();
    let (mut last, mut last_kind, mut begin) = ('O', "", 0);
    for (i, tag) in tags.iter().map(AsRef::as_ref).chain(["O"]).enumerate() {
        let (prefix, kind) = split(tag);
        let other = last_kind != kind;
        let ends = match last {
            'E' | 'S' => true,
            'B' | 'I' if matches!(prefix, 'B' | 'S' | 'O') => true,
            'O' | '.' => false,
            _ => other,
        };
        if ends {
            found.push(Entity {
                kind: last_kind.to_owned(),
                start: begin,
                end: i,
            });
        }
        let begins = match prefix {
            'B' | 'S' => true,
            'E' | 'I' if matches!(last, 'E' | 'S' | 'O') => true,
            'O' | '.' => false,
            _ => other,
        };
        if begins {
            begin = i;
        }
        (last, last_kind) = (prefix, kind);
    }
    found
}

/// The tag in BIO's or BIOES's letters, from those or BILOU's or BMES's; `None` if it is no tag of
/// an entity, nor `O`.
fn chunk_tag(tag: &str) -> Option<String> {
    if tag == "O" {
        return Some(tag.into());
    }
    let (prefix, kind) = tag.split_once('-')?;
    let prefix = match prefix {
        "B" | "I" | "E" | "S" => prefix,
        "M" => "I",
        "L" => "E",
        "U" | "W" => "S",
        _ => return None,
    };
    (!kind.is_empty()).then(|| format!("{prefix}-{kind}"))
}

/// Whether all tags are of entities, `O` or a prefix with a kind, in whatever scheme. Parts of speech
/// and their like are not: each is a label of its word, and there are no entities.
pub fn of_entities<S: AsRef<str>>(tags: &[S]) -> bool {
    tags.iter().all(|tag| chunk_tag(tag.as_ref()).is_some())
}

/// The tags of a sentence written in a scheme, and how many entities began with `I-` or `E-`.
/// Tags that are not of entities, such as parts of speech, are left as they are.
pub fn in_scheme(tags: &[String], scheme: Scheme) -> (Vec<String>, u64) {
    let Some(chunks) = tags
        .iter()
        .map(|tag| chunk_tag(tag))
        .collect::<Option<Vec<_>>>()
    else {
        return (tags.to_vec(), 0);
    };
    let found = entities(&chunks);
    let mut written = vec!["O".to_owned(); tags.len()];
    let mut irregular = 0;
    let mut before: Option<&Entity> = None;
    for entity in &found {
        irregular += u64::from(chunks[entity.start].starts_with(['I', 'E']));
        let Entity { kind, start, end } = entity;
        for (i, tag) in written.iter_mut().enumerate().take(*end).skip(*start) {
            let (first, last) = (i == *start, i + 1 == *end);
            let follows = before.is_some_and(|b| b.end == *start && b.kind == *kind);
            let prefix = match scheme {
                Scheme::Bio => {
                    if first {
                        'B'
                    } else {
                        'I'
                    }
                }
                Scheme::Iob1 => {
                    if first && follows {
                        'B'
                    } else {
                        'I'
                    }
                }
                Scheme::Bioes => match (first, last) {
                    (true, true) => 'S',
                    (true, false) => 'B',
                    (false, true) => 'E',
                    (false, false) => 'I',
                },
            };
            *tag = format!("{prefix}-{kind}");
        }
        before = Some(entity);
    }
    (written, irregular)
}

impl Scheme {
    /// The scheme that labels are written in: BIOES if any begins with `E-` or `S-`, IOB1 if they
    /// have kinds but no `B-` for one of them, else BIO.
    pub fn of_labels(labels: &[String]) -> Self {
        let has = |prefix: &str| labels.iter().any(|l| l.starts_with(prefix));
        if has("E-") || has("S-") {
            return Scheme::Bioes;
        }
        let lone = labels.iter().any(|label| {
            label
                .strip_prefix("I-")
                .is_some_and(|kind| !labels.contains(&format!("B-{kind}")))
        });
        if lone { Scheme::Iob1 } else { Scheme::Bio }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn every_scheme_is_read_and_written() {
        let bio = list("B-A I-A O B-A B-A I-A B-B O O B-B");
        let iob1 = list("I-A I-A O I-A B-A I-A I-B O O I-B");
        let bioes = list("B-A E-A O S-A B-A E-A S-B O O S-B");
        let bilou = list("B-A L-A O U-A B-A L-A U-B O O U-B");
        for from in [&bio, &iob1, &bioes, &bilou] {
            assert_eq!(in_scheme(from, Scheme::Bio).0, bio);
            assert_eq!(in_scheme(from, Scheme::Iob1).0, iob1);
            assert_eq!(in_scheme(from, Scheme::Bioes).0, bioes);
        }
        for tags in [&bio, &iob1, &bioes, &bilou] {
            assert!(of_entities(tags));
        }
        assert!(!of_entities(&["O", "B-A", "NN"]) && !of_entities(&["O", "PER"]));
        assert_eq!(in_scheme(&bio, Scheme::Bio).1, 0);
        assert_eq!(in_scheme(&list("O I-A I-A B-B I-A"), Scheme::Bio).1, 2);
        assert_eq!(
            in_scheme(&list("NN VB O"), Scheme::Bioes).0,
            list("NN VB O")
        );
    }

    #[test]
    fn labels_tell_their_scheme() {
        assert_eq!(Scheme::of_labels(&list("O B-A I-A")), Scheme::Bio);
        assert_eq!(Scheme::of_labels(&list("O B-A I-A I-B")), Scheme::Iob1);
        assert_eq!(Scheme::of_labels(&list("O B-A I-A E-A S-A")), Scheme::Bioes);
        assert_eq!(Scheme::of_labels(&list("NN VB")), Scheme::Bio);
    }

    proptest! {
        #[test]
        fn any_tags_keep_their_entities_in_any_scheme(
            tags in proptest::collection::vec("(O|[BIES]-[AB])", 0..12),
        ) {
            let expected = entities(&tags);
            for scheme in [Scheme::Bio, Scheme::Bioes, Scheme::Iob1] {
                let written = in_scheme(&tags, scheme).0;
                prop_assert_eq!(written.len(), tags.len());
                prop_assert_eq!(&entities(&written), &expected);
            }
        }
    }
}
