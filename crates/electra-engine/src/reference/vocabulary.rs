//! Softmax over the vocabulary: log-probability, its gradient and sampling.

use super::{Real, Reference};
use crate::backend::{Array, Ints, Linear, VocabularySample};
use crate::rng::Purpose;

fn logits<T: Real>(params: &[T], x: &[T], head: &Linear) -> Vec<T> {
    let (weight, bias) = (&params[head.weight.range()], &params[head.bias.range()]);
    weight
        .chunks_exact(x.len())
        .zip(bias)
        .map(|(w, &b)| w.iter().zip(x).map(|(&w, &x)| w * x).sum::<T>() + b)
        .collect()
}

fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let max = logits.iter().copied().fold(T::neg_infinity(), T::max);
    max + logits.iter().map(|&l| (l - max).exp()).sum::<T>().ln()
}

impl<T: Real> Reference<T> {
    pub(super) fn log_prob(
        &mut self,
        params: &[T],
        x: Array,
        head: &Linear,
        targets: Ints,
        log_prob: Array,
        log_sum: Array,
        predicted: Option<Ints>,
    ) {
        let (mut log_probs, mut sums, mut best) = (Vec::new(), Vec::new(), Vec::new());
        for (row, target) in self.load(x).chunks_exact(x.cols).zip(self.ids(targets)) {
            let logits = logits(params, row, head);
            let sum = log_sum_exp(&logits);
            log_probs.push(logits[target as usize] - sum);
            sums.push(sum);
            let mut argmax = 0;
            for (i, &logit) in logits.iter().enumerate() {
                if logit > logits[argmax] {
                    argmax = i;
                }
            }
            best.push(argmax as u32);
        }
        self.store(log_prob, &log_probs);
        self.store(log_sum, &sums);
        if let Some(ints) = predicted {
            use crate::backend::Backend;
            self.write_ints(ints, &best);
        }
    }

    pub(super) fn log_prob_backward(
        &mut self,
        params: &[T],
        x: Array,
        head: &Linear,
        targets: Ints,
        scale: f32,
        dx: Array,
        grads: &mut [T],
    ) {
        let mut out = vec![T::zero(); dx.rows * dx.cols];
        let input = self.load(x);
        for (m, target) in self.ids(targets).into_iter().enumerate() {
            let row = &input[m * x.cols..][..x.cols];
            let logits = logits(params, row, head);
            let sum = log_sum_exp(&logits);
            for (i, &logit) in logits.iter().enumerate() {
                let hit = if i == target as usize {
                    T::one()
                } else {
                    T::zero()
                };
                let d = ((logit - sum).exp() - hit) * T::of(scale.into());
                let at = head.weight.offset + i * x.cols;
                for c in 0..x.cols {
                    out[m * x.cols + c] = out[m * x.cols + c] + d * params[at + c];
                    grads[at + c] = grads[at + c] + d * row[c];
                }
                let b = head.bias.offset + i;
                grads[b] = grads[b] + d;
            }
        }
        self.store(dx, &out);
    }

    pub(super) fn sample(
        &mut self,
        params: &[T],
        x: Array,
        head: &Linear,
        sample: &VocabularySample,
    ) {
        let keys = sample.keys;
        let (examples, positions) = (self.ids(keys.example), self.ids(keys.position));
        let exclude = sample.exclude.map(|e| self.ids(e));
        let mut out = Vec::new();
        for (m, (row, r)) in self
            .load(x)
            .chunks_exact(x.cols)
            .zip(self.ids(sample.rows))
            .enumerate()
        {
            let mut logits = logits(params, row, head);
            for logit in &mut logits {
                *logit = *logit / T::of(sample.temperature.into());
            }
            if let Some(exclude) = &exclude {
                logits[exclude[m] as usize] = T::neg_infinity();
            }
            let sum = log_sum_exp(&logits);
            let u = sample.rng.uniform(
                Purpose::Sample,
                0,
                examples[r as usize],
                positions[r as usize],
                0,
            );
            let mut running = 0.0;
            let mut choice = None;
            let mut last = 0;
            for (i, &logit) in logits.iter().enumerate() {
                let p = (logit - sum).exp().f64();
                running += p;
                if p > 0.0 {
                    last = i;
                }
                if running > u {
                    choice = Some(i);
                    break;
                }
            }
            out.push(choice.unwrap_or(last) as u32);
        }
        use crate::backend::Backend;
        self.write_ints(sample.sampled, &out);
    }
}
