//! What fine-tuned models say: `--as classify`, `tag`, `answer`, `choose` and `embed`.
//!
//! Examples come from a stream, a chunk at a time, and answers leave in the same order, so that a
//! file of any size takes the same memory.

use super::answer::AnswerQuestions;
use super::choose::Choose;
use super::classify::Classify;
use super::embed::Embed;
use super::lines::Lines;
use super::tag::Tag;
use super::{Args, Long, Task, TaskArgs, input_of};
use crate::commands::evaluate::spec_of;
use crate::device::{Facts, Work};
use anyhow::{Context, Result, bail};
use electra_data::tasks::submission::{TASKS, file_name, server_labels};
use electra_data::tasks::{
    Example, Examples, FeatureCounts, FeatureOptions, Features, Featurizer, Input, LabelColumn,
    LabelSet, OpenOptions, Place, TaskKind, TaskSpec,
};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_model::files::ModelDir;
use electra_model::files::atomic::replace_file;
use electra_model::heads::{HeadKind, HeadStyle};
use electra_train::finetune::model::{ModelTask, TaskModel};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Examples of a task's file that are taken at once.
const CHUNK: usize = 256;
/// Tokens of a sequence at the most, of a model that does not say.
const LONGEST: usize = 512;
/// Tokens from one window to the next, of a model that does not say.
const DOC_STRIDE: usize = 128;
/// Tokens of a question.
const MAX_QUERY_LENGTH: usize = 64;

/// A model with all that its answers need.
pub struct Session<'a, B: Backend> {
    /// The model on the device.
    pub model: TaskModel<B>,
    /// Number of its head.
    pub head: usize,
    /// What the head predicts.
    pub kind: HeadKind,
    /// Whether a conditional random field decides.
    pub crf: bool,
    /// Makes features of examples.
    pub featurizer: Featurizer,
    /// The task of the input file, where it is one's.
    pub spec: Option<TaskSpec>,
    /// Options of the command.
    pub args: &'a Args,
    /// Tokens that are computed at once.
    pub batch_tokens: usize,
    counts: FeatureCounts,
}

impl<B: Backend> Session<'_, B> {
    /// Names of the labels by number.
    pub fn labels(&self) -> &LabelSet {
        self.featurizer.labels()
    }

    /// Options of fine-tuned models.
    pub fn options(&self) -> &TaskArgs {
        &self.args.task_args
    }

    /// What the network sees of examples, one run of features each.
    ///
    /// # Errors
    /// A text that is too long where that was to be an error.
    pub fn features(&mut self, examples: &[Example]) -> Result<Vec<Features>> {
        let mut all = Vec::with_capacity(examples.len());
        for (number, example) in examples.iter().enumerate() {
            let cut = self.counts.truncated;
            all.extend(
                self.featurizer
                    .features(number, example, &mut self.counts)?,
            );
            if self.args.long == Some(Long::Error) && self.counts.truncated > cut {
                bail!(
                    "{}: longer than the {} tokens that the model takes; shorten the text, or \
                     leave out --long error",
                    example.place,
                    self.featurizer.options().max_seq_length
                );
            }
        }
        Ok(all)
    }

    /// Where what is done to make examples fit is counted.
    pub fn counts(&mut self) -> (&Featurizer, &mut FeatureCounts) {
        (&self.featurizer, &mut self.counts)
    }
}

/// Answers about examples.
pub trait Answerer<B: Backend> {
    /// Writes the answers about `examples`, in order.
    fn answer(
        &mut self,
        backend: &mut B,
        session: &mut Session<B>,
        examples: &[Example],
        out: &mut dyn Write,
    ) -> Result<()>;
    /// Writes what stands after the last.
    fn finish(&mut self, _: &mut dyn Write) -> Result<()> {
        Ok(())
    }
}

/// Runs `predict` for a fine-tuned model.
pub fn run(args: &Args, dir: &ModelDir, tokenizer: Tokenizer) -> Result<()> {
    let task = match args.task {
        Task::Embed => None,
        _ => Some(ModelTask::find(dir, args.task_args.task_name.as_deref())?),
    };
    if let Some(task) = &task {
        require_kind(args.task, task.entry.head.kind)?;
    }
    let given = &args.task_args;
    let file = given.task_name.is_some() || given.columns.kind.is_some();
    if file && args.input.is_none() {
        bail!("--task and --kind say how a file is read: give it with --input");
    }
    let spec = match &task {
        Some(task) if file => Some(spec_of(task, given.task_name.as_deref(), &given.columns)?),
        _ => None,
    };
    if given.submission.is_some() && spec.is_none() {
        bail!("--submission is for a test file of a task: give --task and --input");
    }
    let submission = match (&given.submission, &spec) {
        (Some(Some(dir)), Some(spec)) => Some(submission_file(dir, spec, args)?),
        _ => None,
    };
    let options = feature_options(args, dir, task.as_ref())?;
    let labels = match (&task, &spec) {
        (Some(task), Some(spec)) => task.labels(spec)?,
        (Some(task), None) => LabelSet::new(task.entry.labels.clone())?,
        (None, _) => LabelSet::new(Vec::new())?,
    };
    let labels = match &spec {
        Some(spec) if given.submission.is_some() => server_labels(spec, &labels)?,
        _ => labels,
    };
    let kind = task
        .as_ref()
        .map_or(HeadKind::Classification, |t| t.entry.head.kind);
    let featurizer = Featurizer::new(task_kind(kind), tokenizer, labels, options)?;
    let input = match &spec {
        Some(spec) => {
            let path = args.input.clone().unwrap_or_default();
            let open = OpenOptions {
                every_row: given.submission.is_some(),
                ..given.columns.open(LabelColumn::Optional)
            };
            Source::File(Box::new(Examples::open(spec, &path, open)?))
        }
        None => {
            let (name, input) = input_of(args)?;
            Source::Lines(
                Lines::new(input, name.clone(), args.task_args.columns.lossy),
                Path::new(&name).into(),
            )
        }
    };
    args.device.run(Answers {
        args,
        dir,
        head: task.as_ref().map_or(0, |task| task.head),
        crf: task.is_some_and(|task| task.entry.head.crf),
        kind,
        featurizer,
        spec,
        submission,
        input,
    })
}

/// The file for the predictions of a task in `dir`, which is made if its name ends like one.
fn submission_file(dir: &Path, spec: &TaskSpec, args: &Args) -> Result<PathBuf> {
    let Some(name) = file_name(&spec.name, args.input.as_deref().unwrap_or(dir)) else {
        bail!(
            "--submission is for GLUE's tasks ({}), and {} is none",
            TASKS.join(" "),
            spec.name
        );
    };
    if !dir.is_dir() {
        if !dir
            .to_string_lossy()
            .ends_with(['/', std::path::MAIN_SEPARATOR])
        {
            bail!(
                "--submission {0}: no such directory; {0}/ makes it",
                dir.display()
            );
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(dir.join(name))
}

/// The kind of task whose head this is.
fn task_kind(kind: HeadKind) -> TaskKind {
    match kind {
        HeadKind::Classification => TaskKind::Classification,
        HeadKind::MultiLabel => TaskKind::MultiLabel,
        HeadKind::Regression => TaskKind::Regression,
        HeadKind::Tagging => TaskKind::Tagging,
        HeadKind::QuestionAnswering => TaskKind::QuestionAnswering,
        HeadKind::MultipleChoice => TaskKind::MultipleChoice,
    }
}

fn require_kind(task: Task, kind: HeadKind) -> Result<()> {
    use HeadKind::*;
    let (fits, name) = match kind {
        Classification | MultiLabel | Regression => (task == Task::Classify, "classify"),
        Tagging => (task == Task::Tag, "tag"),
        QuestionAnswering => (task == Task::Answer, "answer"),
        MultipleChoice => (task == Task::Choose, "choose"),
    };
    if !fits {
        bail!("the model's head is for --as {name}");
    }
    Ok(())
}

fn feature_options(
    args: &Args,
    dir: &ModelDir,
    task: Option<&ModelTask>,
) -> Result<FeatureOptions> {
    let given = &args.task_args;
    let tuned = task.and_then(|task| task.spec.as_ref());
    let positions = dir.config().max_position_embeddings;
    if given.max_seq_length.is_some_and(|n| n > positions) {
        bail!("--max-seq-length is more than the model's {positions} positions");
    }
    if args.long == Some(Long::Window) && !matches!(args.task, Task::Tag | Task::Answer) {
        bail!("--long window is for detect, fill, tag and answer");
    }
    let length = given
        .max_seq_length
        .or(tuned.map(|spec| spec.max_seq_length));
    let stride = given.doc_stride.or(tuned.map(|spec| spec.doc_stride));
    let length = length.unwrap_or(LONGEST).min(positions);
    let google = |task: &ModelTask| task.entry.head.style == HeadStyle::Google;
    Ok(FeatureOptions {
        tagged_segment: u32::from(task.is_some_and(google)),
        max_seq_length: length,
        doc_stride: stride.unwrap_or(DOC_STRIDE),
        max_query_length: MAX_QUERY_LENGTH.min(length / 2),
        overflow: Default::default(),
        training: false,
    })
}

enum Source {
    File(Box<Examples>),
    Lines(Lines<Box<dyn Read>>, Arc<Path>),
}

struct Answers<'a> {
    args: &'a Args,
    dir: &'a ModelDir,
    head: usize,
    kind: HeadKind,
    crf: bool,
    featurizer: Featurizer,
    spec: Option<TaskSpec>,
    /// Where a submission goes, if not to standard output.
    submission: Option<PathBuf>,
    input: Source,
}

impl Work for Answers<'_> {
    const TRAINS: bool = false;
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B, _: &Facts) -> Result<()> {
        let args = self.args;
        let model = match args.task {
            Task::Embed => TaskModel::load_encoder(backend, self.dir)?,
            _ => TaskModel::load(backend, self.dir)?,
        };
        let mut session = Session {
            model,
            head: self.head,
            kind: self.kind,
            crf: self.crf,
            featurizer: self.featurizer,
            spec: self.spec,
            args,
            batch_tokens: args.batch_size.get().saturating_mul(super::TOKENS_A_TEXT),
            counts: FeatureCounts::default(),
        };
        let mut answerer: Box<dyn Answerer<B>> = match args.task {
            Task::Tag => Box::new(Tag),
            Task::Answer => Box::new(AnswerQuestions),
            Task::Choose => Box::new(Choose),
            Task::Embed => Box::new(Embed),
            Task::Classify | Task::Detect | Task::Fill => Box::new(Classify::default()),
        };
        let mut input = self.input;
        let mut lines = Vec::new();
        let mut stdout = BufWriter::new(std::io::stdout().lock());
        let out: &mut dyn Write = match self.submission {
            Some(_) => &mut lines,
            None => &mut stdout,
        };
        let mut number = 0;
        loop {
            let mut examples = Vec::new();
            // What stands before a bad line is answered.
            let read = input.chunk(&mut examples, args, &mut number);
            answerer.answer(backend, &mut session, &examples, out)?;
            out.flush()?;
            if !read? {
                break;
            }
        }
        answerer.finish(out)?;
        out.flush()?;
        if let Some(path) = &self.submission {
            replace_file(path, |file| file.write_all(&lines))?;
            tell!("wrote {}", path.display());
        }
        if number == 0 {
            tell!("warning: the input is empty");
        }
        for note in session.counts.notes() {
            tell!("warning: {note}");
        }
        input.warn();
        Ok(())
    }
}

impl Source {
    /// Appends some examples; false at the end.
    fn chunk(
        &mut self,
        examples: &mut Vec<Example>,
        args: &Args,
        number: &mut u64,
    ) -> Result<bool> {
        match self {
            Source::File(file) => {
                for example in file.take(CHUNK) {
                    examples.push(example?);
                    *number += 1;
                }
                Ok(examples.len() == CHUNK)
            }
            Source::Lines(lines, path) => {
                let mut texts = Vec::new();
                let read = lines.chunk(&mut texts);
                for text in texts {
                    *number += 1;
                    let place = Place {
                        path: path.clone(),
                        line: *number,
                    };
                    examples.push(example_of(text, place, args)?);
                }
                read
            }
        }
    }

    fn warn(&self) {
        match self {
            Source::File(file) => {
                if let Some(note) = file.header_note(&[]) {
                    tell!("{note}");
                }
                if file.incomplete() > 0 {
                    tell!(
                        "warning: {} rows lack a text; what is said of them is said of the texts \
                         that they have",
                        file.incomplete()
                    );
                }
                if file.skipped() > 0 {
                    tell!(
                        "warning: {} rows were left out as incomplete",
                        file.skipped()
                    );
                }
                if file.invalid_utf8() > 0 {
                    tell!("warning: {} lines had invalid UTF-8", file.invalid_utf8());
                }
            }
            Source::Lines(lines, _) => {
                crate::commands::corpus::report_invalid(lines.invalid_utf8());
            }
        }
    }
}

/// The example of a line: its texts are divided by tabs.
fn example_of(line: String, place: Place, args: &Args) -> Result<Example> {
    let two = |what: &str| -> Result<(String, String)> {
        match line.split_once('\t') {
            Some((first, second)) => Ok((first.to_owned(), second.to_owned())),
            None => bail!("{place}: no tab; expected {what}"),
        }
    };
    let input = match args.task {
        Task::Answer => {
            let (question, context) = two("a question, a tab and the text")?;
            Input::Question {
                title: "".into(),
                question,
                context: context.into(),
            }
        }
        Task::Choose => {
            let (first, choices) = two("a beginning and what may follow it, divided by tabs")?;
            let choices: Vec<String> = choices.split('\t').map(String::from).collect();
            Input::Choices { first, choices }
        }
        Task::Classify if args.task_args.pair => {
            let (first, second) = two("two texts with a tab between them")?;
            Input::Text {
                first,
                second: Some(second),
            }
        }
        _ => Input::Text {
            first: line,
            second: None,
        },
    };
    Ok(Example {
        id: (place.line - 1).to_string(),
        place,
        input,
        gold: None,
    })
}
