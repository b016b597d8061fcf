//! Where parameters lie: one flat array, and a name, a shape and a place in it for each tensor.

use std::collections::HashMap;

/// A matrix (or, with one row, a vector) of parameters inside the flat array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamView {
    /// First element in the flat array.
    pub offset: usize,
    /// Rows; 1 for a vector. A linear layer's weight has one row an output feature.
    pub rows: usize,
    /// Elements a row.
    pub cols: usize,
}

impl ParamView {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' range in the flat array.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Whether both have elements in common.
    pub fn overlaps(&self, other: &ParamView) -> bool {
        let (a, b) = (self.range(), other.range());
        a.start < b.end && b.start < a.end
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with this standard deviation, cut off at two of them.
    TruncatedNormal(f32),
    /// Uniform in ±sqrt(6 / (rows + cols)) (Glorot and Bengio 2010).
    GlorotUniform,
}

/// One named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Names of the state dict; a shared tensor has several, all for one place.
    pub names: Vec<String>,
    /// Shape of the state dict, one or two sizes.
    pub shape: Vec<usize>,
    /// Place in the flat array.
    pub view: ParamView,
    /// Whether weight decay applies (not to norms and biases).
    pub decay: bool,
    /// 0 for embeddings, `k + 1` for layer `k`, `layers + 2` for a head: layerwise learning rates.
    pub depth: usize,
    /// How it starts.
    pub init: Init,
}

/// The parameters of a network or of several that are trained together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamLayout {
    params: Vec<Param>,
    by_name: HashMap<String, usize>,
    linears: Vec<ParamView>,
    in_bytes: Vec<ParamView>,
    tables: Vec<ParamView>,
    len: usize,
}

/// A group's first element lies at a multiple of this many elements: one cache line of f32.
const ALIGN: usize = 16;

impl ParamLayout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one tensor and returns its place. A name that exists already panics: names are the
    /// program's, not the user's.
    pub fn push(&mut self, name: &str, shape: &[usize], init: Init, depth: usize) -> ParamView {
        self.push_adjacent(&[name], shape, init, depth)
    }

    /// Adds tensors of one shape side by side and returns the view that spans them all, stacked
    /// by rows (vectors: joined): query, key and value as one product.
    pub fn push_adjacent(
        &mut self,
        names: &[&str],
        shape: &[usize],
        init: Init,
        depth: usize,
    ) -> ParamView {
        let (rows, cols) = match *shape {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => panic!("{}: a parameter has one or two dimensions", names[0]),
        };
        let start = self.len.next_multiple_of(ALIGN);
        for (i, name) in names.iter().enumerate() {
            let view = ParamView {
                offset: start + i * rows * cols,
                rows,
                cols,
            };
            let previous = self.by_name.insert((*name).to_owned(), self.params.len());
            assert!(previous.is_none(), "{name} is there already");
            let norm_or_bias = name.contains("LayerNorm") || name.ends_with("bias");
            self.params.push(Param {
                names: vec![(*name).to_owned()],
                shape: shape.to_vec(),
                view,
                decay: !norm_or_bias,
                depth,
                init,
            });
        }
        self.len = start + names.len() * rows * cols;
        match *shape {
            [_] => ParamView {
                offset: start,
                rows: 1,
                cols: names.len() * cols,
            },
            _ => ParamView {
                offset: start,
                rows: names.len() * rows,
                cols,
            },
        }
    }

    /// Gives the tensor called `existing` a second name. Both are the program's own.
    pub fn alias(&mut self, name: &str, existing: &str) {
        let index = self.by_name[existing];
        let previous = self.by_name.insert(name.to_owned(), index);
        assert!(previous.is_none(), "{name} is there already");
        self.params[index].names.push(name.to_owned());
    }

    /// Says that `weight` is multiplied with, so that backends pack it.
    pub fn register_linear(&mut self, weight: ParamView) {
        if !self.linears.contains(&weight) {
            self.linears.push(weight);
        }
    }

    /// Says that `weight` is multiplied with in a layer: in inference, where a backend computes
    /// products in bytes, this one too.
    pub fn register_layer_linear(&mut self, weight: ParamView) {
        self.register_linear(weight);
        if !self.in_bytes.contains(&weight) {
            self.in_bytes.push(weight);
        }
    }

    /// Says that single rows of `table` are read, so that a backend keeps them as they are beside
    /// what it may pack.
    pub fn register_table(&mut self, table: ParamView) {
        if !self.tables.contains(&table) {
            self.tables.push(table);
        }
    }

    /// The weights that are multiplied with.
    pub fn linears(&self) -> &[ParamView] {
        &self.linears
    }

    /// Says that the weights multiplied with that overlap `part` lose too much in bytes: where a
    /// backend computes products in bytes, these stay in its next better form.
    pub fn keep_exact(&mut self, part: ParamView) {
        self.in_bytes.retain(|view| !view.overlaps(&part));
    }

    /// The weights of layers, but for those that [`keep_exact`](ParamLayout::keep_exact) named.
    pub fn in_bytes(&self) -> &[ParamView] {
        &self.in_bytes
    }

    /// The weights that are multiplied with and of which nothing else is read.
    pub fn only_multiplied(&self) -> impl Iterator<Item = ParamView> {
        let read = |view: &ParamView| self.tables.iter().any(|table| table.overlaps(view));
        let linears = self.linears.iter().copied();
        linears.filter(move |view| !read(view))
    }

    /// Every tensor, in the order of their places.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.by_name.get(name).map(|&i| &self.params[i])
    }

    /// Length of the flat array in elements, with what lies between groups for alignment.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of parameters, a shared one counted once.
    pub fn count(&self) -> usize {
        self.params.iter().map(|p| p.view.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_tensors_form_one_matrix_and_aliases_one_place() {
        let mut layout = ParamLayout::new();
        let bias = layout.push("bias", &[5], Init::Zeros, 0);
        let qkv = layout.push_adjacent(&["q", "k", "v"], &[5, 3], Init::Zeros, 1);
        assert_eq!((bias.offset, bias.rows, bias.cols), (0, 1, 5));
        assert_eq!((qkv.offset, qkv.rows, qkv.cols), (16, 15, 3));
        let value = layout.get("v").expect("pushed");
        assert_eq!(value.view.offset, 16 + 2 * 15);
        layout.alias("shared", "k");
        assert_eq!(layout.get("shared"), layout.get("k"));
        assert_eq!(layout.count(), 5 + 45);
        assert_eq!(layout.len(), 16 + 45);
        layout.register_layer_linear(qkv);
        layout.keep_exact(bias);
        assert_eq!(layout.in_bytes(), [qkv]);
        layout.keep_exact(layout.get("k").expect("pushed").view);
        assert_eq!(layout.in_bytes(), []);
        assert_eq!(layout.only_multiplied().collect::<Vec<_>>(), [qkv]);
        layout.register_table(layout.get("v").expect("pushed").view);
        assert_eq!(layout.only_multiplied().count(), 0);
        assert!(
            layout.get("q").expect("pushed").decay && !layout.get("bias").expect("pushed").decay
        );
    }
}
