//! A hyper-parameter by its name: from text, into the structure that has it, and what is wrong with it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What can be wrong with a hyper-parameter.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// No such hyper-parameter.
    #[error("{place}: there is no hyper-parameter \"{key}\"{suggestion}")]
    UnknownKey {
        /// Where it was given.
        place: String,
        /// What was given.
        key: String,
        /// "; did you mean …?" or empty.
        suggestion: String,
    },
    /// A file of hyper-parameters that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A value of the wrong type or range.
    #[error("{place}: \"{key}\" {problem}")]
    Value {
        /// Where it was given.
        place: String,
        /// The hyper-parameter.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl SettingError {
    /// A value that is out of range by itself or beside the others.
    pub(crate) fn hyper_parameter(key: &str, problem: impl Into<String>) -> Self {
        Self::value("hyper-parameters", key, problem)
    }

    pub(crate) fn value(place: &str, key: &str, problem: impl Into<String>) -> Self {
        SettingError::Value {
            place: place.to_owned(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// Refuses the value of `key` unless it is `fine`.
    pub(crate) fn check(fine: bool, key: &str, problem: &str) -> Result<(), Self> {
        match fine {
            true => Ok(()),
            false => Err(Self::hyper_parameter(key, problem)),
        }
    }
}

/// One hyper-parameter as it was given.
pub(crate) struct Setting<'a> {
    pub key: &'a str,
    pub value: Value,
    /// Where it was given, for messages.
    pub place: String,
}

impl<'a> Setting<'a> {
    /// Reads `key=value`; the value is JSON, a fraction such as 1/3, or text where it is neither.
    pub fn parse(assignment: &'a str) -> Result<Self, SettingError> {
        let place = format!("--set {assignment}");
        let Some((key, text)) = assignment.split_once('=') else {
            let problem = "needs a value: --set name=value";
            return Err(SettingError::value(&place, assignment, problem));
        };
        let text = text.trim();
        Ok(Setting {
            key: key.trim(),
            value: serde_json::from_str(text)
                .ok()
                .or_else(|| fraction(text))
                .unwrap_or_else(|| text.into()),
            place,
        })
    }

    /// Puts the value into `config`, which has a field of this name.
    pub fn assign<T: Serialize + DeserializeOwned>(
        self,
        config: &mut T,
    ) -> Result<(), SettingError> {
        let mut all = to_map(config);
        let Some(slot) = all.get_mut(self.key) else {
            return Err(SettingError::UnknownKey {
                place: self.place,
                key: self.key.to_owned(),
                suggestion: nearest(self.key, all.keys().map(String::as_str)),
            });
        };
        *slot = match (&*slot, self.value) {
            // Where words are to be chosen from, a refusal should list them.
            (Value::String(_), value @ (Value::Number(_) | Value::Bool(_))) => {
                value.to_string().into()
            }
            (_, value) => value,
        };
        *config = serde_json::from_value(Value::Object(all)).map_err(|error| {
            let problem = format!("has a value of the wrong type or range: {error}");
            SettingError::value(&self.place, self.key, problem)
        })?;
        Ok(())
    }
}

/// The hyper-parameters of a JSON file, by name.
pub(crate) fn read_object(path: &std::path::Path) -> Result<Map<String, Value>, SettingError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingError::Read {
        path: path.to_owned(),
        source,
    })?;
    let place = path.display().to_string();
    let whole = |problem: String| Err(SettingError::value(&place, "(whole file)", problem));
    match serde_json::from_str(&text) {
        Ok(Value::Object(given)) => Ok(given),
        Ok(_) => whole("must be one JSON object of hyper-parameters".into()),
        Err(error) => whole(format!("is not JSON: {error}")),
    }
}

/// The value of a fraction, such as 1/3.
fn fraction(text: &str) -> Option<Value> {
    let (above, below) = text.split_once('/')?;
    let number = |text: &str| text.trim().parse::<f64>().ok();
    serde_json::Number::from_f64(number(above)? / number(below)?).map(Value::Number)
}

/// Hyper-parameters as a JSON object.
pub(crate) fn to_map(config: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// "; did you mean …?" with the known name at the smallest edit distance, if any is near.
pub(crate) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (edit_distance(key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 2)
        .map_or_else(String::new, |(_, name)| {
            format!("; did you mean \"{name}\"?")
        })
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
