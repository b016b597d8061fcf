//! The learning rate over a run.

/// `lr(t) = learning_rate · (1 − t/T)^power · min(1, t/warmup)`: the reference's warm-up
/// multiplies the decaying curve, so the first step has learning rate 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Peak of the curve without warm-up.
    pub learning_rate: f64,
    /// Steps of warm-up; 0 for none.
    pub warmup_steps: u64,
    /// Steps of the whole run, `T`.
    pub total_steps: u64,
    /// Power of the decay; 1 is linear.
    pub decay_power: f64,
}

impl Schedule {
    /// Learning rate of the step that follows `t` finished ones.
    pub fn learning_rate(&self, t: u64) -> f64 {
        let left = 1.0 - t.min(self.total_steps) as f64 / self.total_steps.max(1) as f64;
        let warm = match self.warmup_steps {
            0 => 1.0,
            warmup => (t as f64 / warmup as f64).min(1.0),
        };
        self.learning_rate * left.powf(self.decay_power) * warm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_multiplies_the_decaying_curve() {
        let schedule = Schedule {
            learning_rate: 5e-4,
            warmup_steps: 10,
            total_steps: 100,
            decay_power: 1.0,
        };
        for (t, want) in [
            (0, 0.0),
            (5, 5e-4 * 0.95 * 0.5),
            (10, 5e-4 * 0.9),
            (50, 2.5e-4),
            (100, 0.0),
        ] {
            assert!((schedule.learning_rate(t) - want).abs() < 1e-12, "step {t}");
        }
    }
}
