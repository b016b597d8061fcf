//! A warmed-up step of pre-training allocates nothing on the CPU backend: counted by the allocator
//! of this program, and by the engine, whose buffers come from the system.

use electra_engine::backend::Backend;
use electra_engine::batch::PackedBatch;
use electra_engine::cpu::{Buffer, Cpu, CpuOptions, Precision};
use electra_engine::rng::Rng;
use electra_model::config::ElectraConfig;
use electra_model::init::initial_values;
use electra_model::pretraining::*;
use electra_train::optimizer::{OptimizerConfig, OptimizerKind, TrainingState};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often memory was asked for.
fn allocations() -> usize {
    COUNT.load(Ordering::Relaxed) + Buffer::made()
}

/// The system's allocator, and how often it was asked for memory.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A masked batch of sequences of these lengths.
struct Batch {
    packed: PackedBatch,
    original_ids: Vec<u32>,
    masked_rows: Vec<u32>,
    targets: Vec<u32>,
}

fn batch(lengths: &[usize]) -> Batch {
    let mut packed = PackedBatch::new();
    for &length in lengths {
        let ids: Vec<u32> = (0..length as u32).map(|i| 5 + i * 37 % 400).collect();
        packed.push(&ids, &vec![0; length]);
    }
    let original_ids = packed.token_ids.clone();
    let masked_rows: Vec<u32> = (0..packed.tokens() as u32).step_by(7).collect();
    let targets = masked_rows.iter().map(|&r| original_ids[r as usize]);
    let targets = targets.collect();
    for &row in &masked_rows {
        packed.token_ids[row as usize] = 4;
    }
    Batch {
        packed,
        original_ids,
        masked_rows,
        targets,
    }
}

#[test]
fn a_step_allocates_nothing() {
    let config = |hidden, layers| ElectraConfig {
        vocab_size: 500,
        embedding_size: 32,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        intermediate_size: 2 * hidden,
        ..ElectraConfig::default()
    };
    let objective = Objective::ReplacedTokens(Sharing::Embeddings);
    let networks =
        Pretraining::new(objective, &config(32, 2), &config(64, 3)).expect("a pair that fits");
    // The largest batch comes first; one of more sequences but fewer tokens follows.
    let batches = [batch(&[100, 64, 3, 90]), batch(&[30, 1, 80, 50])];
    // A thread's memory grows at the first tasks of a kind that it happens to take: on one thread
    // in the first four steps, which see every kind; on two some time later, but not for ever.
    for (precision, kind, threads, most) in [
        (Precision::F32, OptimizerKind::AdamW, 1, 8),
        (Precision::F32, OptimizerKind::Lamb, 1, 8),
        (Precision::Bf16, OptimizerKind::AdamW, 1, 8),
        (Precision::Bf16, OptimizerKind::AdamW, 2, 200),
    ] {
        let optimizer = OptimizerConfig {
            kind,
            ..OptimizerConfig::default()
        };
        let mut cpu = Cpu::new(CpuOptions {
            threads: Some(threads),
            precision,
            isa: None,
        })
        .expect("the best instruction set");
        let values = initial_values(&networks.layout, 1);
        let mut state = TrainingState::new(&mut cpu, &networks.layout, &values);
        let mut step = PretrainingStep::new();
        let mut quiet = 0;
        for index in 0..most {
            let before = allocations();
            let batch = &batches[index % 2];
            let input = MaskedInput {
                batch: &batch.packed,
                original_ids: &batch.original_ids,
                masked_rows: &batch.masked_rows,
                targets: &batch.targets,
                first_example: 0,
            };
            let options = StepOptions {
                rng: Rng::new(1, index as u64),
                dropout: true,
                replacements: None,
                temperature: [1.0, 2.0][index / 2 % 2],
                disallow_correct: index / 2 % 2 == 1,
                mlm_scale: 0.01,
                rtd_scale: 0.1,
            };
            let (params, grads) = (&state.params, &mut state.grads);
            cpu.zero_flat(grads);
            let grads = Some(grads);
            let sums = step.run(&mut cpu, &networks, params, &input, &options, grads, None);
            assert!(sums.mlm.is_finite() && sums.rtd.is_finite());
            let norm = state.gradient_norm(&mut cpu).norm;
            state.step(&mut cpu, &optimizer, norm, 1e-3);
            let made = allocations() - before;
            quiet = if made == 0 { quiet + 1 } else { 0 };
            if quiet == 4 {
                break;
            }
        }
        assert_eq!(
            quiet, 4,
            "{precision:?}, {kind:?}, {threads} threads: of {most} steps, the last {quiet} allocated nothing"
        );
    }
}
