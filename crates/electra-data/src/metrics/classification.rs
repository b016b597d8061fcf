//! Scores of classes, as scikit-learn has them.

use super::Prf;

/// How often each class was predicted for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`: gold, then predicted.
    counts: Vec<u64>,
}

impl Confusion {
    /// Of `classes` classes, nothing counted.
    pub fn new(classes: usize) -> Self {
        Confusion {
            classes,
            counts: vec![0; classes * classes],
        }
    }

    /// Of predictions, in the order of `gold`.
    ///
    /// # Panics
    /// If the two differ in length, or hold a class past `classes`.
    pub fn of(classes: usize, gold: &[u32], predicted: &[u32]) -> Self {
        assert_eq!(gold.len(), predicted.len(), "one prediction an example");
        let mut confusion = Self::new(classes);
        for (&g, &p) in gold.iter().zip(predicted) {
            confusion.add(g, p);
        }
        confusion
    }

    /// Counts a prediction.
    ///
    /// # Panics
    /// If a class is past the last.
    pub fn add(&mut self, gold: u32, predicted: u32) {
        assert!((predicted as usize) < self.classes, "class {predicted}");
        self.counts[gold as usize * self.classes + predicted as usize] += 1;
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often `predicted` was predicted for `gold`.
    pub fn count(&self, gold: usize, predicted: usize) -> u64 {
        self.counts[gold * self.classes + predicted]
    }

    fn gold(&self, class: usize) -> u64 {
        (0..self.classes).map(|p| self.count(class, p)).sum()
    }

    fn predicted(&self, class: usize) -> u64 {
        (0..self.classes).map(|g| self.count(g, class)).sum()
    }

    fn right(&self) -> u64 {
        (0..self.classes).map(|c| self.count(c, c)).sum()
    }

    /// Predictions counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of right predictions; 0 of none.
    pub fn accuracy(&self) -> f64 {
        match self.total() {
            0 => 0.0,
            n => self.right() as f64 / n as f64,
        }
    }

    /// Scores of one class against the rest.
    pub fn class(&self, class: usize) -> Prf {
        Prf::new(
            self.count(class, class),
            self.predicted(class),
            self.gold(class),
        )
    }

    /// Scores of each class.
    pub fn per_class(&self) -> Vec<Prf> {
        (0..self.classes).map(|c| self.class(c)).collect()
    }

    /// Mean over the classes that occur, in gold or predictions, as scikit-learn's `macro` without
    /// `labels`.
    pub fn macro_average(&self) -> Prf {
        let there: Vec<Prf> = (0..self.classes)
            .filter(|&c| self.gold(c) + self.predicted(c) > 0)
            .map(|c| self.class(c))
            .collect();
        Prf::mean(&there)
    }

    /// Over all decisions; all three equal the accuracy.
    pub fn micro_average(&self) -> Prf {
        Prf::new(self.right(), self.total(), self.total())
    }

    /// Matthews correlation coefficient of any number of classes; 0 where it is not defined.
    ///
    /// Gorodkin 2004: `(c n − Σ t p) / sqrt((n² − Σ p²)(n² − Σ t²))` with `c` right ones of `n`,
    /// `t` and `p` the numbers of each class in gold and predictions.
    pub fn mcc(&self) -> f64 {
        let n = self.total() as f64;
        let (mut tp, mut pp, mut tt) = (0.0, 0.0, 0.0);
        for class in 0..self.classes {
            let (t, p) = (self.gold(class) as f64, self.predicted(class) as f64);
            tp += t * p;
            pp += p * p;
            tt += t * t;
        }
        let below = (n * n - pp) * (n * n - tt);
        if below == 0.0 {
            return 0.0;
        }
        (self.right() as f64 * n - tp) / below.sqrt()
    }
}

/// How often a label was said to hold, or not, and did or did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Said, and so it is.
    pub true_positives: u64,
    /// Said, but it does not hold.
    pub false_positives: u64,
    /// Not said, but it holds.
    pub false_negatives: u64,
    /// Not said, and so it is.
    pub true_negatives: u64,
}

/// Scores of labels of which any number holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiLabel {
    /// Decisions on each label.
    pub decisions: Vec<Decisions>,
    /// Scores of each label.
    pub per_label: Vec<Prf>,
    /// Over all decisions.
    pub micro: Prf,
    /// Mean over the labels.
    pub macro_average: Prf,
    /// Share of examples of which every label is right.
    pub accuracy: f64,
}

/// Scores of predictions; `gold[example][label]`.
///
/// # Panics
/// If the two differ in shape.
pub fn multi_label(gold: &[Vec<bool>], predicted: &[Vec<bool>]) -> MultiLabel {
    assert_eq!(gold.len(), predicted.len(), "one prediction an example");
    let labels = gold.first().map_or(0, Vec::len);
    let mut decisions = vec![Decisions::default(); labels];
    let mut whole = 0u64;
    for (g, p) in gold.iter().zip(predicted) {
        assert!(g.len() == labels && p.len() == labels, "{labels} labels");
        whole += u64::from(g == p);
        for ((&g, &p), decisions) in g.iter().zip(p).zip(&mut decisions) {
            let count = match (g, p) {
                (true, true) => &mut decisions.true_positives,
                (false, true) => &mut decisions.false_positives,
                (true, false) => &mut decisions.false_negatives,
                (false, false) => &mut decisions.true_negatives,
            };
            *count += 1;
        }
    }
    // Right, predicted, gold.
    let counts: Vec<[u64; 3]> = decisions
        .iter()
        .map(|d| {
            let right = d.true_positives;
            [right, right + d.false_positives, right + d.false_negatives]
        })
        .collect();
    let per_label: Vec<Prf> = counts.iter().map(|c| Prf::new(c[0], c[1], c[2])).collect();
    let sum = |i: usize| counts.iter().map(|c| c[i]).sum();
    MultiLabel {
        micro: Prf::new(sum(0), sum(1), sum(2)),
        macro_average: Prf::mean(&per_label),
        accuracy: whole as f64 / gold.len().max(1) as f64,
        decisions,
        per_label,
    }
}
