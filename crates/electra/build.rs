//! Takes the American Standard Version out of `bible-lib`, which cannot be built with one
//! translation alone, so that the binary carries that one and no other: a chapter a document, a
//! verse a line, a blank line between chapters.

use bible_lib::{Bible, Translation};
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let bible = Bible::new(Translation::AmericanStandard).expect("an embedded translation");
    let mut text = String::new();
    for book in bible.get_sorted_books() {
        let mut chapters: Vec<_> = bible.verses[&book].iter().collect();
        chapters.sort_by_key(|(number, _)| **number);
        for (_, verses) in chapters {
            let mut verses: Vec<_> = verses.iter().collect();
            verses.sort_by_key(|(number, _)| **number);
            for (_, verse) in verses {
                text.push_str(verse);
                text.push('\n');
            }
            text.push('\n');
        }
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("asv.txt"), text).expect("OUT_DIR is writable");
}
