//! What the tokenizer files of a model directory say, without building the tokenizer.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The special tokens that ELECTRA needs.
pub const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Facts about a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizerFacts {
    /// The file the vocabulary is from, `tokenizer.json` or `vocab.txt`.
    pub file: String,
    /// Tokens in the vocabulary: one more than the largest id.
    pub tokens: usize,
    /// Whether text is lower-cased; `None` where no file says so.
    pub lowercase: Option<bool>,
    /// The longest text that it gives, where a file says so.
    pub max_length: Option<u64>,
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Option<Normalizer>,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Normalizer {
    #[serde(default)]
    lowercase: Option<bool>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    do_lower_case: Option<bool>,
    // Some files hold a float of 1e30 for "no limit".
    #[serde(default)]
    model_max_length: Option<serde_json::Number>,
}

/// Read the tokenizer files of `dir`; what is wrong with them goes into `problems`.
pub(crate) fn read(dir: &Path, problems: &mut Vec<String>) -> Option<TokenizerFacts> {
    let config: TokenizerConfig =
        parsed(dir, "tokenizer_config.json", problems).unwrap_or_default();
    let whole: Option<TokenizerJson> = parsed(dir, "tokenizer.json", problems);
    let list = listed_tokens(dir, problems);
    let mut lowercase = config.do_lower_case;
    let (file, tokens) = match (&whole, &list) {
        (Some(whole), list) => {
            let normalized = whole.normalizer.as_ref().and_then(|n| n.lowercase);
            if let (Some(a), Some(b)) = (lowercase, normalized)
                && a != b
            {
                problems.push(format!(
                    "tokenizer_config.json says do_lower_case = {a} and tokenizer.json lowercase = {b}"
                ));
            }
            lowercase = normalized.or(lowercase);
            let added = whole
                .added_tokens
                .iter()
                .map(|t| (t.content.as_str(), t.id));
            let all = whole
                .model
                .vocab
                .iter()
                .map(|(t, id)| (t.as_str(), *id))
                .chain(added);
            let (names, ids): (HashSet<&str>, HashSet<u64>) = all.unzip();
            lacks(&names, "tokenizer.json", problems);
            let tokens = ids.iter().max().map_or(0, |id| id.saturating_add(1));
            if list
                .as_ref()
                .is_some_and(|list| list.len() != whole.model.vocab.len())
            {
                problems.push(format!(
                    "vocab.txt has {} tokens and tokenizer.json {}: they are of different tokenizers",
                    list.as_ref().map_or(0, Vec::len),
                    whole.model.vocab.len()
                ));
            }
            (
                "tokenizer.json",
                usize::try_from(tokens).unwrap_or(usize::MAX),
            )
        }
        (None, Some(list)) => {
            let names: HashSet<&str> = list.iter().map(String::as_str).collect();
            lacks(&names, "vocab.txt", problems);
            if names.len() < list.len() {
                let mut seen = HashSet::new();
                let twice = list.iter().position(|t| !seen.insert(t)).unwrap_or(0);
                problems.push(format!(
                    "vocab.txt has {:?} twice, the second on line {}",
                    list[twice],
                    twice + 1
                ));
            }
            ("vocab.txt", list.len())
        }
        (None, None) => {
            problems.push("no tokenizer: neither tokenizer.json nor vocab.txt is there".into());
            return None;
        }
    };
    Some(TokenizerFacts {
        file: file.into(),
        tokens,
        lowercase,
        max_length: config.model_max_length.and_then(|n| n.as_u64()),
    })
}

fn lacks(names: &HashSet<&str>, file: &str, problems: &mut Vec<String>) {
    let missing: Vec<&str> = SPECIAL_TOKENS
        .into_iter()
        .filter(|t| !names.contains(t))
        .collect();
    if !missing.is_empty() {
        problems.push(format!("{file} lacks {}", missing.join(" ")));
    }
}

fn listed_tokens(dir: &Path, problems: &mut Vec<String>) -> Option<Vec<String>> {
    let path = dir.join("vocab.txt");
    if !path.exists() {
        return None;
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.lines().map(String::from).collect()),
        Err(e) => {
            problems.push(format!("vocab.txt cannot be read: {e}"));
            None
        }
    }
}

fn parsed<T: for<'a> Deserialize<'a>>(
    dir: &Path,
    name: &str,
    problems: &mut Vec<String>,
) -> Option<T> {
    let path = dir.join(name);
    if !path.exists() {
        return None;
    }
    let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
    match text.and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string())) {
        Ok(value) => Some(value),
        Err(problem) => {
            problems.push(format!("{name} is not what a tokenizer writes: {problem}"));
            None
        }
    }
}
