//! The subcommands.

pub mod bench;
mod corpus;
pub mod export;
pub mod info;
mod models;
pub mod predict;
pub mod prepare;
pub mod pretrain;
pub mod quickstart;
pub mod vocab;
