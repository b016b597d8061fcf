//! BERT's WordPiece tokenizer: Hugging Face's files in, the same ids out.
//!
//! A tokenizer is its vocabulary and a few flags; both kinds of file (`tokenizer.json`, or
//! `vocab.txt` with `tokenizer_config.json`) are read to these and nothing else, and everything
//! that is written follows from them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tokenizers::models::wordpiece::WordPiece as LibraryWordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, decoders::wordpiece::WordPiece as WordPieceDecoder};

use electra_model::files::atomic::replace_file;

use crate::wordpiece::{Encoder, WordPiece};
use crate::words::Normalisation;

/// What can be wrong with a tokenizer's files.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// Nothing there.
    #[error(
        "no tokenizer at {path}: expected a vocab.txt, or a directory with tokenizer.json or vocab.txt"
    )]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A vocabulary without entries.
    #[error("{path}: the vocabulary is empty; expected one token a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// An empty token.
    #[error("{path}, line {line}: empty token; remove the line")]
    BlankLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// One token twice.
    #[error(
        "{path}: token {token:?} stands twice, as ids {first} and {second}; a vocabulary has each token once"
    )]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its first id.
        first: usize,
        /// Its second id.
        second: usize,
    },
    /// Special tokens that are not in the vocabulary.
    #[error(
        "{path}: the vocabulary lacks {missing}; ELECTRA needs [PAD] [UNK] [CLS] [SEP] [MASK] (is this a WordPiece vocabulary?)"
    )]
    NoSpecial {
        /// The file.
        path: PathBuf,
        /// Which, in one string.
        missing: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Text that cannot be encoded, or a vocabulary that cannot be trained.
    #[error("tokenizer: {0}")]
    Library(String),
}

/// The five special tokens' ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// `[PAD]`
    pub pad: u32,
    /// `[UNK]`
    pub unk: u32,
    /// `[CLS]`
    pub cls: u32,
    /// `[SEP]`
    pub sep: u32,
    /// `[MASK]`
    pub mask: u32,
}

/// The special tokens' names, in the order of a trained vocabulary's first ids.
pub const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A token and where it stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// Vocabulary id.
    pub id: u32,
    /// First character, counted in characters (not bytes) of the text.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
}

/// A BERT WordPiece tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    tokens: Arc<[String]>,
    normalisation: Normalisation,
    special: SpecialIds,
    pieces: Arc<WordPiece>,
    library: Arc<tokenizers::Tokenizer>,
}

/// Positions of ELECTRA's published models, for a tokenizer that has no model beside it.
pub const MAX_POSITIONS: usize = 512;

/// Characters of the longest word that is split; longer ones are `[UNK]`.
const MAX_WORD_CHARS: usize = 100;

impl Tokenizer {
    /// Loads from a directory (with `tokenizer.json`, or `vocab.txt` and perhaps
    /// `tokenizer_config.json`), from a `tokenizer.json`, or from a vocabulary file.
    ///
    /// `lower_case` overrides what the files say. A vocabulary alone says nothing and is taken for
    /// uncased. As in `transformers`, `tokenizer_config.json` overrides `tokenizer.json`.
    ///
    /// # Errors
    /// Missing or unreadable files; a vocabulary that is empty, has a token twice or lacks a
    /// special token; a tokenizer that is not BERT WordPiece.
    pub fn load(path: &Path, lower_case: Option<bool>) -> Result<Self, TokenizerError> {
        let (file, config) = if path.is_dir() {
            let config = path.join("tokenizer_config.json");
            let file = ["tokenizer.json", "vocab.txt"]
                .map(|name| path.join(name))
                .into_iter()
                .find(|file| file.is_file())
                .ok_or_else(|| TokenizerError::Missing { path: path.into() })?;
            (file, config.is_file().then_some(config))
        } else if path.is_file() {
            (path.to_owned(), None)
        } else {
            return Err(TokenizerError::Missing { path: path.into() });
        };
        let mut normalisation = Normalisation::UNCASED;
        let tokens = if file.extension().is_some_and(|e| e == "json") {
            tokens_of_json(&file, &mut normalisation)?
        } else {
            tokens_of_lines(&file)?
        };
        if let Some(config) = config {
            apply_config(&config, &mut normalisation)?;
        }
        if let Some(lower_case) = lower_case {
            normalisation.lower_case = lower_case;
        }
        Self::new(tokens, normalisation, &file)
    }

    /// The tokenizer of a vocabulary; the position of a token is its id. `origin` is the file that
    /// errors name.
    ///
    /// # Errors
    /// An empty vocabulary, a token twice, a special token missing.
    pub fn new(
        tokens: Vec<String>,
        normalisation: Normalisation,
        origin: &Path,
    ) -> Result<Self, TokenizerError> {
        if tokens.is_empty() {
            return Err(TokenizerError::Empty {
                path: origin.into(),
            });
        }
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                return Err(TokenizerError::Duplicate {
                    path: origin.into(),
                    token: token.clone(),
                    first,
                    second: id,
                });
            }
        }
        let missing: Vec<&str> = SPECIAL_TOKENS
            .into_iter()
            .filter(|name| !ids.contains_key(name))
            .collect();
        if !missing.is_empty() {
            return Err(TokenizerError::NoSpecial {
                path: origin.into(),
                missing: missing.join(" "),
            });
        }
        let id = |name: &str| ids[name] as u32;
        let special = SpecialIds {
            pad: id("[PAD]"),
            unk: id("[UNK]"),
            cls: id("[CLS]"),
            sep: id("[SEP]"),
            mask: id("[MASK]"),
        };
        let pieces = WordPiece::new(&tokens, special.unk, MAX_WORD_CHARS, normalisation);
        let library = library(&tokens, normalisation, special)
            .map_err(|e| TokenizerError::Library(e.to_string()))?;
        Ok(Tokenizer {
            tokens: tokens.into(),
            normalisation,
            special,
            pieces: Arc::new(pieces),
            library: Arc::new(library),
        })
    }

    /// Number of entries of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The vocabulary, by id.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The special tokens' ids.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Case and accents.
    pub fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    /// The token of an id, if the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The id of a token, if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// An encoder for one thread that reads a corpus.
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self.pieces.clone())
    }

    /// The ids of raw text, special tokens neither added nor recognised in the text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encoder().encode(text, &mut ids);
        ids
    }

    /// The tokens of text with their places in it. No special token is added; those that the text
    /// names, such as `[MASK]`, are recognised, as in `transformers`.
    ///
    /// # Errors
    /// None that a text is known to cause; the library's are passed on.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<TokenSpan>, TokenizerError> {
        let encoding = self
            .library
            .encode_char_offsets(text, false)
            .map_err(|e| TokenizerError::Library(e.to_string()))?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(start, end))| TokenSpan { id, start, end })
            .collect())
    }

    /// A hash of all that decides which ids a text gets, 64 hexadecimal digits. The same for a
    /// tokenizer loaded from any of its files, on any machine.
    pub fn hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(b"electra tokenizer 1\0");
        hash.update(&[
            u8::from(self.normalisation.lower_case),
            u8::from(self.normalisation.strips_accents()),
            u8::from(self.normalisation.split_chinese),
        ]);
        hash.update(&(MAX_WORD_CHARS as u64).to_le_bytes());
        for token in self.tokens.iter() {
            hash.update(&(token.len() as u64).to_le_bytes());
            hash.update(token.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `vocab.txt`
    /// into `dir`, which is made if need be, each whole or not at all. `model_max_length` are the
    /// positions of the model beside it.
    ///
    /// # Errors
    /// A directory or file that cannot be written.
    pub fn save(&self, dir: &Path, model_max_length: usize) -> Result<(), TokenizerError> {
        let io = |path: &Path, source| TokenizerError::Io {
            path: path.into(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            replace_file(&path, |file| file.write_all(text.as_bytes()))
                .map_err(|e| io(&path, e.source))
        };
        let library = |e: tokenizers::Error| TokenizerError::Library(e.to_string());
        write(
            "tokenizer.json",
            &self.library.to_string(true).map_err(library)?,
        )?;
        write(
            "tokenizer_config.json",
            &json_text(&TokenizerConfig {
                clean_up_tokenization_spaces: true,
                cls_token: "[CLS]",
                do_lower_case: self.normalisation.lower_case,
                mask_token: "[MASK]",
                model_max_length,
                pad_token: "[PAD]",
                sep_token: "[SEP]",
                strip_accents: self.normalisation.strip_accents,
                tokenize_chinese_chars: self.normalisation.split_chinese,
                tokenizer_class: "ElectraTokenizer",
                unk_token: "[UNK]",
            }),
        )?;
        write(
            "special_tokens_map.json",
            &json_text(&SpecialTokensMap {
                cls_token: "[CLS]",
                mask_token: "[MASK]",
                pad_token: "[PAD]",
                sep_token: "[SEP]",
                unk_token: "[UNK]",
            }),
        )?;
        let mut lines = self.tokens.join("\n");
        lines.push('\n');
        write("vocab.txt", &lines)
    }
}

/// `tokenizer_config.json`.
#[derive(Serialize)]
struct TokenizerConfig {
    clean_up_tokenization_spaces: bool,
    cls_token: &'static str,
    do_lower_case: bool,
    mask_token: &'static str,
    model_max_length: usize,
    pad_token: &'static str,
    sep_token: &'static str,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: bool,
    tokenizer_class: &'static str,
    unk_token: &'static str,
}

/// `special_tokens_map.json`.
#[derive(Serialize)]
struct SpecialTokensMap {
    cls_token: &'static str,
    mask_token: &'static str,
    pad_token: &'static str,
    sep_token: &'static str,
    unk_token: &'static str,
}

fn json_text<T: Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// The same pipeline in the crate `tokenizers`.
fn library(
    tokens: &[String],
    normalisation: Normalisation,
    special: SpecialIds,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab = (0u32..).zip(tokens).map(|(id, t)| (t.clone(), id));
    let model = LibraryWordPiece::builder()
        .vocab(vocab.collect::<ahash::AHashMap<_, _>>())
        .unk_token("[UNK]".into())
        .max_input_chars_per_word(MAX_WORD_CHARS)
        .build()?;
    let mut library = tokenizers::Tokenizer::new(model);
    library.with_normalizer(Some(BertNormalizer::new(
        true,
        normalisation.split_chinese,
        normalisation.strip_accents,
        normalisation.lower_case,
    )));
    library.with_pre_tokenizer(Some(BertPreTokenizer));
    library.with_decoder(Some(WordPieceDecoder::new("##".into(), true)));
    let template = TemplateProcessing::builder()
        .try_single("[CLS]:0 $A:0 [SEP]:0")?
        .try_pair("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")?
        .special_tokens(vec![("[CLS]", special.cls), ("[SEP]", special.sep)])
        .build()?;
    library.with_post_processor(Some(template));
    library.add_special_tokens(&SPECIAL_TOKENS.map(|name| AddedToken::from(name, true)));
    Ok(library)
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    let io = |source| TokenizerError::Io {
        path: path.into(),
        source,
    };
    let bytes = std::fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map_err(|e| TokenizerError::Malformed {
        path: path.into(),
        what: format!(
            "not UTF-8 at byte {}; expected a text file",
            e.utf8_error().valid_up_to()
        ),
    })
}

/// The tokens of a `vocab.txt`.
fn tokens_of_lines(path: &Path) -> Result<Vec<String>, TokenizerError> {
    let text = read(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = text.trim_end_matches(['\n', '\r']).split('\n').collect();
    if lines == [""] {
        return Err(TokenizerError::Empty { path: path.into() });
    }
    let mut tokens = Vec::with_capacity(lines.len());
    for (i, line) in lines.into_iter().enumerate() {
        let token = line.strip_suffix('\r').unwrap_or(line);
        if token.is_empty() {
            return Err(TokenizerError::BlankLine {
                path: path.into(),
                line: i + 1,
            });
        }
        tokens.push(token.to_owned());
    }
    Ok(tokens)
}

fn parse(path: &Path) -> Result<Value, TokenizerError> {
    serde_json::from_str(&read(path)?).map_err(|e| TokenizerError::Malformed {
        path: path.into(),
        what: format!("not valid JSON: {e}"),
    })
}

/// Sets a flag from a JSON field, where that is there and not null.
fn flag(value: &Value, name: &str, path: &Path) -> Result<Option<bool>, TokenizerError> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(TokenizerError::Malformed {
            path: path.into(),
            what: format!("field {name} is {other}; expected true or false"),
        }),
    }
}

fn apply_config(path: &Path, normalisation: &mut Normalisation) -> Result<(), TokenizerError> {
    let config = parse(path)?;
    if let Some(lower) = flag(&config, "do_lower_case", path)? {
        normalisation.lower_case = lower;
    }
    if let Some(split) = flag(&config, "tokenize_chinese_chars", path)? {
        normalisation.split_chinese = split;
    }
    if config.get("strip_accents").is_some() {
        normalisation.strip_accents = flag(&config, "strip_accents", path)?;
    }
    Ok(())
}

/// The tokens and flags of a `tokenizer.json` that holds BERT's pipeline.
fn tokens_of_json(
    path: &Path,
    normalisation: &mut Normalisation,
) -> Result<Vec<String>, TokenizerError> {
    let malformed = |what: String| TokenizerError::Malformed {
        path: path.into(),
        what,
    };
    let json = parse(path)?;
    let expect = |field: &str, key: &str, wanted: Value| {
        let found = json.get(field).and_then(|part| part.get(key));
        match found {
            Some(found) if *found == wanted => Ok(()),
            _ => Err(malformed(format!(
                "{field}.{key} is {}; only BERT WordPiece tokenizers ({wanted}) are supported",
                found.unwrap_or(&Value::Null)
            ))),
        }
    };
    expect("normalizer", "type", "BertNormalizer".into())?;
    expect("normalizer", "clean_text", true.into())?;
    expect("pre_tokenizer", "type", "BertPreTokenizer".into())?;
    // Files of 2020 do not name the model's type.
    if json["model"].get("type").is_some() {
        expect("model", "type", "WordPiece".into())?;
    }
    expect("model", "unk_token", "[UNK]".into())?;
    expect("model", "continuing_subword_prefix", "##".into())?;
    expect("model", "max_input_chars_per_word", MAX_WORD_CHARS.into())?;
    let normalizer = &json["normalizer"];
    normalisation.lower_case = flag(normalizer, "lowercase", path)?.unwrap_or(true);
    normalisation.split_chinese = flag(normalizer, "handle_chinese_chars", path)?.unwrap_or(true);
    normalisation.strip_accents = flag(normalizer, "strip_accents", path)?;
    let vocab = json["model"]["vocab"]
        .as_object()
        .ok_or_else(|| malformed("model.vocab is not an object of token: id".into()))?;
    let mut entries: Vec<(u64, &str)> = Vec::with_capacity(vocab.len());
    for (token, id) in vocab {
        let id = id
            .as_u64()
            .ok_or_else(|| malformed(format!("model.vocab: id {id} of {token:?} is no number")))?;
        entries.push((id, token));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().unwrap_or_default();
        if added["special"] != Value::Bool(true) {
            return Err(malformed(format!(
                "added token {content:?} is matched inside words, which is not supported; \
                 remove it, or mark it special"
            )));
        }
        if let Some(id) = added["id"].as_u64()
            && !vocab.contains_key(content)
        {
            entries.push((id, content));
        }
    }
    entries.sort_unstable();
    for (place, (id, token)) in entries.iter().enumerate() {
        if *id != place as u64 {
            return Err(malformed(format!(
                "the vocabulary's ids are not 0 to {}: {token:?} has id {id} where {place} is due",
                entries.len() - 1
            )));
        }
    }
    Ok(entries.into_iter().map(|(_, t)| t.to_owned()).collect())
}

#[cfg(test)]
mod tests;
