//! Where the given answers stand in a text.

use crate::tasks::Answer;
use crate::tokenizer::TokenSpan;

/// Where a question's answer stands among the tokens.
#[derive(Clone, Copy)]
pub(super) enum Located {
    /// First and last token, and whether it was said to be elsewhere or nowhere.
    At {
        first: usize,
        last: usize,
        moved: bool,
    },
    /// There is no answer.
    None,
    /// There is one, and it is not in the text.
    Lost,
}

/// The first of the given answers that is in the text.
pub(super) fn locate(context: &str, answers: &[Answer], tokens: &[TokenSpan]) -> Located {
    if answers.is_empty() {
        return Located::None;
    }
    for answer in answers {
        let Some(((from, to), moved)) = find(context, answer) else {
            continue;
        };
        let first = tokens.iter().position(|t| t.end > from);
        let last = tokens.iter().rposition(|t| t.start < to);
        if let (Some(first), Some(last)) = (first, last)
            && first <= last
        {
            return Located::At { first, last, moved };
        }
    }
    Located::Lost
}

/// Where an answer stands in its text: characters from, to; and whether that is elsewhere than it
/// was said, if it was. The occurrence nearest to the stated place is taken, the first where none
/// was stated.
pub(super) fn find(context: &str, answer: &Answer) -> Option<((usize, usize), bool)> {
    if answer.text.is_empty() {
        return None;
    }
    let length = answer.text.chars().count();
    let stated = answer.start.and_then(|s| usize::try_from(s).ok());
    if let Some(start) = stated
        && let Some((at, _)) = context.char_indices().nth(start)
        && context[at..].starts_with(&answer.text)
    {
        return Some(((start, start + length), false));
    }
    let mut best: Option<usize> = None;
    let (mut byte, mut character) = (0, 0);
    // Occurrences may overlap, so the search goes on one character after each.
    while let Some(found) = context[byte..].find(&answer.text) {
        character += context[byte..byte + found].chars().count();
        byte += found;
        let better = match (stated, best) {
            (Some(stated), Some(best)) => character.abs_diff(stated) < best.abs_diff(stated),
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if better {
            best = Some(character);
        }
        byte += context[byte..].chars().next().map_or(1, char::len_utf8);
        character += 1;
    }
    best.map(|start| ((start, start + length), true))
}
