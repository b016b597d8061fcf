//! The text that the binary carries, for a first run without any download.

/// The American Standard Version of 1901: a chapter a document, a verse a line.
pub const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/asv.txt"));
