//! What transformers writes is read, and what is written transformers reads.
//!
//! Needs Python with torch and transformers:
//! `ELECTRA_PYTHON=python3 cargo test --release -p electra-model --test transformers`.

use std::path::{Path, PathBuf};
use std::process::Command;

use electra_model::files::{ModelDir, ModelKind, NamedTensor, Wanted, write_model_dir};

fn python(script: &Path, arguments: &[PathBuf]) -> bool {
    let Ok(program) = std::env::var("ELECTRA_PYTHON") else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "ELECTRA_PYTHON must name a Python that has torch and transformers"
        );
        eprintln!("skipped: set ELECTRA_PYTHON to a Python that has torch and transformers");
        return false;
    };
    let output = Command::new(program)
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    true
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn everything(model: &ModelDir) -> Tensors {
    let names: Vec<String> = model.names().map(String::from).collect();
    let shapes: Vec<Vec<usize>> = names
        .iter()
        .map(|n| model.shape(n).unwrap().to_vec())
        .collect();
    let wanted = names.iter().zip(&shapes).map(|(name, shape)| Wanted {
        name,
        shape,
        optional: false,
    });
    let mut values = Vec::new();
    let report = model
        .load(&wanted.collect::<Vec<_>>(), |_, x| values.push(x.to_vec()))
        .unwrap();
    assert_eq!(report, Default::default());
    names
        .into_iter()
        .zip(shapes)
        .zip(values)
        .map(|((n, s), v)| (n, s, v))
        .collect()
}

#[test]
fn models_of_every_kind_and_form_go_both_ways() {
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    if !python(
        &crate_dir.join("tests/golden/make_models.py"),
        &[dir.path().into()],
    ) {
        return;
    }
    let mut written = Vec::new();
    for (name, kind) in [
        ("ForPreTraining", ModelKind::Discriminator),
        ("ForMaskedLM", ModelKind::Generator),
        ("Model", ModelKind::Encoder),
        (
            "ForSequenceClassification",
            ModelKind::SequenceClassification,
        ),
        ("ForTokenClassification", ModelKind::TokenClassification),
        ("ForQuestionAnswering", ModelKind::QuestionAnswering),
        ("ForMultipleChoice", ModelKind::MultipleChoice),
    ] {
        let single = ModelDir::open(dir.path().join(name).join("single")).unwrap();
        let tensors = everything(&single);
        for form in ["single", "sharded", "zip", "legacy"] {
            let model = ModelDir::open(dir.path().join(name).join(form)).unwrap();
            assert_eq!(model.kind(), kind, "{name} {form}");
            assert_eq!(model.config().architectures, single.config().architectures);
            let mut same = everything(&model);
            // Stored twice in a pickle, once in safetensors: it is the word table.
            same.retain(|(n, ..)| n != "generator_lm_head.weight");
            assert_eq!(same, tensors, "{name} {form}");
        }
        let again = dir.path().join(name).join("again");
        let named = tensors.iter().map(|(name, shape, values)| NamedTensor {
            name,
            shape,
            values,
        });
        write_model_dir(&again, kind, single.config(), named).unwrap();
        written.push(again);
    }
    python(
        &crate_dir.join("../../tests/check_transformers.py"),
        &written,
    );
}
