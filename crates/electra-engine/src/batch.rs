//! The packed batch: every sequence laid end to end, with no padding.

/// A flat run of `T` tokens made of `S` sequences.
///
/// Token `t` of sequence `s` stands at `cu_seqlens[s] + t`; `cu_seqlens` has `S + 1` entries,
/// the first 0 and the last `T`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// `[T]` vocabulary ids.
    pub token_ids: Vec<u32>,
    /// `[T]` position of each token in its own sequence.
    pub position_ids: Vec<u32>,
    /// `[T]` segment of each token, 0 or 1.
    pub type_ids: Vec<u32>,
    /// `[S + 1]` start of each sequence, and the end of the last.
    pub cu_seqlens: Vec<u32>,
}

impl PackedBatch {
    /// A batch without sequences.
    pub fn new() -> Self {
        PackedBatch {
            cu_seqlens: vec![0],
            ..Default::default()
        }
    }

    /// Removes every sequence and keeps the memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.position_ids.clear();
        self.type_ids.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
    }

    /// Appends one sequence; positions count from 0. `token_ids` and `type_ids` have one length.
    pub fn push(&mut self, token_ids: &[u32], type_ids: &[u32]) {
        assert_eq!(token_ids.len(), type_ids.len());
        self.token_ids.extend_from_slice(token_ids);
        self.type_ids.extend_from_slice(type_ids);
        self.position_ids.extend(0..token_ids.len() as u32);
        self.cu_seqlens.push(self.token_ids.len() as u32);
    }

    /// Number of tokens, `T`.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of sequences, `S`.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The rows of sequence `s` in the flat run.
    pub fn rows(&self, s: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[s] as usize..self.cu_seqlens[s + 1] as usize
    }
}
