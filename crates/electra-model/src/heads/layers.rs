//! What most heads are: dropout, a dense layer with an activation, dropout, an output layer.

use electra_engine::backend::*;
use electra_engine::rng::Rng;

/// The layers of a head over some rows of the encoder's output.
#[derive(Clone, Copy, Debug)]
pub struct HeadLayers {
    /// Dropout of the encoder's output.
    pub input_dropout: f32,
    /// `[H, H]` and its activation; many heads have none.
    pub dense: Option<(Linear, Option<Activation>)>,
    /// Dropout before the output layer.
    pub output_dropout: f32,
    /// `[C, H]`.
    pub output: Linear,
    /// First of the two sites of its dropouts.
    pub site: u32,
}

/// What the layers compute on `M` rows.
#[derive(Clone, Copy, Debug)]
pub struct HeadLayersArrays {
    /// `[M, H]` the encoder's output, after dropout.
    x: Array,
    dense: Option<(Array, Array)>,
    /// `[M, C]`.
    pub logits: Array,
}

/// Gradients that pass through the layers.
#[derive(Clone, Copy, Debug)]
pub struct HeadLayersGradients {
    /// `[M, C]`; to be written before backward.
    pub logits: Array,
    dense: Array,
}

impl HeadLayersArrays {
    /// Arrays for up to `rows` rows.
    pub fn new<B: Backend>(backend: &mut B, layers: &HeadLayers, rows: usize) -> Self {
        let hidden = layers.output.weight.cols;
        HeadLayersArrays {
            x: backend.array(rows, hidden),
            dense: layers
                .dense
                .map(|_| (backend.array(rows, hidden), backend.array(rows, hidden))),
            logits: backend.array(rows, layers.output.weight.rows),
        }
    }

    /// The same arrays for the first `rows` rows.
    pub fn first_rows(&self, rows: usize) -> Self {
        HeadLayersArrays {
            x: self.x.first_rows(rows),
            dense: self
                .dense
                .map(|(a, b)| (a.first_rows(rows), b.first_rows(rows))),
            logits: self.logits.first_rows(rows),
        }
    }

    /// What the output layer reads.
    fn last(&self) -> Array {
        self.dense.map_or(self.x, |(_, activated)| activated)
    }
}

impl HeadLayersGradients {
    /// Arrays for up to `rows` rows.
    pub fn new<B: Backend>(backend: &mut B, layers: &HeadLayers, rows: usize) -> Self {
        let hidden = layers.output.weight.cols;
        HeadLayersGradients {
            logits: backend.array(rows, layers.output.weight.rows),
            dense: backend.array(rows, hidden),
        }
    }

    /// The same arrays for the first `rows` rows.
    pub fn first_rows(&self, rows: usize) -> Self {
        HeadLayersGradients {
            logits: self.logits.first_rows(rows),
            dense: self.dense.first_rows(rows),
        }
    }
}

impl HeadLayers {
    fn drop<B: Backend>(
        &self,
        backend: &mut B,
        rate: f32,
        place: u32,
        x: Array,
        keys: &RowKeys,
        rng: Option<&Rng>,
    ) {
        if let Some(&rng) = rng.filter(|_| rate > 0.0) {
            let site = self.site + place;
            backend.dropout(x, &Dropout { rate, rng, site }, keys, x);
        }
    }

    /// Logits `[M, C]` of rows of the encoder's output `[M, H]`; `keys` are those of the rows and `rng`
    /// turns dropout on.
    pub fn forward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        hidden: Array,
        keys: &RowKeys,
        arrays: &HeadLayersArrays,
        rng: Option<&Rng>,
    ) -> Array {
        backend.copy(hidden, arrays.x);
        self.drop(backend, self.input_dropout, 0, arrays.x, keys, rng);
        if let (Some((dense, activation)), Some((z, y))) = (&self.dense, arrays.dense) {
            backend.linear(params, arrays.x, dense, z);
            match activation {
                Some(activation) => backend.activation(*activation, z, y),
                None => backend.copy(z, y),
            }
            self.drop(backend, self.output_dropout, 1, y, keys, rng);
        }
        backend.linear(params, arrays.last(), &self.output, arrays.logits);
        arrays.logits
    }

    /// Adds to `grads` from the gradient by the logits in `d.logits`; that by the rows goes to
    /// `d_hidden`.
    pub fn backward<B: Backend>(
        &self,
        backend: &mut B,
        params: &B::Params,
        keys: &RowKeys,
        arrays: &HeadLayersArrays,
        rng: Option<&Rng>,
        d: &HeadLayersGradients,
        d_hidden: Array,
        grads: &mut B::Flat,
    ) {
        backend.linear_backward_params(arrays.last(), d.logits, &self.output, grads);
        if let (Some((dense, activation)), Some((z, _))) = (&self.dense, arrays.dense) {
            backend.linear_backward_input(params, d.logits, &self.output, d.dense, false);
            self.drop(backend, self.output_dropout, 1, d.dense, keys, rng);
            if let Some(activation) = activation {
                backend.activation_backward(*activation, z, d.dense);
            }
            backend.linear_backward_params(arrays.x, d.dense, dense, grads);
            backend.linear_backward_input(params, d.dense, dense, d_hidden, false);
        } else {
            backend.linear_backward_input(params, d.logits, &self.output, d_hidden, false);
        }
        self.drop(backend, self.input_dropout, 0, d_hidden, keys, rng);
    }
}
