//! ELECTRA networks, their parameters and their files.

pub mod config;
pub mod discriminator;
pub mod encoder;
pub mod files;
pub mod flops;
pub mod generator;
pub mod heads;
pub mod inference;
pub mod init;
pub mod pretraining;
pub mod sensitivity;
