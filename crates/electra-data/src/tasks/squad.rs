//! SQuAD's JSON, of SQuAD 1.1 and 2.0, CMRC 2018 and XQuAD, one article in memory at a time.

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::json::Nesting;
use crate::read::ReadError;
use crate::read::jsonl::RECORD_LIMIT;

/// A question as the file has it.
pub(super) struct Question {
    /// Line on which its article begins.
    pub(super) line: u64,
    pub(super) id: String,
    pub(super) title: Arc<str>,
    pub(super) question: String,
    pub(super) context: Arc<str>,
    /// `None` where the file has no answers.
    pub(super) answers: Option<Vec<(String, Option<i64>)>>,
}

#[derive(Deserialize)]
struct Article {
    #[serde(default)]
    title: Option<String>,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    #[serde(default)]
    qas: Vec<Qa>,
}

#[derive(Deserialize)]
struct Qa {
    id: Value,
    question: String,
    #[serde(default)]
    answers: Option<Vec<FileAnswer>>,
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct FileAnswer {
    text: String,
    #[serde(default)]
    answer_start: Option<i64>,
}

pub(super) struct Squad {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    line: u64,
    /// Inside the array of articles.
    open: bool,
    ended: bool,
    questions: VecDeque<Question>,
}

impl Squad {
    /// The questions of an opened file.
    pub(super) fn new(path: &Path, input: Box<dyn BufRead + Send>) -> Self {
        Squad {
            path: path.into(),
            input,
            line: 1,
            open: false,
            ended: false,
            questions: VecDeque::new(),
        }
    }

    fn wrong(&self, line: u64, what: impl Into<String>) -> ReadError {
        ReadError::Record {
            path: self.path.clone(),
            place: format!("line {line}"),
            what: what.into(),
        }
    }

    fn byte(&mut self) -> Result<Option<u8>, ReadError> {
        let buffer = self.input.fill_buf().map_err(|source| ReadError::Io {
            path: self.path.clone(),
            source,
        })?;
        let Some(&byte) = buffer.first() else {
            return Ok(None);
        };
        self.input.consume(1);
        self.line += u64::from(byte == b'\n');
        if byte == 0 {
            return Err(self.wrong(self.line, "NUL byte: binary, not text"));
        }
        Ok(Some(byte))
    }

    /// The next byte that is no white space.
    fn solid(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            match self.byte()? {
                Some(b' ' | b'\t' | b'\n' | b'\r') => {}
                byte => return Ok(byte),
            }
        }
    }

    /// Reads on to the end of the value that begins with `first`; into `text` if there is one.
    fn value(&mut self, first: u8, mut text: Option<&mut Vec<u8>>) -> Result<(), ReadError> {
        let begin = self.line;
        let mut at = Nesting::default();
        let mut byte = first;
        let mut length = 0u64;
        loop {
            if let Some(text) = text.as_deref_mut() {
                text.push(byte);
            }
            length += 1;
            if length > RECORD_LIMIT {
                return Err(self.wrong(begin, "an article longer than 256 MiB"));
            }
            at.pass(byte);
            if at.depth == 0 && !at.quoted {
                // A number or a word ends before what follows it.
                let next = self
                    .input
                    .fill_buf()
                    .map_err(|source| ReadError::Io {
                        path: self.path.clone(),
                        source,
                    })?
                    .first();
                if matches!(byte, b'"' | b'}' | b']')
                    || next.is_none_or(|b| b",]}: \t\r\n".contains(b))
                {
                    return Ok(());
                }
            }
            byte = self.byte()?.ok_or_else(|| {
                self.wrong(begin, "the file ends inside the value that begins here")
            })?;
        }
    }

    /// Reads up to the first article.
    fn begin(&mut self) -> Result<(), ReadError> {
        let expected = "not SQuAD's JSON: expected an object with an array \"data\"; rows are an \
                        object a line, or one list of objects";
        let Some(first) = self.solid()? else {
            self.ended = true;
            return Ok(());
        };
        if first != b'{' {
            return Err(self.wrong(self.line, expected));
        }
        loop {
            let key_line = self.line;
            let first = match self.solid()? {
                Some(b',') => continue,
                Some(b'"') => b'"',
                _ => return Err(self.wrong(key_line, expected)),
            };
            let mut key = Vec::new();
            self.value(first, Some(&mut key))?;
            if self.solid()? != Some(b':') {
                return Err(self.wrong(self.line, expected));
            }
            let Some(first) = self.solid()? else {
                return Err(self.wrong(self.line, expected));
            };
            if key == b"\"data\"" {
                if first != b'[' {
                    return Err(self.wrong(self.line, expected));
                }
                self.open = true;
                return Ok(());
            }
            self.value(first, None)?;
        }
    }

    /// Reads the next article; `false` at the end.
    fn article(&mut self) -> Result<bool, ReadError> {
        if !self.open && !self.ended {
            self.begin()?;
        }
        if self.ended {
            return Ok(false);
        }
        let first = loop {
            match self.solid()? {
                Some(b',') => {}
                Some(b']') => {
                    self.ended = true;
                    return Ok(false);
                }
                Some(byte) => break byte,
                None => return Err(self.wrong(self.line, "the file ends inside \"data\"")),
            }
        };
        let line = self.line;
        let mut bytes = Vec::new();
        self.value(first, Some(&mut bytes))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            self.wrong(
                line,
                format!(
                    "invalid UTF-8 {} bytes into the article that begins here; convert the file",
                    e.utf8_error().valid_up_to()
                ),
            )
        })?;
        let article: Article = serde_json::from_str(&text).map_err(|e| {
            self.wrong(
                line + e.line() as u64 - 1,
                format!("not an article of SQuAD's JSON: {e}"),
            )
        })?;
        let title: Arc<str> = article.title.unwrap_or_default().into();
        for paragraph in article.paragraphs {
            let context: Arc<str> = paragraph.context.into();
            for qa in paragraph.qas {
                let answers = if qa.is_impossible {
                    Some(Vec::new())
                } else {
                    qa.answers.map(|answers| {
                        answers
                            .into_iter()
                            .map(|a| (a.text, a.answer_start))
                            .collect()
                    })
                };
                self.questions.push_back(Question {
                    line,
                    id: match qa.id {
                        Value::String(id) => id,
                        id => id.to_string(),
                    },
                    title: title.clone(),
                    question: qa.question,
                    context: context.clone(),
                    answers,
                });
            }
        }
        Ok(true)
    }

    /// The next question; `None` at the end.
    pub(super) fn next_question(&mut self) -> Result<Option<Question>, ReadError> {
        loop {
            if let Some(question) = self.questions.pop_front() {
                return Ok(Some(question));
            }
            if !self.article()? {
                return Ok(None);
            }
        }
    }
}
