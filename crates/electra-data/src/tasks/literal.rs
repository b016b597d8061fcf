//! Lists and objects in cells of text, as JSON or Python write them.

use serde_json::{Map, Number, Value};

/// Lists within lists that are followed.
const MOST_DEPTH: u32 = 16;

/// What a cell holds: of one of text the list or object that it is written as, `["x"]`, `['x']` or
/// `{'x': [0]}`, if it is; of numpy's `array(['x'], dtype=object)` the list.
pub(super) fn unwritten(cell: Value) -> Value {
    match &cell {
        Value::String(text) => parse(text.trim()).unwrap_or(cell),
        _ => cell,
    }
}

fn parse(text: &str) -> Option<Value> {
    if !text.starts_with(['[', '{']) {
        return None;
    }
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let mut literal = Literal { rest: text };
    let value = literal.value(MOST_DEPTH)?;
    literal.rest.trim().is_empty().then_some(value)
}

/// A literal of Python that is read from its beginning.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    /// Whether a character comes next; if so, it is passed.
    fn take(&mut self, character: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(character);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// As many characters as are so, passed; at least one.
    fn run(&mut self, of: impl Fn(char) -> bool) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !of(c)).unwrap_or(self.rest.len());
        let (run, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!run.is_empty()).then_some(run)
    }

    fn word(&mut self) -> Option<&'a str> {
        self.run(|c| c.is_alphanumeric() || c == '_' || c == '.')
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        match self.rest.trim_start().chars().next()? {
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '{' => self.object(depth),
            '"' | '\'' => self.string().map(Value::String),
            c if c.is_ascii_digit() || c == '-' => self.number(),
            _ => match self.word()? {
                "None" | "nan" => Some(Value::Null),
                "True" => Some(Value::Bool(true)),
                "False" => Some(Value::Bool(false)),
                _ => self.argument(depth),
            },
        }
    }

    fn list(&mut self, begin: char, end: char, depth: u32) -> Option<Value> {
        let mut list = Vec::new();
        self.take(begin);
        while !self.take(end) {
            list.push(self.value(depth)?);
            if !self.take(',') && !self.rest.starts_with(end) {
                return None;
            }
        }
        Some(Value::Array(list))
    }

    fn object(&mut self, depth: u32) -> Option<Value> {
        let mut object = Map::new();
        self.take('{');
        while !self.take('}') {
            let Value::String(key) = self.value(depth)? else {
                return None;
            };
            if !self.take(':') {
                return None;
            }
            object.insert(key, self.value(depth)?);
            if !self.take(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(Value::Object(object))
    }

    fn number(&mut self) -> Option<Value> {
        let text = self.run(|c| c.is_ascii_digit() || "+-.eE".contains(c))?;
        let whole = text.parse::<i64>().ok().map(Number::from);
        let number = whole.or_else(|| Number::from_f64(text.parse().ok()?));
        number.map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        let mut chars = self.rest.trim_start().chars();
        let quote = chars.next()?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                '\\' => {
                    let escaped = chars.next()?;
                    let digits = match escaped {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    text.push(match escaped {
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        _ if digits > 0 => {
                            let (code, rest) = chars.as_str().split_at_checked(digits)?;
                            chars = rest.chars();
                            char::from_u32(u32::from_str_radix(code, 16).ok()?)?
                        }
                        itself => itself,
                    });
                }
                end if end == quote => break,
                other => text.push(other),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }

    /// The first of what stands in the brackets after a name: `array([0], dtype=int32)`, `int64(0)`.
    fn argument(&mut self, depth: u32) -> Option<Value> {
        if !self.take('(') {
            return None;
        }
        let value = self.value(depth)?;
        while self.take(',') {
            self.word()?;
            if !self.take('=') {
                return None;
            }
            match self.rest.starts_with(['"', '\'']) {
                true => drop(self.string()?),
                false => drop(self.word()?),
            }
        }
        self.take(')').then_some(value)
    }
}
