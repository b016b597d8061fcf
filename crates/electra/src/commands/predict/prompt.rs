//! `--as classify --template`: classes without a head.

use super::classify::{TextLine, shown};
use super::source::Source;
use super::{Args, TOKENS_A_TEXT};
use crate::commands::prompt::Prompt;
use crate::device::{Facts, Work};
use anyhow::Result;
use electra_data::tasks::classification::Scored;
use electra_engine::backend::Backend;
use std::io::{BufWriter, Write};

/// Labels as words of a template, for all of the input.
pub struct PromptAll<'a> {
    pub args: &'a Args,
    pub prompt: Prompt<'a>,
    pub input: Source,
}

impl Work for PromptAll<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(mut self, backend: &mut B, _: &Facts) -> Result<()> {
        let budget = self.args.batch_size.get().saturating_mul(TOKENS_A_TEXT);
        let mut prompted = self.prompt.load(backend, budget)?;
        let labels = self.prompt.labels();
        let top = self.args.top_k.map_or(1, |k| k.get());
        let mut out = BufWriter::new(std::io::stdout().lock());
        loop {
            let mut examples = Vec::new();
            // What stands before a bad line is answered.
            let read = self.input.chunk(&mut examples, self.args.task);
            for (example, scores) in examples.iter().zip(prompted.scores(backend, &examples)?) {
                let scored = labels.iter().cloned().zip(scores);
                let mut scored: Vec<Scored> = scored
                    .map(|(label, score)| Scored { label, score })
                    .collect();
                scored.sort_by(|a, b| b.score.total_cmp(&a.score));
                scored.truncate(top);
                let line = match self.args.json {
                    true => {
                        let with_id = self.input.is_file();
                        serde_json::to_string(&TextLine::new(example, with_id).labels(&scored))?
                    }
                    false => shown(&scored),
                };
                writeln!(out, "{line}")?;
            }
            out.flush()?;
            if !read? {
                break;
            }
        }
        self.input.warn();
        prompted.warn();
        Ok(())
    }
}
