//! Measures of generator and discriminator on text that was held out.

use crate::metrics_log::EvalMetrics;
use electra_model::pretraining::{Detections, StepSums};

/// Entropy in nats of a yes-or-no label that is yes with probability `rate`: the loss of a
/// discriminator that has learned nothing but the rate.
pub fn label_entropy(rate: f64) -> f64 {
    let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    term(rate) + term(1.0 - rate)
}

/// Area under the receiver operating characteristic: the probability that a replaced token has a
/// higher logit than an original one, equal logits counted half (Mann and Whitney 1947). `None`
/// where all labels are one.
pub fn area_under_curve(logits: &[f32], labels: &[u32]) -> Option<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_unstable_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let (mut below, mut wins, mut positives) = (0.0, 0.0, 0.0);
    let mut start = 0;
    while start < order.len() {
        let value = logits[order[start]];
        let end = start
            + order[start..]
                .iter()
                .take_while(|&&i| logits[i] == value)
                .count()
                .max(1);
        let replaced = order[start..end]
            .iter()
            .filter(|&&i| labels[i] != 0)
            .count() as f64;
        let original = (end - start) as f64 - replaced;
        wins += replaced * (below + 0.5 * original);
        below += original;
        positives += replaced;
        start = end;
    }
    let pairs = positives * below;
    (pairs > 0.0).then(|| wins / pairs)
}

/// Sums over the batches of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    sums: StepSums,
    predicted_right: usize,
    sampled_right: usize,
    logits: Vec<f32>,
    labels: Vec<u32>,
}

impl Evaluation {
    /// Adds a batch; `targets` are the masked rows' true tokens.
    pub fn add(&mut self, sums: StepSums, detections: &Detections, targets: &[u32]) {
        let right = |ids: &[u32]| ids.iter().zip(targets).filter(|(a, b)| a == b).count();
        self.sums += sums;
        self.predicted_right += right(&detections.predicted);
        self.sampled_right += right(&detections.sampled);
        self.logits.extend(&detections.logits);
        self.labels
            .extend(&detections.labels[..detections.logits.len()]);
    }

    /// The measures; `tokens` were trained on by `step`.
    pub fn metrics(
        &self,
        step: u64,
        tokens: u64,
        generator: bool,
        discriminator: bool,
    ) -> EvalMetrics {
        let share = |n: usize, of: usize| Some((n as f64 / of.max(1) as f64) as f32);
        let mut metrics = EvalMetrics {
            step,
            tokens,
            ..EvalMetrics::default()
        };
        let masked = self.sums.masked;
        if generator {
            metrics.mlm_loss = Some((self.sums.mlm / masked.max(1) as f64) as f32);
            metrics.mlm_accuracy = share(self.predicted_right, masked);
        }
        if discriminator {
            let count = |logit: bool, label: bool| {
                let pairs = self.logits.iter().zip(&self.labels);
                pairs
                    .filter(|&(&l, &y)| (l > 0.0) == logit && (y != 0) == label)
                    .count()
            };
            let (hits, false_alarms, misses) =
                (count(true, true), count(true, false), count(false, true));
            let all = self.sums.tokens;
            metrics.rtd_loss = Some((self.sums.rtd / all.max(1) as f64) as f32);
            metrics.rtd_base =
                Some(label_entropy(self.sums.replaced as f64 / all.max(1) as f64) as f32);
            metrics.sampled_accuracy = share(self.sampled_right, masked);
            metrics.rtd_accuracy = share(all - false_alarms - misses, all);
            metrics.rtd_precision = share(hits, hits + false_alarms);
            metrics.rtd_recall = share(hits, hits + misses);
            metrics.rtd_auc = area_under_curve(&self.logits, &self.labels).map(|a| a as f32);
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_under_curve_counts_ordered_pairs() {
        assert_eq!(
            area_under_curve(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]),
            Some(0.75)
        );
        assert_eq!(area_under_curve(&[1.0, 1.0, 1.0], &[0, 1, 0]), Some(0.5));
        assert_eq!(area_under_curve(&[1.0, 2.0], &[1, 1]), None);
        assert_eq!(area_under_curve(&[], &[]), None);
        assert!(area_under_curve(&[f32::NAN, 1.0, f32::NAN], &[0, 1, 1]).is_some());
    }

    #[test]
    fn entropy_of_a_label() {
        assert_eq!(label_entropy(0.0), 0.0);
        assert!((label_entropy(0.5) - 2f64.ln()).abs() < 1e-15);
        assert!((label_entropy(0.15) - 0.422709).abs() < 1e-6);
    }

    #[test]
    fn measures_of_a_small_batch() {
        let mut evaluation = Evaluation::default();
        let sums = StepSums {
            mlm: 6.0,
            rtd: 2.0,
            masked: 2,
            tokens: 4,
            replaced: 2,
        };
        let detections = Detections {
            predicted: vec![5, 6],
            sampled: vec![5, 9],
            logits: vec![1.0, -1.0, 2.0, -2.0],
            labels: vec![1, 1, 0, 0],
        };
        evaluation.add(sums, &detections, &[5, 7]);
        let m = evaluation.metrics(3, 100, true, true);
        assert_eq!(
            (m.mlm_loss, m.mlm_accuracy, m.sampled_accuracy),
            (Some(3.0), Some(0.5), Some(0.5))
        );
        assert_eq!(
            (m.rtd_accuracy, m.rtd_precision, m.rtd_recall),
            (Some(0.5), Some(0.5), Some(0.5))
        );
        assert_eq!((m.rtd_loss, m.rtd_auc), (Some(0.5), Some(0.5)));
    }
}
