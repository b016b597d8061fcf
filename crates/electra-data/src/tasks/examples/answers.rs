//! The answers to a question, as cells of a table have them.

use serde_json::Value;

use super::super::Answer;
use super::super::literal::unwritten;

/// What a cell of answers may hold.
const EXPECTED: &str = "the answers are neither a text, nor {\"text\": [...], \"answer_start\": \
                        [...]}, nor a list of either; a cell of text may hold them as JSON or \
                        Python write them";

/// The answers that a cell holds: texts, or objects with a text and where it begins, one or a list
/// of them, or one object with a list of each. Where texts begin a second cell may say. An empty
/// text is no answer.
///
/// # Errors
/// What is wrong with the cells, in words.
pub(super) fn answers(cell: Value, starts: Option<Value>) -> Result<Vec<Answer>, String> {
    match unwritten(cell) {
        Value::String(text) if text.trim_start().starts_with('{') => Err(EXPECTED.into()),
        Value::Object(object) => {
            let texts = object.get("text").filter(|texts| !texts.is_object());
            pairs(texts.ok_or(EXPECTED)?, object.get("answer_start"))
        }
        texts => pairs(&texts, starts.map(unwritten).as_ref()),
    }
}

/// Texts, each with where it begins.
fn pairs(texts: &Value, starts: Option<&Value>) -> Result<Vec<Answer>, String> {
    let mut starts = starts.map_or(&[][..], each).iter();
    let mut found = Vec::new();
    for item in each(texts) {
        let (text, start) = match item {
            Value::Object(object) => (object.get("text"), object.get("answer_start")),
            text => (Some(text), starts.next()),
        };
        let start = start.map_or(Ok(None), begin)?;
        let text = match text {
            Some(Value::String(text)) if start.is_none() => Some(text.trim().to_owned()),
            Some(Value::String(text)) => Some(text.clone()),
            Some(number @ Value::Number(_)) => Some(number.to_string()),
            _ => None,
        };
        let text = text.ok_or(EXPECTED)?;
        if !text.trim().is_empty() {
            found.push(Answer { text, start });
        }
    }
    Ok(found)
}

/// The elements of a list, or what is none.
fn each(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list,
        one => std::slice::from_ref(one),
    }
}

/// Where an answer is said to begin; `None` where nothing is said.
fn begin(start: &Value) -> Result<Option<i64>, String> {
    let text = match start {
        Value::Null => return Ok(None),
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    // Where one of them is empty, pandas makes a column of numbers one of floats.
    match text.strip_suffix(".0").unwrap_or(&text) {
        "" => Ok(None),
        number => number.parse().map(Some).map_err(|_| {
            format!(
                "{text:?} is not where an answer begins: expected a number of characters, from 0"
            )
        }),
    }
}
