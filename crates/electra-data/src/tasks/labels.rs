//! The labels of a task.

use std::collections::{BTreeSet, HashMap};

use super::error::shown;
use super::tagging::{Scheme, in_scheme};
use super::{Example, Gold, Place, TaskError, TaskKind, TaskSpec};

/// The labels of a task, each with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
    ids: HashMap<String, u32>,
    scheme: Scheme,
    by_number: bool,
}

impl LabelSet {
    /// Given labels, such as a trained model's `id2label`; the place of each is its number.
    ///
    /// # Errors
    /// A label twice.
    pub fn new(names: Vec<String>) -> Result<Self, TaskError> {
        let mut ids = HashMap::with_capacity(names.len());
        for (id, name) in (0u32..).zip(&names) {
            if let Some(first) = ids.insert(name.clone(), id) {
                return Err(TaskError::Options(format!(
                    "label {name:?} stands twice, as numbers {first} and {id}"
                )));
            }
        }
        let scheme = Scheme::of_labels(&names);
        Ok(LabelSet {
            names,
            ids,
            scheme,
            by_number: false,
        })
    }

    /// The same, where data may also give a label's number for its name, as data does that is
    /// numbered as a model is. Not for labels that were found in data: there, a number that is no
    /// label's name is another label.
    pub fn known_by_number(mut self) -> Self {
        self.by_number = true;
        self
    }

    /// The labels of a task: those it is known to have, else those found in its training data,
    /// numbers in their order, others alphabetically, whatever the order of the file. Tags are
    /// written in `scheme`. Regression and multiple choice have none.
    ///
    /// # Errors
    /// No example; fewer than two labels, but for multi-label tasks; a label that the task is
    /// known not to have; an example without labels.
    pub fn of_training(
        spec: &TaskSpec,
        examples: &[Example],
        scheme: Scheme,
    ) -> Result<Self, TaskError> {
        let Some(first) = examples.first() else {
            return Err(TaskError::Options(format!(
                "task {}: no training example",
                spec.name
            )));
        };
        let mut found = BTreeSet::new();
        for example in examples {
            labels_of(example, scheme, |_, label| {
                if !found.contains(label) {
                    found.insert(label.to_owned());
                }
            })?;
        }
        let counts = matches!(
            spec.kind,
            TaskKind::Classification | TaskKind::Tagging | TaskKind::MultiLabel
        );
        if !counts {
            return Self::new(Vec::new());
        }
        let path = first.place.path.to_path_buf();
        match (found.len(), spec.kind) {
            (0, _) => {
                return Err(TaskError::Options(format!(
                    "{}: no example has a label",
                    path.display()
                )));
            }
            (1, TaskKind::Classification | TaskKind::Tagging) => {
                return Err(TaskError::OneLabel {
                    path,
                    label: found.into_iter().next().unwrap_or_default(),
                });
            }
            _ => {}
        }
        if let Some(known) = &spec.labels {
            let set = Self::new(known.clone())?;
            set.check(examples)?;
            return Ok(set);
        }
        let names = Self::in_order(spec, found.into_iter().collect());
        let mut set = Self::new(names)?;
        set.scheme = scheme;
        Ok(set)
    }

    /// Names as training numbers them: those that the task is known to have in its order, else numbers
    /// in theirs and others alphabetically.
    pub fn in_order(spec: &TaskSpec, mut names: Vec<String>) -> Vec<String> {
        names.sort();
        let number = |name: &String| name.parse::<f64>().ok().filter(|x| x.is_finite());
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by(|a, b| {
                number(a)
                    .partial_cmp(&number(b))
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
        }
        if let Some(known) = &spec.labels {
            let place = |name: &String| known.iter().position(|k| k == name);
            names.sort_by_key(|name| place(name).unwrap_or(known.len()));
        }
        names
    }

    /// Checks that the labels of other examples are all known.
    ///
    /// # Errors
    /// The first one that is not, with its place.
    pub fn check(&self, examples: &[Example]) -> Result<(), TaskError> {
        match self.find_unknown(examples)? {
            None => Ok(()),
            Some(Unknown { place, label, hint }) => Err(TaskError::UnknownLabel {
                place,
                label,
                known: shown(&self.names),
                hint,
            }),
        }
    }

    /// Checks that every label of the development data was trained.
    ///
    /// # Errors
    /// The first that was not, with its place.
    pub fn check_development(&self, examples: &[Example]) -> Result<(), TaskError> {
        match self.find_unknown(examples)? {
            None => Ok(()),
            Some(Unknown { place, label, hint }) => Err(TaskError::LabelNotTrained {
                place,
                label,
                known: shown(&self.names),
                hint,
            }),
        }
    }

    /// The first label of examples that is none of these.
    fn find_unknown(&self, examples: &[Example]) -> Result<Option<Unknown>, TaskError> {
        for example in examples {
            let mut unknown = None;
            if example.gold.is_some() {
                labels_of(example, self.scheme, |number, label| {
                    if unknown.is_none() && self.id(label).is_none() {
                        unknown = Some((number, label.to_owned()));
                    }
                })?;
            }
            if let Some((number, label)) = unknown {
                return Ok(Some(match &example.gold {
                    // As the file has it, not as the labels are written; words have no header.
                    Some(Gold::Tags(tags)) => Unknown {
                        place: example.place_of_word(number),
                        label: tags[number].clone(),
                        hint: "",
                    },
                    _ => Unknown {
                        place: example.place.clone(),
                        label,
                        hint: example.place.header_hint(),
                    },
                }));
            }
        }
        Ok(None)
    }

    /// The labels by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The number of a label.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied().or_else(|| self.number(name))
    }

    /// The number that a label of data is, where it may be one and is no label's name.
    pub(super) fn number(&self, label: &str) -> Option<u32> {
        if !self.by_number || self.ids.contains_key(label) {
            return None;
        }
        let number: u32 = label.parse().ok()?;
        let in_range = (number as usize) < self.names.len();
        (in_range && number.to_string() == label).then_some(number)
    }

    /// How the tags among them are written.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

/// A label that is none of a set's.
struct Unknown {
    place: Place,
    label: String,
    /// What to do if its row names the columns.
    hint: &'static str,
}

/// Calls `each` with every label of an example and its number there; tags are written in `scheme`.
fn labels_of(
    example: &Example,
    scheme: Scheme,
    mut each: impl FnMut(usize, &str),
) -> Result<(), TaskError> {
    match &example.gold {
        None => {
            return Err(TaskError::Example {
                place: example.place.clone(),
                what: "no label".into(),
            });
        }
        Some(Gold::Class(label)) => each(0, label),
        Some(Gold::Labels(labels)) => (0..).zip(labels).for_each(|(i, label)| each(i, label)),
        Some(Gold::Tags(tags)) => {
            let tags = in_scheme(tags, scheme).0;
            (0..).zip(&tags).for_each(|(i, tag)| each(i, tag));
        }
        Some(Gold::Value(_) | Gold::Answers(_) | Gold::Choice(_)) => {}
    }
    Ok(())
}
