//! SQuAD 1.1 and 2.0.

use std::collections::HashMap;

use unicode_categories::UnicodeCategories;

use super::AnswerScore;

/// Python's `\w`, but for `_`, which is gone with the punctuation.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || c.is_letter() || c.is_number()
}

/// Python's white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// An answer as it is compared: lower case, without ASCII punctuation, without the words a, an and
/// the, one space between words.
pub fn normalize(text: &str) -> String {
    let kept: Vec<char> = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let mut words: Vec<String> = Vec::new();
    // An article is a run of letters and digits; what stands beside it, such as a dash, is left.
    for word in kept.split(|&c| is_space(c)) {
        let mut rest = String::new();
        for run in word.chunk_by(|&a, &b| is_word(a) == is_word(b)) {
            let run: String = run.iter().collect();
            if matches!(run.as_str(), "a" | "an" | "the") {
                words.push(std::mem::take(&mut rest));
            } else {
                rest.push_str(&run);
            }
        }
        words.push(rest);
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// F1 of the words of two normalised texts.
fn f1(gold: &str, predicted: &str) -> f64 {
    let count = |text: &str| text.split(' ').filter(|w| !w.is_empty()).count();
    let (g, p) = (count(gold), count(predicted));
    let mut there: HashMap<&str, usize> = HashMap::new();
    for word in gold.split(' ').filter(|w| !w.is_empty()) {
        *there.entry(word).or_default() += 1;
    }
    let mut same = 0;
    for word in predicted.split(' ').filter(|w| !w.is_empty()) {
        if let Some(n) = there.get_mut(word)
            && *n > 0
        {
            *n -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (same as f64 / p as f64, same as f64 / g as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The score of an answer by SQuAD 1.1's script: the best over the given answers.
pub fn squad<S: AsRef<str>>(gold: &[S], predicted: &str) -> AnswerScore {
    let predicted = normalize(predicted);
    let mut score = AnswerScore::default();
    for answer in gold {
        let answer = normalize(answer.as_ref());
        score.exact = score.exact.max(f64::from(u8::from(answer == predicted)));
        score.f1 = score.f1.max(f1(&answer, &predicted));
    }
    score
}

/// The score of an answer by SQuAD 2.0's script. No given answer, or none of which anything is
/// left when normalised, means that there is none; the empty answer says that there is none.
pub fn squad2<S: AsRef<str>>(gold: &[S], predicted: &str) -> AnswerScore {
    let predicted = normalize(predicted);
    let mut answers: Vec<String> = gold
        .iter()
        .map(|answer| normalize(answer.as_ref()))
        .filter(|answer| !answer.is_empty())
        .collect();
    if answers.is_empty() {
        answers.push(String::new());
    }
    let mut score = AnswerScore::default();
    for answer in &answers {
        let equal = f64::from(u8::from(*answer == predicted));
        score.exact = score.exact.max(equal);
        // Where either is empty F1 says whether both are.
        score.f1 = score.f1.max(if answer.is_empty() || predicted.is_empty() {
            equal
        } else {
            f1(answer, &predicted)
        });
    }
    score
}

/// A question of SQuAD 2.0 whose answer has been scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Score of the predicted answer, before any threshold.
    pub score: AnswerScore,
    /// Whether the text holds an answer.
    pub answerable: bool,
    /// Whether the prediction is an answer, not the empty text.
    pub answered: bool,
    /// How sure the network is that there is none; any scale, the more the surer.
    pub null: f64,
}

/// Scores where a question counts as unanswered if `null` is above the threshold.
pub fn with_threshold(judged: &[Judged], threshold: f64) -> Vec<AnswerScore> {
    judged
        .iter()
        .map(|j| {
            if j.null > threshold {
                let right = f64::from(u8::from(!j.answerable));
                AnswerScore {
                    exact: right,
                    f1: right,
                }
            } else {
                j.score
            }
        })
        .collect()
}

/// A threshold and the score that it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Mean score, from 0 to 1.
    pub score: f64,
    /// Questions whose `null` is above it count as unanswered.
    pub threshold: f64,
}

/// The threshold with the best mean of `of`, found as the script of SQuAD 2.0 does: questions join
/// the answered ones in the order of `null`; the first of equally good places is taken; 0 if
/// answering none is best. 0 of no question.
pub fn best_threshold(judged: &[Judged], of: impl Fn(&AnswerScore) -> f64) -> Threshold {
    let mut order: Vec<&Judged> = judged.iter().collect();
    order.sort_by(|a, b| a.null.total_cmp(&b.null));
    let mut now = judged.iter().filter(|j| !j.answerable).count() as f64;
    let mut best = Threshold {
        score: now,
        threshold: 0.0,
    };
    for j in order {
        now += match (j.answerable, j.answered) {
            (true, _) => of(&j.score),
            (false, true) => -1.0,
            (false, false) => 0.0,
        };
        if now > best.score {
            best = Threshold {
                score: now,
                threshold: j.null,
            };
        }
    }
    best.score /= judged.len().max(1) as f64;
    best
}
