//! An example as its file has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::rows::extension;
use super::{TaskError, tagging};

/// Where an example stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// Its first line, or its row in Parquet, counted from 1; the line of its article in SQuAD's
    /// format.
    pub line: u64,
    /// The word that is meant, from 1, where a row holds several.
    pub word: Option<usize>,
}

impl Place {
    /// What to do if what is wrong here is that the row is no example but names the columns; empty
    /// where it cannot be that.
    pub(super) fn header_hint(&self) -> &'static str {
        let table = matches!(extension(&self.path).as_str(), "tsv" | "csv" | "txt");
        match self.line == 1 && table {
            true => "; if the row names the columns, give --header true",
            false => "",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let unit = match self.path.extension() {
            Some(e) if e == "parquet" => "row",
            _ => "line",
        };
        write!(f, "{}, {unit} {}", self.path.display(), self.line)?;
        match self.word {
            Some(word) => write!(f, ", word {word}"),
            None => Ok(()),
        }
    }
}

/// An example as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Where it stands.
    pub place: Place,
    /// What its file calls it (a question's id, GLUE's index); else its number in the file, from 0.
    pub id: String,
    /// The line of each word, where each has its own; elsewhere empty.
    pub lines: Vec<u64>,
    /// What the network is shown.
    pub input: Input,
    /// What is to be predicted; `None` where the data does not say.
    pub gold: Option<Gold>,
}

/// What the network is shown of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// One text or a pair.
    Text {
        /// The text.
        first: String,
        /// The other text of a pair.
        second: Option<String>,
    },
    /// The words of a sentence; characters in Chinese data.
    Words(Vec<String>),
    /// A question and the text that may hold its answer.
    Question {
        /// Title of the text; may be empty.
        title: Arc<str>,
        /// The question.
        question: String,
        /// The text.
        context: Arc<str>,
    },
    /// A beginning and what may follow it.
    Choices {
        /// The beginning: a text, a question; may be empty.
        first: String,
        /// What may follow.
        choices: Vec<String>,
    },
}

/// What is to be predicted of an [`Example`].
#[derive(Clone, Debug, PartialEq)]
pub enum Gold {
    /// A class.
    Class(String),
    /// The labels that hold.
    Labels(Vec<String>),
    /// A number.
    Value(f64),
    /// A tag for each word.
    Tags(Vec<String>),
    /// The answers that annotators gave; empty if the text holds none.
    Answers(Vec<Answer>),
    /// Number of the right choice, from 0.
    Choice(usize),
}

/// An answer of a question's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Where it is said to begin, in characters of the context; wrong in some data.
    pub start: Option<i64>,
}

impl Example {
    /// The text as a person reads it, for reports.
    pub fn text(&self) -> String {
        match &self.input {
            Input::Text {
                first,
                second: None,
            } => first.clone(),
            Input::Text {
                first,
                second: Some(second),
            } => format!("{first} ⫽ {second}"),
            Input::Words(words) => words.join(" "),
            Input::Question { question, .. } => question.clone(),
            Input::Choices { first, choices } => format!("{first} ⫽ {}", choices.join(" | ")),
        }
    }

    /// Where a word stands, by its number from 0.
    pub fn place_of_word(&self, word: usize) -> Place {
        let place = self.place.clone();
        match self.lines.get(word) {
            Some(&line) => Place { line, ..place },
            None => Place {
                word: Some(word + 1),
                ..place
            },
        }
    }

    /// The labels that it has, of tags of entities their kinds; none of a number, an answer or a
    /// choice. One may come several times.
    fn labels(&self) -> Vec<&str> {
        match &self.gold {
            Some(Gold::Class(label)) => vec![label],
            Some(Gold::Labels(labels)) => labels.iter().map(String::as_str).collect(),
            Some(Gold::Tags(tags)) => {
                let entities = tagging::of_entities(tags);
                tags.iter()
                    .map(|tag| match entities && tag != "O" {
                        true => tagging::split(tag).1,
                        false => tag.as_str(),
                    })
                    .collect()
            }
            Some(Gold::Value(_) | Gold::Answers(_) | Gold::Choice(_)) | None => Vec::new(),
        }
    }

    /// A number that depends on what the example shows alone; the questions of one article, told
    /// by its title or else its text, share it, so that no text is on both sides of a split.
    fn group_hash(&self, seed: u64) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        match &self.input {
            Input::Text { first, second } => {
                add(first);
                add(second.as_deref().unwrap_or_default());
            }
            Input::Words(words) => words.iter().for_each(|word| add(word)),
            Input::Question { title, context, .. } => {
                add(if title.is_empty() { context } else { title });
            }
            Input::Choices { first, choices } => {
                add(first);
                choices.iter().for_each(|choice| add(choice));
            }
        }
        let bytes = *hash.finalize().as_bytes();
        u64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ])
    }
}

/// Examples to learn from and examples set aside, both in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// To learn from.
    pub train: Vec<Example>,
    /// Set aside.
    pub held_out: Vec<Example>,
    /// Examples of `train` that would have been set aside, were they not the last of a label.
    pub last_of_label: usize,
}

/// Sets `fraction` of the examples aside, rounded up, by a hash of their text: more where the last of
/// them share their text with others. The same examples whatever their order; equal texts, and the
/// questions of one article, stay together. Every label that the examples have is left to be learned:
/// those that are the last of one are not set aside. Neither part is empty.
///
/// # Errors
/// A fraction outside (0, 1); fewer than two different texts; none that can be set aside.
pub fn hold_out(examples: Vec<Example>, fraction: f64, seed: u64) -> Result<Split, TaskError> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(TaskError::Options(format!(
            "cannot hold out a share of {fraction}; it must lie between 0 and 1"
        )));
    }
    // The texts by their hash, each with its examples and labels; and how many texts have each label.
    let hashes: Vec<u64> = examples.iter().map(|e| e.group_hash(seed)).collect();
    let mut groups: BTreeMap<u64, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for (example, hash) in examples.iter().zip(&hashes) {
        let (count, labels) = groups.entry(*hash).or_default();
        *count += 1;
        labels.extend(example.labels());
    }
    let mut left: BTreeMap<&str, u64> = BTreeMap::new();
    for label in groups.values().flat_map(|(_, labels)| labels) {
        *left.entry(label).or_default() += 1;
    }
    if groups.len() < 2 {
        return Err(TaskError::Options(format!(
            "cannot hold out a part of {} different texts; give a development file",
            groups.len()
        )));
    }
    let wanted = (fraction * examples.len() as f64).ceil() as usize;
    let mut held = BTreeSet::new();
    let (mut taken, mut last_of_label) = (0, 0);
    for (hash, (count, labels)) in &groups {
        if taken >= wanted || held.len() + 1 == groups.len() {
            break;
        }
        if labels.iter().any(|label| left[label] == 1) {
            last_of_label += count;
            continue;
        }
        held.insert(*hash);
        taken += count;
        for label in labels {
            left.entry(label).and_modify(|n| *n -= 1);
        }
    }
    if held.is_empty() {
        return Err(TaskError::Options(
            "cannot hold out a part: every text is the only one of a label; give a development \
             file, or more examples of each label"
                .into(),
        ));
    }
    let mut split = Split {
        train: Vec::new(),
        held_out: Vec::new(),
        last_of_label,
    };
    for (example, hash) in examples.into_iter().zip(hashes) {
        if held.contains(&hash) {
            split.held_out.push(example);
        } else {
            split.train.push(example);
        }
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(texts: impl IntoIterator<Item = (String, Gold)>) -> Vec<Example> {
        (1..)
            .zip(texts)
            .map(|(line, (first, gold))| Example {
                place: Place {
                    path: Path::new("a.tsv").into(),
                    line,
                    word: None,
                },
                id: line.to_string(),
                lines: Vec::new(),
                input: Input::Text {
                    first,
                    second: None,
                },
                gold: Some(gold),
            })
            .collect()
    }

    fn classes(examples: &[Example]) -> BTreeSet<&str> {
        examples.iter().flat_map(Example::labels).collect()
    }

    #[test]
    fn every_label_is_left_to_be_learned_whatever_the_order() {
        let class = |i: usize| (format!("text {i}"), Gold::Class(format!("{}", i % 150)));
        let examples = labelled((0..450).map(class));
        // Of some class every example would be set aside.
        for seed in 0..5 {
            let split = hold_out(examples.clone(), 0.5, seed).unwrap();
            assert_eq!(classes(&split.train).len(), 150);
            assert!(split.last_of_label > 5, "{}", split.last_of_label);
            let mut backwards = examples.clone();
            backwards.reverse();
            let mut again = hold_out(backwards, 0.5, seed).unwrap();
            again.train.reverse();
            again.held_out.reverse();
            assert_eq!(again, split);
        }
        for (count, held) in [(300, 30), (301, 31), (40, 4), (7, 1)] {
            let texts = (0..count).map(|i| (format!("text {i}"), Gold::Value(i as f64)));
            let split = hold_out(labelled(texts), 0.1, 0).unwrap();
            assert_eq!(
                (split.held_out.len(), split.train.len()),
                (held, count - held)
            );
        }
    }

    #[test]
    fn something_is_held_out_though_the_first_texts_cannot_be() {
        let texts = |labels: &'static [&'static str]| {
            let each = labels.iter().enumerate();
            labelled(each.map(|(i, l)| (format!("text {i}"), Gold::Class((*l).into()))))
        };
        for seed in 0..20 {
            let split = hold_out(texts(&["a", "b", "c", "c"]), 1e-9, seed).unwrap();
            assert_eq!(split.held_out.len(), 1);
            assert_eq!(classes(&split.held_out), BTreeSet::from(["c"]));
        }
        let error = hold_out(texts(&["a", "b"]), 0.5, 0).unwrap_err();
        assert!(error.to_string().contains("development file"), "{error}");
        // Without labels any text will do.
        let mut plain = texts(&["a", "b"]);
        plain.iter_mut().for_each(|e| e.gold = None);
        assert_eq!(hold_out(plain, 0.5, 0).unwrap().held_out.len(), 1);
    }

    #[test]
    fn a_kind_of_entity_is_one_label() {
        let words = |tags: &str| Example {
            input: Input::Words(vec!["a".into(); 3]),
            gold: Some(Gold::Tags(tags.split(' ').map(String::from).collect())),
            ..labelled([("".into(), Gold::Value(0.0))]).remove(0)
        };
        assert_eq!(classes(&[words("B-x I-x O")]), BTreeSet::from(["O", "x"]));
        assert_eq!(classes(&[words("B-x VB O")]).len(), 3);
    }
}
