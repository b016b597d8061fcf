//! A reader of Python pickles that knows only what a PyTorch state dict needs.
//!
//! A pickle is a program for a stack machine that may name any Python callable. This machine
//! names a fixed few (ordered dict, tensor and parameter builders, storage types), builds plain
//! data from them and refuses the rest by name. Values live in one arena and refer to each other
//! by number, so no pickle can make it recurse.

use std::collections::HashMap;

pub(crate) use super::pickle_values::{Id, Pickle, PickleError, Value};

const ORDERED_DICT: &str = "collections.OrderedDict";
const REBUILD_TENSORS: [&str; 2] = [
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
];
const REBUILD_PARAMETER: &str = "torch._utils._rebuild_parameter";
const SIZE: &str = "torch.Size";
const STORAGES: [&str; 10] = [
    "torch.DoubleStorage",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
];

/// Run the pickle at the start of `bytes`.
pub(crate) fn load(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle {
        values: machine.values,
        root,
        length: machine.at,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

type Step<T = ()> = Result<T, PickleError>;

impl Machine<'_> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let start = self.at;
            let op = self.take(1)?[0];
            match op {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Value::Other),
                0x88 => self.push(Value::Int(1)),
                0x89 => self.push(Value::Int(0)),
                b'J' => {
                    let i = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(i.into()));
                }
                b'K' => {
                    let i = self.length(1)?;
                    self.push(Value::Int(i as i64));
                }
                b'M' => {
                    let i = self.length(2)?;
                    self.push(Value::Int(i as i64));
                }
                0x8a => self.long(1)?,
                0x8b => self.long(4)?,
                b'I' | b'L' => self.decimal()?,
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other);
                }
                b'F' => {
                    self.line()?;
                    self.push(Value::Other);
                }
                b'U' | 0x8c => self.string(1)?,
                b'T' | b'X' => self.string(4)?,
                0x8d => self.string(8)?,
                b'C' => self.blob(1)?,
                b'B' => self.blob(4)?,
                0x8e | 0x96 => self.blob(8)?,
                b')' => self.push(Value::Tuple(Vec::new())),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items));
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b']' => self.push(Value::List(Vec::new())),
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(items)?;
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Dict(Vec::new()));
                    self.extend_dict(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(items)?;
                }
                b'q' => {
                    let slot = self.length(1)?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.length(4)?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let slot = self.length(1)?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.length(4)?;
                    self.recall(slot)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    match (self.values.get(module), self.values.get(name)) {
                        (Some(Value::Str(module)), Some(Value::Str(name))) => {
                            let (module, name) = (module.clone(), name.clone());
                            self.global(&module, &name)?;
                        }
                        _ => return Err(self.damaged("a global's name is no string")),
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id));
                }
                b'R' => self.reduce()?,
                b'b' => {
                    // The state of an ordered dict: its `_metadata`, which holds no weights.
                    self.pop()?;
                    let target = self.top()?;
                    if !matches!(self.values.get(target), Some(Value::Dict(_))) {
                        return Err(self.damaged("state is set on what is no dict"));
                    }
                }
                _ => {
                    return Err(PickleError::Unsupported(format!(
                        "its pickle uses operation {op:#04x} at byte {start}, which no state dict needs"
                    )));
                }
            }
        }
    }

    fn damaged(&self, problem: &str) -> PickleError {
        PickleError::Damaged(format!("at byte {} of its pickle {problem}", self.at))
    }

    fn take(&mut self, n: usize) -> Step<&[u8]> {
        let end = self
            .at
            .checked_add(n)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(PickleError::Damaged(format!(
                "its pickle ends at byte {} where {n} more were due",
                self.bytes.len()
            )));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A little-endian unsigned number of `width` bytes, at most 8.
    fn length(&mut self, width: usize) -> Step<usize> {
        let mut out = [0; 8];
        out[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(out)).map_err(|_| self.damaged("a length is too large"))
    }

    fn line(&mut self) -> Step<String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            return Err(self.damaged("a line has no end"));
        };
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(text)
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn top(&self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(top) if self.stack.len() > floor => Ok(*top),
            _ => Err(self.damaged("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => Err(self.damaged("a mark is missing")),
        }
    }

    fn tuple(&mut self, n: usize) -> Step {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn long(&mut self, width: usize) -> Step {
        let n = self.length(width)?;
        let bytes = self.take(n)?.to_vec();
        if n > 8 {
            self.push(Value::BigInt(bytes));
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..n].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    /// `I` and `L`: decimal text; `I00` and `I01` are booleans.
    fn decimal(&mut self) -> Step {
        let line = self.line()?;
        match line.trim_end_matches('L').parse() {
            Ok(i) => self.push(Value::Int(i)),
            Err(_) => self.push(Value::Other),
        }
        Ok(())
    }

    fn string(&mut self, width: usize) -> Step {
        let n = self.length(width)?;
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.push(Value::Str(text));
        Ok(())
    }

    fn blob(&mut self, width: usize) -> Step {
        let n = self.length(width)?;
        self.take(n)?;
        self.push(Value::Other);
        Ok(())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Step {
        let target = self.top()?;
        match self.values.get_mut(target) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(self.damaged("an item is appended to what is no list")),
        }
    }

    fn extend_dict(&mut self, items: Vec<Id>) -> Step {
        let target = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(self.damaged("a dict's key has no value"));
        }
        match self.values.get_mut(target) {
            Some(Value::Dict(entries)) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err(self.damaged("an entry is added to what is no dict")),
        }
    }

    fn remember(&mut self, slot: usize) -> Step {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Step {
        match self.memo.get(&slot) {
            Some(id) => {
                self.stack.push(*id);
                Ok(())
            }
            _ => Err(self.damaged("a memo slot is empty")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        let full = format!("{module}.{name}");
        let known = [ORDERED_DICT, REBUILD_PARAMETER, SIZE];
        if known.contains(&full.as_str())
            || REBUILD_TENSORS.contains(&full.as_str())
            || STORAGES.contains(&full.as_str())
        {
            self.push(Value::Global(full));
            return Ok(());
        }
        Err(PickleError::Unsupported(format!(
            "its pickle names the Python object {full}, which no state dict needs; nothing of it \
             was run. Save the weights alone, with torch.save(model.state_dict(), …) or \
             model.save_pretrained(…)"
        )))
    }

    fn reduce(&mut self) -> Step {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let (Some(Value::Global(name)), Some(Value::Tuple(arguments))) =
            (self.values.get(callable), self.values.get(arguments))
        else {
            return Err(self.damaged("a call has no callable or no arguments"));
        };
        let made = match (name.as_str(), arguments.as_slice()) {
            (ORDERED_DICT, []) => Some(Value::Dict(Vec::new())),
            (ORDERED_DICT, [pairs]) => self.ordered_dict(*pairs),
            (SIZE, [sizes]) => self.values.get(*sizes).cloned(),
            (REBUILD_PARAMETER, [tensor, ..]) => match self.values.get(*tensor) {
                Some(tensor @ Value::Tensor { .. }) => Some(tensor.clone()),
                _ => None,
            },
            (name, &[storage, offset, shape, strides, ..]) if REBUILD_TENSORS.contains(&name) => {
                Some(Value::Tensor {
                    storage,
                    offset,
                    shape,
                    strides,
                })
            }
            _ => None,
        };
        match made {
            Some(value) => {
                self.push(value);
                Ok(())
            }
            None => Err(self.damaged("a call has the wrong arguments")),
        }
    }

    /// Python 2 pickles an ordered dict as a call with a list of pairs.
    fn ordered_dict(&self, pairs: Id) -> Option<Value> {
        let Some(Value::List(pairs)) = self.values.get(pairs) else {
            return None;
        };
        let entries = pairs.iter().map(|pair| match self.values.get(*pair) {
            Some(Value::List(kv) | Value::Tuple(kv)) if kv.len() == 2 => Some((kv[0], kv[1])),
            _ => None,
        });
        entries.collect::<Option<Vec<_>>>().map(Value::Dict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_data_is_read() {
        // pickle.dumps({"a": (1, -2, 300, True), "b": [2**70]}, protocol=2), by hand
        let bytes = b"\x80\x02}q\x00(U\x01a(K\x01J\xfe\xff\xff\xffM\x2c\x01\x88tU\x01b]\x8a\x09\0\0\0\0\0\0\0\0\x40au.rest";
        let pickle = load(bytes).unwrap();
        assert_eq!(pickle.length, bytes.len() - 4);
        let Value::Dict(entries) = pickle.root() else {
            panic!("{:?}", pickle.root())
        };
        assert_eq!(pickle.str(entries[0].0), Some("a"));
        let values: Vec<_> = pickle
            .tuple(entries[0].1)
            .unwrap()
            .iter()
            .map(|i| pickle.get(*i).clone())
            .collect();
        assert_eq!(values, [1, -2, 300, 1].map(Value::Int));
        let Value::List(list) = pickle.get(entries[1].1) else {
            panic!()
        };
        assert_eq!(
            pickle.get(list[0]),
            &Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0, 0x40])
        );
    }

    #[test]
    fn a_python_object_is_refused_by_name() {
        let error = load(b"cposix\nsystem\n(U\x02lstR.").unwrap_err();
        let PickleError::Unsupported(message) = error else {
            panic!("{error:?}")
        };
        assert!(
            message.contains("posix.system") && message.contains("state_dict()"),
            "{message}"
        );
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for bytes in [
            &b""[..],
            b".",
            b"(t",
            b"X\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\xff",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"Nr\xff\xff\xff\xff",
            b"h\x07.",
            b"Ns.",
            b"(NNNd.",
            b"}(Nu.",
            b"NNR.",
            b"(0.",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
            b"\x93",
            b"i",
        ] {
            assert!(load(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn random_bytes_are_an_error_or_a_value_and_never_a_panic() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let ops =
                        b"(.0122NJKMUX)t\x85\x86\x87]lae}dsuqrhjcQRb\x88\x94\x93\x8a\n\x00\x01";
                    ops[(state >> 33) as usize % ops.len()]
                })
                .collect();
            let _ = load(&bytes);
        }
    }
}
