//! `electra quickstart`: the whole way on embedded text, in minutes.

use super::pretrain::Pretrain;
use super::{finetune, predict};
use crate::device::{DeviceArgs, Facts, Precision, Work, thread_count};
use crate::{embedded, interrupt};
use anyhow::{Context, Result, bail};
use electra_data::held_out::{HeldOut, HeldOutSet};
use electra_data::prepare::{PrepareOptions, prepare};
use electra_data::read::{Input, ReadOptions};
use electra_data::tasks::{OpenOptions, OwnTask, TaskKind, TaskSpec};
use electra_data::tokenizer::{MAX_POSITIONS, Tokenizer};
use electra_data::vocabulary::{VocabularyOptions, WordCounts};
use electra_data::words::Normalisation;
use electra_engine::backend::Backend;
use electra_engine::rng::{Purpose, Rng};
use electra_model::files::atomic::replace_file;
use electra_train::config::{Initialization, PretrainConfig};
use electra_train::finetune::config::FinetuneConfig;
use electra_train::finetune::job::FinetuneJob;
use electra_train::finetune::run::FinetuneOutcome;
use electra_train::finetune::task::TaskFiles;
use electra_train::interrupt::StopFlag;
use electra_train::job::PretrainJob;
use electra_train::metrics_log::{EvalMetrics, MetricsLine, read_metrics};
use electra_train::pretrain::Outcome;
use electra_train::run_dir::RunFile;
use electra_train::trainer::seconds_per_step;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train a vocabulary and a tiny ELECTRA on embedded text, show what it has learned, and fine-tune
/// it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Minutes that pre-training takes, about
    #[arg(long, default_value_t = 2.5)]
    minutes: f64,
    /// Directory for everything that is written
    #[arg(long, value_name = "DIR", default_value = "electra-quickstart")]
    out: PathBuf,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Entries of the vocabulary.
const VOCABULARY: usize = 8000;
/// Share of the chapters that is held out.
const HELD_OUT: f64 = 0.03;
/// Sampling temperature. Flatter samples are easier to tell from the text, so that minutes of training
/// teach more; at 1 the discriminator learns too, and less.
const TEMPERATURE: f64 = 2.0;
/// Decay of Adam's second moment: a run of minutes cannot wait a thousand steps for it.
const ADAM_BETA2: f64 = 0.98;
/// Evaluations over the run; one of them stands at a third.
const EVALUATIONS: u64 = 9;
/// Fewest steps that make a run.
const LEAST_STEPS: u64 = 9;

/// Runs the subcommand.
pub fn run(mut args: Args) -> Result<ExitCode> {
    // Time is short here, and what is shown does not hang on the last digits.
    args.device.precision.get_or_insert(Precision::Bf16);
    if !(args.minutes > 0.0 && args.minutes.is_finite()) {
        bail!("--minutes {}: must be above 0", args.minutes);
    }
    let at = |name: &str| args.out.join(name);
    let shown = args.out.display();
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {shown}"))?;
    let text = at("text.txt");
    if std::fs::read(&text).ok().as_deref() != Some(embedded::TEXT.as_bytes()) {
        // The text is what is written first: where anything else is, the directory is another's.
        refuse_foreign(&args.out)?;
        replace_file(&text, |file| file.write_all(embedded::TEXT.as_bytes()))?;
    }

    say(&format!(
        "1. vocabulary: {VOCABULARY} pieces from {} verses",
        verses()
    ));
    let inputs = [Input::File(text)];
    let tokenizer = vocabulary(&inputs, &at("tokenizer"))?;

    say("2. shards: the text as tokens");
    let prepared = prepare(
        &inputs,
        &tokenizer,
        &at("shards"),
        &PrepareOptions {
            threads: thread_count(args.device.threads)?,
            ..PrepareOptions::default()
        },
        &mut |_| (),
        &|| false,
    )?;
    tell!(
        "   {} documents, {} tokens",
        prepared.documents,
        prepared.tokens
    );

    let run_dir = at("run");
    let config = args.device.run(Plan {
        args: &args,
        shards: &at("shards"),
        run_dir: &run_dir,
    })?;
    say(&format!(
        "3. pre-training: {} steps; stop it with Ctrl-C and the same command goes on",
        config.num_train_steps
    ));
    let job = PretrainJob::open(config, &at("shards"), None, None)?;
    let flag = interrupt::stop_on_signals()?;
    let outcome = args.device.run(Pretrain {
        job: &job,
        out: &run_dir,
        resume_only: false,
        log_steps: (job.config.num_train_steps / 30).max(1),
        stop: &flag,
    })?;
    if let Outcome::Interrupted(step) = outcome {
        tell!("stopped after step {step}, with a checkpoint; the same command goes on");
        return Ok(interrupt::exit_code());
    }
    say("4. what it has learned");
    learned(&run_dir)?;
    detect(&args, &job)?;
    fill(&args)?;
    say("5. fine-tuning: which part of the book is a verse from?");
    if !fine_tune(&args, &job, &flag)? {
        tell!("stopped; the same command goes on");
        return Ok(interrupt::exit_code());
    }
    next_steps(&args.out)?;
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) {
    tell!("\n{line}");
}

fn verses() -> usize {
    embedded::TEXT
        .lines()
        .filter(|line| !line.is_empty())
        .count()
}

/// Trains the vocabulary, or loads the one of an earlier start.
fn vocabulary(inputs: &[Input], dir: &Path) -> Result<Tokenizer> {
    if dir.join("tokenizer_config.json").is_file() {
        return Ok(Tokenizer::load(dir, None)?);
    }
    let mut counts = WordCounts::new(Normalisation::UNCASED);
    counts.add_inputs(inputs, &ReadOptions::default(), &mut |_| ())?;
    let tokenizer = counts.train(&VocabularyOptions {
        size: VOCABULARY,
        min_frequency: 2,
    })?;
    tokenizer.save(dir, MAX_POSITIONS)?;
    Ok(tokenizer)
}

/// The settings; those of a run that is there already, otherwise with as many steps as fit into
/// the time on this machine.
struct Plan<'a> {
    args: &'a Args,
    shards: &'a Path,
    run_dir: &'a Path,
}

impl Work for Plan<'_> {
    const TRAINS: bool = true;
    type Output = PretrainConfig;

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<PretrainConfig> {
        let mut config = PretrainConfig::preset("tiny")?;
        config.seed = self.args.seed;
        config.held_out = HELD_OUT;
        config.temperature = TEMPERATURE;
        config.initialization = Initialization::Counts;
        config.adam_beta2 = ADAM_BETA2;
        for dropout in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
            config
                .model_hparam_overrides
                .insert(dropout.into(), 0.0.into());
        }
        let steps = match RunFile::read(self.run_dir) {
            Ok(run) => run.settings.get("num_train_steps").and_then(|v| v.as_u64()),
            Err(_) => None,
        };
        let steps = match steps {
            Some(steps) => {
                tell!(
                    "   {} holds a run of {steps} steps already: going on with it; for another give \
                     another --out",
                    self.run_dir.display()
                );
                steps
            }
            None => {
                let job = PretrainJob::open(config.clone(), self.shards, None, None)?;
                let seconds = seconds_per_step(backend, &job)?;
                ((self.args.minutes * 60.0 / seconds) as u64).max(LEAST_STEPS)
            }
        };
        // A third of the way is an evaluation's step.
        let steps = steps - steps % EVALUATIONS;
        config.num_train_steps = steps;
        config.num_warmup_steps = (steps / 10).max(1);
        config.eval_steps = steps / EVALUATIONS;
        config.save_checkpoints_steps = steps.div_ceil(4);
        Ok(config)
    }
}

/// Prints how well replaced tokens of held-out chapters are told from original ones.
fn learned(run_dir: &Path) -> Result<()> {
    let lines = read_metrics(&run_dir.join("metrics.jsonl"))?;
    let evaluations: Vec<EvalMetrics> = lines
        .into_iter()
        .filter_map(|line| match line {
            MetricsLine::Eval(metrics) => Some(metrics),
            MetricsLine::Step(_) | MetricsLine::Probe(_) => None,
        })
        .collect();
    let third = evaluations.get(EVALUATIONS as usize / 3 - 1);
    let (Some(third), Some(end)) = (third, evaluations.last()) else {
        return Ok(());
    };
    let value = |v: Option<f32>| v.map_or("–".to_owned(), |v| format!("{v:.3}"));
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "on held-out chapters    a third of the way    at the end"
    )?;
    for (name, third, end) in [
        ("RTD AUC", third.rtd_auc, end.rtd_auc),
        ("RTD loss", third.rtd_loss, end.rtd_loss),
        ("  knowing nothing", third.rtd_base, end.rtd_base),
        ("MLM loss", third.mlm_loss, end.mlm_loss),
        ("MLM accuracy", third.mlm_accuracy, end.mlm_accuracy),
    ] {
        writeln!(out, "{name:<24}{:<22}{}", value(third), value(end))?;
    }
    Ok(())
}

/// Refuses a directory that holds anything that can be seen.
fn refuse_foreign(out: &Path) -> Result<()> {
    let shown = out.display();
    for entry in std::fs::read_dir(out).with_context(|| format!("cannot read {shown}"))? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            bail!(
                "{shown}: holds {name}, and is not a directory of this quickstart; choose another \
                 with --out"
            );
        }
    }
    Ok(())
}

/// Shows the discriminator held-out verses in which one word was put in place of another.
fn detect(args: &Args, job: &PretrainJob) -> Result<()> {
    let verses = swapped_verses(job, 6)?;
    let path = args.out.join("swapped.txt");
    let texts: Vec<&str> = verses.iter().map(|v| v.text.as_str()).collect();
    std::fs::write(&path, texts.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nheld-out verses, one word of each put in place of another:"
    )?;
    for verse in &verses {
        writeln!(
            out,
            "  {} → {}: {}",
            verse.original, verse.put_in, verse.text
        )?;
    }
    drop(out);
    let model = args.out.join("run/discriminator");
    tell!(
        "\n$ electra predict --model {} --as detect --input {}",
        model.display(),
        path.display()
    );
    predict::run(predict::Args::detect(&model, &path, args.device.clone()))?;
    Ok(())
}

/// A verse with one word changed.
struct Swapped {
    text: String,
    original: String,
    put_in: String,
}

/// The first held-out verses of moderate length, one word of each replaced by a word of another.
fn swapped_verses(job: &PretrainJob, count: usize) -> Result<Vec<Swapped>> {
    let chapters: Vec<&str> = embedded::TEXT.split_terminator("\n\n").collect();
    let held_out = HeldOut::Fraction(job.config.held_out);
    let set = HeldOutSet::new(chapters.len() as u64, held_out, job.config.seed)?;
    let moderate = |verse: &&str| (8..16).contains(&verse.split(' ').count());
    let verses: Vec<&str> = (0..chapters.len())
        .filter(|&chapter| set.contains(chapter as u64))
        .flat_map(|chapter| chapters[chapter].lines().find(moderate))
        .collect();
    let rng = Rng::new(job.config.seed, 0);
    let place = |verse: usize, words: &[&str], draw: u32| -> usize {
        let long: Vec<usize> = (0..words.len())
            .filter(|&i| words[i].len() > 3 && words[i].chars().all(char::is_alphabetic))
            .collect();
        let pick = rng.below(
            long.len().max(1) as u64,
            Purpose::Test,
            0,
            verse as u32,
            draw,
            0,
        );
        long.get(pick as usize).copied().unwrap_or(0)
    };
    Ok((0..verses.len().min(count))
        .map(|i| {
            let mut words: Vec<&str> = verses[i].split(' ').collect();
            let at = place(i, &words, 0);
            let original = words[at].to_owned();
            // Draw again until the word is another.
            let mut donors = (1..verses.len()).map(|draw| {
                let donor: Vec<&str> = verses[(i + draw) % verses.len()].split(' ').collect();
                donor[place(i, &donor, draw as u32)]
            });
            let put_in = donors.find(|word| *word != original).unwrap_or_default();
            words[at] = put_in;
            Swapped {
                text: words.join(" "),
                original,
                put_in: put_in.to_owned(),
            }
        })
        .collect())
}

/// Shows the generator some masks.
fn fill(args: &Args) -> Result<()> {
    let path = args.out.join("masks.txt");
    let texts = "In the beginning God created the [MASK] and the earth.\n\
                 And the children of [MASK] did that which was evil in the sight of the LORD.\n\
                 Give [MASK] unto the LORD, for he is good.\n";
    std::fs::write(&path, texts).with_context(|| format!("cannot write {}", path.display()))?;
    let model = args.out.join("run/generator");
    tell!(
        "\n$ electra predict --model {} --as fill --input {}",
        model.display(),
        path.display()
    );
    predict::run(predict::Args::fill(&model, &path, args.device.clone()))?;
    Ok(())
}

/// The parts of the book, and how the first chapter of each begins.
const PARTS: [(&str, &str); 6] = [
    ("law", "In the beginning God"),
    ("history", "Now it came to pass after the death of Moses"),
    ("poetry", "There was a man in the land of Uz"),
    ("prophets", "The vision of Isaiah"),
    ("gospels", "The book of the generation"),
    ("letters", "Paul, a servant of Jesus Christ, called"),
];
/// Verses of each part to learn from.
const TRAIN_VERSES: usize = 500;
/// Held-out verses of each part to try it on, at the most.
const HELD_OUT_VERSES: usize = 150;

/// Fine-tunes the fresh encoder, and the same network from scratch, on which part of the book a
/// verse is from, and prints both accuracies. False if it was asked to stop.
fn fine_tune(args: &Args, job: &PretrainJob, stop: &StopFlag) -> Result<bool> {
    let (train, dev) = (args.out.join("train.tsv"), args.out.join("held-out.tsv"));
    write_parts(job, &train, &dev)?;
    let model = args.out.join("run/discriminator");
    let mut accuracies = Vec::new();
    for (name, scratch) in [("fine-tuned", false), ("from-scratch", true)] {
        let config = FinetuneConfig {
            seed: args.seed,
            learning_rate: Some(5e-4),
            train_batch_size: 16,
            num_train_epochs: Some(3.0),
            max_restarts: 0,
            ..FinetuneConfig::default()
        };
        let (start, tokenizer) = finetune::start(&model.display().to_string(), scratch)?;
        let files = TaskFiles {
            spec: TaskSpec::own(OwnTask::new("part", TaskKind::Classification))?,
            train: train.clone(),
            dev: Some(dev.clone()),
            open: OpenOptions::default(),
        };
        let task = FinetuneJob::open(config, start, tokenizer, vec![files])?;
        let outcome = args.device.run(finetune::Finetune {
            job: &task,
            out: &args.out.join(name),
            resume_only: false,
            log_steps: u64::MAX,
            stop,
        })?;
        match outcome {
            FinetuneOutcome::Finished(finished) => accuracies.push(finished.summary.best),
            FinetuneOutcome::Interrupted(_) => return Ok(false),
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nwhich of {} parts a held-out verse is from, accuracy after {} verses to learn from\n\
         pre-trained, then fine-tuned  {:.3}\n\
         the same from scratch         {:.3}",
        PARTS.len(),
        PARTS.len() * TRAIN_VERSES,
        accuracies[0],
        accuracies[1]
    )?;
    Ok(true)
}

/// Writes verses with the name of their part: of chapters that pre-training read, and of those
/// held out.
fn write_parts(job: &PretrainJob, train: &Path, dev: &Path) -> Result<()> {
    let chapters: Vec<&str> = embedded::TEXT.split_terminator("\n\n").collect();
    let held_out = HeldOut::Fraction(job.config.held_out);
    let set = HeldOutSet::new(chapters.len() as u64, held_out, job.config.seed)?;
    let mut first: Vec<usize> = Vec::new();
    for (_, beginning) in PARTS {
        let from = first.last().copied().unwrap_or(0);
        let found = chapters[from..]
            .iter()
            .position(|chapter| chapter.starts_with(beginning))
            .with_context(|| format!("no chapter of the text begins with {beginning:?}"))?;
        first.push(from + found);
    }
    first.push(chapters.len());
    for (path, wanted, count) in [(train, false, TRAIN_VERSES), (dev, true, HELD_OUT_VERSES)] {
        let mut text = String::from("text\tlabel\n");
        for (i, (name, _)) in PARTS.iter().enumerate() {
            let verses: Vec<&str> = (first[i]..first[i + 1])
                .filter(|&chapter| set.contains(chapter as u64) == wanted)
                .flat_map(|chapter| chapters[chapter].lines())
                .collect();
            // Evenly over the part, so that every book is there.
            let taken = count.min(verses.len());
            for k in 0..taken {
                text += &format!("{}\t{name}\n", verses[k * verses.len() / taken]);
            }
        }
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Says where everything is and how to go on with one's own text.
fn next_steps(out: &Path) -> Result<()> {
    let shown = out.display();
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "\ncurves, settings and sample detections: {shown}/run/report.html\n\
         models for transformers: {shown}/run/discriminator, {shown}/run/generator and\n\
         \x20 {shown}/fine-tuned, with a report of its own\n\
         \n\
         Now with your own text:\n\
         \x20 electra vocab    --input my.txt --size 30522 --out tokenizer\n\
         \x20 electra prepare  --input my.txt --tokenizer tokenizer --out shards\n\
         \x20 electra pretrain --preset small --data shards --out run\n\
         \x20 electra predict  --model run/discriminator --as detect --input some.txt"
    )?;
    Ok(())
}
