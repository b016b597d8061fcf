//! Model files: reading and writing what Hugging Face's tools read and write.

pub mod atomic;
mod dtype;
mod error;
mod export;
pub mod hub;
#[cfg(feature = "hub")]
mod hub_fetch;
pub mod info;
mod kind;
mod mapped;
mod model_dir;
mod pickle;
mod pickle_values;
mod pytorch;
mod quantization;
mod safetensors_file;
mod sharded;
mod tensors;
mod tokenizer_facts;

pub use dtype::Dtype;
pub use error::FileError;
pub use export::{StoredAs, export};
pub use kind::ModelKind;
pub use model_dir::{LoadReport, ModelDir, TOKENIZER_FILES, WEIGHT_FILES, Wanted, write_model_dir};
pub use quantization::Quantization;
pub use safetensors_file::{NamedTensor, write_safetensors};
pub use tensors::TensorFile;
