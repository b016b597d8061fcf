//! The page around the charts.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::series::{ChartData, Role, charts};
use super::{DetectedToken, Report, ReportError, SampleDetection, chart};
use crate::progress::{readable_count, readable_duration};

pub(super) fn page(report: &Report) -> Result<String, ReportError> {
    let title = escape(&report.title);
    let body = [
        format!("<h1>{title}</h1>\n"),
        facts(&report.environment),
        summary(report),
        curves(report)?,
        samples(&report.samples),
        settings(&report.settings),
    ]
    .concat();
    Ok(frame(&title, &body))
}

/// The whole page; both parts are HTML.
pub(crate) fn frame(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         </body>\n</html>\n",
        include_str!("style.css")
    )
}

/// Facts in a row.
pub(crate) fn facts(facts: &[(String, String)]) -> String {
    let facts = facts.iter();
    let facts: Vec<_> = facts
        .map(|(name, value)| format!("<span>{} <b>{}</b></span>", escape(name), escape(value)))
        .collect();
    if facts.is_empty() {
        String::new()
    } else {
        format!("<p class=\"facts\">{}</p>\n", facts.concat())
    }
}

/// The newest numbers, in tiles: held-out ones where there are any.
fn summary(report: &Report) -> String {
    let (train, eval) = (report.train.last(), report.eval.last());
    let mut tiles = String::new();
    let mut tile = |name: &str, value: String, note: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            tiles,
            "<div class=\"tile\"><span>{name}</span><b>{value}</b><small>{note}</small></div>"
        );
    };
    if let Some(line) = train {
        tile(
            "Steps",
            line.step.to_string(),
            format!("of {}", report.total_steps),
        );
        tile(
            "Tokens",
            readable_count(line.tokens as f64),
            "trained on".to_owned(),
        );
    }
    let loss = |held_out: Option<f32>, trained: Option<f32>| match (held_out, trained) {
        (Some(value), _) => Some((format!("{value:.3}"), "held out")),
        (None, Some(value)) => Some((format!("{value:.3}"), "train")),
        (None, None) => None,
    };
    if let Some((value, of)) = loss(
        eval.and_then(|e| e.mlm_loss),
        train.and_then(|line| line.mlm_loss),
    ) {
        tile("MLM loss", value, of.to_owned());
    }
    if let Some((value, of)) = loss(
        eval.and_then(|e| e.rtd_loss),
        train.and_then(|line| line.rtd_loss),
    ) {
        let base = eval
            .and_then(|e| e.rtd_base)
            .or(train.and_then(|line| line.rtd_base));
        let note = base.map_or(String::new(), |base| {
            format!(", {base:.3} if nothing is learned")
        });
        tile("RTD loss", value, format!("{of}{note}"));
    }
    if let Some(auc) = eval.and_then(|e| e.rtd_auc) {
        tile(
            "RTD AUC",
            format!("{auc:.3}"),
            "held out, 0.5 is chance".to_owned(),
        );
    }
    if let Some(line) = train {
        let speed = readable_count(line.tokens_per_s.into());
        tile("Tokens per second", speed, "newest".to_owned());
    }
    if let Some(seconds) = report.elapsed_seconds {
        tile("Time", readable_duration(seconds), "so far".to_owned());
    }
    if tiles.is_empty() {
        return "<p>No step is recorded yet.</p>\n".to_owned();
    }
    format!("<section class=\"tiles\">\n{tiles}</section>\n")
}

fn curves(report: &Report) -> Result<String, ReportError> {
    let last_step = (report.train.iter().map(|line| line.step))
        .chain(report.eval.iter().map(|line| line.step))
        .max()
        .unwrap_or(0);
    figures(&charts(report), last_step as f64)
}

/// Charts with their legends.
pub(crate) fn figures(charts: &[ChartData], last_step: f64) -> Result<String, ReportError> {
    let mut figures = String::new();
    for data in charts {
        let legend: String = (data.curves.iter())
            .map(|curve| {
                let class = match curve.role {
                    Role::Train => "train",
                    Role::Eval => "eval",
                    Role::Base => "base",
                };
                format!("<span class=\"key {class}\">{}</span>", escape(curve.name))
            })
            .collect();
        let svg = chart::svg(data, last_step)?;
        let _ = writeln!(
            figures,
            "<figure><figcaption><b>{}</b>{legend}</figcaption>{svg}</figure>",
            escape(&data.title)
        );
    }
    if figures.is_empty() {
        return Ok(figures);
    }
    Ok(format!(
        "<h2>Curves <small>over steps</small></h2>\n<section class=\"charts\">\n{figures}</section>\n"
    ))
}

fn samples(samples: &[SampleDetection]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let items: String = (samples.iter())
        .map(|sample| {
            let tokens: String = sample.tokens.iter().map(token).collect();
            format!("<li>{}</li>\n", tokens.trim_start())
        })
        .collect();
    format!(
        "<h2>Sample detections</h2>\n<p class=\"note\">The redder a token, the likelier the \
         discriminator thinks it was replaced. Underlined tokens really were; point at one to see \
         the original and the score.</p>\n<ol class=\"samples\">\n{items}</ol>\n"
    )
}

fn token(token: &DetectedToken) -> String {
    let score = if token.score.is_finite() {
        token.score.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let (space, text) = match token.text.strip_prefix("##") {
        Some(rest) if !rest.is_empty() => ("", rest),
        _ => (" ", token.text.as_str()),
    };
    let (class, was) = match &token.original {
        Some(original) => (
            " class=\"replaced\"",
            format!("was “{}”, ", escape(original)),
        ),
        None => ("", String::new()),
    };
    format!(
        "{space}<span{class} style=\"--score:{score:.3}\" title=\"{was}score {score:.2}\">{}</span>",
        escape(text)
    )
}

pub(crate) fn settings(settings: &Map<String, Value>) -> String {
    let mut rows = String::new();
    flatten("", settings, &mut |key, value| {
        let value = match value {
            Value::String(text) => escape(text),
            other => escape(&other.to_string()),
        };
        let _ = writeln!(rows, "<tr><th>{}</th><td>{value}</td></tr>", escape(key));
    });
    if rows.is_empty() {
        return rows;
    }
    format!("<h2>Configuration</h2>\n<div class=\"settings\"><table>\n{rows}</table></div>\n")
}

fn flatten(prefix: &str, object: &Map<String, Value>, each: &mut impl FnMut(&str, &Value)) {
    for (name, value) in object {
        let key = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(&format!("{key}."), inner, each),
            other => each(&key, other),
        }
    }
}

/// Text as it must stand in HTML, inside of quoted attributes too.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
