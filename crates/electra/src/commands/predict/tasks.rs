//! What fine-tuned models say: `--as classify`, `tag`, `answer`, `choose` and `embed`.
//!
//! Examples come from a stream, a chunk at a time, and answers leave in the same order, so that a
//! file of any size takes the same memory.

use super::answer::AnswerQuestions;
use super::choose::Choose;
use super::classify::Classify;
use super::embed::Embed;
use super::source::Source;
use super::tag::Tag;
use super::{Args, Long, Task, TaskArgs};
use crate::commands::evaluate::{other_task, spec_of};
use crate::device::{Facts, Work};
use anyhow::{Context, Result, bail};
use electra_data::tasks::submission::{Submission, file_name, server_labels};
use electra_data::tasks::{
    Example, FeatureCounts, FeatureOptions, Features, Featurizer, LabelSet, TaskKind, TaskSpec,
};
use electra_data::tokenizer::Tokenizer;
use electra_engine::backend::Backend;
use electra_model::files::ModelDir;
use electra_model::files::atomic::replace_file;
use electra_model::heads::{HeadKind, HeadStyle};
use electra_train::finetune::model::{ModelTask, TaskModel};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
    /// Whether questions may have no answer.
    pub unanswerable: bool,
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

    /// Refuses a text of more than one window where that was to be an error.
    pub fn check_long(&self, example: &Example, windows: usize) -> Result<()> {
        if self.args.long == Some(Long::Error) && windows > 1 {
            bail!(
                "{}: longer than the {} tokens that the model takes; shorten the text, or leave out \
                 --long error",
                example.place,
                self.featurizer.options().max_seq_length
            );
        }
        Ok(())
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
        _ => Some(ModelTask::find(
            dir,
            args.task_args.task_name.as_deref(),
            |kind| asked(kind).0 == args.task,
        )?),
    };
    if let Some(task) = &task {
        let (fits, name) = asked(task.entry.head.kind);
        if fits != args.task {
            bail!("the model's head is for --as {name}");
        }
    }
    let given = &args.task_args;
    let file = given.is_file()?;
    let name = given.task_name.as_deref();
    if let (Some(name), Some(task)) = (name, &task)
        && (!file || given.submission.is_some())
        && let Some(tuned) = other_task(task, name)
    {
        bail!("the model has no head for {name}: its task is {tuned}");
    }
    let spec = match &task {
        _ if !file => None,
        Some(task) => Some(spec_of(task, name, &given.columns)?),
        None => Some(embedded_spec(dir, name, given)?),
    };
    if given.submission.is_some() && spec.is_none() {
        bail!("--submission is for a test file of a task: give --task and --input");
    }
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
    let submission = match (&given.submission, &spec) {
        (Some(Some(dir)), Some(spec)) => Some(submission_file(dir, spec, args)?),
        _ => None,
    };
    let kind = task
        .as_ref()
        .map_or(HeadKind::Classification, |t| t.entry.head.kind);
    let featurizer = Featurizer::new(task_kind(kind), tokenizer, labels, options)?;
    let tuned = task.as_ref().and_then(|task| task.spec.as_ref());
    let pairs = given.pair || tuned.is_some_and(TaskSpec::takes_pairs);
    let input = Source::open(args, spec.as_ref(), pairs)?;
    args.device.run(Answers {
        unanswerable: given.null_answer
            || spec
                .as_ref()
                .or(tuned)
                .is_some_and(|spec| spec.unanswerable),
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

/// The task of a file whose texts become vectors: by name or kind, else the model's own.
fn embedded_spec(dir: &ModelDir, name: Option<&str>, given: &TaskArgs) -> Result<TaskSpec> {
    let spec = match ModelTask::find(dir, name, |_| true) {
        Ok(task) => spec_of(&task, name, &given.columns)?,
        Err(_) => given.columns.task(name.unwrap_or("own"))?,
    };
    match spec.kind {
        TaskKind::Classification | TaskKind::MultiLabel | TaskKind::Regression => Ok(spec),
        kind => bail!(
            "--as embed is for texts and pairs, and {} is a task of {kind:?}",
            spec.name
        ),
    }
}

/// The file for the predictions of a task in `dir`, which is made if its name ends like one.
fn submission_file(dir: &Path, spec: &TaskSpec, args: &Args) -> Result<PathBuf> {
    let test_file = args.input.as_deref().unwrap_or(dir);
    let name = file_name(&spec.name, test_file).context("no task of GLUE's")?;
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

/// What a head is asked for, and how that is called.
fn asked(kind: HeadKind) -> (Task, &'static str) {
    match kind {
        HeadKind::Classification | HeadKind::MultiLabel | HeadKind::Regression => {
            (Task::Classify, "classify")
        }
        HeadKind::Tagging => (Task::Tag, "tag"),
        HeadKind::QuestionAnswering => (Task::Answer, "answer"),
        HeadKind::MultipleChoice => (Task::Choose, "choose"),
    }
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
    if args.long == Some(Long::Truncate) && matches!(args.task, Task::Tag | Task::Answer) {
        bail!("--long truncate is for the others: tag and answer look at all of a text");
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

struct Answers<'a> {
    args: &'a Args,
    dir: &'a ModelDir,
    head: usize,
    kind: HeadKind,
    crf: bool,
    featurizer: Featurizer,
    spec: Option<TaskSpec>,
    unanswerable: bool,
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
            unanswerable: self.unanswerable,
            args,
            batch_tokens: args.batch_size.get().saturating_mul(super::TOKENS_A_TEXT),
            counts: FeatureCounts::default(),
        };
        let mut input = self.input;
        let mut lines = Vec::new();
        let mut stdout = BufWriter::new(std::io::stdout().lock());
        let out: &mut dyn Write = match self.submission {
            Some(_) => &mut lines,
            None => &mut stdout,
        };
        let mut answerer: Box<dyn Answerer<B>> = match args.task {
            Task::Tag => Box::new(Tag),
            Task::Answer => Box::new(AnswerQuestions),
            Task::Choose => Box::new(Choose),
            Task::Embed => Box::new(Embed),
            Task::Classify | Task::Detect | Task::Fill => {
                let spec = session.spec.as_ref();
                let asked = args.task_args.submission.is_some();
                let submission = spec.filter(|_| asked).map(Submission::new);
                Box::new(Classify::begin(submission, out)?)
            }
        };
        loop {
            let mut examples = Vec::new();
            // What stands before a bad line is answered.
            let read = input.chunk(&mut examples, args.task);
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
        for note in session.counts.notes() {
            tell!("warning: {note}");
        }
        input.warn();
        Ok(())
    }
}
