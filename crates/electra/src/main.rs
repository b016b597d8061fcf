//! The `electra` command.

fn main() {}
