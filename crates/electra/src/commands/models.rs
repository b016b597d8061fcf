//! Models by folder or by hub name.

use anyhow::Result;
use electra_model::files::hub::{Download, HubSettings, resolve};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;

/// The folder of the model that `name` stands for, fetched from the hub if need be, with progress
/// on stderr.
pub fn folder(name: &str) -> Result<PathBuf> {
    if std::path::Path::new(name).exists() {
        return Ok(name.into());
    }
    let settings = HubSettings::from_env()?;
    let mut shown = Downloads::default();
    let folder = resolve(name, &settings, &mut |download| shown.show(&download));
    shown.finish();
    Ok(folder?)
}

/// Downloads as they go: a bar each on a terminal, a line each elsewhere.
#[derive(Default)]
struct Downloads {
    file: String,
    bar: Option<ProgressBar>,
}

impl Downloads {
    fn show(&mut self, download: &Download) {
        if self.file != download.file {
            self.finish();
            self.file = download.file.to_owned();
            if std::io::stderr().is_terminal() {
                let bar = ProgressBar::new(download.total).with_message(self.file.clone());
                let template = "{msg} {bar:20.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("━╸─"));
                }
                self.bar = Some(bar);
            } else {
                let megabytes = download.total as f64 / 1e6;
                tell!("fetching {} ({megabytes:.1} MB)", self.file);
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(download.total);
            bar.set_position(download.done);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
