//! The inputs' stamps beside finished shards: they save a rerun from reading its inputs, and no
//! more. Without them it compares contents.

use std::fs;
use std::path::Path;

use crate::read::identity::Stamp;

/// Hidden: it is no part of what was prepared, and differs from machine to machine.
const STAMPS: &str = ".inputs.json";

/// The stamps of the inputs, in order; none where they are not known.
pub(super) fn read(out: &Path) -> Vec<Option<Stamp>> {
    let text = fs::read(out.join(STAMPS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Writes them, if that is possible.
pub(super) fn write(out: &Path, stamps: &[Option<Stamp>]) {
    if let Ok(text) = serde_json::to_vec(stamps) {
        let _ = fs::write(out.join(STAMPS), text);
    }
}
