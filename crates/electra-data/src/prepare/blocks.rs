//! Blocks: the stream of documents of each input, cut by its content.

use std::sync::atomic::Ordering::Relaxed;

use crate::read::identity::{Content, Halt, Stamp};
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

/// What the reader of a part comes upon.
pub(super) enum Item {
    /// The blocks of an input begin, which has this stamp.
    Begun(u32, Option<Stamp>),
    Block(Block),
    /// The blocks of an input have ended.
    Read(u32, Content),
}

/// Where a part goes on: the input, and the last block of it that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resume {
    pub(super) input: u32,
    pub(super) block: Option<u32>,
}

/// Reads the blocks of one part in order.
pub(super) struct BlockReader<'a> {
    job: &'a Job,
    part: u32,
    inputs: &'a [Input],
    options: &'a ReadOptions,
    resume: Resume,
    halt: Halt,
    input: usize,
    reader: Option<Reader>,
    /// No piece of the open reader is left.
    used_up: bool,
    block: u32,
    invalid_utf8: u64,
}

impl<'a> BlockReader<'a> {
    pub(super) fn new(
        job: &'a Job,
        part: u32,
        inputs: &'a [Input],
        options: &'a ReadOptions,
        resume: Resume,
        halt: Halt,
    ) -> Self {
        BlockReader {
            job,
            part,
            inputs,
            options,
            resume,
            halt,
            input: resume.input as usize,
            reader: None,
            used_up: false,
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

    /// The next item of the part that is not done; `None` at the end of the inputs.
    pub(super) fn next(&mut self) -> Result<Option<Item>, ReadError> {
        let mut text = String::new();
        let mut ends = Vec::new();
        while self.input < self.inputs.len() {
            let input = self.input as u32;
            let Some(reader) = &mut self.reader else {
                if !self.job.touches(self.input, self.part) {
                    self.input += 1;
                    continue;
                }
                let reader =
                    Reader::open_until(&self.inputs[self.input], self.options, &self.halt)?;
                let begun = Item::Begun(input, reader.stamp().cloned());
                self.reader = Some(reader);
                (self.used_up, self.block) = (false, 0);
                return Ok(Some(begun));
            };
            if self.used_up {
                self.invalid_utf8 += reader.invalid_utf8();
                self.input += 1;
                let reader = self.reader.take();
                match reader
                    .map(|reader| reader.content(&self.halt))
                    .transpose()?
                {
                    Some(Some(content)) => return Ok(Some(Item::Read(input, content))),
                    // Standard input, or halted, which the next item does not get past either.
                    _ if self.halt.load(Relaxed) => return Ok(None),
                    _ => continue,
                }
            }
            text.clear();
            ends.clear();
            while text.len() < BLOCK && !self.used_up {
                match reader.piece(&mut text)? {
                    Some(end) => ends.push((text.len(), end)),
                    None => self.used_up = true,
                }
            }
            let index = self.block;
            self.block += 1;
            let done = input == self.resume.input && self.resume.block.is_some_and(|b| index <= b);
            let wanted =
                !ends.is_empty() && !done && self.job.owner(self.input, index) == self.part;
            if wanted {
                return Ok(Some(Item::Block(Block {
                    input,
                    index,
                    text,
                    ends,
                })));
            }
        }
        Ok(None)
    }
}
