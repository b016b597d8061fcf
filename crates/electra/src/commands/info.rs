//! `electra info`: what a directory holds.

use super::corpus::{counted, grouped};
use super::{models, vocab};
use crate::device::{DeviceArgs, Facts, Work};
use anyhow::{Result, bail};
use electra_data::manifest::{MANIFEST, Manifest};
use electra_data::shards::{Corpus, read_manifest};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_engine::cpu::Isa;
use electra_engine::selftest::{self, Outcome};
use electra_model::files::info;
use electra_train::metrics_log::{MetricsLine, read_metrics};
use electra_train::run_dir::RunFile;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Say what a directory holds: a model, token shards, a tokenizer or a run; or what a device does
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory, or the name of a model on the hub [default: say what this machine is]
    #[arg(value_name = "DIR")]
    what: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List the devices of this machine
    #[arg(long, conflicts_with_all = ["what", "selftest"])]
    devices: bool,
    /// Check every operator, and a network in training, on the device against the plain form
    #[arg(long, conflicts_with = "what")]
    selftest: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A description, for programs and for people.
struct Description {
    object: Value,
    text: String,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let description = match &args.what {
        Some(what) => directory(&models::folder(what)?)?,
        None if args.devices => devices(),
        None if args.selftest => {
            let (description, passed) = args.device.run(SelfTest)?;
            if !passed {
                code = ExitCode::FAILURE;
            }
            description
        }
        None => machine(),
    };
    let mut stdout = std::io::stdout().lock();
    match args.json {
        true => writeln!(stdout, "{}", description.object)?,
        false => writeln!(stdout, "{}", description.text.trim_end())?,
    }
    Ok(code)
}

/// The checks of the engine, on a backend.
struct SelfTest;

impl Work for SelfTest {
    const TRAINS: bool = false;
    type Output = (Description, bool);

    fn run<B: Backend>(self, backend: &mut B, facts: &Facts) -> Result<Self::Output> {
        let start = std::time::Instant::now();
        let mut outcomes = selftest::run(backend, facts.selftest);
        backend.release_arrays();
        outcomes.extend(selftest::training::run(backend, facts.selftest));
        let seconds = start.elapsed().as_secs_f64();
        let failed: Vec<&Outcome> = outcomes.iter().filter(|o| !o.passed()).collect();
        let environment: Vec<String> = facts
            .environment
            .iter()
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        let mut text = format!("{}\n", environment.join(", "));
        for o in &failed {
            let (name, error, bound) = (&o.name, o.error, o.bound);
            let _ = writeln!(
                text,
                "  FAILED  {name}: error {error:.1e}, bound {bound:.0e}"
            );
        }
        // What came nearest to its bound, whether or not all is well.
        let share = |o: &Outcome| match o.bound {
            0.0 => 0.0,
            bound => o.error / bound,
        };
        let mut near: Vec<&Outcome> = outcomes.iter().filter(|o| o.passed()).collect();
        near.sort_by(|a, b| share(b).total_cmp(&share(a)));
        for o in near.iter().take(5) {
            let (name, error, bound) = (&o.name, o.error, o.bound);
            let _ = writeln!(
                text,
                "  nearest {name}: error {error:.1e}, bound {bound:.0e}"
            );
        }
        let (count, bad) = (outcomes.len(), failed.len());
        let _ = write!(
            text,
            "{} of {count} checks passed in {seconds:.1} s",
            count - bad
        );
        let all = outcomes
            .iter()
            .map(|o| {
                // JSON has no infinity.
                let error = o.error.is_finite().then_some(o.error);
                json!({ "name": o.name, "error": error, "bound": o.bound, "passed": o.passed() })
            })
            .collect::<Vec<_>>();
        let object = json!({
            "device": facts.environment.first().map(|(_, value)| value),
            "precision": facts.precision, "checks": count, "failed": bad, "seconds": seconds,
            "outcomes": all,
        });
        Ok((Description { object, text }, failed.is_empty()))
    }
}

/// The devices of this machine, and why there is none of a kind.
fn devices() -> Description {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let set = Isa::available()
        .first()
        .map_or("portable", |isa| isa.name());
    let mut text = format!("cpu     {cores} cores, {set}");
    #[cfg_attr(not(feature = "cuda"), allow(unused_mut))]
    let mut list = vec![json!({ "device": "cpu", "cores": cores, "instruction_set": set })];
    #[cfg(not(feature = "cuda"))]
    let cuda = Some("this electra was built without CUDA".to_owned());
    #[cfg(feature = "cuda")]
    let cuda = match electra_engine::cuda::devices() {
        Err(error) => Some(error.to_string()),
        Ok(devices) => {
            for d in &devices {
                let (major, minor) = d.capability;
                let gib = d.memory as f64 / (1u64 << 30) as f64;
                let _ = write!(
                    text,
                    "\ncuda:{}  {}, compute capability {major}.{minor}, {gib:.1} GiB, {} \
                     multiprocessors",
                    d.ordinal, d.name, d.multiprocessors
                );
                list.push(json!({
                    "device": format!("cuda:{}", d.ordinal), "name": d.name,
                    "compute_capability": format!("{major}.{minor}"), "memory_bytes": d.memory,
                    "multiprocessors": d.multiprocessors,
                }));
            }
            None
        }
    };
    if let Some(reason) = &cuda {
        let _ = write!(text, "\ncuda    none: {reason}");
    }
    Description {
        object: json!({ "devices": list, "no_cuda": cuda }),
        text,
    }
}

/// `object` with `holds` as its first key.
fn labelled(holds: &str, object: Value) -> Value {
    let mut labelled = Map::new();
    labelled.insert("holds".into(), holds.into());
    if let Value::Object(fields) = object {
        labelled.extend(fields);
    }
    Value::Object(labelled)
}

fn machine() -> Description {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sets: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let version = env!("CARGO_PKG_VERSION");
    Description {
        object: json!({ "version": version, "cores": cores, "instruction_sets": sets }),
        text: format!(
            "electra {version}\n  cores             {cores}\n  instruction sets  {}",
            sets.join(", ")
        ),
    }
}

fn directory(dir: &Path) -> Result<Description> {
    let has = |name: &str| dir.join(name).exists();
    if has("run.json") {
        return run_directory(dir);
    }
    if has(MANIFEST) {
        return shards(dir);
    }
    if has("config.json") {
        let info = info::describe(dir)?;
        return Ok(Description {
            object: labelled("model", serde_json::to_value(&info)?),
            text: info.to_string(),
        });
    }
    let path = dir.display();
    if has("parts/plan.json") {
        bail!(
            "{path} holds token shards in the making; run the same `electra prepare` to complete \
             them, or `electra prepare --merge` when all parts are done"
        );
    }
    if has("tokenizer.json") || has("vocab.txt") {
        let tokenizer = Tokenizer::load(dir, None)?;
        return Ok(Description {
            object: json!({
                "holds": "tokenizer", "path": dir, "vocab_size": tokenizer.vocab_size(),
                "lowercase": tokenizer.normalisation().lower_case, "hash": tokenizer.hash(),
            }),
            text: format!(
                "{path}\n  tokenizer   {}\n  hash        {}",
                vocab::describe(&tokenizer),
                tokenizer.hash()
            ),
        });
    }
    if dir.is_file() {
        bail!("{path} is a file; give the directory of a model, of token shards or of a run");
    }
    bail!(
        "{path} holds neither a model (config.json), nor token shards ({MANIFEST}), nor a \
         tokenizer (tokenizer.json or vocab.txt), nor a run (run.json)"
    )
}

fn shards(dir: &Path) -> Result<Description> {
    let Some(manifest) = read_manifest(dir)? else {
        bail!("{}: {MANIFEST} has gone", dir.display());
    };
    let mut problems = Vec::new();
    if let Err(error) = Corpus::open(dir).and_then(|corpus| corpus.verify()) {
        problems.push(error.to_string());
    }
    let tokenizer = dir.join(electra_data::manifest::TOKENIZER_DIR);
    let tokenizer = match Tokenizer::load(&tokenizer, None) {
        Ok(tokenizer) => {
            if tokenizer.hash() != manifest.plan.tokenizer_hash {
                problems.push(
                    "the tokenizer beside the shards is not the one they were made with".into(),
                );
            }
            vocab::describe(&tokenizer)
        }
        Err(error) => {
            problems.push(error.to_string());
            format!("{} entries", grouped(manifest.plan.vocab_size))
        }
    };
    Ok(Description {
        object: json!({
            "holds": "shards", "path": dir, "documents": manifest.documents,
            "lines": manifest.lines, "tokens": manifest.tokens,
            "shards": manifest.shards.len(), "bytes": bytes(&manifest),
            "vocab_size": manifest.plan.vocab_size,
            "tokenizer_hash": manifest.plan.tokenizer_hash,
            "plan": manifest.plan, "problems": problems,
        }),
        text: describe_shards(dir, &manifest, &tokenizer, &problems),
    })
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.shards.iter().map(|shard| shard.bytes).sum()
}

fn describe_shards(dir: &Path, m: &Manifest, tokenizer: &str, problems: &[String]) -> String {
    let plan = &m.plan;
    let names: Vec<&str> = plan
        .inputs
        .iter()
        .map(|i| i.name.as_str())
        .take(8)
        .collect();
    let more = match plan.inputs.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let mut text = format!(
        "{}\n  tokens      {} in {} of {}\n  files       {}, {:.1} MB\n  tokenizer   \
         {tokenizer}\n  made from   {}{more}\n",
        dir.display(),
        grouped(m.tokens),
        counted(m.lines, "line"),
        counted(m.documents, "document"),
        counted(m.shards.len() as u64, "shard"),
        bytes(m) as f64 / 1e6,
        names.join(", "),
    );
    add_problems(&mut text, problems);
    text
}

fn add_problems(text: &mut String, problems: &[String]) {
    text.push_str("  problems    ");
    if problems.is_empty() {
        text.push_str("none found");
    }
    for problem in problems {
        text.push_str("\n    - ");
        text.push_str(problem);
    }
}

fn run_directory(dir: &Path) -> Result<Description> {
    let run = RunFile::read(dir)?;
    let lines = read_metrics(&dir.join("metrics.jsonl"))?;
    let last_step = lines.iter().rev().find_map(|line| match line {
        MetricsLine::Step(step) => Some(step),
        MetricsLine::Eval(_) | MetricsLine::Probe(_) => None,
    });
    let last_eval = lines.iter().rev().find_map(|line| match line {
        MetricsLine::Eval(eval) => Some(eval),
        MetricsLine::Step(_) | MetricsLine::Probe(_) => None,
    });
    let checkpoint = last_checkpoint(&dir.join("checkpoints"));
    let total = run.settings.get("num_train_steps").and_then(Value::as_u64);
    let models: Vec<&str> = ["discriminator", "generator"]
        .into_iter()
        .filter(|name| dir.join(name).join("config.json").exists())
        .collect();
    let mut text = format!("{}\n  run of      electra {}", dir.display(), run.kind);
    let line = |text: &mut String, name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:<12}{value}");
    };
    let of_total = total.map_or(String::new(), |total| format!(" of {}", grouped(total)));
    let step = last_step.map_or(0, |line| line.step);
    line(&mut text, "steps", format!("{}{of_total}", grouped(step)));
    let saved = checkpoint.map_or("none yet".into(), |step| {
        format!("after step {}", grouped(step))
    });
    line(&mut text, "checkpoint", saved);
    if let Some(step) = last_step {
        line(&mut text, "last step", serde_json::to_string(step)?);
    }
    if let Some(eval) = last_eval {
        line(&mut text, "evaluation", serde_json::to_string(eval)?);
    }
    if !models.is_empty() {
        line(&mut text, "models", models.join(", "));
    }
    line(&mut text, "settings", String::new());
    for (key, value) in &run.settings {
        let _ = write!(text, "\n    {key} = {value}");
    }
    Ok(Description {
        object: json!({
            "holds": "run", "path": dir, "kind": run.kind,
            "electra_version": run.electra_version, "steps": step, "total_steps": total,
            "last_checkpoint": checkpoint, "last_step": last_step, "last_evaluation": last_eval,
            "models": models, "settings": run.settings,
        }),
        text,
    })
}

/// The step of the newest checkpoint. Only looks: a run may be at work in the directory.
fn last_checkpoint(dir: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(dir).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .max()
}
