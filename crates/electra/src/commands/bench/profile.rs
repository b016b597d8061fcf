//! Where the time goes: work measured on a backend, or on a clock around it.

use super::measure::Repetition;
use super::report::{Speed, print, rounded};
use crate::device::Facts;
use anyhow::Result;
use electra_engine::backend::Backend;
use electra_engine::timed::{Phase, Timed};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Work on a backend that can be measured.
pub trait Measured {
    /// Warms up, calls `warm`, and times repetitions.
    fn measure<B: Backend>(
        &self,
        backend: &mut B,
        facts: &Facts,
        warm: impl FnOnce(&mut B),
    ) -> Result<Vec<Repetition>>;
}

/// Measures `work`; with `profile` also where its time goes.
pub fn measure<B: Backend>(
    work: &impl Measured,
    profile: bool,
    backend: &mut B,
    facts: &Facts,
) -> Result<Outcome> {
    if !profile {
        let repetitions = work.measure(backend, facts, |_| ())?;
        return Ok(Outcome {
            repetitions,
            profile: None,
        });
    }
    let mut timed = Timed::new(backend);
    let repetitions = work.measure(&mut timed, facts, Timed::reset)?;
    let profile = Profile::new(timed.phases(), &repetitions);
    Ok(Outcome {
        repetitions,
        profile: Some(profile),
    })
}

/// What was measured.
#[derive(Debug)]
pub struct Outcome {
    repetitions: Vec<Repetition>,
    profile: Option<Profile>,
}

impl Outcome {
    /// How fast it was.
    pub fn speed(&self) -> Speed {
        Speed::of(&self.repetitions)
    }

    /// Prints it: `fields` and all measures as JSON, or `name` and a line for people, with `rest`
    /// at its end.
    pub fn print(
        &self,
        json: bool,
        mut fields: Map<String, Value>,
        name: &str,
        rest: &str,
    ) -> Result<()> {
        let speed = self.speed();
        fields.insert("repetitions".into(), self.repetitions.len().into());
        speed.add_to(&mut fields);
        let mut line = format!("{name}: {}{rest}", speed.line());
        if let Some(profile) = &self.profile {
            fields.insert("phases".into(), profile.json());
            line += &profile.table();
        }
        print(json, fields, &line)
    }
}

/// Where the time of all repetitions went.
#[derive(Debug)]
struct Profile {
    phases: Vec<Phase>,
    seconds: f64,
    passes: usize,
}

impl Profile {
    /// From the phases that a clock added up over `repetitions`.
    fn new(phases: Vec<Phase>, repetitions: &[Repetition]) -> Self {
        Profile {
            phases,
            seconds: repetitions.iter().map(|r| r.seconds).sum(),
            passes: repetitions.iter().map(|r| r.passes).sum(),
        }
    }

    /// What lies outside all operators: batches, masks, bookkeeping.
    fn outside(&self) -> f64 {
        let inside: f64 = self.phases.iter().map(|p| p.time.as_secs_f64()).sum();
        (self.seconds - inside).max(0.0)
    }

    /// `[{operator, weight, calls, ms, share}]`, a pass; the longest first, the rest last.
    fn json(&self) -> Value {
        let passes = self.passes as f64;
        let row = |operator: &str, weight: Value, calls: f64, seconds: f64| {
            json!({
                "operator": operator, "weight": weight, "calls": rounded(calls),
                "ms": rounded(1e3 * seconds / passes), "share": rounded(seconds / self.seconds),
            })
        };
        let mut rows: Vec<Value> = self
            .phases
            .iter()
            .map(|p| {
                let weight = p.weight.map_or(Value::Null, |w| json!(w));
                let calls = p.calls as f64 / passes;
                row(p.operator, weight, calls, p.time.as_secs_f64())
            })
            .collect();
        rows.push(row("outside operators", Value::Null, 1.0, self.outside()));
        rows.into()
    }

    /// A table for people.
    fn table(&self) -> String {
        let passes = self.passes as f64;
        let mut table = String::new();
        let mut row = |name: &str, calls: f64, seconds: f64| {
            let (ms, share) = (1e3 * seconds / passes, 100.0 * seconds / self.seconds);
            let _ = write!(
                table,
                "\n  {share:5.1}%  {ms:10.3} ms  {calls:7.1} ×  {name}"
            );
        };
        for phase in &self.phases {
            let name = match phase.weight {
                Some([out, inputs]) => format!("{} {out}×{inputs}", phase.operator),
                None => phase.operator.to_owned(),
            };
            row(&name, phase.calls as f64 / passes, phase.time.as_secs_f64());
        }
        row("outside operators", 1.0, self.outside());
        table
    }
}
