//! English words as NLTK's word tokenizer cuts them, of lower-case text without the signs that
//! CMRC's script leaves out before (colons, dashes, stars, backquotes, curly double quotes).

use unicode_categories::UnicodeCategories;

use super::squad::{is_space, is_word};

/// The words of a sentence. The rules are those of the Penn treebank in NLTK's order; each reads
/// what the one before wrote.
pub(super) fn english_words(text: &str) -> Vec<String> {
    let mut text: Vec<char> = text.chars().collect();
    opening_quotes(&mut text);
    final_period(&mut text, "])}>\"'»”’ ", true);
    commas(&mut text);
    dots(&mut text);
    pad(&mut text, |c| ";@#$%&".contains(c));
    pad(&mut text, |c| ('\u{2012}'..='\u{2015}').contains(&c));
    final_period(&mut text, "])}>\"'", false);
    pad(&mut text, |c| "?!".contains(c));
    lone_apostrophes(&mut text);
    pad(&mut text, |c| "[](){}<>".contains(c));
    text.insert(0, ' ');
    text.push(' ');
    pad(&mut text, |c| "»”’".contains(c));
    closing_quotes(&mut text);
    one_space(&mut text);
    clitics(&mut text);
    for (first, second) in [
        ("can", "not"),
        ("d", "'ye"),
        ("gim", "me"),
        ("gon", "na"),
        ("got", "ta"),
        ("lem", "me"),
        ("more", "'n"),
    ] {
        contraction(&mut text, first, second, |next| !next.is_some_and(is_word));
    }
    contraction(&mut text, "wan", "na", |next| next.is_some_and(is_space));
    for second in ["is", "was"] {
        elided_it(&mut text, second);
    }
    let text: String = text.into_iter().collect();
    text.split(is_space)
        .filter(|word| !word.is_empty())
        .map(String::from)
        .collect()
}

fn starts(text: &[char], at: usize, what: &str) -> bool {
    text.len() >= at
        && what
            .chars()
            .enumerate()
            .all(|(i, c)| text.get(at + i) == Some(&c))
}

/// Puts a space on both sides of some characters.
fn pad(text: &mut Vec<char>, which: impl Fn(char) -> bool) {
    let old = std::mem::take(text);
    for c in old {
        if which(c) {
            text.extend([' ', c, ' ']);
        } else {
            text.push(c);
        }
    }
}

/// Opening quotes become ```` `` ````; an apostrophe before a word that is no clitic stands alone.
fn opening_quotes(text: &mut Vec<char>) {
    pad(text, |c| "«“‘„".contains(c));
    if text.first() == Some(&'"') {
        text.splice(0..1, " `` ".chars());
    }
    let old = std::mem::take(text);
    let mut i = 0;
    while i < old.len() {
        text.push(old[i]);
        let quote = match old.get(i + 1) {
            Some('"') => 1,
            Some('\'') if old.get(i + 2) == Some(&'\'') => 2,
            _ => 0,
        };
        i += 1;
        if quote > 0 && " ([{<".contains(old[i - 1]) {
            text.extend(" `` ".chars());
            i += quote;
        }
    }
    let old = std::mem::take(text);
    for (i, &c) in old.iter().enumerate() {
        text.push(c);
        let clitic = || {
            ["re", "ve", "ll", "m", "t", "s", "d", "n"]
                .iter()
                .any(|clitic| {
                    starts(&old, i + 1, clitic)
                        && !old.get(i + 1 + clitic.len()).is_some_and(|&c| is_word(c))
                })
        };
        if c == '\''
            && (i == 0 || !is_word(old[i - 1]))
            && old.get(i + 1).is_some_and(|&c| is_word(c))
            && !clitic()
        {
            text.push(' ');
        }
    }
}

/// Parts a period from the last word, if nothing but `closing` follows.
fn final_period(text: &mut Vec<char>, closing: &str, apart: bool) {
    let Some(at) = text.iter().rposition(|&c| c == '.') else {
        return;
    };
    if at == 0 || text[at - 1] == '.' {
        return;
    }
    let rest = &text[at + 1..];
    let closed = rest
        .iter()
        .position(|c| !closing.contains(*c))
        .unwrap_or(rest.len());
    if !rest[closed..].iter().all(|&c| is_space(c)) {
        return;
    }
    let kept: Vec<char> = rest[..closed].to_vec();
    text.truncate(at);
    text.extend([' ', '.']);
    if apart {
        text.push(' ');
    }
    text.extend(kept);
    text.push(' ');
}

/// Parts commas, but from a digit after them.
fn commas(text: &mut Vec<char>) {
    let old = std::mem::take(text);
    let mut i = 0;
    while i < old.len() {
        match (old[i], old.get(i + 1)) {
            (',', Some(&next)) if !next.is_number_decimal_digit() => {
                text.extend([' ', ',', ' ', next]);
                i += 2;
            }
            (',', None) => {
                text.extend([' ', ',', ' ']);
                i += 1;
            }
            (c, _) => {
                text.push(c);
                i += 1;
            }
        }
    }
    // A comma taken as what follows another may end the text.
    if text.last() == Some(&',') {
        text.pop();
        text.extend([' ', ',', ' ']);
    }
}

/// Parts runs of two periods or more.
fn dots(text: &mut Vec<char>) {
    let old = std::mem::take(text);
    for run in old.chunk_by(|a, b| *a == '.' && *b == '.') {
        if run.len() > 1 {
            text.push(' ');
            text.extend(run);
            text.push(' ');
        } else {
            text.extend(run);
        }
    }
}

/// Parts an apostrophe before a space from a word before it.
fn lone_apostrophes(text: &mut Vec<char>) {
    let old = std::mem::take(text);
    let mut i = 0;
    while i < old.len() {
        text.push(old[i]);
        if old[i] != '\'' && starts(&old, i + 1, "' ") {
            text.extend(" ' ".chars());
            i += 3;
        } else {
            i += 1;
        }
    }
}

/// Double quotes, and pairs of single ones, become `''`.
fn closing_quotes(text: &mut Vec<char>) {
    let old = std::mem::take(text);
    let mut i = 0;
    while i < old.len() {
        if starts(&old, i, "''") {
            text.extend(" '' ".chars());
            i += 2;
        } else {
            text.push(old[i]);
            i += 1;
        }
    }
    let old = std::mem::take(text);
    for c in old {
        if c == '"' {
            text.extend(" '' ".chars());
        } else {
            text.push(c);
        }
    }
}

fn one_space(text: &mut Vec<char>) {
    let old = std::mem::take(text);
    for c in old {
        if !is_space(c) {
            text.push(c);
        } else if text.last() != Some(&' ') {
            text.push(' ');
        }
    }
}

/// Parts 's, 'm, 'd, ', and then 'll, 're, 've, n't, from the word before.
fn clitics(text: &mut Vec<char>) {
    for endings in [
        &["'s ", "'m ", "'d ", "' "][..],
        &["'ll ", "'re ", "'ve ", "n't "][..],
    ] {
        let old = std::mem::take(text);
        let mut i = 0;
        while i < old.len() {
            text.push(old[i]);
            i += 1;
            if "' ".contains(old[i - 1]) {
                continue;
            }
            if let Some(ending) = endings.iter().find(|ending| starts(&old, i, ending)) {
                text.push(' ');
                text.extend(ending.chars());
                i += ending.chars().count();
            }
        }
    }
}

/// Parts a contraction that stands as a word of its own.
fn contraction(
    text: &mut Vec<char>,
    first: &str,
    second: &str,
    follows: impl Fn(Option<char>) -> bool,
) {
    let old = std::mem::take(text);
    let length = first.len() + second.len();
    let mut i = 0;
    while i < old.len() {
        if starts(&old, i, first)
            && starts(&old, i + first.len(), second)
            && (i == 0 || !is_word(old[i - 1]))
            && follows(old.get(i + length).copied())
        {
            text.push(' ');
            text.extend(first.chars());
            text.push(' ');
            text.extend(second.chars());
            text.push(' ');
            i += length;
        } else {
            text.push(old[i]);
            i += 1;
        }
    }
}

/// Parts `'tis` and `'twas`.
fn elided_it(text: &mut Vec<char>, second: &str) {
    let old = std::mem::take(text);
    let mut i = 0;
    while i < old.len() {
        let end = i + 3 + second.len();
        if starts(&old, i, " 't")
            && starts(&old, i + 3, second)
            && !old.get(end).is_some_and(|&c| is_word(c))
        {
            text.extend(" 't ".chars());
            text.extend(second.chars());
            text.push(' ');
            i = end;
        } else {
            text.push(old[i]);
            i += 1;
        }
    }
}
