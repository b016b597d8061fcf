//! Initial values: a function of the seed and each tensor's place, drawn in no order.

use electra_engine::params::{Init, ParamLayout};
use electra_engine::rng::{Purpose, Rng};

/// Fresh parameters for `layout`, a flat array of its length.
pub fn initial_values(layout: &ParamLayout, seed: u64) -> Vec<f32> {
    let rng = Rng::new(seed, 0);
    let mut values = vec![0.0; layout.len()];
    for (site, param) in layout.params().iter().enumerate() {
        let view = param.view;
        let out = &mut values[view.range()];
        match param.init {
            Init::Zeros => {}
            Init::Ones => out.fill(1.0),
            Init::TruncatedNormal(deviation) => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = deviation * truncated_normal(&rng, site as u32, i as u32);
                }
            }
            Init::GlorotUniform => {
                let bound = (6.0 / (view.rows + view.cols) as f64).sqrt();
                for (i, value) in out.iter_mut().enumerate() {
                    let u = rng.uniform(Purpose::Init, site as u32, 0, i as u32, 0);
                    *value = ((2.0 * u - 1.0) * bound) as f32;
                }
            }
        }
    }
    values
}

/// A standard normal number (Box and Muller 1958), drawn again until it lies within ±2.
fn truncated_normal(rng: &Rng, site: u32, index: u32) -> f32 {
    let mut block = 0;
    loop {
        let u = 1.0 - rng.uniform(Purpose::Init, site, 0, index, block);
        let v = rng.uniform(Purpose::Init, site, 1, index, block);
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        if normal.abs() <= 2.0 {
            return normal as f32;
        }
        block += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_stated_distribution_and_follow_the_seed() {
        let mut layout = ParamLayout::new();
        let normal = layout.push("w", &[200, 500], Init::TruncatedNormal(0.02), 0);
        let uniform = layout.push("p", &[100, 200], Init::GlorotUniform, 0);
        let values = initial_values(&layout, 1);
        assert_eq!(values, initial_values(&layout, 1));
        assert_ne!(values, initial_values(&layout, 2));

        let w = &values[normal.range()];
        assert!(w.iter().all(|v| v.abs() <= 0.04));
        let deviation = (w.iter().map(|v| v * v).sum::<f32>() / w.len() as f32).sqrt();
        // A normal cut at two deviations has 0.880 of its deviation.
        assert!((deviation / 0.02 - 0.880).abs() < 0.01, "{deviation}");

        let bound = (6.0f32 / 300.0).sqrt();
        let p = &values[uniform.range()];
        assert!(p.iter().all(|v| v.abs() <= bound));
        let deviation = (p.iter().map(|v| v * v).sum::<f32>() / p.len() as f32).sqrt();
        assert!((deviation / (bound / 3f32.sqrt()) - 1.0).abs() < 0.02);
    }
}
