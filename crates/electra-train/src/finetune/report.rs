//! `report.html` of a fine-tuning run: curves, trials, and what the best model gets wrong.

use super::job::FinetuneJob;
use super::lines::FinetuneLine;
use super::results::{Summary, Trial};
use super::score::{Detail, Evaluation, Mistake};
use crate::progress::{readable_count, readable_duration};
use crate::report::ReportError;
use crate::report::html::{escape, facts, figures, frame, settings};
use crate::report::series::{ChartData, Curve, Role};
use electra_data::tasks::Metric;
use electra_model::files::atomic::replace_file;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// What the report shows.
pub struct FinetuneReport<'a> {
    /// Tasks and data.
    pub job: &'a FinetuneJob,
    /// What the best model is chosen by.
    pub metric: Metric,
    /// Lines of `metrics.jsonl`.
    pub lines: &'a [FinetuneLine],
    /// Resolved settings.
    pub settings: &'a Map<String, Value>,
    /// Names and values of what the run ran on.
    pub environment: &'a [(String, String)],
    /// Finished trials.
    pub trials: &'a [Trial],
    /// All of them, summed up.
    pub summary: Summary,
    /// The best model on the development data; empty before the end.
    pub evaluations: &'a [Evaluation],
    /// Times that a trial was begun again.
    pub restarts: u32,
    /// Seconds spent in steps.
    pub seconds: f64,
}

/// Characters of a text or of tags that a row shows.
const SHOWN: usize = 400;

impl FinetuneReport<'_> {
    /// Writes the page to `path`, replacing the one there at once.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let names: Vec<&str> = self
            .job
            .tasks
            .iter()
            .map(|t| t.spec.name.as_str())
            .collect();
        let title = escape(&format!("Fine-tuning on {}", names.join(", ")));
        let mut body = format!("<h1>{title}</h1>\n{}", facts(self.environment));
        body += &self.tiles();
        let last = self.lines.last().map_or(0, |line| match line {
            FinetuneLine::Step(line) => line.step,
            FinetuneLine::Eval(line) => line.step,
        });
        body += &figures(&self.charts(), last as f64)?;
        body += &trials(self.trials);
        for (task, evaluation) in self.job.tasks.iter().zip(self.evaluations) {
            body += &detail(&task.spec.name, evaluation);
        }
        body += &settings(self.settings);
        let page = frame(&title, &body);
        Ok(replace_file(path, |file| file.write_all(page.as_bytes()))?)
    }

    fn tiles(&self) -> String {
        let mut tiles = String::new();
        let mut tile = |name: &str, value: String, note: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(
                tiles,
                "<div class=\"tile\"><span>{}</span><b>{value}</b><small>{}</small></div>",
                escape(name),
                escape(&note)
            );
        };
        let metric = self.metric.name();
        if !self.trials.is_empty() {
            let summary = &self.summary;
            let trials = self.trials.len();
            let note = match trials {
                1 => "one trial".to_owned(),
                n => format!("median of {n} trials"),
            };
            tile(metric, format!("{:.4}", summary.median), note);
            if trials > 1 {
                let note = "of all trials: the model kept here".to_owned();
                tile("Best", format!("{:.4}", summary.best), note);
                let note = format!("standard deviation {:.4}", summary.deviation);
                let spread = (summary.best - summary.worst).abs();
                tile("Spread", format!("{spread:.4}"), note);
            }
        }
        if self.restarts > 0 {
            let note = "of trials that said one class for every example".to_owned();
            tile("Restarts", self.restarts.to_string(), note);
        }
        for task in &self.job.tasks {
            let note = format!("to learn from; {} to choose by", task.dev_examples.len());
            let count = readable_count(task.train.len() as f64);
            tile(&task.spec.name, count, note);
        }
        tile("Time", readable_duration(self.seconds), "in steps".into());
        format!("<section class=\"tiles\">\n{tiles}</section>\n")
    }

    fn charts(&self) -> Vec<ChartData> {
        let curve = |role, name, points| Curve { role, name, points };
        let steps = |value: fn(&super::lines::StepRecord) -> f32| -> Vec<(f64, f64)> {
            let records = self.lines.iter().filter_map(|line| match line {
                FinetuneLine::Step(line) => Some((line.step as f64, f64::from(value(line)))),
                FinetuneLine::Eval(_) => None,
            });
            let finite: Vec<_> = records.filter(|point| point.1.is_finite()).collect();
            crate::report::series::thinned(finite, 1000)
        };
        let evals = |name: &str| -> Vec<(f64, f64)> {
            let records = self.lines.iter().filter_map(|line| match line {
                FinetuneLine::Eval(line) => Some((
                    line.step as f64,
                    line.numbers().find(|(n, _)| *n == name)?.1,
                )),
                FinetuneLine::Step(_) => None,
            });
            records.collect()
        };
        let names: std::collections::BTreeSet<String> = self
            .lines
            .iter()
            .filter_map(|line| match line {
                FinetuneLine::Eval(line) => Some(line),
                FinetuneLine::Step(_) => None,
            })
            .flat_map(|line| line.numbers().map(|(name, _)| name.to_owned()))
            .collect();
        let chart = |title: &str, include, curves| ChartData {
            title: title.to_owned(),
            include,
            curves,
        };
        let mut charts = vec![chart(
            "Loss",
            None,
            vec![
                curve(Role::Train, "train", steps(|line| line.loss)),
                curve(Role::Eval, "development", evals("loss")),
            ],
        )];
        for name in names.iter().filter(|name| *name != "loss") {
            let points = evals(name);
            charts.push(chart(
                name,
                None,
                vec![curve(Role::Eval, "development", points)],
            ));
        }
        charts.push(chart(
            "Learning rate",
            Some(0.0),
            vec![curve(Role::Train, "head", steps(|line| line.lr))],
        ));
        charts.push(chart(
            "Gradient norm",
            Some(0.0),
            vec![curve(Role::Train, "train", steps(|line| line.grad_norm))],
        ));
        for chart in &mut charts {
            chart.curves.retain(|curve| !curve.points.is_empty());
        }
        charts.retain(|chart| !chart.curves.is_empty());
        charts
    }
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cells = cells
            .iter()
            .map(|c| format!("<{tag}>{}</{tag}>", escape(c)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let head: Vec<String> = head.iter().map(|&h| h.to_owned()).collect();
    let rows: String = rows.into_iter().map(|row| cells("td", &row)).collect();
    format!(
        "<div class=\"settings\" style=\"columns:1\"><table>\n{}{rows}</table></div>\n",
        cells("th", &head)
    )
}

fn trials(trials: &[Trial]) -> String {
    if trials.is_empty() {
        return String::new();
    }
    let rows = trials.iter().map(|trial| {
        let scores = trial
            .scores
            .iter()
            .map(|(name, v)| format!("{name} {v:.4}"));
        vec![
            trial.seed.to_string(),
            format!("{:.4}", trial.score),
            format!("{:.2}", trial.epoch),
            scores.collect::<Vec<_>>().join("  "),
            if trial.stuck {
                "stuck to one class"
            } else {
                ""
            }
            .to_owned(),
        ]
    });
    let head = ["Seed", "Score", "At epoch", "All scores", ""];
    format!("<h2>Trials</h2>\n{}", table(&head, rows))
}

fn detail(name: &str, evaluation: &Evaluation) -> String {
    let Detail {
        confusion,
        decisions,
        per_class,
        mistakes,
    } = &evaluation.detail;
    let mut out = format!(
        "<h2>{} <small>the best model on the development data</small></h2>\n",
        escape(name)
    );
    let mut scores: Vec<String> = evaluation
        .loss
        .map(|l| format!("loss {l:.4}"))
        .into_iter()
        .collect();
    let named = evaluation.scores.iter();
    scores.extend(named.map(|(metric, value)| format!("{} {value:.4}", metric.name())));
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&scores.join("  ")));
    if let Some((names, matrix)) = confusion {
        let mut head = vec!["right \\ predicted"];
        head.extend(names.iter().map(String::as_str));
        let rows = names.iter().zip(matrix).map(|(name, row)| {
            let counts = row.iter().map(u64::to_string);
            std::iter::once(name.clone()).chain(counts).collect()
        });
        let _ = write!(out, "<h3>Confusion matrix</h3>\n{}", table(&head, rows));
    }
    if !decisions.is_empty() {
        let rows = decisions.iter().map(|(name, d)| {
            let counts = [
                d.true_positives,
                d.false_positives,
                d.false_negatives,
                d.true_negatives,
            ];
            let counts = counts.iter().map(u64::to_string);
            std::iter::once(name.clone()).chain(counts).collect()
        });
        let head = [
            "Label",
            "True positives",
            "False positives",
            "False negatives",
            "True negatives",
        ];
        let _ = write!(out, "<h3>Decisions</h3>\n{}", table(&head, rows));
    }
    if !per_class.is_empty() {
        let rows = per_class.iter().map(|(name, prf)| {
            let share = |x: f64| format!("{x:.4}");
            vec![
                name.clone(),
                share(prf.precision),
                share(prf.recall),
                share(prf.f1),
                prf.support.to_string(),
            ]
        });
        let head = ["Class", "Precision", "Recall", "F1", "Number"];
        let _ = write!(out, "<h3>Classes</h3>\n{}", table(&head, rows));
    }
    if !mistakes.is_empty() {
        let rows = mistakes.iter().map(|mistake: &Mistake| {
            vec![
                format!("{:.3}", mistake.badness),
                shortened(&mistake.text),
                shortened(&mistake.gold),
                shortened(&mistake.predicted),
            ]
        });
        let head = ["How bad", "Text", "Right", "Predicted"];
        let _ = write!(out, "<h3>Worst mistakes</h3>\n{}", table(&head, rows));
    }
    out
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
