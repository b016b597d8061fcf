//! Losses of tasks from a head's logits, on the host in f64, with the gradient by the logits.
//!
//! Logits are few: a row a text or a word. Every function returns the sum over rows and the
//! gradient of `scale` times that sum; the caller divides by what the whole batch weighs, so that
//! micro-batches change nothing.

/// A sum of losses and its scaled gradient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum over rows, not scaled.
    pub sum: f64,
    /// Gradient of `scale · sum` by the logits, in their order.
    pub gradient: Vec<f64>,
}

/// What changes the cross-entropy over classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassOptions {
    /// Weight of each class; `None`: 1 each.
    pub class_weights: Option<Vec<f64>>,
    /// Share of the target that is spread evenly over all classes (Szegedy et al. 2016).
    pub label_smoothing: f64,
}

impl ClassOptions {
    /// Weight of a class.
    pub fn weight(&self, class: usize) -> f64 {
        self.class_weights.as_ref().map_or(1.0, |w| w[class])
    }
}

/// `log Σ exp(x)`, and the probabilities `exp(x) / Σ exp(x)`.
pub fn softmax(x: &[f64]) -> (f64, Vec<f64>) {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    (largest + sum.ln(), p)
}

/// Softmax cross-entropy. logits `[rows, classes]`; rows without a target count nothing.
///
/// With weights `w` and smoothing `ε` a row of class `y` has loss
/// `−(1 − ε) w_y log p_y − ε/C Σ_c w_c log p_c`, as in PyTorch.
pub fn cross_entropy(
    logits: &[f32],
    classes: usize,
    targets: &[Option<u32>],
    options: &ClassOptions,
    scale: f64,
) -> Loss {
    let mut loss = Loss {
        sum: 0.0,
        gradient: vec![0.0; logits.len()],
    };
    let smoothing = options.label_smoothing;
    let rows = logits
        .chunks_exact(classes)
        .zip(loss.gradient.chunks_exact_mut(classes));
    for ((row, gradient), target) in rows.zip(targets) {
        let Some(target) = target.map(|t| t as usize) else {
            continue;
        };
        let x: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let (log_sum, p) = softmax(&x);
        // The target distribution, each class with its weight.
        let q: Vec<f64> = (0..classes)
            .map(|c| {
                let own = if c == target { 1.0 - smoothing } else { 0.0 };
                options.weight(c) * (own + smoothing / classes as f64)
            })
            .collect();
        let mass: f64 = q.iter().sum();
        for c in 0..classes {
            // A class of no weight may have no probability.
            if q[c] != 0.0 {
                loss.sum += q[c] * (log_sum - x[c]);
            }
            gradient[c] = scale * (mass * p[c] - q[c]);
        }
    }
    loss
}

/// Binary cross-entropy of each label by itself. logits and labels `[rows · labels]`.
pub fn binary_cross_entropy(logits: &[f32], labels: &[bool], scale: f64) -> Loss {
    let mut loss = Loss::default();
    for (&x, &label) in logits.iter().zip(labels) {
        let (one, own) = binary(f64::from(x), label);
        loss.sum += one;
        loss.gradient.push(scale * own);
    }
    loss
}

/// Binary cross-entropy of one logit and its derivative.
pub fn binary(x: f64, label: bool) -> (f64, f64) {
    let y = f64::from(u8::from(label));
    let loss = x.max(0.0) - x * y + (-x.abs()).exp().ln_1p();
    (loss, 1.0 / (1.0 + (-x).exp()) - y)
}

/// Squared error of one value a row.
pub fn squared_error(predicted: &[f32], values: &[f64], scale: f64) -> Loss {
    let mut loss = Loss::default();
    for (&x, &y) in predicted.iter().zip(values) {
        let error = f64::from(x) - y;
        loss.sum += error * error;
        loss.gradient.push(2.0 * scale * error);
    }
    loss
}

/// Softmax cross-entropy over groups of rows, one logit a row: which choice, which token.
/// logits `[rows]`; `bounds` `[groups + 1]`; targets are numbers within their group.
pub fn grouped_cross_entropy(logits: &[f64], bounds: &[u32], targets: &[u32], scale: f64) -> Loss {
    let mut loss = Loss {
        sum: 0.0,
        gradient: vec![0.0; logits.len()],
    };
    for (group, &target) in bounds.windows(2).zip(targets) {
        let rows = group[0] as usize..group[1] as usize;
        let (log_sum, p) = softmax(&logits[rows.clone()]);
        let target = rows.start + target as usize;
        loss.sum += log_sum - logits[target];
        for (gradient, p) in loss.gradient[rows].iter_mut().zip(p) {
            *gradient = scale * p;
        }
        loss.gradient[target] -= scale;
    }
    loss
}

/// First and last token of answers: the mean of two cross-entropies. logits `[rows, 2]`.
pub fn spans(logits: &[f32], bounds: &[u32], targets: &[(u32, u32)], scale: f64) -> Loss {
    let mut loss = Loss {
        sum: 0.0,
        gradient: vec![0.0; logits.len()],
    };
    for end in [0, 1] {
        let column: Vec<f64> = logits
            .iter()
            .skip(end)
            .step_by(2)
            .map(|&x| f64::from(x))
            .collect();
        let targets: Vec<u32> = targets
            .iter()
            .map(|&(first, last)| if end == 0 { first } else { last })
            .collect();
        let one = grouped_cross_entropy(&column, bounds, &targets, 0.5 * scale);
        loss.sum += 0.5 * one.sum;
        for (row, g) in one.gradient.into_iter().enumerate() {
            loss.gradient[2 * row + end] = g;
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::test_numbers::{assert_is_derivative, numbers};

    #[test]
    fn gradients_are_the_derivatives() {
        let x = numbers(1, 15);
        let weighted = ClassOptions {
            class_weights: Some(vec![0.5, 2.0, 1.0]),
            label_smoothing: 0.1,
        };
        let targets = [Some(0), None, Some(2), Some(1), Some(2)];
        for options in [ClassOptions::default(), weighted] {
            assert_is_derivative(&x, 0.7, |x, s| cross_entropy(x, 3, &targets, &options, s));
        }
        let labels: Vec<bool> = (0..15).map(|i| i % 3 == 0).collect();
        assert_is_derivative(&x, 0.3, |x, s| binary_cross_entropy(x, &labels, s));
        let values: Vec<f64> = (0..15).map(|i| f64::from(i) / 5.0).collect();
        assert_is_derivative(&x, 2.0, |x, s| squared_error(x, &values, s));
        let wide = numbers(2, 24);
        assert_is_derivative(&wide, 1.5, |x, s| {
            spans(x, &[0, 5, 12], &[(0, 4), (2, 2)], s)
        });
        assert_is_derivative(&wide, 0.5, |x, s| {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            grouped_cross_entropy(&x, &[0, 3, 4, 24], &[1, 0, 19], s)
        });
    }

    #[test]
    fn losses_have_their_values() {
        // Uniform over four: log 4 whatever is smoothed.
        let smoothed = ClassOptions {
            class_weights: None,
            label_smoothing: 0.2,
        };
        let loss = cross_entropy(&[1.0; 4], 4, &[Some(2)], &smoothed, 1.0);
        assert!((loss.sum - 4f64.ln()).abs() < 1e-12);
        assert!((binary(0.0, true).0 - 2f64.ln()).abs() < 1e-12);
        assert_eq!(binary(1000.0, true).0, 0.0);
        assert_eq!(binary(-1000.0, true).0, 1000.0);
        assert_eq!(squared_error(&[3.0], &[1.0], 1.0).sum, 4.0);
        let huge = cross_entropy(&[1e4, -1e4], 2, &[Some(1)], &ClassOptions::default(), 1.0);
        assert_eq!(huge.sum, 2e4);
    }
}
