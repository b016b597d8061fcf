//! `--as detect`: each token's probability of having been replaced.

use super::{Asked, Head, Text};
use anyhow::Result;
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_model::files::ModelDir;
use electra_model::inference::{Detector, DetectorWorkspace};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// From this probability on a token is named as replaced.
const REPLACED: f32 = 0.5;

/// Backgrounds of the 256 colours, from the least probable that is marked to the most.
const BACKGROUNDS: [(f32, u8); 5] = [(0.9, 196), (0.7, 160), (0.5, 124), (0.3, 88), (0.1, 52)];

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    /// A line a token, a blank line after each text.
    Table,
    Coloured,
}

/// A discriminator at work.
pub struct Detect<'a, B: Backend> {
    detector: Detector<B>,
    workspace: DetectorWorkspace,
    tokenizer: &'a Tokenizer,
    form: Form,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
}

/// A token's score; `start` and `end` count Unicode code points.
#[derive(Serialize)]
struct Token<'a> {
    token: &'a str,
    start: usize,
    end: usize,
    score: f32,
}

impl<'a, B: Backend> Detect<'a, B> {
    /// Takes the discriminator to the backend.
    pub fn load(
        backend: &mut B,
        dir: &ModelDir,
        tokenizer: &'a Tokenizer,
        json: bool,
    ) -> Result<Self> {
        Ok(Detect {
            detector: Detector::load(backend, dir)?,
            workspace: DetectorWorkspace::default(),
            tokenizer,
            form: match json {
                true => Form::Json,
                false if wants_colour() => Form::Coloured,
                false => Form::Table,
            },
        })
    }
}

/// Whether stdout shows colours and the user has not declined them (no-color.org).
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    let dumb = set("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && set("NO_COLOR").is_none() && !dumb
}

impl<B: Backend> Head<B> for Detect<'_, B> {
    type Answer = f32;

    fn asks(&self, _: u32) -> bool {
        true
    }

    fn answer(&mut self, backend: &mut B, batch: &PackedBatch, rows: &[u32]) -> Result<Vec<f32>> {
        let scores = self.detector.detect(backend, &mut self.workspace, batch)?;
        Ok(rows.iter().map(|&row| scores[row as usize]).collect())
    }

    fn write(&mut self, out: &mut dyn Write, text: &Text, asked: Vec<Asked<f32>>) -> Result<()> {
        let scored = asked.iter().filter_map(|a| Some((a.token, a.answer?)));
        let tokens: Vec<Token> = scored
            .map(|(token, score)| {
                let span = &text.tokens[token];
                Token {
                    token: self.tokenizer.token(span.id).unwrap_or_default(),
                    start: span.start,
                    end: span.end,
                    score,
                }
            })
            .collect();
        let text = text.text.as_str();
        match self.form {
            Form::Json => writeln!(out, "{}", serde_json::to_string(&Line { text, tokens })?)?,
            Form::Table => {
                for t in &tokens {
                    writeln!(out, "{:.4}\t{}\t{}\t{}", t.score, t.start, t.end, t.token)?;
                }
                writeln!(out)?;
            }
            Form::Coloured => write_coloured(out, text, &tokens)?,
        }
        Ok(())
    }

    fn warn(&self, _: u64) {}
}

/// The text with a background behind each suspicious token, and below it their names.
fn write_coloured(out: &mut dyn Write, text: &str, tokens: &[Token]) -> std::io::Result<()> {
    let mut marks = tokens.iter().peekable();
    let mut open = None;
    for (i, c) in text.chars().enumerate() {
        if open.is_some_and(|end| end <= i) {
            write!(out, "\x1b[0m")?;
            open = None;
        }
        while let Some(token) = marks.next_if(|t| t.start <= i) {
            let level = BACKGROUNDS.iter().find(|(from, _)| token.score >= *from);
            if let Some((_, background)) = level.filter(|_| token.end > i) {
                write!(out, "\x1b[97;48;5;{background}m")?;
                open = Some(token.end);
            }
        }
        // A text must not steer the terminal.
        let shown = if c.is_control() && c != '\t' {
            '\u{fffd}'
        } else {
            c
        };
        write!(out, "{shown}")?;
    }
    if open.is_some() {
        write!(out, "\x1b[0m")?;
    }
    writeln!(out)?;
    for t in tokens.iter().filter(|t| t.score >= REPLACED) {
        writeln!(out, "  {:.4}  {}", t.score, t.token)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicious_tokens_have_a_background_and_control_characters_are_not_passed_on() {
        let token = |token, start, end, score| Token {
            token,
            start,
            end,
            score,
        };
        let tokens = [
            token("né", 0, 2, 0.95),
            token("b", 3, 4, 0.01),
            token("c", 5, 6, 0.2),
        ];
        let mut out = Vec::new();
        write_coloured(&mut out, "né b\x1bc", &tokens).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\x1b[97;48;5;196mné\x1b[0m b\u{fffd}\x1b[97;48;5;52mc\x1b[0m\n  0.9500  né\n"
        );
    }
}
