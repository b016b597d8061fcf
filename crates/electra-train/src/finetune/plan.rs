//! Which examples each step of a trial learns from: a function of the seed and the step.

use super::task::Task;
use electra_data::order::Order;

/// The batches of a trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    seed: u64,
    batch_size: usize,
    /// Of each task: the numbers of the features that this trial learns from.
    chosen: Vec<Vec<u32>>,
    /// Of each task: batches an epoch.
    batches: Vec<u64>,
    /// Steps of the trial.
    pub total_steps: u64,
    evals_per_epoch: f64,
}

/// How long a trial is, and how often it evaluates.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Passes over the data, where they are asked for.
    pub epochs: Option<f64>,
    /// Those of the task.
    pub task_epochs: f64,
    /// Evaluations in an epoch, where they are asked for.
    pub evals_per_epoch: Option<f64>,
}

/// Steps of a trial with few examples, where nothing else is asked for: a classifier learns nothing
/// in the few steps that its epochs are.
const STEPS_OF_SHOTS: u64 = 200;
/// Evaluations of such a trial.
const EVALS_OF_SHOTS: f64 = 10.0;

/// Keeps the orders of tasks, of batches and of samples apart.
const TASK_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

impl Plan {
    /// The plan of a trial with `seed`; with `shots`, of that many examples of each class (of all,
    /// where there are no classes).
    pub fn new(
        tasks: &[Task],
        seed: u64,
        shots: Option<usize>,
        batch_size: usize,
        pace: Pace,
    ) -> Self {
        let chosen: Vec<Vec<u32>> = tasks
            .iter()
            .map(|task| match shots {
                None => (0..task.train.len() as u32).collect(),
                Some(shots) => sample(&task.train_classes, shots, seed),
            })
            .collect();
        let batches: Vec<u64> = chosen
            .iter()
            .map(|c| c.len().div_ceil(batch_size) as u64)
            .collect();
        let per_epoch = batches.iter().sum::<u64>().max(1) as f64;
        let of_task = match shots {
            None => pace.task_epochs,
            Some(_) => pace.task_epochs.max(STEPS_OF_SHOTS as f64 / per_epoch),
        };
        let total = (per_epoch * pace.epochs.unwrap_or(of_task))
            .round()
            .max(1.0);
        let evals = match shots {
            None => 1.0,
            Some(_) => EVALS_OF_SHOTS * per_epoch / total,
        };
        Plan {
            seed,
            batch_size,
            chosen,
            batches,
            total_steps: total as u64,
            evals_per_epoch: pace.evals_per_epoch.unwrap_or(evals),
        }
    }

    fn per_epoch(&self) -> u64 {
        self.batches.iter().sum::<u64>().max(1)
    }

    /// Epochs that `step` steps are.
    pub fn epochs(&self, step: u64) -> f64 {
        step as f64 / self.per_epoch() as f64
    }

    /// Task and features of the step that follows `step` finished ones. In an epoch every example
    /// comes once; batches of several tasks come in any order.
    pub fn batch(&self, step: u64) -> (usize, Vec<u32>) {
        let per_epoch = self.per_epoch();
        let mut slot = match self.batches.len() {
            1 => step % per_epoch,
            _ => Order::Shuffled {
                seed: self.seed ^ TASK_SEED,
            }
            .example(step, per_epoch),
        };
        let mut task = 0;
        while slot >= self.batches[task] {
            slot -= self.batches[task];
            task += 1;
        }
        let chosen = &self.chosen[task];
        let (count, epoch) = (chosen.len() as u64, step / per_epoch);
        let order = Order::Shuffled { seed: self.seed };
        let first = slot * self.batch_size as u64;
        let last = (first + self.batch_size as u64).min(count);
        let features = (first..last)
            .map(|place| chosen[order.example(epoch * count + place, count) as usize])
            .collect();
        (task, features)
    }

    /// Whether an evaluation follows the step that makes `step` finished ones.
    pub fn evaluates(&self, step: u64) -> bool {
        let per_epoch = self.per_epoch() as f64;
        let evals = self.evals_per_epoch.min(per_epoch);
        // The step at which another of the equal parts is full.
        let parts = |steps: u64| (steps as f64 * evals / per_epoch).floor();
        step == self.total_steps || parts(step) > parts(step.saturating_sub(1))
    }
}

/// `shots` features of each class, drawn by the seed; where there are no classes, of all.
fn sample(classes: &[Option<u32>], shots: usize, seed: u64) -> Vec<u32> {
    let mut of_class: std::collections::BTreeMap<Option<u32>, Vec<u32>> = Default::default();
    for (i, &class) in classes.iter().enumerate() {
        of_class.entry(class).or_default().push(i as u32);
    }
    let order = Order::Shuffled {
        seed: seed ^ TASK_SEED.rotate_left(17),
    };
    let mut chosen: Vec<u32> = of_class
        .values()
        .flat_map(|all| {
            let count = all.len() as u64;
            (0..count.min(shots as u64)).map(move |i| all[order.example(i, count) as usize])
        })
        .collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sizes: &[usize], epochs: f64, evals: f64) -> Plan {
        let chosen: Vec<Vec<u32>> = sizes.iter().map(|&n| (0..n as u32).collect()).collect();
        let batches: Vec<u64> = sizes.iter().map(|&n| n.div_ceil(4) as u64).collect();
        let per_epoch: u64 = batches.iter().sum();
        Plan {
            seed: 5,
            batch_size: 4,
            chosen,
            batches,
            total_steps: (per_epoch as f64 * epochs).round() as u64,
            evals_per_epoch: evals,
        }
    }

    #[test]
    fn every_example_of_every_task_comes_once_an_epoch() {
        let plan = plan(&[10, 7, 1], 3.0, 1.0);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let mut seen = vec![Vec::new(); 3];
            for step in epoch * 6..(epoch + 1) * 6 {
                let (task, features) = plan.batch(step);
                seen[task].extend(features);
            }
            orders.push(seen.clone());
            for (seen, size) in seen.iter_mut().zip([10, 7, 1]) {
                seen.sort_unstable();
                assert_eq!(*seen, (0..size).collect::<Vec<u32>>());
            }
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn evaluations_are_spread_over_the_epoch_and_stand_at_the_end() {
        let at = |plan: &Plan| -> Vec<u64> {
            (1..=plan.total_steps)
                .filter(|&s| plan.evaluates(s))
                .collect()
        };
        assert_eq!(at(&plan(&[40], 2.0, 1.0)), [10, 20]);
        assert_eq!(at(&plan(&[40], 1.5, 2.0)), [5, 10, 15]);
        assert_eq!(at(&plan(&[40], 1.25, 1.0)), [10, 13]);
        assert_eq!(at(&plan(&[8], 2.0, 9.0)), [1, 2, 3, 4]);
        assert_eq!(at(&plan(&[8], 10.0, 0.4)), [5, 10, 15, 20]);
        assert_eq!(at(&plan(&[8], 2.0, 0.1)), [4]);
        let thirds = at(&plan(&[124], 20.0, 3.0));
        assert_eq!(thirds.len(), 60);
        assert!(
            thirds
                .iter()
                .skip(2)
                .step_by(3)
                .all(|s| s.is_multiple_of(31))
        );
    }

    #[test]
    fn shots_are_so_many_of_each_class_and_follow_the_seed() {
        let classes: Vec<Option<u32>> = (0..100).map(|i| Some(u32::from(i % 10 == 0))).collect();
        let chosen = sample(&classes, 12, 3);
        let of = |class| {
            chosen
                .iter()
                .filter(|&&i| classes[i as usize] == Some(class))
                .count()
        };
        assert_eq!((of(0), of(1)), (12, 10));
        assert_eq!(chosen, sample(&classes, 12, 3));
        assert_ne!(chosen, sample(&classes, 12, 4));
        assert_eq!(sample(&[None; 30], 8, 1).len(), 8);
    }
}
