//! The tree of a text becomes a value: files are read, scripts are run, names are looked up.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    DataError, MOST_MEMORY,
    parse::{Base, Expression, Field, Move, Suffix, parse},
    value::{Parts, Value},
};

/// How deep parentheses and variables may stand in each other.
const DEEPEST: usize = 100;

/// How many fields are looked at, all in all: variables can make more and more of themselves.
const MOST_FIELDS: usize = 1 << 20;

/// Whether a text may reach for what it does not hold itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outside {
    /// Files, scripts, and the environment.
    Allowed,
    Refused,
}

/// The bytes that a text describes.
pub(super) fn evaluate(
    text: &[u8],
    variables: &[(String, Vec<u8>)],
    outside: Outside,
) -> Result<Value, DataError> {
    let mut evaluation = Evaluation {
        variables,
        outside,
        fields: 0,
        held: 0,
        scopes: Vec::new(),
    };
    evaluation.fields(&parse(text)?)
}

struct Evaluation<'a> {
    variables: &'a [(String, Vec<u8>)],
    outside: Outside,
    /// How many fields were looked at.
    fields: usize,
    /// How many bytes came from files and scripts.
    held: u64,
    /// What was assigned, the innermost last.
    scopes: Vec<HashMap<String, Value>>,
}

impl Evaluation<'_> {
    fn fields(&mut self, fields: &[Field]) -> Result<Value, DataError> {
        if self.scopes.len() >= DEEPEST {
            return Err(DataError::TooDeep);
        }
        self.scopes.push(HashMap::new());
        let mut parts = Parts::default();
        let mut offset = 0;
        for field in fields {
            self.fields += 1;
            if self.fields > MOST_FIELDS {
                return Err(DataError::TooMany);
            }
            match field {
                Field::Move(to) => {
                    offset = moved(offset, *to)?;
                    parts.extend_to(offset)?;
                }
                Field::Put(expression) => offset = parts.put(offset, self.value(expression)?)?,
                Field::Assign(name, expression) => {
                    let value = self.value(expression)?;
                    if let Some(scope) = self.scopes.last_mut() {
                        scope.insert(name.clone(), value);
                    }
                }
            }
        }
        self.scopes.pop();
        parts.into_value()
    }

    fn value(&mut self, expression: &Expression) -> Result<Value, DataError> {
        let mut value = match &expression.base {
            Base::Byte(byte) => Value::byte(*byte),
            Base::Bytes(bytes) => Value::bytes(bytes.clone()),
            Base::Group(fields) => self.fields(fields)?,
            Base::Name(name) => self.assigned(name)?,
            Base::Variable(name) => self.variable(name)?,
            Base::File(_) | Base::Script(_) => self.outside_bytes(expression)?,
        };
        for suffix in &expression.suffixes {
            value = match *suffix {
                Suffix::Repeat(count) => value.repeated(count)?,
                Suffix::Slice(start, end) => value.slice(start, end)?,
            };
        }
        Ok(value)
    }

    fn assigned(&self, name: &str) -> Result<Value, DataError> {
        let mut scopes = self.scopes.iter().rev();
        let value = scopes.find_map(|scope| scope.get(name));
        value
            .cloned()
            .ok_or_else(|| DataError::Undefined(format!("\\{name}")))
    }

    fn variable(&mut self, name: &str) -> Result<Value, DataError> {
        let given = self.variables.iter().find(|(known, _)| known == name);
        let text = match (given, self.outside) {
            (Some((_, text)), _) => Some(text.clone()),
            (None, Outside::Allowed) => {
                std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec)
            }
            (None, Outside::Refused) => None,
        };
        let text = text.ok_or_else(|| DataError::Undefined(format!("${name}")))?;
        let value = parse(&text).and_then(|fields| self.fields(&fields));
        value.map_err(|error| match error {
            error @ DataError::Syntax { .. } => DataError::Variable {
                name: name.to_owned(),
                error: Box::new(error),
            },
            error => error,
        })
    }

    /// A file or what a script prints. Where only the beginning of it is wanted it need not end.
    fn outside_bytes(&mut self, expression: &Expression) -> Result<Value, DataError> {
        let wanted = match expression.suffixes.first() {
            Some(Suffix::Slice(_, Some(end))) => Some(*end),
            _ => None,
        };
        let (name, read) = match &expression.base {
            Base::File(path) => (path, self.file(path, wanted)),
            Base::Script(script) => (script, self.script(script, wanted)),
            _ => return Ok(Value::bytes(Vec::new())),
        };
        let bytes = read.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => DataError::TooMuch,
            _ => DataError::Outside {
                name: String::from_utf8_lossy(name).escape_debug().to_string(),
                error: error.to_string(),
            },
        })?;
        self.held += bytes.len() as u64;
        Ok(Value::bytes(bytes))
    }

    fn file(&self, path: &[u8], wanted: Option<u64>) -> io::Result<Vec<u8>> {
        self.check_outside()?;
        let file = File::open(Path::new(OsStr::from_bytes(path)))?;
        self.read(file, wanted)
    }

    fn script(&self, script: &[u8], wanted: Option<u64>) -> io::Result<Vec<u8>> {
        self.check_outside()?;
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(OsStr::from_bytes(script))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let read = match child.stdout.take() {
            Some(output) => self.read(output, wanted),
            None => Ok(Vec::new()),
        };
        let is_cut = match &read {
            Ok(bytes) => wanted == Some(bytes.len() as u64),
            Err(_) => true,
        };
        if is_cut {
            // It may have more to say, and nobody listens: that is no failure of the script.
            let _ = child.kill();
            child.wait()?;
            return read;
        }
        let status = child.wait()?;
        match status.success() {
            true => read,
            false => Err(io::Error::other(format!("the script failed: {status}"))),
        }
    }

    /// Reads to the end, or until enough is there.
    fn read(&self, from: impl Read, wanted: Option<u64>) -> io::Result<Vec<u8>> {
        let room = MOST_MEMORY.saturating_sub(self.held);
        let mut bytes = Vec::new();
        let limit = wanted.unwrap_or(u64::MAX).min(room.saturating_add(1));
        from.take(limit).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > room {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(bytes),
        }
    }

    fn check_outside(&self) -> io::Result<()> {
        match self.outside {
            Outside::Allowed => Ok(()),
            Outside::Refused => Err(io::Error::other("files and scripts are not allowed here")),
        }
    }
}

fn moved(offset: u64, to: Move) -> Result<u64, DataError> {
    match to {
        Move::To(offset) => Some(offset),
        Move::Forward(by) => offset.checked_add(by),
        Move::Back(by) if by > offset => return Err(DataError::BeforeStart { by, offset }),
        Move::Back(by) => Some(offset - by),
        Move::Align(to) => offset.checked_next_multiple_of(to),
    }
    .ok_or(DataError::TooLarge)
}
