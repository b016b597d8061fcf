//! Blocks: the stream of documents of each input, cut by its content.

use crate::read::{Input, PieceEnd, ReadError, ReadOptions, Reader};

use super::plan::Job;

/// Bytes of text of a block, as far as pieces allow.
const BLOCK: usize = 1 << 20;

/// About a megabyte of text.
pub(super) struct Block {
    /// Number of the input.
    pub(super) input: u32,
    /// Number of the block in it.
    pub(super) index: u32,
    /// The pieces, end to end.
    pub(super) text: String,
    /// Where each piece ends in `text`, and what it ends.
    pub(super) ends: Vec<(usize, PieceEnd)>,
}

/// Reads the blocks of one part in order.
pub(super) struct BlockReader<'a> {
    job: &'a Job,
    part: u32,
    inputs: &'a [Input],
    options: &'a ReadOptions,
    /// The last block that is done already.
    done: Option<(u32, u32)>,
    input: usize,
    reader: Option<Reader>,
    block: u32,
    invalid_utf8: u64,
}

impl<'a> BlockReader<'a> {
    pub(super) fn new(
        job: &'a Job,
        part: u32,
        inputs: &'a [Input],
        options: &'a ReadOptions,
        done: Option<(u32, u32)>,
    ) -> Self {
        BlockReader {
            job,
            part,
            inputs,
            options,
            done,
            input: 0,
            reader: None,
            block: 0,
            invalid_utf8: 0,
        }
    }

    /// Inputs gone through.
    pub(super) fn inputs_done(&self) -> u64 {
        self.input as u64
    }

    /// Invalid UTF-8 sequences read over.
    pub(super) fn invalid_utf8(&self) -> u64 {
        self.invalid_utf8 + self.reader.as_ref().map_or(0, Reader::invalid_utf8)
    }

    /// The next block of the part that is not done; `None` at the end of the inputs.
    pub(super) fn next(&mut self) -> Result<Option<Block>, ReadError> {
        let mut text = String::new();
        let mut ends = Vec::new();
        while self.input < self.inputs.len() {
            let Some(reader) = &mut self.reader else {
                let skipped = self
                    .done
                    .is_some_and(|(input, _)| (self.input as u32) < input);
                if skipped || !self.job.touches(self.input, self.part) {
                    self.input += 1;
                } else {
                    self.reader = Some(Reader::open(&self.inputs[self.input], self.options)?);
                    self.block = 0;
                }
                continue;
            };
            text.clear();
            ends.clear();
            let mut more = true;
            while text.len() < BLOCK && more {
                match reader.piece(&mut text)? {
                    Some(end) => ends.push((text.len(), end)),
                    None => more = false,
                }
            }
            let (input, index) = (self.input as u32, self.block);
            self.block += 1;
            if !more {
                self.invalid_utf8 += reader.invalid_utf8();
                self.reader = None;
                self.input += 1;
            }
            let wanted = !ends.is_empty()
                && self.job.owner(input as usize, index) == self.part
                && self.done.is_none_or(|done| done < (input, index));
            if wanted {
                return Ok(Some(Block {
                    input,
                    index,
                    text,
                    ends,
                }));
            }
        }
        Ok(None)
    }
}
