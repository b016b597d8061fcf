//! Measures `prepare`: text per second and peak memory.
//!
//! `cargo run --release -p electra-data --example measure_prepare -- TOKENIZER OUT THREADS INPUT...`

use std::path::Path;
use std::time::Instant;

use electra_data::prepare::{PrepareOptions, prepare};
use electra_data::read::expand;
use electra_data::shards::Corpus;
use electra_data::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, out, threads, inputs @ ..] = arguments.as_slice() else {
        return Err("arguments: TOKENIZER OUT THREADS INPUT...".into());
    };
    let tokenizer = Tokenizer::load(Path::new(tokenizer), None)?;
    let options = PrepareOptions {
        threads: threads.parse()?,
        ..Default::default()
    };
    let start = Instant::now();
    let report = prepare(
        &expand(inputs)?,
        &tokenizer,
        Path::new(out),
        &options,
        &mut |_| {},
        &|| false,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{report:?}");
    println!(
        "{seconds:.2} s, {:.1} MB of text a second",
        report.text_bytes as f64 / 1e6 / seconds
    );
    let start = Instant::now();
    Corpus::open(Path::new(out))?.verify()?;
    println!("verified in {:.2} s", start.elapsed().as_secs_f64());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("peak memory: {}", line.trim_start_matches("VmHWM:").trim());
    }
    Ok(())
}
