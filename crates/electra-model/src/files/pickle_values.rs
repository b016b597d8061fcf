//! What a pickle holds once it is read: Python values in an arena, by number.

/// Why a pickle was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PickleError {
    /// Ends early or contradicts itself.
    Damaged(String),
    /// Needs something that a state dict does not.
    Unsupported(String),
}

/// Number of a value in [`Pickle::values`].
pub(crate) type Id = usize;

/// A Python value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `None`, floats, bytes: nothing of a state dict's that is looked at.
    Other,
    /// A whole number that fits, or a `bool`.
    Int(i64),
    /// A whole number of more than eight bytes, little-endian.
    BigInt(Vec<u8>),
    /// A string.
    Str(String),
    /// A tuple, also a `torch.Size`.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dict or an ordered dict, in order.
    Dict(Vec<(Id, Id)>),
    /// `module.name`, one of those allowed.
    Global(String),
    /// What a persistent id, a tuple, stands for: a storage.
    Persistent(Id),
    /// A tensor: the persistent storage, offset in elements, shape, strides.
    Tensor {
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
    },
}

/// A finished pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub values: Vec<Value>,
    pub root: Id,
    /// Bytes it took.
    pub length: usize,
}

impl Pickle {
    pub fn root(&self) -> &Value {
        self.get(self.root)
    }

    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::Other)
    }

    pub fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }

    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A tuple of sizes.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.tuple(id)?.iter().map(|i| self.size(*i)).collect()
    }
}
