//! Packed batches out of examples: each is a function of a cursor into the endless sequence of
//! epochs, so that a run can be taken up anywhere.

use std::sync::Arc;

use electra_engine::batch::PackedBatch;

use crate::examples::{ExampleError, Examples};
use crate::order::Order;

/// How much a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// This many sequences.
    Sequences(usize),
    /// As many sequences as come to at most this many tokens, special ones included.
    Tokens(usize),
}

/// A batch and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The sequences.
    pub packed: PackedBatch,
    /// The number of each sequence's example.
    pub examples: Vec<u64>,
    /// The cursor of the batch that follows.
    pub next: u64,
}

/// Makes batches.
#[derive(Clone, Debug)]
pub struct Loader {
    examples: Arc<Examples>,
    order: Order,
    size: BatchSize,
}

impl Loader {
    /// A loader of batches for training: every one is full.
    ///
    /// # Errors
    /// A corpus too small for one batch; a token budget below the longest example.
    pub fn new(
        examples: Arc<Examples>,
        order: Order,
        size: BatchSize,
    ) -> Result<Self, ExampleError> {
        let (have, need, unit) = match size {
            BatchSize::Sequences(n) => (examples.len(), n as u64, "examples"),
            BatchSize::Tokens(n) => (examples.tokens(), n as u64, "tokens"),
        };
        if have < need.max(1) {
            return Err(ExampleError::TooSmall { have, need, unit });
        }
        Self::for_pass(examples, order, size)
    }

    /// A loader for passes over few examples, such as those held out: batches may be short.
    ///
    /// # Errors
    /// No example at all; a token budget below the longest example.
    pub fn for_pass(
        examples: Arc<Examples>,
        order: Order,
        size: BatchSize,
    ) -> Result<Self, ExampleError> {
        if examples.is_empty() {
            return Err(ExampleError::TooSmall {
                have: 0,
                need: 1,
                unit: "examples",
            });
        }
        match size {
            BatchSize::Tokens(budget) if budget < examples.longest() => Err(ExampleError::Budget {
                budget,
                max_seq_length: examples.longest(),
            }),
            _ => Ok(Loader {
                examples,
                order,
                size,
            }),
        }
    }

    /// The examples.
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// The batch at `cursor`; epochs follow each other without a seam.
    ///
    /// # Errors
    /// A token that the vocabulary does not have.
    pub fn batch(&self, cursor: u64) -> Result<Batch, ExampleError> {
        self.batch_until(cursor, u64::MAX)
    }

    /// The batch at `cursor`, which ends before place `end` at the latest. For one pass go from 0
    /// to [`Examples::len`].
    ///
    /// # Errors
    /// A token that the vocabulary does not have.
    pub fn batch_until(&self, cursor: u64, end: u64) -> Result<Batch, ExampleError> {
        let mut batch = Batch {
            packed: PackedBatch::new(),
            examples: Vec::new(),
            next: cursor,
        };
        while batch.next < end {
            let example = self.order.example(batch.next, self.examples.len());
            let full = match self.size {
                BatchSize::Sequences(n) => batch.examples.len() >= n.max(1),
                BatchSize::Tokens(n) => batch.packed.tokens() + self.examples.length(example)? > n,
            };
            if full {
                break;
            }
            self.examples.append(example, &mut batch.packed)?;
            batch.examples.push(example);
            batch.next += 1;
        }
        Ok(batch)
    }
}
