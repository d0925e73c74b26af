//! How the parameters of an endpoint are written: `NAME:FIRST,KEY=VALUE`, a literal comma as `,,`.
//!
//! [`Values`] reads them by the description that a [`SourceKind`] has of them.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use crate::block::parse_size;

use super::{
    printable,
    sources::{Parameter, ParameterPlace, ParameterType, SourceKind},
};

/// What a text says for the parameters of a kind of source, each as its type wants it.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: Vec<(&'static str, OsString)>,
    /// Those that the kind hands on to somebody else.
    others: Vec<(String, OsString)>,
}

impl Values {
    /// Reads what stands behind the colon.
    pub(super) fn read(kind: &SourceKind, text: &OsStr) -> Result<Self, String> {
        let mut values = Self::default();
        if let Some(parameter) = kind.placed(ParameterPlace::Whole) {
            if text.is_empty() {
                return Err(missing(kind, parameter));
            }
            values.given.push((parameter.name, text.to_owned()));
            return Ok(values);
        }
        if !text.is_empty() {
            for (index, piece) in pieces(text).into_iter().enumerate() {
                values.take(kind, index, piece)?;
            }
        }
        for parameter in kind.parameters {
            if parameter.required && values.all(parameter.name).next().is_none() {
                return Err(missing(kind, parameter));
            }
        }
        Ok(values)
    }

    fn take(&mut self, kind: &SourceKind, index: usize, piece: OsString) -> Result<(), String> {
        if piece.is_empty() {
            return Err("there is nothing between two commas, or behind the last".to_owned());
        }
        if let Some(parameter) = kind.placed(ParameterPlace::Each) {
            return self.give(parameter, piece);
        }
        let pair = split_pair(&piece);
        if let Some((key, value)) = &pair
            && let Some(parameter) = kind.parameters.iter().find(|known| known.name == *key)
        {
            return self.give(parameter, value.clone());
        }
        if index == 0
            && let Some(parameter) = kind.placed(ParameterPlace::First)
        {
            return self.give(parameter, piece);
        }
        match pair {
            Some((key, value)) if kind.others.is_some() => {
                if self.others.iter().any(|(known, _)| *known == key) && !kind.others_repeat {
                    return Err(format!("{key} is given twice"));
                }
                self.others.push((key, value));
                Ok(())
            }
            _ => Err(unknown(kind, &piece)),
        }
    }

    fn give(&mut self, parameter: &Parameter, value: OsString) -> Result<(), String> {
        let name = parameter.name;
        if parameter.place != ParameterPlace::Each && self.all(name).next().is_some() {
            return Err(format!("{name} is given twice"));
        }
        check(parameter, &value)?;
        self.given.push((name, value));
        Ok(())
    }

    /// The values of `name`, in order.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a OsStr> {
        let given = self.given.iter();
        given
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| &**value)
    }

    /// The value of `name`.
    pub(super) fn one(&self, name: &str) -> Option<OsString> {
        self.all(name).next().map(OsStr::to_owned)
    }

    /// The value of a parameter of type `Size`.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        // It was checked when it was given.
        parse_size(self.one(name)?.to_str()?).ok()
    }

    /// The value of a parameter that is a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        let value = self.one(name)?;
        let digits = value.to_str()?;
        digits.strip_suffix('%').unwrap_or(digits).parse().ok()
    }

    /// What the kind hands on, in order.
    pub(super) fn into_others(self) -> Vec<(String, OsString)> {
        self.others
    }
}

/// The text cut at each comma that does not stand for itself.
fn pieces(text: &OsStr) -> Vec<OsString> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let is_end = byte == b',' && bytes.next_if_eq(&b',').is_none();
        match pieces.last_mut() {
            Some(piece) if !is_end => piece.push(byte),
            _ => pieces.push(Vec::new()),
        }
    }
    pieces.into_iter().map(OsString::from_vec).collect()
}

/// `text` with each comma doubled, so that it is one value of an endpoint.
#[must_use]
pub fn escape_commas(text: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        escaped.push(*byte);
        if *byte == b',' {
            escaped.push(b',');
        }
    }
    OsString::from_vec(escaped)
}

/// `KEY=VALUE` with a key as nbdkit has them: letters, digits, `-`, `_` and `.`, the first a letter.
fn split_pair(piece: &OsStr) -> Option<(String, OsString)> {
    let bytes = piece.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&bytes[..equals]).ok()?;
    let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let value = OsStr::from_bytes(&bytes[equals + 1..]).to_owned();
    is_key.then(|| (key.to_owned(), value))
}

fn check(parameter: &Parameter, value: &OsStr) -> Result<(), String> {
    let name = parameter.name;
    let shown = printable(value);
    let text = value.to_str();
    let number = text.and_then(|text| text.parse::<u64>().ok());
    match parameter.kind {
        ParameterType::Size => match parse_size(text.unwrap_or(&shown)) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{name}: {error}")),
        },
        ParameterType::Number if number.is_none() => {
            Err(format!("{name}={shown:?} is not a number below 2^64"))
        }
        ParameterType::Percent => {
            let digits = text.map(|text| text.strip_suffix('%').unwrap_or(text));
            let percent = digits.and_then(|digits| digits.parse::<u8>().ok());
            match percent {
                Some(..=100) => Ok(()),
                _ => Err(format!(
                    "{name}={shown:?} is not a percentage from 0 to 100"
                )),
            }
        }
        ParameterType::Descriptor if number.is_none_or(|n| i32::try_from(n).is_err()) => Err(
            format!("{name}={shown:?} is not the number of a descriptor"),
        ),
        ParameterType::Path if value.is_empty() => Err(format!("{name} is empty")),
        _ => Ok(()),
    }
}

fn missing(kind: &SourceKind, parameter: &Parameter) -> String {
    format!("{} is missing: write {}", parameter.name, kind.syntax)
}

fn unknown(kind: &SourceKind, piece: &OsStr) -> String {
    let key = split_pair(piece).map_or_else(|| printable(piece), |(key, _)| key);
    let name = kind.name;
    let known: Vec<_> = kind.parameters.iter().map(|known| known.name).collect();
    match &known[..] {
        [] => format!("'{name}:' has no parameter {key:?}"),
        known => format!(
            "'{name}:' has no parameter {key:?}: it knows {}; a comma in a value is written ',,'",
            known.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        let pieces = pieces(OsStr::new(text));
        let pieces = pieces.into_iter().map(OsString::into_string);
        pieces.collect::<Result<_, _>>().expect("text")
    }

    #[test]
    fn two_commas_are_one_and_one_is_the_end() {
        assert_eq!(cut("a"), ["a"]);
        assert_eq!(cut("a,b"), ["a", "b"]);
        assert_eq!(cut("a,,b,c"), ["a,b", "c"]);
        assert_eq!(cut("a,,,b"), ["a,", "b"]);
        assert_eq!(cut(",,"), [","]);
        assert_eq!(cut("a,"), ["a", ""]);
        assert_eq!(cut(""), [""]);
        for text in ["a,b", ",", ",,", "x"] {
            let escaped = escape_commas(OsStr::new(text));
            assert_eq!(cut(escaped.to_str().expect("text")), [text]);
        }
    }

    #[test]
    fn a_key_is_a_word() {
        let key = |text| split_pair(OsStr::new(text)).map(|(key, _)| key);
        assert_eq!(key("size=1M").as_deref(), Some("size"));
        assert_eq!(key("a.b-c_1==").as_deref(), Some("a.b-c_1"));
        for text in ["/a=b", "=b", "0=1", "\"a=b\"", "a"] {
            assert_eq!(key(text), None, "{text}");
        }
    }
}
