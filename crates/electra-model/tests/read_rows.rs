//! Of the last layer, only rows that a head reads are computed: the same as if all were, with dropout,
//! whose random numbers belong to a token and not to its place among these rows.

use electra_engine::backend::*;
use electra_engine::batch::PackedBatch;
use electra_engine::reference::Reference;
use electra_engine::rng::Rng;
use electra_model::config::ElectraConfig;
use electra_model::encoder::{EncoderArrays, EncoderInput};
use electra_model::generator::GeneratorArrays;
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::network::TaskNetwork;
use electra_model::heads::step::{Targets, TaskInput, TaskLoss, TaskOutput, TaskStep};
use electra_model::heads::{HeadKind, HeadSpec, HeadStyle};
use electra_model::init::initial_values;
use electra_model::pretraining::{
    MaskedInput, Objective, Pretraining, PretrainingStep, StepOptions,
};

type Be = Reference<f64>;

const RATE: f64 = 0.5;
const ROWS: [u32; 4] = [1, 2, 6, 10];
const FIRST_EXAMPLE: u32 = 3;

fn config() -> ElectraConfig {
    ElectraConfig {
        vocab_size: 30,
        embedding_size: 6,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 8,
        hidden_dropout_prob: RATE,
        attention_probs_dropout_prob: RATE,
        // Far from zero, so that what is dropped counts.
        initializer_range: 0.5,
        ..ElectraConfig::default()
    }
}

/// Sequences of 5, 2 and 4 tokens.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::new();
    for ids in [&[2, 7, 9, 4, 3][..], &[2, 3], &[2, 11, 29, 3]] {
        batch.push(ids, &vec![0; ids.len()]);
    }
    batch
}

/// Output and gradient of a step that tags some rows, of which those of [`ROWS`] have targets.
fn tag(rows: &[u32], checkpointing: bool) -> (TaskOutput, Vec<f32>) {
    let spec = HeadSpec {
        name: "tags".into(),
        kind: HeadKind::Tagging,
        style: HeadStyle::Hf,
        outputs: 3,
        crf: false,
        value_scale: 1.0,
        span_width: 0,
    };
    let mut network = TaskNetwork::new(&config(), &[spec]);
    network.encoder.checkpointing = checkpointing;
    let be = &mut Be::new();
    let params = be.params(&network.layout, &initial_values(&network.layout, 1));
    let (batch, options) = (batch(), ClassOptions::default());
    let target = |row: &u32| ROWS.contains(row).then_some(row % 3);
    let targets = Targets::Classes(rows.iter().map(target).collect());
    let mut grads = be.flat(network.layout.len());
    let output = TaskStep::for_training().run(
        be,
        &network,
        0,
        &params,
        &TaskInput {
            batch: &batch,
            rows,
            bounds: &[0, rows.len() as u32],
            first_example: FIRST_EXAMPLE,
        },
        Some(&TaskLoss {
            targets: &targets,
            options: &options,
            scale: 0.25,
        }),
        Some(&Rng::new(4, 2)),
        Some(&mut grads),
    );
    let mut gradient = vec![0.0; network.layout.len()];
    be.read_flat(&grads, &mut gradient);
    (output, gradient)
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 1e-3, "{largest:e}");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-6 * largest, "{a} is not {b}");
    }
}

#[test]
fn some_rows_of_a_task_are_as_if_all_were_read() {
    let all: Vec<u32> = (0..batch().tokens() as u32).collect();
    let (of_all, gradient_of_all) = tag(&all, false);
    let (of_some, gradient) = tag(&ROWS, false);
    let expected: Vec<f32> = ROWS
        .iter()
        .flat_map(|&row| of_all.logits[3 * row as usize..][..3].to_vec())
        .collect();
    assert_eq!(of_some.logits, expected);
    assert!((of_some.loss - of_all.loss).abs() < 1e-9);
    assert_close(&gradient, &gradient_of_all);
    let (again, computed_again) = tag(&ROWS, true);
    assert_eq!((again, computed_again), (of_some, gradient));
}

#[test]
fn masked_rows_of_the_generator_are_as_if_all_were_read() {
    let config = config();
    let networks = Pretraining::new(Objective::MaskedLm, &config, &config).unwrap();
    let generator = networks.generator.as_ref().unwrap();
    let be = &mut Be::new();
    let params = be.params(&networks.layout, &initial_values(&networks.layout, 1));
    let (batch, rng) = (batch(), Rng::new(4, 2));
    let (tokens, targets) = (batch.tokens(), [5, 8, 13, 21]);
    let sums = PretrainingStep::new().run(
        be,
        &networks,
        &params,
        &MaskedInput {
            batch: &batch,
            original_ids: &batch.token_ids,
            masked_rows: &ROWS,
            targets: &targets,
            first_example: FIRST_EXAMPLE,
        },
        &StepOptions {
            rng,
            dropout: true,
            replacements: None,
            temperature: 1.0,
            disallow_correct: false,
            mlm_scale: 1.0,
            rtd_scale: 1.0,
        },
        None,
        None,
    );

    // The whole encoder, then logits, by the parts.
    let mut upload = |values: &[u32]| {
        let ints = be.ints(values.len());
        be.write_ints(ints, values);
        ints
    };
    let lengths = batch.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize);
    let example: Vec<u32> = lengths
        .zip(FIRST_EXAMPLE..)
        .flat_map(|(length, example)| vec![example; length])
        .collect();
    let position_ids = upload(&batch.position_ids);
    let input = EncoderInput {
        token_ids: upload(&batch.token_ids),
        type_ids: upload(&batch.type_ids),
        position_ids,
        sequences: Sequences {
            cu_seqlens: upload(&batch.cu_seqlens),
            keys: RowKeys {
                example: upload(&example),
                position: position_ids,
            },
            longest: 5,
        },
    };
    let rows = upload(&ROWS);
    let mut whole = EncoderArrays::for_training(be, &generator.encoder, tokens);
    let arrays = GeneratorArrays::new(be, generator, whole.clone(), ROWS.len());
    let encoder = &generator.encoder;
    let hidden = encoder.forward(be, &params, &input, &mut whole, Some(&rng));
    let chosen = be.array(ROWS.len(), config.hidden_size);
    be.gather_rows(hidden, rows, chosen);
    let logits = be.array(ROWS.len(), config.vocab_size);
    generator.logits(be, &params, chosen, &arrays, logits);
    let mut expected = 0.0;
    for (logits, target) in be.load(logits).chunks(config.vocab_size).zip(targets) {
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        expected += sum.ln() - logits[target as usize];
    }
    assert!(
        (sums.mlm - expected).abs() < 1e-9,
        "{} is not {expected}",
        sums.mlm
    );
}
