//! Classes without a head: each label's word is put into a template beside the text, and a
//! discriminator says which of the words was not put in by a replacement.

use anyhow::{Context, Result, bail};
use electra_data::tasks::{Example, Input};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::files::{FileError, ModelDir, ModelKind};
use electra_model::inference::{Detector, DetectorWorkspace};
use std::ops::Range;

/// What is asked in place of a head.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// Classify without a head: put each label's word into this template, with {text} and {label},
    /// and ask a discriminator which one belongs there
    #[arg(long, value_name = "TEMPLATE", requires = "label_words")]
    pub template: Option<String>,
    /// Words of the template's labels, as in bad=terrible,good=great
    #[arg(
        long,
        value_name = "LABEL=WORD,...",
        value_delimiter = ',',
        requires = "template"
    )]
    pub label_words: Vec<String>,
}

impl PromptArgs {
    /// What is asked of the discriminator in `dir`, if there is a template.
    ///
    /// # Errors
    /// A template or words that cannot be asked for; another kind of model.
    pub fn prompt<'a>(
        &self,
        dir: &'a ModelDir,
        tokenizer: &'a Tokenizer,
    ) -> Result<Option<Prompt<'a>>> {
        let Some(template) = &self.template else {
            return Ok(None);
        };
        dir.require(ModelKind::Discriminator)?;
        Ok(Some(Prompt {
            dir,
            tokenizer,
            template: Template::parse(template)?,
            words: label_words(&self.label_words)?,
        }))
    }
}

/// Where the text stands in a template.
const TEXT: &str = "{text}";
/// Where the label's word stands.
const LABEL: &str = "{label}";

/// A template cut at its places: what stands before, between and after them.
struct Template {
    parts: [String; 3],
    /// Whether the text comes before the label's word.
    text_first: bool,
}

/// A label and the word that stands for it.
struct LabelWord {
    label: String,
    word: String,
}

impl Template {
    fn parse(template: &str) -> Result<Self> {
        let once = |place: &str| template.matches(place).count() == 1;
        if !once(TEXT) || !once(LABEL) {
            bail!(
                "--template {template:?}: needs {TEXT} and {LABEL}, each once, as in \
                 \"{TEXT} It was {LABEL} .\""
            );
        }
        let (text, label) = (template.find(TEXT), template.find(LABEL));
        let text_first = text < label;
        let (first, second) = match text_first {
            true => (TEXT, LABEL),
            false => (LABEL, TEXT),
        };
        let (before, rest) = template.split_once(first).context("a place")?;
        let (between, after) = rest.split_once(second).context("a place")?;
        Ok(Template {
            parts: [before, between, after].map(String::from),
            text_first,
        })
    }

    /// The template with text and word in it, and the characters of both.
    fn fill(&self, text: &str, word: &str) -> (String, Range<usize>, Range<usize>) {
        let [before, between, after] = &self.parts;
        let (first, second) = match self.text_first {
            true => (text, word),
            false => (word, text),
        };
        let count = |s: &str| s.chars().count();
        let start = count(before);
        let first_at = start..start + count(first);
        let start = first_at.end + count(between);
        let second_at = start..start + count(second);
        let filled = format!("{before}{first}{between}{second}{after}");
        match self.text_first {
            true => (filled, first_at, second_at),
            false => (filled, second_at, first_at),
        }
    }
}

/// `bad=terrible,good=great`, or words that are their own labels.
fn label_words(given: &[String]) -> Result<Vec<LabelWord>> {
    let words: Vec<LabelWord> = given
        .iter()
        .map(|item| {
            let (label, word) = item.split_once('=').unwrap_or((item, item));
            LabelWord {
                label: label.trim().to_owned(),
                word: word.trim().to_owned(),
            }
        })
        .collect();
    if words.len() < 2 || words.iter().any(|w| w.word.is_empty()) {
        bail!("--label-words: give two words or more, as in bad=terrible,good=great");
    }
    for (i, word) in words.iter().enumerate() {
        if words[..i].iter().any(|w| w.label == word.label) {
            bail!("--label-words: the label {:?} is given twice", word.label);
        }
    }
    Ok(words)
}

/// Labels as words of a template, and whom to ask about them.
pub struct Prompt<'a> {
    dir: &'a ModelDir,
    tokenizer: &'a Tokenizer,
    template: Template,
    words: Vec<LabelWord>,
}

/// A discriminator at work on a [`Prompt`].
pub struct Prompted<'a, B: Backend> {
    prompt: &'a Prompt<'a>,
    detector: Detector<B>,
    workspace: DetectorWorkspace,
    /// Tokens that are computed at once.
    budget: usize,
    /// Texts that were cut to fit beside the template.
    cut: u64,
}

impl<'a> Prompt<'a> {
    /// The labels, in the order in which they were given.
    pub fn labels(&self) -> Vec<String> {
        self.words.iter().map(|word| word.label.clone()).collect()
    }

    /// Takes the discriminator to a backend; `budget` tokens are computed at once.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite.
    pub fn load<B: Backend>(
        &'a self,
        backend: &mut B,
        budget: usize,
    ) -> Result<Prompted<'a, B>, FileError> {
        Ok(Prompted {
            detector: Detector::load(backend, self.dir)?,
            prompt: self,
            workspace: DetectorWorkspace::default(),
            budget,
            cut: 0,
        })
    }

    /// Appends the template with each word, and the rows at which the words stand. Whether the
    /// text had to be cut.
    fn push(
        &self,
        text: &str,
        batch: &mut PackedBatch,
        words: &mut Vec<Range<usize>>,
    ) -> Result<bool> {
        let special = self.tokenizer.special();
        let room = self.dir.config().max_position_embeddings - 2;
        let mut cut = false;
        for label in &self.words {
            let (filled, text_at, word_at) = self.template.fill(text, &label.word);
            let mut spans = self.tokenizer.encode_with_offsets(&filled)?;
            if spans.len() > room {
                let over = spans.len() - room;
                let last = spans.partition_point(|s| s.end <= text_at.end);
                let first = spans.partition_point(|s| s.start < text_at.start);
                if last - first < over {
                    bail!("the template alone is longer than the model's {room} tokens");
                }
                spans.drain(last - over..last);
                cut = true;
            }
            let begin = spans.partition_point(|s| s.end <= word_at.start);
            let end = spans.partition_point(|s| s.start < word_at.end);
            if begin >= end {
                bail!("the label word {:?} has no token", label.word);
            }
            let base = batch.tokens() + 1;
            let ids: Vec<u32> = std::iter::once(special.cls)
                .chain(spans.iter().map(|s| s.id))
                .chain([special.sep])
                .collect();
            batch.push(&ids, &vec![0; ids.len()]);
            words.push(base + begin..base + end);
        }
        Ok(cut)
    }
}

impl<B: Backend> Prompted<'_, B> {
    /// The labels' probabilities for each example, in the order in which they were given: a softmax
    /// over the mean log-probabilities that their words are original.
    ///
    /// # Errors
    /// An example of more than one text; a word without a token.
    pub fn scores(&mut self, backend: &mut B, examples: &[Example]) -> Result<Vec<Vec<f64>>> {
        let mut scores = Vec::with_capacity(examples.len());
        let mut rest = examples;
        while !rest.is_empty() {
            let mut batch = PackedBatch::new();
            let mut words = Vec::new();
            let mut count = 0;
            for example in rest {
                if count > 0 && batch.tokens() >= self.budget {
                    break;
                }
                let text = match &example.input {
                    Input::Text {
                        first,
                        second: None,
                    } => first,
                    _ => bail!("{}: a template takes one text", example.place),
                };
                self.cut += u64::from(self.prompt.push(text, &mut batch, &mut words)?);
                count += 1;
            }
            let logits = self.detector.logits(backend, &mut self.workspace, &batch)?;
            let words = words.chunks(self.prompt.words.len());
            scores.extend(words.map(|words| probabilities(&logits, words)));
            rest = &rest[count..];
        }
        Ok(scores)
    }

    /// Says what was done to make texts fit.
    pub fn warn(&self) {
        if self.cut > 0 {
            tell!(
                "warning: {} texts were cut to fit beside the template",
                self.cut
            );
        }
    }
}

fn probabilities(logits: &[f32], words: &[Range<usize>]) -> Vec<f64> {
    let original = |logit: f32| -(f64::from(logit).exp().ln_1p());
    let means: Vec<f64> = words
        .iter()
        .map(|rows| {
            let sum: f64 = logits[rows.clone()].iter().map(|&x| original(x)).sum();
            sum / rows.len() as f64
        })
        .collect();
    let largest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = means.iter().map(|m| (m - largest).exp()).sum();
    means.iter().map(|m| (m - largest).exp() / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_where_text_and_word_stand() {
        let template = Template::parse("A {label} film: {text}!").unwrap();
        let (filled, text, word) = template.fill("né b", "bad");
        assert_eq!(filled, "A bad film: né b!");
        assert_eq!((text, word), (12..16, 2..5));
        let other = Template::parse("{text} It was {label}.").unwrap();
        let (filled, text, word) = other.fill("x", "great");
        assert_eq!(
            (filled.as_str(), text, word),
            ("x It was great.", 0..1, 9..14)
        );
        assert!(Template::parse("{text} only").is_err());
        assert!(Template::parse("{text} {label} {label}").is_err());
    }

    #[test]
    fn labels_have_words_of_their_own_or_are_words() {
        let given = ["bad=terrible".to_owned(), "fine".to_owned()];
        let words = label_words(&given).unwrap();
        assert_eq!(
            (words[0].label.as_str(), words[0].word.as_str()),
            ("bad", "terrible")
        );
        assert_eq!(
            (words[1].label.as_str(), words[1].word.as_str()),
            ("fine", "fine")
        );
        assert!(label_words(&given[..1]).is_err());
        assert!(label_words(&["a=x".to_owned(), "a=y".to_owned()]).is_err());
    }
}
