//! `--as classify --template`: classes without a head. Each label's word is put into a template
//! beside the text, and a discriminator says which of the words was not put in by a replacement.

use super::lines::Lines;
use super::{Args, TOKENS_A_TEXT, input_of};
use crate::commands::corpus::report_invalid;
use crate::device::{Facts, Work};
use anyhow::{Context, Result, bail};
use electra_data::tasks::classification::Scored;
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::files::{ModelDir, ModelKind};
use electra_model::inference::{Detector, DetectorWorkspace};
use std::io::{BufWriter, Read, Write};
use std::ops::Range;

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
    Ok(words)
}

/// Runs `predict --template`.
pub fn run(args: &Args, dir: &ModelDir, tokenizer: &Tokenizer, template: &str) -> Result<()> {
    dir.require(ModelKind::Discriminator)?;
    let (name, input) = input_of(args)?;
    let lossy = args.task_args.columns.lossy;
    args.device.run(Prompt {
        args,
        dir,
        tokenizer,
        template: Template::parse(template)?,
        words: label_words(&args.task_args.label_words)?,
        lines: Lines::new(input, name, lossy),
    })
}

struct Prompt<'a> {
    args: &'a Args,
    dir: &'a ModelDir,
    tokenizer: &'a Tokenizer,
    template: Template,
    words: Vec<LabelWord>,
    lines: Lines<Box<dyn Read>>,
}

impl Work for Prompt<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(mut self, backend: &mut B, _: &Facts) -> Result<()> {
        let detector = Detector::load(backend, self.dir)?;
        let mut workspace = DetectorWorkspace::default();
        let budget = self.args.batch_size.get().saturating_mul(TOKENS_A_TEXT);
        let mut out = BufWriter::new(std::io::stdout().lock());
        let (mut texts, mut cut) = (0u64, 0u64);
        loop {
            let mut lines = Vec::new();
            let read = self.lines.chunk(&mut lines);
            let mut rest = lines.as_slice();
            while !rest.is_empty() {
                let mut batch = PackedBatch::new();
                let mut words = Vec::new();
                let mut count = 0;
                for text in rest {
                    if count > 0 && batch.tokens() >= budget {
                        break;
                    }
                    cut += u64::from(self.push(text, &mut batch, &mut words)?);
                    count += 1;
                }
                let logits = detector.logits(backend, &mut workspace, &batch)?;
                for (text, words) in rest.iter().zip(words.chunks(self.words.len())) {
                    let scored = self.scores(&logits, words);
                    self.write(&mut out, text, &scored)?;
                }
                texts += count as u64;
                rest = &rest[count..];
            }
            out.flush()?;
            if !read? {
                break;
            }
        }
        report_invalid(self.lines.invalid_utf8());
        if texts == 0 {
            tell!("warning: {} is empty", self.lines.name());
        }
        if cut > 0 {
            tell!("warning: {cut} of {texts} texts were cut to fit beside the template");
        }
        Ok(())
    }
}

impl Prompt<'_> {
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

    /// Labels by probability: softmax over the mean log-probabilities that their words are
    /// original.
    fn scores(&self, logits: &[f32], words: &[Range<usize>]) -> Vec<Scored> {
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
        let mut scored: Vec<Scored> = self
            .words
            .iter()
            .zip(&means)
            .map(|(word, mean)| Scored {
                label: word.label.clone(),
                score: (mean - largest).exp() / sum,
            })
            .collect();
        scored.sort_by(|a, b| b.score.total_cmp(&a.score));
        scored.truncate(self.args.top_k.map_or(1, |k| k.get()));
        scored
    }

    fn write(&self, out: &mut dyn Write, text: &str, scored: &[Scored]) -> Result<()> {
        if self.args.json {
            let line = serde_json::json!({ "text": text, "labels": scored });
            writeln!(out, "{line}")?;
            return Ok(());
        }
        let shown: Vec<String> = scored
            .iter()
            .map(|s| format!("{}\t{:.4}", s.label, s.score))
            .collect();
        writeln!(out, "{}", shown.join("\t"))?;
        Ok(())
    }
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
    }
}
