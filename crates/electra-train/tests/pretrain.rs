//! The whole loop on a small made-up corpus: it learns, resumes to the bit, and refuses what it
//! must.

mod small_run;

use electra_data::cooccurrence::TokenCounts;
use electra_engine::cpu::{Cpu, CpuOptions, Isa, Precision};
use electra_engine::reference::Reference;
use electra_model::files::{ModelDir, ModelKind};
use electra_train::config::PretrainConfig;
use electra_train::export::{Network, write_network};
use electra_train::job::{GivenModel, InitFrom, JobError, PretrainJob};
use electra_train::metrics_log::{EvalMetrics, MetricsLine, read_metrics};
use electra_train::pretrain::Outcome;
use electra_train::trainer::{Position, Trainer};
use small_run::*;
use std::path::PathBuf;
use tempfile::TempDir;

#[test]
fn a_run_stopped_anywhere_and_resumed_equals_the_uninterrupted_run() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let whole = dir.path().join("whole");
    let ran = run_on(&mut cpu(2), config(&[]), &shards, &whole, 0);
    assert!(
        matches!(ran.outcome, Ok(Outcome::Finished(Some(_)))),
        "{:?}",
        ran.outcome
    );
    for stop in [1, 4, 5, 7, 11] {
        let out = dir.path().join(format!("stopped-{stop}"));
        let ran = run_on(&mut cpu(1), config(&[]), &shards, &out, stop);
        assert_eq!(ran.outcome.expect("an end"), Outcome::Interrupted(stop));
        let ran = run_on(&mut cpu(3), config(&[]), &shards, &out, 0);
        assert!(
            matches!(ran.outcome, Ok(Outcome::Finished(Some(_)))),
            "{:?}",
            ran.outcome
        );
        assert_same_end(&whole, &out, 12);
    }
    // A finished run does nothing more.
    let ran = run_on(&mut cpu(1), config(&[]), &shards, &whole, 0);
    assert!(
        ran.messages.iter().any(|m| m.contains("done already")),
        "{:?}",
        ran.messages
    );
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    run_on(&mut cpu(1), config(&[]), &shards, &out, 0)
        .outcome
        .expect("an end");
    let mut kept: Vec<_> = std::fs::read_dir(out.join("checkpoints"))
        .expect("checkpoints")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    kept.sort();
    assert_eq!(kept, ["step-00000008", "step-00000012"]);
    assert!(out.join("report.html").is_file());
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_not_begun_again() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    // Killed before its first checkpoint, a run begins again.
    let stopped = run_on(&mut cpu(1), config(&[]), &shards, &out, 2).outcome;
    assert_eq!(stopped.expect("a stop"), Outcome::Interrupted(2));
    for lost in ["checkpoints", "report.html", "discriminator", "generator"] {
        let path = out.join(lost);
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.expect(lost);
    }
    run_on(&mut cpu(1), config(&[]), &shards, &out, 0)
        .outcome
        .expect("an end");
    std::fs::remove_dir_all(out.join("checkpoints")).expect("checkpoints");
    let before = std::fs::read(out.join("metrics.jsonl")).expect("metrics");
    let again = run_on(&mut cpu(1), config(&[]), &shards, &out, 0).outcome;
    let message = again.expect_err("lost checkpoints").to_string();
    assert!(message.contains("holds none any more"), "{message}");
    let after = std::fs::read(out.join("metrics.jsonl")).expect("metrics");
    assert_eq!(before, after);
}

#[test]
fn a_resumed_run_still_shows_what_it_detected() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    for stop in [6, 7] {
        run_on(&mut cpu(1), config(&[]), &shards, &out, stop)
            .outcome
            .expect("a stop");
        let report = std::fs::read_to_string(out.join("report.html")).expect("a report");
        assert!(report.contains("class=\"samples\""), "after step {stop}");
    }
}

#[test]
fn micro_batches_change_nothing_but_rounding() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let losses = |parts: &str| {
        let out = dir.path().join(parts);
        run_on(
            &mut Reference::<f64>::new(),
            config(&[parts]),
            &shards,
            &out,
            3,
        )
        .outcome
        .expect("an end");
        timeless(&out)
    };
    let whole = losses("gradient_accumulation_steps=1");
    for parts in [
        "gradient_accumulation_steps=3",
        "gradient_accumulation_steps=8",
    ] {
        for (a, b) in whole.iter().zip(losses(parts)) {
            if let (MetricsLine::Step(a), MetricsLine::Step(b)) = (a, &b) {
                assert!(
                    (a.loss - b.loss).abs() <= 1e-5 * a.loss.abs(),
                    "{a:?} {b:?}"
                );
                assert!(
                    (a.grad_norm - b.grad_norm).abs() <= 1e-5 * a.grad_norm,
                    "{a:?} {b:?}"
                );
                assert_eq!(a.rtd_base, b.rtd_base);
            }
        }
    }
}

#[test]
fn layers_computed_again_change_no_bit() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let [whole, again, changed] = ["whole", "again", "changed"].map(|name| dir.path().join(name));
    let checkpointing = || config(&["gradient_checkpointing=true"]);
    run_on(&mut cpu(2), config(&[]), &shards, &whole, 0)
        .outcome
        .expect("an end");
    run_on(&mut cpu(2), checkpointing(), &shards, &again, 0)
        .outcome
        .expect("an end");
    assert_same_end(&whole, &again, 12);
    // So a run that runs out of memory can go on with it.
    for (config, stop) in [(config(&[]), 5), (checkpointing(), 0)] {
        run_on(&mut cpu(2), config, &shards, &changed, stop)
            .outcome
            .expect("an end");
    }
    assert_same_end(&whole, &changed, 12);
}

/// Losses of the first and the last steps of a run.
fn learned(settings: &[&str]) -> (Vec<MetricsLine>, EvalMetrics) {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    let mut all = vec![
        "num_train_steps=1200",
        "eval_steps=1200",
        "num_warmup_steps=20",
        "learning_rate=3e-3",
        "generator_hidden_size=1",
        "model_hparam_overrides.hidden_dropout_prob=0",
        "model_hparam_overrides.attention_probs_dropout_prob=0",
        "save_checkpoints_steps=1200",
    ];
    all.extend(settings);
    match run_on(&mut cpu(2), config(&all), &shards, &out, 0).outcome {
        Ok(Outcome::Finished(Some(eval))) => (timeless(&out), eval),
        other => panic!("{other:?}"),
    }
}

/// At three times this learning rate the discriminator, whose loss counts fifty times, often takes
/// the shared embeddings to where a generator learns nothing, and detects its samples all the
/// better: so does PyTorch (`bench/peers/pretrain.py` with these sizes on this text), with ten of
/// sixteen seeds.
#[test]
fn both_networks_learn_together() {
    let (_, eval) = learned(&["learning_rate=1e-3"]);
    let (loss, base) = (
        eval.rtd_loss.expect("a loss"),
        eval.rtd_base.expect("an entropy"),
    );
    assert!(loss < 0.95 * base, "{eval:?}");
    assert!(eval.rtd_auc.expect("an area") > 0.58, "{eval:?}");
    // Seventeen tokens in all: knowing nothing costs ln 17 = 2.83, knowing the kind about 1.95.
    assert!(eval.mlm_loss.expect("a loss") < 2.05, "{eval:?}");
}

#[test]
fn a_generator_with_embeddings_of_its_own_learns() {
    let (_, eval) = learned(&["learning_rate=1e-3", "untied_generator_embeddings=true"]);
    assert!(eval.mlm_loss.expect("a loss") < 2.0, "{eval:?}");
    let (loss, base) = (
        eval.rtd_loss.expect("a loss"),
        eval.rtd_base.expect("an entropy"),
    );
    assert!(loss < 0.97 * base, "{eval:?}");
}

#[test]
fn the_discriminator_learns_from_the_generator_s_samples() {
    let (_, eval) = learned(&[]);
    let (loss, base) = (
        eval.rtd_loss.expect("a loss"),
        eval.rtd_base.expect("an entropy"),
    );
    assert!(loss < 0.9 * base, "{eval:?}");
    assert!(eval.rtd_auc.expect("an area") > 0.7, "{eval:?}");
}

#[test]
fn a_masked_language_model_learns_which_kind_of_word_stands_where() {
    let (_, eval) = learned(&["electra_objective=false"]);
    assert!(eval.mlm_loss.expect("a loss") < 2.2, "{eval:?}");
    assert_eq!(eval.rtd_loss, None);
}

#[test]
fn random_replacements_are_found_without_a_generator() {
    let (lines, eval) = learned(&["uniform_generator=true"]);
    assert_eq!(eval.mlm_loss, None);
    assert!(
        eval.rtd_loss.expect("a loss") < 0.8 * eval.rtd_base.expect("an entropy"),
        "{eval:?}"
    );
    assert!(matches!(&lines[0], MetricsLine::Step(m) if m.mlm_loss.is_none()));
}

#[test]
fn lamb_learns_too() {
    let (_, eval) = learned(&["uniform_generator=true", "optimizer=lamb"]);
    let (loss, base) = (
        eval.rtd_loss.expect("a loss"),
        eval.rtd_base.expect("an entropy"),
    );
    assert!(loss < 0.8 * base, "{eval:?}");
}

#[test]
fn a_masked_language_model_alone_is_of_full_size() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    let ran = run_on(
        &mut cpu(1),
        config(&["electra_objective=false"]),
        &shards,
        &out,
        0,
    );
    ran.outcome.expect("an end");
    assert!(!out.join("discriminator").exists());
    let model = ModelDir::open(out.join("generator")).expect("a model");
    assert_eq!(
        (model.kind(), model.config().hidden_size),
        (ModelKind::Generator, 32)
    );
    let lines = timeless(&out);
    assert!(
        lines
            .iter()
            .all(|l| !matches!(l, MetricsLine::Step(m) if m.rtd_loss.is_some()))
    );
}

#[test]
fn every_option_of_the_generator_runs_and_changes_the_run() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let first_loss = |settings: &[&str]| {
        let out = dir
            .path()
            .join(settings.join(",").replace(['/', '"', '{', '}', ':'], "_"));
        let ran = run_on(&mut cpu(1), config(settings), &shards, &out, 3);
        assert!(ran.outcome.is_ok(), "{settings:?}: {:?}", ran.outcome);
        format!("{:?}", timeless(&out))
    };
    let plain = first_loss(&["seed=0"]);
    for settings in [
        &["generator_hidden_size=1.0"][..],
        &["generator_layers=0.5"],
        &["untied_generator=false"],
        &["untied_generator_embeddings=true"],
        &["temperature=2"],
        &["disallow_correct=true"],
        &["mask_prob=0.3"],
        &["gen_weight=2"],
        &["disc_weight=25"],
        &["seed=1"],
        &["examples=two_segments"],
        &["train_batch_tokens=128"],
        &["model_hparam_overrides.hidden_act=gelu_new"],
        &["model_hparam_overrides.hidden_dropout_prob=0.0"],
        &["model_hparam_overrides.attention_probs_dropout_prob=0.3"],
        &["weight_decay_rate=0.5"],
        &["lr_decay_power=2"],
        &["optimizer=lamb"],
        &["adam_beta2=0.9"],
        &["initialization=counts"],
    ] {
        assert_ne!(plain, first_loss(settings), "{settings:?} changes nothing");
    }
}

#[test]
fn other_settings_are_refused_by_name_and_harmless_ones_taken() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    run_on(&mut cpu(1), config(&[]), &shards, &out, 2)
        .outcome
        .expect("a stop");
    let refused = run_on(
        &mut cpu(1),
        config(&["learning_rate=0.5"]),
        &shards,
        &out,
        0,
    );
    let message = refused
        .outcome
        .expect_err("another learning rate")
        .to_string();
    assert!(
        message.contains("learning_rate") && message.contains("0.5"),
        "{message}"
    );
    let taken = run_on(
        &mut cpu(1),
        config(&["keep_checkpoint_max=7"]),
        &shards,
        &out,
        3,
    );
    assert_eq!(taken.outcome.expect("a stop"), Outcome::Interrupted(3));
}

#[test]
fn a_run_begun_before_a_setting_was_there_goes_on_with_its_default_alone() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    run_on(&mut cpu(1), config(&[]), &shards, &out, 2)
        .outcome
        .expect("a stop");
    let file = out.join("run.json");
    let text = std::fs::read_to_string(&file).expect("the settings");
    let mut run: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let settings = run["settings"].as_object_mut().expect("an object");
    settings.remove("optimizer").expect("a setting");
    std::fs::write(&file, run.to_string()).expect("a file");
    let lamb = config(&["optimizer=lamb"]);
    let refused = run_on(&mut cpu(1), lamb, &shards, &out, 0).outcome;
    let message = refused.expect_err("another optimizer").to_string();
    assert!(
        message.contains("\"adamw\" there, \"lamb\" now"),
        "{message}"
    );
    let taken = run_on(&mut cpu(1), config(&[]), &shards, &out, 3);
    assert_eq!(taken.outcome.expect("a stop"), Outcome::Interrupted(3));
}

#[test]
fn non_finite_steps_are_skipped_and_then_stop_the_run() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let out = dir.path().join("run");
    let settings = [
        "gen_weight=1e38",
        "learning_rate=1e30",
        "max_skipped_steps=3",
        "num_warmup_steps=0",
    ];
    let ran = run_on(&mut cpu(1), config(&settings), &shards, &out, 0);
    let message = ran.outcome.expect_err("it diverges").to_string();
    assert!(message.contains("3 steps in a row"), "{message}");
    let skipped = ran
        .messages
        .iter()
        .filter(|m| m.contains("skipped"))
        .count();
    assert_eq!(skipped, 3, "{:?}", ran.messages);
}

#[test]
fn the_first_place_that_is_not_finite_is_named() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let job = PretrainJob::open(config(&[]), &shards, None, None).expect("a job");
    let layout = &job.networks.layout;
    let zeros = vec![0.0; layout.len()];
    for (tensor, place) in [
        (
            "discriminator.electra.encoder.layer.1.intermediate.dense.weight",
            "layer 1 of the discriminator",
        ),
        (
            "generator.electra.encoder.layer.0.output.dense.bias",
            "layer 0 of the generator",
        ),
        (
            "discriminator.electra.embeddings.LayerNorm.weight",
            "the embeddings of the generator",
        ),
        (
            "generator.generator_lm_head.bias",
            "the generator's log-probabilities",
        ),
        (
            "discriminator.discriminator_predictions.dense.bias",
            "the discriminator's logits",
        ),
    ] {
        let mut values = job.initial_values(&mut |_| ()).expect("values");
        values[layout.get(tensor).expect("a tensor").view.offset] = f32::NAN;
        let mut cpu = cpu(1);
        let mut trainer = Trainer::new(
            &mut cpu,
            &job,
            [&values, &zeros, &zeros],
            Position::default(),
        );
        let stepped = trainer.step(&mut cpu, 0, 1e-3).expect("a step");
        assert_eq!(stepped.skipped.as_deref(), Some(place), "NaN in {tensor}");
    }
}

#[test]
fn what_is_not_finite_is_named_in_whichever_part_it_is() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let parts = config(&["gradient_accumulation_steps=8"]);
    let job = PretrainJob::open(parts, &shards, None, None).expect("a job");
    let batch = job.train.batch(0).expect("a batch").packed;
    let last = batch.rows(batch.sequences() - 1);
    let (before, last) = batch.token_ids.split_at(last.start);
    let word = before.iter().find(|id| !last.contains(id));
    let layout = &job.networks.layout;
    let table = layout
        .get("discriminator.electra.embeddings.word_embeddings.weight")
        .expect("a tensor")
        .view;
    let mut values = job.initial_values(&mut |_| ()).expect("values");
    let word = *word.expect("a word of an earlier part alone") as usize;
    values[table.range()][word * table.cols] = f32::NAN;
    let zeros = vec![0.0; layout.len()];
    let arrays = [&values[..], &zeros, &zeros];
    let mut cpu = cpu(1);
    let mut trainer = Trainer::new(&mut cpu, &job, arrays, Position::default());
    let stepped = trainer.step(&mut cpu, 0, 1e-3).expect("a step");
    let place = "the embeddings of the generator";
    assert_eq!(stepped.skipped.as_deref(), Some(place));
}

/// Weights behind the logits so large that gradients times the loss scale of f16 are no numbers of it.
#[test]
fn gradients_that_overflow_are_taken_with_a_lower_loss_scale() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let job = PretrainJob::open(config(&[]), &shards, None, None).expect("a job");
    let layout = &job.networks.layout;
    let zeros = vec![0.0; layout.len()];
    let mut values = job.initial_values(&mut |_| ()).expect("values");
    let view = layout
        .get("discriminator.discriminator_predictions.dense_prediction.weight")
        .expect("a tensor")
        .view;
    values[view.range()].iter_mut().for_each(|w| *w *= 3e4);
    let stepped = [Precision::F32, Precision::Bf16].map(|precision| {
        let mut cpu = Cpu::new(CpuOptions {
            precision,
            ..CpuOptions::default()
        })
        .expect("the best instruction set");
        let arrays = [&values[..], &zeros, &zeros];
        let mut trainer = Trainer::new(&mut cpu, &job, arrays, Position::default());
        let stepped = trainer.step(&mut cpu, 0, 1e-3).expect("a step");
        (stepped, trainer.training.loss_scale())
    });
    let [(exact, _), (rounded, scale)] = &stepped;
    assert_eq!((&exact.skipped, &rounded.skipped), (&None, &None));
    let ratio = rounded.metrics.grad_norm / exact.metrics.grad_norm;
    assert!(
        (0.95..1.05).contains(&ratio),
        "{ratio} at a scale of {scale}"
    );
    // It began at 256, where there is one.
    match Isa::available()[0].has_f16() {
        true => assert!(*scale <= 16.0, "{scale}"),
        false => assert_eq!(*scale, 1.0),
    }
}

#[test]
fn a_run_can_begin_with_the_models_of_another() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    run_on(&mut cpu(1), config(&[]), &shards, &first, 0)
        .outcome
        .expect("an end");
    let from = InitFrom {
        discriminator: Some(GivenModel::Directory(first.join("discriminator"))),
        generator: Some(GivenModel::Directory(first.join("generator"))),
    };
    let job = PretrainJob::open(continued(&["seed=5"]), &shards, None, Some(from)).expect("a job");
    let values = job.initial_values(&mut |_| ()).expect("values");
    let end = last_checkpoint(&first, 12);
    assert_eq!(values, end.arrays[0].1);
    run_job(&mut cpu(1), &job, &second, 0)
        .outcome
        .expect("an end");
    assert_eq!(last_checkpoint(&second, 12).step, 12);

    // It goes on without the models, by what it has recorded of them.
    let third = dir.path().join("third");
    let whole = job.config.num_train_steps;
    let stopped = run_job(&mut cpu(1), &job, &third, 5).outcome;
    assert_eq!(stopped.expect("a stop"), Outcome::Interrupted(5));
    let recorded = InitFrom::recorded(&third).expect("a run");
    let gone = PretrainJob::open(continued(&["seed=5"]), &shards, None, recorded).expect("a job");
    run_job(&mut cpu(1), &gone, &third, 0)
        .outcome
        .expect("an end");
    assert_same_end(&second, &third, whole);
    let message = gone
        .initial_values(&mut |_| ())
        .expect_err("no models to begin with")
        .to_string();
    assert!(message.contains("needs the models"), "{message}");

    // Other models of the same sizes are other settings.
    let mut values = end.arrays[0].1.clone();
    let layout = &job.networks.layout;
    let bias = layout.get("generator.generator_lm_head.bias");
    values[bias.expect("a tensor").view.offset] += 1.0;
    let other = dir.path().join("other");
    let (kind, shape) = (Network::Generator, &job.generator_config);
    write_network(&other, kind, shape, layout, &values).expect("a writable directory");
    let positions = job.generator_config.max_position_embeddings;
    job.tokenizer
        .save(&other, positions)
        .expect("a writable directory");
    values = end.arrays[0].1.clone();
    let moved = dir.path().join("moved");
    write_network(&moved, kind, shape, layout, &values).expect("a writable directory");
    job.tokenizer
        .save(&moved, positions)
        .expect("a writable directory");
    for (generator, refused) in [(other, true), (moved, false)] {
        let from = InitFrom {
            discriminator: Some(GivenModel::Directory(first.join("discriminator"))),
            generator: Some(GivenModel::Directory(generator)),
        };
        let job = PretrainJob::open(continued(&["seed=5"]), &shards, None, Some(from));
        let outcome = run_job(&mut cpu(1), &job.expect("a job"), &third, 0).outcome;
        match refused {
            false => assert!(outcome.is_ok(), "{outcome:?}"),
            true => {
                let message = outcome.expect_err("another generator").to_string();
                assert!(message.contains("init_from.generator.blake3"), "{message}");
                assert!(!message.contains("init_from.discriminator"), "{message}");
            }
        }
    }

    // What the models bring cannot be counted.
    let both = PretrainJob::open(
        continued(&["initialization=counts"]),
        &shards,
        None,
        InitFrom::recorded(&third).expect("a run"),
    );
    let message = both.expect_err("two beginnings").to_string();
    assert!(message.contains("\"initialization\" cannot"), "{message}");

    // A generator of other embeddings is refused before anything is written.
    let layout = &job.networks.layout;
    let words = "generator.electra.embeddings.word_embeddings.weight";
    let mut values = end.arrays[0].1.clone();
    values[layout.get(words).expect("a tensor").view.offset] += 1.0;
    let other = dir.path().join("other-words");
    write_network(&other, kind, shape, layout, &values).expect("a writable directory");
    job.tokenizer
        .save(&other, positions)
        .expect("a writable directory");
    let apart = |generator: PathBuf, settings: &[&str]| {
        let from = InitFrom {
            discriminator: Some(GivenModel::Directory(first.join("discriminator"))),
            generator: Some(GivenModel::Directory(generator)),
        };
        PretrainJob::open(continued(settings), &shards, None, Some(from))
    };
    let message = apart(other, &[]).expect_err("other words").to_string();
    assert!(message.contains("untied_generator_embeddings"), "{message}");

    // So is one that lacks rows that the data needs.
    let config_json = first.join("generator/config.json");
    let text = std::fs::read_to_string(&config_json).expect("a configuration");
    for (key, rows, settings) in [
        ("vocab_size", job.tokenizer.vocab_size(), &[][..]),
        ("type_vocab_size", 2, &["examples=two_segments"]),
    ] {
        let line = |rows: usize| format!("\"{key}\": {rows}");
        assert!(text.contains(&line(rows)), "{text}");
        let fewer = text.replace(&line(rows), &line(rows - 1));
        std::fs::write(&config_json, fewer).expect("a writable file");
        let message = apart(first.join("generator"), settings)
            .expect_err("too few rows")
            .to_string();
        let said = format!("\"{key}\" in its config.json is {}", rows - 1);
        assert!(message.contains(&said), "{message}");
    }
    std::fs::write(&config_json, text).expect("a writable file");

    // The reverse is refused with a word of what to use.
    let swapped = InitFrom {
        discriminator: Some(GivenModel::Directory(first.join("generator"))),
        generator: Some(GivenModel::Directory(first.join("discriminator"))),
    };
    let job = PretrainJob::open(continued(&[]), &shards, None, Some(swapped))
        .map(|job| job.initial_values(&mut |_| ()));
    let message = match job {
        Err(error) => error.to_string(),
        Ok(values) => values.expect_err("the wrong kind").to_string(),
    };
    assert!(message.contains("discriminator"), "{message}");
}

#[test]
fn a_run_that_begins_with_counts_knows_frequencies_at_the_first_step() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let first_mlm = |setting: &str| {
        let out = dir.path().join(setting);
        run_on(&mut cpu(1), config(&[setting]), &shards, &out, 1)
            .outcome
            .expect("a step");
        let line = read_metrics(&out.join("metrics.jsonl"))
            .expect("metrics")
            .swap_remove(0);
        match line {
            MetricsLine::Step(step) => step.mlm_loss.expect("a generator's loss"),
            other => panic!("not a step: {other:?}"),
        }
    };
    let (random, counts) = (
        first_mlm("initialization=random"),
        first_mlm("initialization=counts"),
    );
    let job = |settings: &[&str]| PretrainJob::open(config(settings), &shards, None, None);
    let values = |threads: usize, settings: &[&str]| {
        let mut job = job(settings).expect("a job");
        job.set_threads(threads);
        (job.initial_values(&mut |_| ()).expect("values"), job)
    };
    let settings = ["initialization=counts", "untied_generator_embeddings=true"];
    let (one, job) = values(1, &settings);
    // All entries alike, or 16 words and a full stop as often as they are there.
    let uniform = (job.tokenizer.vocab_size() as f32).ln();
    assert!((random - uniform).abs() < 0.1, "{random} for {uniform}");
    assert!((counts - 17f32.ln()).abs() < 0.1, "{counts}");
    assert_eq!(one, values(3, &settings).0);
    // Both tables have the same vectors, about as large as initializer_range.
    let words = |network: &str| {
        let name = format!("{network}.electra.embeddings.word_embeddings.weight");
        let view = job.networks.layout.get(&name).expect("a tensor").view;
        let row = |word: String| {
            let id = job.tokenizer.id(&word).expect("a word") as usize;
            let (words, waves) = one[view.range()][id * view.cols..][..16].split_at(12);
            assert_eq!(waves, [0.0; 4]);
            words.to_vec()
        };
        (0..8)
            .flat_map(|i| [row(format!("w{i}")), row(format!("v{i}"))])
            .collect::<Vec<_>>()
            .concat()
    };
    let table = words("generator");
    assert_eq!(table, words("discriminator"));
    // Each row is its token's vector, counted on the examples to train on and no others.
    let examples = job.train.examples();
    let counts = TokenCounts::of(examples, 12, 1).expect("counts");
    assert_eq!(counts.tokens(), examples.tokens() - 2 * examples.len());
    let id = job.tokenizer.id("w3").expect("a word") as usize;
    let vector = counts.vector(id).expect("a frequent word");
    let row = &table[6 * 12..7 * 12];
    assert!(vector.iter().zip(row).all(|(x, &value)| 0.02 * x == value));
    let square = table.iter().map(|x| x * x).sum::<f32>() / table.len() as f32;
    assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.2, "{square}");
}

#[test]
fn a_run_that_begins_with_counts_has_heads_that_look_at_neighbours() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let mut small = PretrainConfig::preset("small").expect("a preset");
    for setting in ["initialization=counts", "train_batch_size=8"] {
        small.set(setting).expect("a setting");
    }
    let job = PretrainJob::open(small, &shards, None, None).expect("a job");
    let values = job.initial_values(&mut |_| ()).expect("values");
    let word = |i: usize| job.tokenizer.id(&format!("w{i}")).expect("a word") as usize;
    let words: Vec<usize> = (0..8).map(|i| word(i * 3 % 8)).collect();
    let looks = [-1i32, 1, -2, 2];
    for (net, heads) in [("discriminator", 4), ("generator", 1)] {
        let tensor = |name: String| {
            let param = job.networks.layout.get(&format!("{net}.electra.{name}"));
            let view = param.expect("a tensor").view;
            (&values[view.range()], view.cols)
        };
        let product = |name: String, x: &[f32]| -> Vec<f32> {
            let (weight, cols) = tensor(name);
            let rows = weight.chunks_exact(cols);
            rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect()
        };
        let row = |name: &str, index: usize| {
            let (table, cols) = tensor(format!("embeddings.{name}.weight"));
            table[index * cols..][..cols].to_vec()
        };
        let sum = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let standard = |x: Vec<f32>| {
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
            x.iter()
                .map(|v| (v - mean) / variance.sqrt())
                .collect::<Vec<_>>()
        };
        let mut hidden: Vec<Vec<f32>> = (0..100)
            .map(|position| {
                let place = sum(
                    row("position_embeddings", position),
                    row("token_type_embeddings", 0),
                );
                let word = words[position % words.len()];
                let x = standard(sum(row("word_embeddings", word), place));
                product("embeddings_project.weight".into(), &x)
            })
            .collect();
        let size = hidden[0].len() / heads;
        for layer in 0..looks.len() / heads {
            // Attention as the network computes it, of the heads that look; the layer's other half
            // is small.
            let base = format!("encoder.layer.{layer}.attention");
            let all = |what: &str| -> Vec<Vec<f32>> {
                let name = format!("{base}.self.{what}.weight");
                hidden.iter().map(|x| product(name.clone(), x)).collect()
            };
            let [queries, keys, passed] = ["query", "key", "value"].map(all);
            let mut context = vec![vec![0.0; heads * size]; hidden.len()];
            for (head, distance) in looks[layer * heads..][..heads].iter().enumerate() {
                let part = head * size..(head + 1) * size;
                let mut share = 0.0;
                for (at, context) in context.iter_mut().enumerate() {
                    let query = &queries[at][part.clone()];
                    let weight = |key: &Vec<f32>| {
                        let pairs = query.iter().zip(&key[part.clone()]);
                        let dot: f32 = pairs.map(|(q, k)| q * k).sum();
                        (dot / (size as f32).sqrt()).exp()
                    };
                    let weights: Vec<f32> = keys.iter().map(weight).collect();
                    let total: f32 = weights.iter().sum();
                    for (weight, value) in weights.iter().zip(&passed) {
                        let sums = context[part.clone()].iter_mut();
                        for (sum, x) in sums.zip(&value[part.clone()]) {
                            *sum += weight / total * x;
                        }
                    }
                    if (10..90).contains(&at) {
                        share += weights[(at as i32 + distance) as usize] / total / 80.0;
                    }
                }
                // Beyond the first layer waves shrink by more or less, as words add up.
                let least = if layer == 0 { 0.8 } else { 0.6 };
                assert!(share > least, "{net}, layer {layer}, head {head}: {share}");
            }
            let square = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
            let (mut added, mut there) = (0.0, 0.0);
            for (x, context) in hidden.iter_mut().zip(&context) {
                let out = product(format!("{base}.output.dense.weight"), context);
                added += square(&out);
                there += square(x);
                *x = standard(sum(std::mem::take(x), out));
            }
            // Each head passes on about half of what is there.
            let each = added / there / heads as f32;
            assert!((0.25..0.75).contains(&each), "{net}, layer {layer}: {each}");
        }
    }
}

#[test]
fn what_cannot_begin_says_why() {
    let dir = TempDir::new().expect("a directory");
    let shards = corpus(dir.path());
    let open = |settings: &[&str]| PretrainJob::open(config(settings), &shards, None, None);
    let message = |job: Result<PretrainJob, JobError>| job.expect_err("an error").to_string();
    assert!(message(open(&["train_batch_size=100000"])).contains("too small for one batch"));
    assert!(message(open(&["adam_beta2=1"])).contains("adam_beta2"));
    let parts = format!("gradient_accumulation_steps={}", u64::MAX / 2);
    assert!(message(open(&[&parts])).contains("gradient_accumulation_steps"));
    let types = "model_hparam_overrides.type_vocab_size=1";
    assert!(message(open(&["examples=two_segments", types])).contains("type_vocab_size"));
    assert!(message(open(&["vocab_size=10"])).contains("vocab_size"));
    assert!(message(open(&["max_seq_length=1000"])).contains("position table"));
    assert!(message(open(&["max_seq_length=4"])).contains("at least 5"));
    let missing = PretrainJob::open(config(&[]), &dir.path().join("nowhere"), None, None);
    assert!(message(missing).contains("nowhere"));
}
