//! `electra bench`: how fast, beside what the same cores could do at best. One file a subject.

mod batches;
mod finetune;
mod gemm;
mod infer;
mod load;
mod made_up;
mod measure;
mod one_layer;
mod operators;
mod prepare;
mod profile;
mod report;
mod train;

use crate::interrupt;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Measure speed on this machine, beside the multiply-add rate of the same threads
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    Gemm(gemm::Args),
    Operators(operators::Args),
    Infer(infer::Args),
    Train(train::Args),
    Finetune(finetune::Args),
    Prepare(prepare::Args),
    Load(load::Args),
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let stop = interrupt::stop_on_signals()?;
    let done = match args.subject {
        Subject::Gemm(args) => gemm::run(args, &stop),
        Subject::Operators(args) => operators::run(args, &stop),
        Subject::Infer(args) => infer::run(args, &stop),
        Subject::Train(args) => train::run(args, &stop),
        Subject::Finetune(args) => finetune::run(args, &stop),
        Subject::Prepare(args) => prepare::run(args, &stop),
        Subject::Load(args) => load::run(args, &stop),
    };
    match done {
        Err(error) if error.is::<measure::Interrupted>() => {
            tell!("{error}");
            Ok(interrupt::exit_code())
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}
