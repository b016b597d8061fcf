//! The subcommands.

pub mod pretrain;
