//! Layerwise learning-rate decay: the deeper a layer lies below the head, the slower it learns.

/// Factor on the learning rate of a tensor.
///
/// `depth` is 0 for embeddings and their projection, `k + 1` for layer `k`, `layers + 2` for a
/// head. The top layer has `decay`, the one below `decay²`, the embeddings `decay^(layers + 1)`.
/// The reference counts a layer between the top and the head that is not there (a pooler once),
/// so that everything below the head has one factor more: `compat_google`.
pub fn factor(depth: usize, layers: usize, decay: f64, compat_google: bool) -> f64 {
    let head = layers + 2;
    if depth >= head {
        return 1.0;
    }
    let below = if compat_google { head } else { layers + 1 };
    decay.powi((below - depth) as i32)
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn no_depth_is_skipped_but_in_the_reference() {
        let factors = |google| [14, 12, 11, 1, 0].map(|depth| factor(depth, 12, 0.8, google));
        let want = |exponents: [i32; 5]| exponents.map(|e| 0.8f64.powi(e));
        assert_eq!(factors(false), want([0, 1, 2, 12, 13]));
        assert_eq!(factors(true), want([0, 2, 3, 13, 14]));
    }
}
