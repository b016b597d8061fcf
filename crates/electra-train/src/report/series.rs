//! The curves of a report: which there are, and their points.

use super::Report;
use crate::metrics_log::{EvalMetrics, StepMetrics};

/// Points that a curve is thinned to.
const MAX_POINTS: usize = 1000;
/// Points of a base line: few, so that its dashes stay apart.
const MAX_BASE_POINTS: usize = 60;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Train,
    Eval,
    Base,
}

/// One curve: steps and values, all finite.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    pub role: Role,
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// Some curves over one pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChartData {
    pub title: String,
    /// A value that the vertical axis must reach, such as 0 for a speed.
    pub include: Option<f64>,
    pub curves: Vec<Curve>,
}

/// Every chart of the report that has at least one point.
pub(crate) fn charts(report: &Report) -> Vec<ChartData> {
    let train = |name, value: fn(&StepMetrics) -> Option<f32>| Curve {
        role: Role::Train,
        name,
        points: points(report.train.iter().map(|line| (line.step, value(line)))),
    };
    let eval = |name, value: fn(&EvalMetrics) -> Option<f32>| Curve {
        role: Role::Eval,
        name,
        points: points(report.eval.iter().map(|line| (line.step, value(line)))),
    };
    let base = |curve: Curve| Curve {
        role: Role::Base,
        points: thinned(curve.points, MAX_BASE_POINTS),
        ..curve
    };
    let chart = |title: &str, include, curves| ChartData {
        title: title.to_owned(),
        include,
        curves,
    };
    let mut charts = vec![
        chart(
            "RTD loss",
            None,
            vec![
                base(train("nothing learned", |line| line.rtd_base)),
                train("train", |line| line.rtd_loss),
                eval("held out", |line| line.rtd_loss),
            ],
        ),
        chart(
            "RTD AUC",
            Some(0.5),
            vec![eval("held out", |line| line.rtd_auc)],
        ),
        chart(
            "MLM loss",
            None,
            vec![
                train("train", |line| line.mlm_loss),
                eval("held out", |line| line.mlm_loss),
            ],
        ),
        chart(
            "MLM accuracy",
            Some(0.0),
            vec![eval("held out", |line| line.mlm_accuracy)],
        ),
        chart("Loss", None, vec![train("train", |line| Some(line.loss))]),
        chart(
            "Learning rate",
            Some(0.0),
            vec![train("train", |line| Some(line.lr))],
        ),
        chart(
            "Gradient norm",
            Some(0.0),
            vec![train("train", |line| Some(line.grad_norm))],
        ),
        chart(
            "Tokens per second",
            Some(0.0),
            vec![train("train", |line| Some(line.tokens_per_s))],
        ),
    ];
    let after_quality = 4;
    charts.splice(after_quality..after_quality, probe_charts(report));
    for chart in &mut charts {
        chart.curves.retain(|curve| !curve.points.is_empty());
    }
    charts.retain(|chart| !chart.curves.is_empty());
    charts
}

/// A chart for each score of each probe task, in the order in which they appeared.
fn probe_charts(report: &Report) -> Vec<ChartData> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in report.probes.iter().flat_map(|line| &line.scores) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let curve = |name: &str| Curve {
        role: Role::Eval,
        name: "fine-tuned copy",
        points: points(report.probes.iter().map(|line| {
            let found = line.scores.iter().find(|(other, _)| other == name);
            (line.step, found.map(|(_, score)| *score as f32))
        })),
    };
    let charts = names.into_iter().map(|name| ChartData {
        title: format!("Probe: {}", name.replace('_', " ")),
        include: None,
        curves: vec![curve(name)],
    });
    charts.collect()
}

fn points(values: impl Iterator<Item = (u64, Option<f32>)>) -> Vec<(f64, f64)> {
    let finite = values.filter_map(|(step, value)| {
        let value = value.filter(|value| value.is_finite())?;
        Some((step as f64, f64::from(value)))
    });
    thinned(finite.collect(), MAX_POINTS)
}

/// At most `limit` points: means over neighbours of equal number, give or take one.
pub(crate) fn thinned(points: Vec<(f64, f64)>, limit: usize) -> Vec<(f64, f64)> {
    let len = points.len();
    if len <= limit {
        return points;
    }
    (0..limit)
        .map(|i| {
            let bucket = &points[i * len / limit..(i + 1) * len / limit];
            let (x, y) = bucket
                .iter()
                .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (x / bucket.len() as f64, y / bucket.len() as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_to_means_of_neighbours() {
        let points: Vec<_> = (0..2500)
            .map(|i| (f64::from(i), f64::from(i % 2)))
            .collect();
        let thin = thinned(points.clone(), 1000);
        assert_eq!(thin.len(), 1000);
        assert_eq!(thin[0], (0.5, 0.5));
        assert_eq!(thin[999].0, 2498.0);
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thinned(points[..1000].to_vec(), 1000), points[..1000]);
    }

    #[test]
    fn what_is_not_finite_or_not_there_is_no_point() {
        let values = [
            Some(1.0),
            None,
            Some(f32::NAN),
            Some(f32::INFINITY),
            Some(2.0),
        ];
        let found = points((1..).zip(values));
        assert_eq!(found, [(1.0, 1.0), (5.0, 2.0)]);
    }
}
