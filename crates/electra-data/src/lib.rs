//! Text to packed batches.
//!
//! The way of the data, one module a step:
//!
//! - [`read`]: documents out of `.txt`, `.jsonl`, `.csv`, `.tsv` and `.parquet`, compressed or not,
//!   streamed in bounded memory;
//! - [`tokenizer`]: BERT WordPiece, loaded from or trained for Hugging Face's files;
//!   [`words`] and [`wordpiece`] are its fast path for whole corpora, [`vocabulary`] trains one;
//! - [`prepare`]: documents to token [`shards`], on all cores, restartable, byte-identical however
//!   the work is split;
//! - [`examples`]: examples by number over the shards, at any length, held-out documents apart;
//! - [`order`]: a shuffle that needs no memory;
//! - [`cooccurrence`]: frequencies and vectors of tokens, for parameters to begin with;
//! - [`loader`]: packed batches that are a function of a cursor;
//! - [`masking`]: dynamic masking of a batch;
//! - [`tasks`]: labelled examples for fine-tuning;
//! - [`metrics`]: scores of predictions.

pub mod cooccurrence;
pub mod examples;
pub mod held_out;
pub mod loader;
pub mod manifest;
pub mod masking;
pub mod metrics;
pub mod order;
pub mod prepare;
pub mod read;
pub mod shards;
pub mod tasks;
pub mod tokenizer;
pub mod vocabulary;
pub mod wordpiece;
pub mod words;
