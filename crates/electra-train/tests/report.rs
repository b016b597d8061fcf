//! The report is one file, whole and harmless whatever the run's names and texts are.

use electra_train::metrics_log::{EvalMetrics, MetricsLine, StepMetrics};
use electra_train::report::{DetectedToken, Report, SampleDetection};
use serde_json::json;

/// A run of `steps` steps that learns; with `rtd` false, plain MLM.
fn run(steps: u64, rtd: bool) -> Report {
    let mut report = Report {
        title: "tiny on a \"held-out\" <b>text</b> & more".to_owned(),
        total_steps: steps,
        elapsed_seconds: Some(3725.0),
        environment: vec![
            ("device".into(), "cpu <2>".into()),
            ("precision".into(), "bf16".into()),
        ],
        settings: json!({ "learning_rate": 5e-4, "data": { "path": "</table><script>" } })
            .as_object()
            .unwrap()
            .clone(),
        samples: vec![SampleDetection {
            tokens: vec![
                DetectedToken {
                    text: "<script>".into(),
                    score: 0.93,
                    original: Some("\"'><i>".into()),
                },
                DetectedToken {
                    text: "##ing".into(),
                    score: f32::NAN,
                    original: None,
                },
            ],
        }],
        ..Report::default()
    };
    let wave = |step: u64| ((step * 7919 % 101) as f32 / 101.0 - 0.5) * 0.2;
    let falling = |step: u64, from: f32, to: f32| to + (from - to) / (1.0 + step as f32 / 60.0);
    for step in 1..=steps {
        let warm = (step as f32 / (0.1 * steps as f32)).min(1.0);
        report.extend([MetricsLine::Step(StepMetrics {
            step,
            loss: falling(step, 31.0, 20.0) + 4.0 * wave(step),
            mlm_loss: Some(falling(step, 10.3, 4.5) + wave(step)),
            rtd_loss: rtd.then(|| falling(step, 0.6, 0.33) + 0.1 * wave(step)),
            rtd_base: rtd.then(|| 0.41 + 0.02 * wave(step)),
            lr: 5e-4 * warm * (1.0 - step as f32 / steps as f32),
            grad_norm: if step == 5 {
                f32::NAN
            } else {
                1.0 + 3.0 * wave(step).abs()
            },
            tokens: 4096 * step,
            tokens_per_s: 25_000.0 + 9000.0 * wave(step),
        })]);
        if step % (steps / 10).max(1) == 0 {
            report.extend([MetricsLine::Eval(EvalMetrics {
                step,
                mlm_loss: Some(falling(step, 10.0, 4.6)),
                mlm_accuracy: Some(0.3 - falling(step, 0.3, 0.0)),
                rtd_loss: rtd.then(|| falling(step, 0.58, 0.34)),
                rtd_base: rtd.then_some(0.41),
                rtd_auc: rtd.then(|| 0.85 - falling(step, 0.35, 0.0)),
                tokens: 10_000,
                ..EvalMetrics::default()
            })]);
        }
    }
    report
}

#[test]
fn the_page_needs_nothing_else_and_shows_everything() {
    let page = run(3000, true).to_html().unwrap();
    for title in [
        "RTD loss",
        "RTD AUC",
        "MLM loss",
        "MLM accuracy",
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ] {
        assert!(
            page.contains(&format!("<figcaption><b>{title}</b>")),
            "{title}"
        );
    }
    assert_eq!(page.matches("<svg").count(), 8);
    assert!(page.matches("<polyline").count() >= 11);
    for part in [
        "<b>3000</b>",
        "12.3M",
        "1h02m",
        "learning_rate",
        "0.0005",
        "data.path",
        "bf16",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for reference in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(reference), "{reference}");
    }
    let namespaces = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(page.matches("http").count(), namespaces);
    assert!(page.len() < 400_000, "{} bytes", page.len());
}

#[test]
fn nothing_of_the_run_is_taken_for_html() {
    let page = run(20, true).to_html().unwrap();
    for text in [
        "<title>tiny on a &quot;held-out&quot; &lt;b&gt;text&lt;/b&gt; &amp; more</title>",
        "cpu &lt;2&gt;",
        "&lt;/table&gt;&lt;script&gt;",
        "class=\"replaced\" style=\"--score:0.930\" title=\"was “&quot;&#39;&gt;&lt;i&gt;”, score 0.93\">&lt;script&gt;</span>",
        "<span style=\"--score:0.000\" title=\"score 0.00\">ing</span>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn plain_mlm_and_runs_of_no_or_one_step_have_a_page_too() {
    let page = run(50, false).to_html().unwrap();
    assert!(!page.contains("RTD") && page.contains("MLM loss"));
    assert!(run(1, true).to_html().unwrap().contains("<circle"));
    assert!(
        Report::default()
            .to_html()
            .unwrap()
            .contains("No step is recorded yet")
    );
    let broken = StepMetrics {
        step: 1,
        loss: f32::NAN,
        mlm_loss: Some(f32::INFINITY),
        rtd_loss: None,
        rtd_base: None,
        lr: 0.0,
        grad_norm: f32::NAN,
        tokens: 0,
        tokens_per_s: 0.0,
    };
    Report {
        train: vec![broken],
        ..Report::default()
    }
    .to_html()
    .unwrap();
}

#[test]
fn writing_replaces_the_page_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    run(10, true).write(&path).unwrap();
    run(20, true).write(&path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        run(20, true).to_html().unwrap()
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = run(1, true)
        .write(&dir.path().join("missing/report.html"))
        .unwrap_err();
    assert!(error.to_string().contains("missing/report.html"));
}
