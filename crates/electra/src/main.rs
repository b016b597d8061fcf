//! The `electra` command: one file a subcommand.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly,
//! 130 interrupted (after a checkpoint).

/// Writes a line to stderr. Where nobody reads that any more, the work goes on.
macro_rules! tell {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arguments)*);
    }};
}

mod commands;
mod device;
mod embedded;
mod interrupt;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// ELECTRA: pre-train an encoder by replaced token detection and use it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(commands::quickstart::Args),
    Vocab(commands::vocab::Args),
    Prepare(commands::prepare::Args),
    Pretrain(commands::pretrain::Args),
    Finetune(commands::finetune::Args),
    Evaluate(commands::evaluate::Args),
    Predict(commands::predict::Args),
    Export(commands::export::Args),
    Info(commands::info::Args),
    Bench(commands::bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Quickstart(args) => commands::quickstart::run(args),
        Command::Vocab(args) => commands::vocab::run(args),
        Command::Prepare(args) => commands::prepare::run(args),
        Command::Pretrain(args) => commands::pretrain::run(args),
        Command::Finetune(args) => commands::finetune::run(args),
        Command::Evaluate(args) => commands::evaluate::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Bench(args) => commands::bench::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// The chain of causes in one line, none of them twice.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether whoever read our output has gone, as `head` does: no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
