//! CMRC 2018.

use super::AnswerScore;
use super::words::english_words;

/// Signs that the script leaves out. The ellipsis is not among them: the script has it as two
/// characters, which no single one equals.
const LEFT_OUT: &str = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』";

fn prepared(text: &str) -> Vec<char> {
    let text = text.to_lowercase();
    text.trim_matches(super::squad::is_space)
        .chars()
        .filter(|c| !LEFT_OUT.contains(*c))
        .collect()
}

/// Characters of Chinese, words of what stands between them.
fn segments(text: &str) -> Vec<String> {
    let mut segments = Vec::new();
    let mut between = String::new();
    for c in prepared(text) {
        if ('\u{4e00}'..='\u{9fa5}').contains(&c) {
            segments.append(&mut english_words(&between));
            between.clear();
            segments.push(c.to_string());
        } else {
            between.push(c);
        }
    }
    segments.append(&mut english_words(&between));
    segments
}

/// Length of the longest run that two sequences share.
fn longest_common_run(a: &[String], b: &[String]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut longest = 0;
    for x in a {
        let mut now = vec![0; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            if x == y {
                now[j + 1] = before[j] + 1;
                longest = longest.max(now[j + 1]);
            }
        }
        before = now;
    }
    longest
}

/// The score of an answer by CMRC 2018's script: F1 is that of the longest common run of Chinese
/// characters and other words, the best over the given answers.
///
/// The script cuts text between Chinese characters into words with NLTK, and before that into
/// sentences with a trained model; sentences are not cut here, so a full stop within such text stays
/// with its word.
pub fn cmrc<S: AsRef<str>>(gold: &[S], predicted: &str) -> AnswerScore {
    let mut score = AnswerScore::default();
    let plain = prepared(predicted);
    let words = segments(predicted);
    for answer in gold {
        if prepared(answer.as_ref()) == plain {
            score.exact = 1.0;
        }
        let answer = segments(answer.as_ref());
        let common = longest_common_run(&answer, &words);
        if common > 0 {
            let precision = common as f64 / words.len() as f64;
            let recall = common as f64 / answer.len() as f64;
            score.f1 = score
                .f1
                .max(2.0 * precision * recall / (precision + recall));
        }
    }
    score
}
