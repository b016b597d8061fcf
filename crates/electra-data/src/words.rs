//! Splits text into the words that WordPiece sees, exactly as BERT's normaliser and pre-tokenizer
//! do: control characters out, white space and CJK characters apart, accents stripped, lower case,
//! punctuation apart.
//!
//! The work is done in two stages so that a cache can stand between them. [`chunks`] cuts raw text
//! at characters that end a word whatever surrounds them; [`Normalisation::words`] normalises one
//! chunk. No step of the normalisation looks across such a character, so the words of a text are
//! those of its chunks.

use std::sync::OnceLock;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

/// How text is normalised before it is split into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalisation {
    /// Lower case.
    pub lower_case: bool,
    /// Accents stripped; `None` means as `lower_case`.
    pub strip_accents: Option<bool>,
    /// Each CJK character is a word of its own.
    pub split_chinese: bool,
}

impl Normalisation {
    /// BERT's uncased normalisation.
    pub const UNCASED: Self = Normalisation {
        lower_case: true,
        strip_accents: None,
        split_chinese: true,
    };
    /// BERT's cased normalisation.
    pub const CASED: Self = Normalisation {
        lower_case: false,
        strip_accents: None,
        split_chinese: true,
    };

    /// Whether accents are stripped.
    pub fn strips_accents(&self) -> bool {
        self.strip_accents.unwrap_or(self.lower_case)
    }

    /// Calls `word` with each normalised word of a chunk, in order. `scratch` is overwritten.
    pub fn words(&self, chunk: &str, scratch: &mut String, mut word: impl FnMut(&str)) {
        scratch.clear();
        if chunk.is_ascii() {
            let kept = chunk.chars().filter(|&c| class(c) != Class::Removed);
            if self.lower_case {
                scratch.extend(kept.map(|c| c.to_ascii_lowercase()));
            } else {
                scratch.extend(kept);
            }
        } else {
            let kept = chunk.chars().filter(|&c| class(c) != Class::Removed);
            let mut push = |c: char| {
                if self.lower_case {
                    scratch.extend(c.to_lowercase());
                } else {
                    scratch.push(c);
                }
            };
            if self.strips_accents() {
                kept.nfd()
                    .filter(|(c, _)| !c.is_mark_nonspacing())
                    .for_each(|(c, _)| push(c));
            } else {
                kept.for_each(push);
            }
        }
        let mut start = 0;
        for (at, c) in scratch.char_indices() {
            let space = c.is_whitespace();
            if !space && !is_punctuation(c) {
                continue;
            }
            if start < at {
                word(&scratch[start..at]);
            }
            start = at + c.len_utf8();
            if !space {
                word(&scratch[at..start]);
            }
        }
        if start < scratch.len() {
            word(&scratch[start..]);
        }
    }
}

/// What a character is to the splitting of raw text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    /// Part of a word.
    Word,
    /// Dropped by the normalisation: control characters, U+0000, U+FFFD.
    Removed,
    /// White space.
    Space,
    /// A word of its own where CJK characters are split.
    Chinese,
    /// A word of its own.
    Punctuation,
}

/// BERT's punctuation: ASCII symbols, and Unicode's punctuation.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || (!c.is_ascii() && c.is_punctuation())
}

/// The CJK ideographs, as BERT counts them.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F | 0x2B920..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

fn classify(c: char) -> Class {
    match c {
        '\t' | '\n' | '\r' | ' ' => Class::Space,
        '\0' | '\u{fffd}' => Class::Removed,
        c if c.is_other() => Class::Removed,
        c if c.is_whitespace() => Class::Space,
        c if is_chinese(c) => Class::Chinese,
        c if is_punctuation(c) => Class::Punctuation,
        _ => Class::Word,
    }
}

/// The classes of the basic plane, looked up once.
fn table() -> &'static [Class] {
    static TABLE: OnceLock<Vec<Class>> = OnceLock::new();
    TABLE.get_or_init(|| {
        (0..0x1_0000)
            .map(|i| char::from_u32(i).map_or(Class::Removed, classify))
            .collect()
    })
}

fn class(c: char) -> Class {
    match table().get(c as usize) {
        Some(class) => *class,
        None => classify(c),
    }
}

/// Whether text may be cut after `c` without changing its words.
pub fn ends_word(c: char, split_chinese: bool) -> bool {
    match class(c) {
        Class::Space | Class::Punctuation => true,
        Class::Chinese => split_chinese,
        Class::Word | Class::Removed => false,
    }
}

/// Calls `chunk` with each piece of `text` between characters that end a word: runs of other
/// characters, and each punctuation mark and CJK character by itself. White space is left out.
pub fn chunks(text: &str, split_chinese: bool, mut chunk: impl FnMut(&str)) {
    let table = table();
    let bytes = text.as_bytes();
    let (mut at, mut start) = (0, 0);
    while at < bytes.len() {
        let (class, width) = if bytes[at] < 0x80 {
            (table[bytes[at] as usize], 1)
        } else {
            match text[at..].chars().next() {
                Some(c) => (class(c), c.len_utf8()),
                None => break,
            }
        };
        let alone = match class {
            Class::Word | Class::Removed => {
                at += width;
                continue;
            }
            Class::Chinese if !split_chinese => {
                at += width;
                continue;
            }
            Class::Space => false,
            Class::Chinese | Class::Punctuation => true,
        };
        if start < at {
            chunk(&text[start..at]);
        }
        if alone {
            chunk(&text[at..at + width]);
        }
        at += width;
        start = at;
    }
    if start < at {
        chunk(&text[start..at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, normalisation: Normalisation) -> Vec<String> {
        let mut out = Vec::new();
        let mut scratch = String::new();
        chunks(text, normalisation.split_chinese, |chunk| {
            normalisation.words(chunk, &mut scratch, |w| out.push(w.to_owned()));
        });
        out
    }

    #[test]
    fn words_are_lower_case_without_accents_and_apart_from_punctuation() {
        assert_eq!(
            words("Héllo, wo\u{ad}rld!中文 ≠ ¿Qué?", Normalisation::UNCASED),
            ["hello", ",", "world", "!", "中", "文", "=", "¿", "que", "?"]
        );
        assert_eq!(
            words("Héllo Ärger", Normalisation::CASED),
            ["Héllo", "Ärger"]
        );
        let joined = Normalisation {
            split_chinese: false,
            ..Normalisation::CASED
        };
        assert_eq!(words("中文 ok", joined), ["中文", "ok"]);
    }

    #[test]
    fn every_character_that_ends_a_word_stays_apart_when_normalised() {
        let mut scratch = String::new();
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            if class(c) != Class::Punctuation {
                continue;
            }
            for normalisation in [Normalisation::UNCASED, Normalisation::CASED] {
                let mut seen = 0;
                normalisation.words(&c.to_string(), &mut scratch, |w| {
                    seen += 1;
                    assert!(w.chars().all(is_punctuation), "{c:?} became {w:?}");
                });
                assert!(seen > 0, "{c:?} vanished");
            }
        }
    }
}
