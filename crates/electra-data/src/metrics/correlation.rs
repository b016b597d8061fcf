//! Correlations and errors of numbers, as scipy has them.

/// Pearson's correlation coefficient; not a number where one side is constant, as in scipy.
///
/// # Panics
/// If the two differ in length.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pairs of numbers");
    if x.len() < 2 || constant(x) || constant(y) {
        return f64::NAN;
    }
    let n = x.len() as f64;
    let (mean_x, mean_y) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        let (a, b) = (a - mean_x, b - mean_y);
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0)
}

fn constant(x: &[f64]) -> bool {
    x.iter().all(|v| *v == x[0])
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
///
/// # Panics
/// If the two differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value from 1, the mean where values are equal.
fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut from = 0;
    while from < order.len() {
        let mut to = from + 1;
        // Zero and minus zero are equal, though the order tells them apart.
        while to < order.len() && x[order[to]] == x[order[from]] {
            to += 1;
        }
        for &i in &order[from..to] {
            ranks[i] = (from + to + 1) as f64 / 2.0;
        }
        from = to;
    }
    ranks
}

/// Mean of the squared differences; 0 of none.
///
/// # Panics
/// If the two differ in length.
pub fn mean_squared_error(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pairs of numbers");
    let sum: f64 = x.iter().zip(y).map(|(a, b)| (a - b) * (a - b)).sum();
    sum / x.len().max(1) as f64
}
