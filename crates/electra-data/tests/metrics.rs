//! Every metric equals the field's own tool on 1,000 random cases.
//!
//! Needs Python with the packages of `bench/peers/requirements.txt`:
//! `ELECTRA_PYTHON=python3 cargo test --release -p electra-data --test metrics`.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use electra_data::metrics::Prf;
use electra_data::metrics::answers::{
    AnswerScore, Judged, best_threshold, cmrc, mean, squad, squad2, with_threshold,
};
use electra_data::metrics::classification::{Confusion, multi_label};
use electra_data::metrics::correlation::{mean_squared_error, pearson, spearman};
use electra_data::metrics::entities::{EntityCounts, StrictScheme, strict_entities};
use electra_data::tasks::tagging::entities;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Case {
    Classes {
        classes: usize,
        gold: Vec<u32>,
        predicted: Vec<u32>,
    },
    Labels {
        gold: Vec<Vec<bool>>,
        predicted: Vec<Vec<bool>>,
    },
    Values {
        gold: Vec<f64>,
        predicted: Vec<f64>,
    },
    Tags {
        scheme: String,
        gold: Vec<Vec<String>>,
        predicted: Vec<Vec<String>>,
    },
    Squad {
        questions: Vec<Question>,
    },
    Squad2 {
        questions: Vec<Question>,
        threshold: f64,
    },
    Cmrc {
        questions: Vec<Question>,
    },
}

#[derive(Deserialize)]
struct Question {
    gold: Vec<String>,
    predicted: String,
    null: f64,
}

fn three(prf: Prf) -> Value {
    json!([prf.precision, prf.recall, prf.f1])
}

fn mean_of(questions: &[Question], score: impl Fn(&Question) -> AnswerScore) -> Value {
    let scores: Vec<AnswerScore> = questions.iter().map(score).collect();
    let AnswerScore { exact, f1 } = mean(&scores);
    json!({"exact": exact, "f1": f1})
}

fn scores(case: Case) -> Value {
    match case {
        Case::Classes {
            classes,
            gold,
            predicted,
        } => {
            let c = Confusion::of(classes, &gold, &predicted);
            let confusion: Vec<Vec<u64>> = (0..classes)
                .map(|g| (0..classes).map(|p| c.count(g, p)).collect())
                .collect();
            let mut out = json!({
                "accuracy": c.accuracy(),
                "mcc": c.mcc(),
                "macro": three(c.macro_average()),
                "micro": three(c.micro_average()),
                "per_class": c.per_class().into_iter().map(three).collect::<Vec<_>>(),
                "confusion": confusion,
            });
            if classes == 2 {
                out["binary"] = three(c.class(1));
            }
            out
        }
        Case::Labels { gold, predicted } => {
            let scores = multi_label(&gold, &predicted);
            json!({
                "micro": three(scores.micro),
                "macro": three(scores.macro_average),
                "accuracy": scores.accuracy,
            })
        }
        Case::Values { gold, predicted } => json!({
            "pearson": pearson(&gold, &predicted),
            "spearman": spearman(&gold, &predicted),
            "mse": mean_squared_error(&gold, &predicted),
        }),
        Case::Tags {
            scheme,
            gold,
            predicted,
        } => {
            let strict = match scheme.as_str() {
                "IOB1" => StrictScheme::Iob1,
                "IOB2" => StrictScheme::Iob2,
                "IOE1" => StrictScheme::Ioe1,
                "IOE2" => StrictScheme::Ioe2,
                "IOBES" => StrictScheme::Iobes,
                _ => StrictScheme::Bilou,
            };
            let (mut counts, mut strict_counts) =
                (EntityCounts::default(), EntityCounts::default());
            let (mut right, mut words) = (0, 0);
            for (g, p) in gold.iter().zip(&predicted) {
                counts.add(&entities(g), &entities(p));
                strict_counts.add(
                    &strict_entities(g, strict).unwrap(),
                    &strict_entities(p, strict).unwrap(),
                );
                words += g.len();
                right += g.iter().zip(p).filter(|(g, p)| g == p).count();
            }
            let detected = StrictScheme::detect(&gold).map(|s| format!("{s:?}").to_uppercase());
            json!({
                "default_micro": three(counts.micro_average()),
                "default_macro": three(counts.macro_average()),
                "strict_micro": three(strict_counts.micro_average()),
                "strict_macro": three(strict_counts.macro_average()),
                "accuracy": right as f64 / words as f64,
                "detected": detected,
            })
        }
        Case::Squad { questions } => mean_of(&questions, |q| squad(&q.gold, &q.predicted)),
        Case::Cmrc { questions } => mean_of(&questions, |q| cmrc(&q.gold, &q.predicted)),
        Case::Squad2 {
            questions,
            threshold,
        } => {
            let judged: Vec<Judged> = questions
                .iter()
                .map(|q| Judged {
                    score: squad2(&q.gold, &q.predicted),
                    answerable: !q.gold.is_empty(),
                    answered: !q.predicted.is_empty(),
                    null: q.null,
                })
                .collect();
            let AnswerScore { exact, f1 } = mean(&with_threshold(&judged, threshold));
            let best_exact = best_threshold(&judged, |s| s.exact);
            let best_f1 = best_threshold(&judged, |s| s.f1);
            json!({
                "exact": exact,
                "f1": f1,
                "best_exact": best_exact.score,
                "threshold_exact": best_exact.threshold,
                "best_f1": best_f1.score,
                "threshold_f1": best_f1.threshold,
            })
        }
    }
}

#[test]
fn every_metric_equals_its_python_original() {
    let ci = std::env::var("CI").as_deref() == Ok("true");
    let Ok(python) = std::env::var("ELECTRA_PYTHON") else {
        assert!(!ci, "ELECTRA_PYTHON must name a Python");
        eprintln!("skipped: set ELECTRA_PYTHON to a Python that has seqeval and scikit-learn");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/check_metrics.py");
    let output = Command::new(&python)
        .arg(&script)
        .arg("cases")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) && !ci {
        eprintln!("skipped: {error}");
        return;
    }
    assert!(output.status.success(), "{error}");
    let cases = String::from_utf8(output.stdout).unwrap();
    let mut results = String::new();
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        results.push_str(&scores(case).to_string());
        results.push('\n');
    }
    let dir = tempfile::tempdir().unwrap();
    let (cases_file, results_file) = (dir.path().join("cases"), dir.path().join("results"));
    std::fs::write(&cases_file, cases).unwrap();
    std::fs::write(&results_file, results).unwrap();
    let output = Command::new(&python)
        .arg(&script)
        .arg("compare")
        .args([&cases_file, &results_file])
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    assert!(
        output.status.success(),
        "{report}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
