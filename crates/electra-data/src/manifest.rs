//! `manifest.json`: what a directory of shards holds, and from what it was made.

use serde::{Deserialize, Serialize};

/// The version of shards and manifest that this crate writes.
pub const FORMAT_VERSION: u32 = 1;
/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// The folder of the tokenizer beside the shards.
pub const TOKENIZER_DIR: &str = "tokenizer";

/// What was prepared, how, and the shards that came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What the shards were made from.
    pub plan: Plan,
    /// Documents with at least one token.
    pub documents: u64,
    /// Lines with at least one token.
    pub lines: u64,
    /// Tokens, without special ones.
    pub tokens: u64,
    /// The shards, in order.
    pub shards: Vec<ShardEntry>,
}

/// All that decides what the shards hold: two runs with one plan write the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`crate::tokenizer::Tokenizer::hash`].
    pub tokenizer_hash: String,
    /// Entries of the vocabulary.
    pub vocab_size: u64,
    /// A shard ends with the document that brings it to this many tokens.
    pub shard_tokens: u64,
    /// `auto`, or the format all inputs were read as.
    pub format: String,
    /// `blank-line` or `line`: where documents end in plain text.
    pub documents_end: String,
    /// JSON field or table column.
    pub field: String,
    /// Whether invalid UTF-8 was replaced.
    pub lossy: bool,
    /// The inputs, in order.
    pub inputs: Vec<InputEntry>,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputEntry {
    /// File name without its folders, or `-`.
    pub name: String,
    /// Bytes as they lie on disk.
    pub bytes: u64,
    /// BLAKE3 of these bytes, hexadecimal. None of standard input, and before all is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name.
    pub file: String,
    /// Documents.
    pub documents: u64,
    /// Lines.
    pub lines: u64,
    /// Tokens.
    pub tokens: u64,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, hexadecimal.
    pub blake3: String,
}

impl Plan {
    /// The first thing in which `self` (what is there) and `wanted` differ, in words: options, and
    /// names of inputs.
    pub fn difference(&self, wanted: &Plan) -> Option<String> {
        let fields = [
            (
                "tokenizer (its hash)",
                self.tokenizer_hash.clone(),
                wanted.tokenizer_hash.clone(),
            ),
            (
                "vocabulary size",
                self.vocab_size.to_string(),
                wanted.vocab_size.to_string(),
            ),
            (
                "tokens a shard",
                self.shard_tokens.to_string(),
                wanted.shard_tokens.to_string(),
            ),
            ("format", self.format.clone(), wanted.format.clone()),
            (
                "end of documents",
                self.documents_end.clone(),
                wanted.documents_end.clone(),
            ),
            ("field", self.field.clone(), wanted.field.clone()),
            ("lossy", self.lossy.to_string(), wanted.lossy.to_string()),
            (
                "number of inputs",
                self.inputs.len().to_string(),
                wanted.inputs.len().to_string(),
            ),
        ];
        for (name, there, wanted) in fields {
            if there != wanted {
                return Some(format!("{name}: {there} there, {wanted} now"));
            }
        }
        let mut pairs = self.inputs.iter().zip(&wanted.inputs).zip(1..);
        pairs.find_map(|((there, wanted), number)| {
            (there.name != wanted.name)
                .then(|| format!("input {number}: {} there, {} now", there.name, wanted.name))
        })
    }

    /// The first input whose size differs, in words. Which part has which block follows from the
    /// sizes.
    pub fn size_difference(&self, wanted: &Plan) -> Option<String> {
        let mut pairs = self.inputs.iter().zip(&wanted.inputs).zip(1..);
        pairs.find_map(|((there, wanted), number)| {
            (there.bytes != wanted.bytes).then(|| {
                let (name, bytes) = (&there.name, there.bytes);
                format!(
                    "input {number}: {name} of {bytes} bytes there, {} now",
                    wanted.bytes
                )
            })
        })
    }
}
