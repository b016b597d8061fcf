//! `electra export`: smaller models through the binary, and what of them transformers takes.

mod run;

use run::{command, copy_dir, electra, electra_with_input, golden};
use serde_json::{Value, json};
use std::path::Path;

fn export(model: &str, precision: &str, out: &Path, more: &[&str]) -> run::Ran {
    let out = out.display().to_string();
    let mut arguments = vec![
        "export",
        "--model",
        model,
        "--precision",
        precision,
        "--out",
        &out,
    ];
    arguments.extend(more);
    electra(&arguments)
}

fn info(dir: &Path) -> Value {
    electra(&["info", &dir.display().to_string(), "--json"]).json()
}

/// Scores of some tokens.
fn scores(dir: &Path, more: &[&str]) -> (Vec<f64>, String) {
    let dir = dir.display().to_string();
    let mut arguments = vec!["predict", "--model", &dir, "--as", "detect", "--json"];
    arguments.extend(more);
    let ran = electra_with_input(&arguments, b"the old boat sings\n");
    let stderr = ran.stderr.clone();
    let line = ran.json();
    let tokens = line["tokens"].as_array().unwrap();
    (
        tokens
            .iter()
            .map(|t| t["score"].as_f64().unwrap())
            .collect(),
        stderr,
    )
}

#[test]
fn an_exported_model_is_smaller_says_what_it_is_and_is_computed_as_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("tiny-discriminator");
    let [int8, bf16] = ["int8", "bf16"].map(|n| dir.path().join(n));
    let ran = export(&from, "int8", &int8, &["--json"]);
    ran.says(&["last hidden states deviate by"]);
    let said = ran.json();
    assert!(
        said["bytes"].as_u64() < said["bytes_before"].as_u64(),
        "{said}"
    );
    assert_eq!(said["kept_exact"], json!([]));
    let products = said["products"].as_array().unwrap();
    let deviations = products.iter().map(|p| p["deviation"].as_f64().unwrap());
    let layers = info(Path::new(&from))["layers"].as_u64().unwrap() as usize;
    assert_eq!(products.len(), 4 * layers);
    let each: Vec<f64> = deviations.collect();
    assert!(each.iter().all(|d| (1e-6..0.03).contains(d)), "{each:?}");
    export(&from, "bf16", &bf16, &[]).ok();

    let found = info(&int8);
    assert_eq!(
        (&found["precision"], &found["problems"]),
        (&json!("int8"), &json!([]))
    );
    let bytes = std::fs::metadata(int8.join("model.safetensors"))
        .unwrap()
        .len();
    assert_eq!(found["bytes"], bytes);
    assert_eq!(found["parameters"], info(Path::new(&from))["parameters"]);
    assert_eq!(info(&bf16)["precision"], "bf16");
    let text = electra(&["info", &int8.display().to_string()]).ok();
    assert!(text.contains("(int8, "), "{text}");

    let (exact, quiet) = scores(Path::new(&from), &[]);
    assert!(!quiet.contains("int8"), "{quiet}");
    let (found, said) = scores(&int8, &[]);
    assert_eq!(
        said.matches("is an int8 model: computing in int8").count(),
        1,
        "{said}"
    );
    assert_eq!(scores(&int8, &["--precision", "int8"]).0, found);
    let (in_f32, said) = scores(&int8, &["--precision", "f32"]);
    assert!(!said.contains("computing in int8"), "{said}");
    assert_ne!(in_f32, found);
    let (half, said) = scores(&bf16, &[]);
    assert!(!said.contains("int8"), "{said}");
    for other in [&found, &in_f32, &half] {
        let apart = exact.iter().zip(other).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0, f64::max);
        assert!(apart > 0.0 && apart < 0.01, "{apart}");
    }
}

#[test]
fn what_cannot_be_exported_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("tiny-discriminator");
    let (taken, int8) = (dir.path().join("taken"), dir.path().join("int8"));
    copy_dir(&from, &taken);
    export(&from, "bf16", &taken, &[]).fails(1, &["holds something already"]);
    let sample = ["--sample", "nowhere.txt"];
    export(&from, "bf16", &int8, &sample).fails(1, &["--sample", "int8"]);
    export(&from, "int8", &int8, &sample).fails(1, &["cannot read nowhere.txt"]);
    let empty = run::write(dir.path(), "empty.txt", "\n\n");
    export(&from, "int8", &int8, &["--sample", &empty]).fails(1, &["holds no text"]);
    assert!(!int8.exists());
    let sample = run::write(dir.path(), "sample.txt", "鬱 龍 the\n麟 boat\n");
    let ran = export(&from, "int8", &int8, &["--sample", &sample]);
    ran.says(&[
        "3 of the sample's 5 tokens are unknown to the model",
        "--sample",
    ]);
    ran.ok();
    let again = dir.path().join("again");
    export(&int8.display().to_string(), "int8", &again, &[])
        .fails(1, &["is an int8 model already"]);
    let run = dir.path().display().to_string();
    export(&run, "bf16", &again, &[]).fails(1, &["no config.json"]);
}

/// Needs Python with torch and transformers, as `ELECTRA_PYTHON`.
#[test]
fn transformers_loads_bf16_and_refuses_int8() {
    let Ok(python) = std::env::var("ELECTRA_PYTHON") else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "ELECTRA_PYTHON must name a Python that has torch and transformers"
        );
        eprintln!("skipped: set ELECTRA_PYTHON to a Python that has torch and transformers");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut loaded = Vec::new();
    for model in ["tiny-discriminator", "tiny-generator"] {
        for precision in ["f32", "bf16", "int8"] {
            let out = dir.path().join(format!("{model}-{precision}"));
            export(&golden(model), precision, &out, &[]).ok();
            if precision != "int8" {
                loaded.push(out);
            }
        }
    }
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/check_transformers.py");
    let ran = std::process::Command::new(&python)
        .arg(check)
        .args(&loaded)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let script = "import sys, torch, transformers as t\n\
        for c in (t.ElectraForPreTraining, t.ElectraModel, t.AutoModel):\n\
        \x20   for dtype in ('auto', torch.float32):\n\
        \x20       try: c.from_pretrained(sys.argv[1], dtype=dtype)\n\
        \x20       except ValueError as e: assert 'quantiz' in str(e), e\n\
        \x20       else: sys.exit(f'{c} took it')\n";
    let refused = std::process::Command::new(&python)
        .args(["-c", script])
        .arg(dir.path().join("tiny-discriminator-int8"))
        .output()
        .unwrap();
    assert!(
        refused.status.success(),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
}

#[test]
fn the_environment_counts_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let int8 = dir.path().join("int8");
    export(&golden("tiny-discriminator"), "int8", &int8, &[]).ok();
    let output = command()
        .args(["predict", "--as", "detect", "--model"])
        .arg(&int8)
        .env("ELECTRA_PRECISION", "f32")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("computing in int8"), "{stderr}");
}
