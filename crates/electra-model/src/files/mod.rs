//! Model files: reading and writing what Hugging Face's tools read and write.

pub mod atomic;
