//! The subcommands.

pub mod bench;
mod corpus;
pub mod evaluate;
pub mod export;
pub mod finetune;
pub mod info;
mod models;
pub mod predict;
pub mod prepare;
pub mod pretrain;
mod prompt;
pub mod quickstart;
mod task;
pub mod vocab;
