//! Trains a vocabulary and times it.
//!
//! `cargo run --release -p electra-data --example train_vocabulary -- SIZE OUT INPUT...`

use std::path::Path;
use std::time::Instant;

use electra_data::read::{ReadOptions, expand};
use electra_data::vocabulary::{VocabularyOptions, WordCounts};
use electra_data::words::Normalisation;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [size, out, inputs @ ..] = arguments.as_slice() else {
        return Err("arguments: SIZE OUT INPUT...".into());
    };
    let start = Instant::now();
    let mut counts = WordCounts::new(Normalisation::UNCASED);
    counts.add_inputs(&expand(inputs)?, &ReadOptions::default(), &mut |_| ())?;
    println!("counted in {:.2} s", start.elapsed().as_secs_f64());
    let tokenizer = counts.train(&VocabularyOptions {
        size: size.parse()?,
        min_frequency: 2,
    })?;
    tokenizer.save(Path::new(out), electra_data::tokenizer::MAX_POSITIONS)?;
    println!(
        "{} entries in {:.2} s",
        tokenizer.vocab_size(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
