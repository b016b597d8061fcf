//! Milliseconds from the files of a discriminator, in the system's cache, to its first answer, and
//! where they go: the least of many.
//!
//! `cargo run --release -p electra-model --example measure_load -- DIR [f32|bf16|int8] [THREADS]`

use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Cpu, CpuOptions, Precision};
use electra_model::files::ModelDir;
use electra_model::inference::{Detector, DetectorWorkspace};
use std::error::Error;
use std::time::Instant;

const RUNS: usize = 30;
const TOKENS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("which directory?")?;
    let precision = match arguments.next().as_deref() {
        None | Some("f32") => Precision::F32,
        Some("bf16") => Precision::Bf16,
        Some("int8") => Precision::Int8,
        Some(other) => return Err(format!("{other} is no precision").into()),
    };
    let threads = arguments.next().map(|n| n.parse()).transpose()?;
    let mut least = [f64::INFINITY; 4];
    for _ in 0..RUNS {
        let mut backend = Cpu::new(CpuOptions {
            threads,
            precision,
            isa: None,
        })?;
        let start = Instant::now();
        let opened = ModelDir::open(&dir)?;
        let open = start.elapsed();
        let model = Detector::load(&mut backend, &opened)?;
        let load = start.elapsed();
        let mut batch = PackedBatch::new();
        batch.push(&[2; TOKENS], &[0; TOKENS]);
        let mut workspace = DetectorWorkspace::default();
        let answer = model.logits(&mut backend, &mut workspace, &batch)?;
        let all = start.elapsed();
        std::hint::black_box(answer);
        for (least, time) in least.iter_mut().zip([open, load - open, all - load, all]) {
            *least = least.min(time.as_secs_f64() * 1e3);
        }
    }
    let [open, load, answer, all] = least;
    println!(
        "open {open:.1} ms, load {load:.1} ms, pack and answer {answer:.1} ms, all {all:.1} ms"
    );
    Ok(())
}
