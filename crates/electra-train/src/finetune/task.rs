//! A task of a fine-tuning run: its files, labels and features, and what they decide of its head.

use super::config::{ClassWeights, FinetuneConfig};
use super::job::FinetuneJobError;
use super::score::WORD_METRICS;
use electra_data::tasks::{
    Example, FeatureCounts, FeatureOptions, Features, Featurizer, Gold, Input, LabelColumn,
    LabelSet, Metric, OpenOptions, Target, TaskError, TaskKind, TaskSpec, hold_out,
    question::Windows,
    tagging::{Scheme, of_entities},
};
use electra_data::tokenizer::Tokenizer;
use electra_model::heads::files::TaskEntry;
use electra_model::heads::losses::ClassOptions;
use electra_model::heads::{HeadKind, HeadSpec, HeadStyle, joint_span};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A task and its files.
#[derive(Clone, Debug)]
pub struct TaskFiles {
    /// What it is.
    pub spec: TaskSpec,
    /// Labelled examples to learn from.
    pub train: PathBuf,
    /// Labelled examples to choose the best model by; without, a part of `train` is held out.
    pub dev: Option<PathBuf>,
    /// How the files are read.
    pub open: OpenOptions,
}

/// Share of the training data that is held out where there is no development data.
const HELD_OUT: f64 = 0.1;
/// Examples to choose the best model by that are too few for that.
const FEW: usize = 20;

/// A task with its data.
#[derive(Debug)]
pub struct Task {
    /// What it is.
    pub spec: TaskSpec,
    /// Its head, labels and settings, as they stand in the model's directory.
    pub entry: TaskEntry,
    /// Labels by number.
    pub labels: LabelSet,
    /// Weights and smoothing of its classes.
    pub class_options: ClassOptions,
    /// To learn from.
    pub train: Vec<Features>,
    /// Class of each training example, where it has one: what `shots` counts.
    pub train_classes: Vec<Option<u32>>,
    /// To choose by: as read.
    pub dev_examples: Vec<Example>,
    /// To choose by: as the network sees it.
    pub dev: Vec<Features>,
    /// Of questions: the windows that `dev` is made of, an example each.
    pub dev_windows: Vec<Windows>,
    /// What was done to fit the data, a line each.
    pub notes: Vec<String>,
    /// What identifies the examples of each file: equal for equal ones.
    pub fingerprints: Map<String, Value>,
}

/// The kind of head that a kind of task has.
pub fn head_kind(kind: TaskKind) -> HeadKind {
    match kind {
        TaskKind::Classification => HeadKind::Classification,
        TaskKind::MultiLabel => HeadKind::MultiLabel,
        TaskKind::Regression => HeadKind::Regression,
        TaskKind::Tagging => HeadKind::Tagging,
        TaskKind::QuestionAnswering => HeadKind::QuestionAnswering,
        TaskKind::MultipleChoice => HeadKind::MultipleChoice,
    }
}

/// Reads examples; says under `name` in `fingerprints` what they are.
fn read(
    spec: &TaskSpec,
    path: &Path,
    open: OpenOptions,
    (name, fingerprints): (&str, &mut Map<String, Value>),
    notes: &mut Vec<String>,
) -> Result<Vec<Example>, TaskError> {
    let mut fingerprint = blake3::Hasher::new();
    let mut reader = electra_data::tasks::Examples::open(spec, path, open)?;
    let mut examples = Vec::new();
    for example in &mut reader {
        let example = example?;
        fingerprint.update(format!("{:?}{:?}", example.input, example.gold).as_bytes());
        examples.push(example);
    }
    reader.not_empty(&examples)?;
    let fingerprint = fingerprint.finalize().to_hex().to_string();
    fingerprints.insert(name.into(), fingerprint.into());
    notes.extend(
        reader
            .header_note(&examples)
            .filter(|note| !notes.contains(note)),
    );
    for (count, what) in [
        (reader.skipped(), "rows were left out as incomplete"),
        (
            reader.surplus(),
            "rows have more cells than the first; these are not read",
        ),
        (reader.invalid_utf8(), "lines have invalid UTF-8, replaced"),
    ] {
        if count > 0 {
            notes.push(format!("{}: {count} {what}", path.display()));
        }
    }
    Ok(examples)
}

/// Reads a task's files, finds its labels and makes its features, for a model of so many
/// `positions`.
///
/// # Errors
/// Data that cannot be read or learned from, or that the hyper-parameters do not fit.
pub(super) fn open(
    config: &FinetuneConfig,
    positions: usize,
    tokenizer: &Tokenizer,
    files: TaskFiles,
) -> Result<Task, FinetuneJobError> {
    let TaskFiles {
        mut spec,
        train,
        dev,
        open,
    } = files;
    let mut notes = Vec::new();
    let open = OpenOptions {
        labels: LabelColumn::Required,
        ..open
    };
    let mut fingerprints = Map::new();
    let of_train = ("train", &mut fingerprints);
    let mut train_examples = read(&spec, &train, open, of_train, &mut notes)?;
    let dev_examples = match &dev {
        Some(path) => read(&spec, path, open, ("dev", &mut fingerprints), &mut notes)?,
        None => {
            let split = hold_out(train_examples, HELD_OUT, 0)?;
            train_examples = split.train;
            let held = split.held_out.len();
            let mut note = format!(
                "{}: no development file is given; {held} examples of the training file are held out",
                spec.name,
            );
            if held < FEW {
                note = format!("warning: {note}: scores of so few say little");
            }
            if split.last_of_label > 0 {
                note += &format!(
                    ", and {} that would be stay, so that no label is missing from training",
                    split.last_of_label
                );
            }
            notes.push(note);
            split.held_out
        }
    };
    spec.max_seq_length = config.max_seq_length.unwrap_or(spec.max_seq_length);
    spec.doc_stride = config.doc_stride.unwrap_or(spec.doc_stride);
    if spec.max_seq_length > positions {
        match config.max_seq_length {
            Some(given) => {
                return Err(FinetuneJobError::Options(format!(
                    "max_seq_length is {given}, but the model has {positions} positions"
                )));
            }
            None => spec.max_seq_length = positions,
        }
    }
    let mut labels = LabelSet::of_training(&spec, &train_examples, Scheme::default())?;
    if spec.kind == TaskKind::Tagging {
        if of_entities(labels.names()) {
            labels = LabelSet::new(with_whole_scheme(&spec, labels.names()))?;
        } else {
            check_tags(&spec, &labels, &train_examples, &mut notes)?;
            // Parts of speech and their like are labels of words; there are no entities to score.
            spec.metrics = vec![Metric::Accuracy];
            spec.best = Metric::Accuracy;
            let numbers = labels.names().iter().all(|tag| tag.parse::<u64>().is_ok());
            if numbers {
                notes.push(format!(
                    "warning: {}: the tags are numbers; without names such as B-PER and I-PER only \
                     the accuracy of words can be reported",
                    spec.name
                ));
            }
            if let Some(metric) = config.metric.filter(|m| !WORD_METRICS.contains(m)) {
                let known = WORD_METRICS.map(Metric::name).join(", ");
                return Err(FinetuneJobError::Options(format!(
                    "metric {} is none of words, and the tags of {} are not of entities: they have \
                     no B- and I-; choose one of {known}",
                    metric.name(),
                    spec.name
                )));
            }
        }
    }
    if let Some(metric) = config
        .metric
        .filter(|metric| !spec.metrics.contains(metric))
    {
        spec.metrics.push(metric);
    }
    labels.check_development(&dev_examples)?;
    let kind = head_kind(spec.kind);
    let head = HeadSpec {
        name: spec.name.clone(),
        kind,
        style: config.head,
        outputs: match kind {
            HeadKind::Regression | HeadKind::MultipleChoice => 1,
            HeadKind::QuestionAnswering => 2,
            _ => labels.len(),
        },
        crf: config.crf && kind == HeadKind::Tagging,
        value_scale: match (config.head, spec.range) {
            (HeadStyle::Google, Some((0, most))) if most > 0 => most as f32,
            _ => 1.0,
        },
        span_width: joint_span::WIDTH,
    };
    if config.crf && kind != HeadKind::Tagging {
        return Err(FinetuneJobError::Options(format!(
            "crf is for tagging, and {} is not",
            spec.name
        )));
    }
    let options = FeatureOptions {
        training: true,
        ..feature_options(&spec, &head)
    };
    if spec.unordered && config.doubles_unordered() {
        double_unordered(&mut train_examples);
        notes.push(format!(
            "{}: every pair is learned from both ways round",
            spec.name
        ));
    }
    let (mut train_notes, mut dev_notes) = (Vec::new(), Vec::new());
    let (train_features, _) = features_of(
        &spec,
        tokenizer,
        &labels,
        &train_examples,
        options.clone(),
        &mut train_notes,
    )?;
    notes.extend(
        train_notes
            .into_iter()
            .map(|note| format!("{note} (training)")),
    );
    let options = FeatureOptions {
        training: false,
        ..options
    };
    let (dev, dev_windows) = features_of(
        &spec,
        tokenizer,
        &labels,
        &dev_examples,
        options,
        &mut dev_notes,
    )?;
    notes.extend(
        dev_notes
            .into_iter()
            .map(|note| format!("{note} (development)")),
    );
    let train_classes: Vec<Option<u32>> = train_features
        .iter()
        .map(|f| match &f.target {
            Some(Target::Class(class)) if kind == HeadKind::Classification => Some(*class),
            _ => None,
        })
        .collect();
    if let Some(shots) = config.shots {
        notes.extend(too_few(&spec.name, &labels, &train_classes, shots));
    }
    if config.label_smoothing > 0.0 && !has_classes(&head) {
        return Err(FinetuneJobError::Options(format!(
            "label_smoothing is for classification and for tagging without crf, and {} is neither",
            spec.name
        )));
    }
    let class_options = ClassOptions {
        class_weights: class_weights(config, &head, &train_features)?,
        label_smoothing: config.label_smoothing,
    };
    let mut settings = BTreeMap::new();
    settings.insert(
        "task".to_owned(),
        serde_json::to_value(&spec).unwrap_or_default(),
    );
    Ok(Task {
        entry: TaskEntry {
            head,
            labels: labels.names().to_vec(),
            settings,
        },
        labels,
        class_options,
        train: train_features,
        train_classes,
        dev_examples,
        dev,
        dev_windows,
        notes,
        fingerprints,
        spec,
    })
}

/// What there is to say where a trial cannot have `shots` examples of each class, or of all where there
/// are no classes.
fn too_few(task: &str, labels: &LabelSet, classes: &[Option<u32>], shots: usize) -> Option<String> {
    if classes.iter().any(Option::is_none) {
        return (classes.len() < shots).then(|| {
            format!(
                "warning: {task}: there are {} examples to learn from, not the {shots} asked for",
                classes.len()
            )
        });
    }
    let mut counts = vec![0; labels.len()];
    for class in classes.iter().flatten() {
        counts[*class as usize] += 1;
    }
    let few = counts.iter().filter(|&&n| n < shots).count();
    let (least, scarcest) = counts.iter().zip(labels.names()).min()?;
    (few > 0).then(|| {
        format!(
            "warning: {task}: {few} of {} labels have fewer than the {shots} examples asked for; the \
             scarcest, {scarcest:?}, has {least}",
            labels.len()
        )
    })
}

/// Appends every pair with its texts swapped.
fn double_unordered(examples: &mut Vec<Example>) {
    let swapped: Vec<Example> = examples
        .iter()
        .filter_map(|example| match &example.input {
            Input::Text {
                first,
                second: Some(second),
            } => Some(Example {
                input: Input::Text {
                    first: second.clone(),
                    second: Some(first.clone()),
                },
                ..example.clone()
            }),
            _ => None,
        })
        .collect();
    examples.extend(swapped);
}

/// How features of a task are made: its defaults, with room for a text beside the question in
/// sequences that are short.
pub fn feature_options(spec: &TaskSpec, head: &HeadSpec) -> FeatureOptions {
    let options = FeatureOptions::of(spec);
    FeatureOptions {
        tagged_segment: u32::from(head.style == HeadStyle::Google),
        max_query_length: options.max_query_length.min(spec.max_seq_length / 2),
        ..options
    }
}

/// Tags of entities with, for each kind, both that begin and that go on: one may be missing in the
/// training data and stand in the development data (`I-LST` in CoNLL-2000). Where all are tags that the
/// task is known to have, with all of these.
fn with_whole_scheme(spec: &TaskSpec, names: &[String]) -> Vec<String> {
    let mut whole: std::collections::BTreeSet<String> = names.iter().cloned().collect();
    let known = spec.numbered_labels().unwrap_or_default();
    if names.iter().all(|name| known.contains(name)) {
        whole.extend(known.iter().cloned());
    }
    for kind in names.iter().filter_map(|name| name.get(2..)) {
        whole.insert(format!("B-{kind}"));
        whole.insert(format!("I-{kind}"));
    }
    whole.into_iter().collect()
}

/// Tags of which some are of entities and others are not: one that is mistyped would have all of them
/// scored by words.
///
/// # Errors
/// The first that is none, of a task known by name, which has entities.
fn check_tags(
    spec: &TaskSpec,
    labels: &LabelSet,
    examples: &[Example],
    notes: &mut Vec<String>,
) -> Result<(), TaskError> {
    let lone = |tag: &String| !of_entities(&[tag]);
    let outside = |tag: &&String| tag.eq_ignore_ascii_case("O") || tag.starts_with("B-");
    let known = TaskSpec::names().contains(&spec.name.as_str());
    if !known && !labels.names().iter().any(|tag| outside(&tag)) {
        return Ok(());
    }
    let found = examples.iter().find_map(|example| match &example.gold {
        Some(Gold::Tags(tags)) => {
            let word = tags.iter().position(lone)?;
            Some((example.place_of_word(word), &tags[word]))
        }
        _ => None,
    });
    let Some((place, tag)) = found else {
        return Ok(());
    };
    let what = format!(
        "the tag {tag:?} is none of entities, which are O or have a prefix and a kind, such as B-PER"
    );
    if known {
        let what = format!("{what}; correct it, or give --kind tagging and a name of your own");
        return Err(TaskError::Example { place, what });
    }
    notes.push(format!(
        "warning: {place}: {what}; so words are scored, not entities"
    ));
    Ok(())
}

/// Features of all examples, and of questions the windows that they are made of.
///
/// # Errors
/// A [`TaskError`] of the first example that has none; questions to learn from, of which no answer
/// can be found.
pub fn features_of(
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    labels: &LabelSet,
    examples: &[Example],
    options: FeatureOptions,
    notes: &mut Vec<String>,
) -> Result<(Vec<Features>, Vec<Windows>), TaskError> {
    let training = options.training;
    let featurizer = Featurizer::new(spec.kind, tokenizer.clone(), labels.clone(), options)?;
    let mut counts = FeatureCounts::default();
    let (mut features, mut windows) = (Vec::with_capacity(examples.len()), Vec::new());
    for (number, example) in examples.iter().enumerate() {
        if spec.kind == TaskKind::QuestionAnswering && !training {
            let of_one = Windows::new(&featurizer, number, example, &mut counts)?;
            features.extend_from_slice(of_one.features());
            windows.push(of_one);
        } else {
            features.extend(featurizer.features(number, example, &mut counts)?);
        }
    }
    if training
        && features.is_empty()
        && let Some(first) = examples.first()
    {
        return Err(TaskError::NoAnswerFound {
            path: first.place.path.to_path_buf(),
            questions: examples.len(),
            lost: counts.answers_not_found,
        });
    }
    let said = counts.notes().into_iter();
    notes.extend(said.map(|note| format!("{}: {note}", spec.name)));
    Ok((features, windows))
}

/// Whether the loss is a cross-entropy over classes.
fn has_classes(head: &HeadSpec) -> bool {
    match head.kind {
        HeadKind::Classification => true,
        HeadKind::Tagging => !head.crf,
        _ => false,
    }
}

/// Weights of the classes of a task that has classes.
fn class_weights(
    config: &FinetuneConfig,
    head: &HeadSpec,
    train: &[Features],
) -> Result<Option<Vec<f64>>, FinetuneJobError> {
    let classes = head.outputs;
    match &config.class_weights {
        None => Ok(None),
        Some(_) if !has_classes(head) => Err(FinetuneJobError::Options(format!(
            "class_weights are for classification and for tagging without crf, and {} is neither",
            head.name
        ))),
        Some(ClassWeights::Each(each)) if each.len() != classes => {
            Err(FinetuneJobError::Options(format!(
                "class_weights has {} weights, but {} has {classes} labels",
                each.len(),
                head.name
            )))
        }
        Some(ClassWeights::Each(each)) => Ok(Some(each.clone())),
        Some(ClassWeights::Named(_)) => {
            let mut counts = vec![0u64; classes];
            for target in train.iter().filter_map(|f| f.target.as_ref()) {
                match target {
                    Target::Class(class) => counts[*class as usize] += 1,
                    Target::Tags(tags) => {
                        tags.iter().flatten().for_each(|&t| counts[t as usize] += 1);
                    }
                    _ => {}
                }
            }
            let all: u64 = counts.iter().sum();
            let there = counts.iter().filter(|&&n| n > 0).count();
            let weights = counts.iter().map(|&n| match n {
                0 => 0.0,
                n => all as f64 / (there as f64 * n as f64),
            });
            Ok(Some(weights.collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use electra_data::tasks::OwnTask;

    #[test]
    fn entities_have_both_tags() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.into()).collect() };
        let entities = names(&["O", "B-LST", "I-NP"]);
        let own = TaskSpec::own(OwnTask::new("own", TaskKind::Tagging)).expect("a task");
        let whole = with_whole_scheme(&own, &entities);
        assert_eq!(whole.join(" "), "B-LST B-NP I-LST I-NP O");
        let wnut = TaskSpec::by_name("wnut17").expect("a task");
        assert_eq!(with_whole_scheme(&wnut, &entities).len(), 5);
        assert_eq!(
            with_whole_scheme(&wnut, &names(&["O", "B-group"])).len(),
            13
        );
    }
}
