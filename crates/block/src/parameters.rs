//! Parameters: how `NAME:FIRST,KEY=VALUE` is described, and read by that description. A literal comma is written
//! `,,`.
//!
//! The tables of sources and of filters describe their rows with [`Parameter`]; [`Values`] reads a text by such a
//! row, and whoever shows the table shows what is read.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

use crate::{parse_size, printable};

/// A parameter.
#[derive(Debug)]
pub struct Parameter {
    /// The key, as in `KEY=VALUE`.
    pub name: &'static str,
    /// What its value is.
    pub kind: ParameterType,
    /// Where it stands.
    pub place: ParameterPlace,
    /// Whether nothing works without it.
    pub required: bool,
    /// What holds without it, where that is a value.
    pub default: Option<&'static str>,
    /// What it is for, in a sentence without a full stop.
    pub help: &'static str,
}

/// What the value of a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParameterType {
    /// A number of bytes with an optional unit, as `64K`.
    Size,
    /// A number below 2^64.
    Number,
    /// A number from 0 to 100.
    Percent,
    /// A path; it need not be UTF-8.
    Path,
    /// The number of an open descriptor.
    Descriptor,
    /// A description of bytes in the language of nbdkit's data plugin.
    Data,
    /// Bytes as they are.
    Bytes,
    /// Bytes in base64.
    Base64,
    /// A time: seconds, or with a unit as `10ms`, `1.5s`, `2m`.
    Duration,
    /// `on` or `off`; also `yes`, `no`, `true`, `false`, `1`, `0`.
    Switch,
    /// A part of all, from 0 to 1, or as `5%`.
    Fraction,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Some of these words with `+` between them.
    Words(&'static [&'static str]),
}

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterPlace {
    /// In the beginning, where its key may be left out.
    First,
    /// Anywhere, as `KEY=VALUE`.
    Named,
    /// Everywhere: each part is one, without a key.
    Each,
    /// It is all of the text; commas are part of it.
    Whole,
}

/// What can stand behind a name and a colon.
#[derive(Clone, Copy, Debug)]
pub struct Grammar {
    /// The name before the colon.
    pub name: &'static str,
    /// How the whole is written, for messages.
    pub syntax: &'static str,
    /// The parameters.
    pub parameters: &'static [Parameter],
    /// Whether other `KEY=VALUE` are kept, for somebody else.
    pub others: bool,
    /// Whether one key may come several times among those.
    pub others_repeat: bool,
}

impl Grammar {
    fn placed(&self, place: ParameterPlace) -> Option<&'static Parameter> {
        self.parameters.iter().find(|known| known.place == place)
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Size => "size",
            Self::Number => "number",
            Self::Percent => "percent",
            Self::Path => "path",
            Self::Descriptor => "descriptor",
            Self::Data => "data",
            Self::Bytes => "bytes",
            Self::Base64 => "base64",
            Self::Duration => "time",
            Self::Switch => "on|off",
            Self::Fraction => "fraction",
            Self::Choice(words) => return f.pad(&words.join("|")),
            Self::Words(words) => return f.pad(&words.join("+")),
        })
    }
}

impl Parameter {
    /// A parameter `KEY=VALUE` that may be left out.
    #[must_use]
    pub const fn new(name: &'static str, kind: ParameterType, help: &'static str) -> Self {
        Self {
            name,
            kind,
            place: ParameterPlace::Named,
            required: false,
            default: None,
            help,
        }
    }

    /// The same, in the beginning, where its key may be left out.
    #[must_use]
    pub const fn first(mut self) -> Self {
        self.place = ParameterPlace::First;
        self
    }

    /// The same, without which nothing works.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The same, and what holds without it. A number or a word that would be read as the value.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// The same, at another place and for something else.
    #[must_use]
    pub const fn with(mut self, place: ParameterPlace, help: &'static str) -> Self {
        self.place = place;
        self.help = help;
        self
    }
}

/// What a text says for the parameters of a [`Grammar`], each as its type wants it.
#[derive(Debug, Default)]
pub struct Values {
    given: Vec<(&'static str, OsString)>,
    /// Those that are handed on to somebody else.
    others: Vec<(String, OsString)>,
}

impl Values {
    /// Reads what stands behind the colon. Parameters that are not there get their defaults.
    ///
    /// # Errors
    /// What is wrong with the text, for people.
    pub fn read(grammar: &Grammar, text: &OsStr) -> Result<Self, String> {
        let mut values = Self::default();
        if let Some(parameter) = grammar.placed(ParameterPlace::Whole) {
            if text.is_empty() {
                return Err(missing(grammar, parameter));
            }
            values.given.push((parameter.name, text.to_owned()));
            return Ok(values);
        }
        if !text.is_empty() {
            for (index, piece) in pieces(text).into_iter().enumerate() {
                values.take(grammar, index, piece)?;
            }
        }
        for parameter in grammar.parameters {
            if values.all(parameter.name).next().is_some() {
                continue;
            }
            match parameter.default {
                Some(default) => values.given.push((parameter.name, default.into())),
                None if parameter.required => return Err(missing(grammar, parameter)),
                None => {}
            }
        }
        Ok(values)
    }

    fn take(&mut self, grammar: &Grammar, index: usize, piece: OsString) -> Result<(), String> {
        if piece.is_empty() {
            return Err("there is nothing between two commas, or behind the last".to_owned());
        }
        if let Some(parameter) = grammar.placed(ParameterPlace::Each) {
            return self.give(parameter, piece);
        }
        let pair = split_pair(&piece);
        if let Some((key, value)) = &pair
            && let Some(parameter) = grammar.parameters.iter().find(|known| known.name == *key)
        {
            return self.give(parameter, value.clone());
        }
        if index == 0
            && let Some(parameter) = grammar.placed(ParameterPlace::First)
        {
            return self.give(parameter, piece);
        }
        match pair {
            Some((key, value)) if grammar.others => {
                if self.others.iter().any(|(known, _)| *known == key) && !grammar.others_repeat {
                    return Err(format!("{key} is given twice"));
                }
                self.others.push((key, value));
                Ok(())
            }
            _ => Err(unknown(grammar, &piece)),
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
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a OsStr> {
        let given = self.given.iter();
        given
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| &**value)
    }

    /// The value of `name`.
    #[must_use]
    pub fn one(&self, name: &str) -> Option<OsString> {
        self.all(name).next().map(OsStr::to_owned)
    }

    // Below, values were checked when they were given.

    /// The value of a parameter of type `Size`, in bytes.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        parse_size(self.one(name)?.to_str()?).ok()
    }

    /// The value of a parameter that is a number.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        let value = self.one(name)?;
        let digits = value.to_str()?;
        digits.strip_suffix('%').unwrap_or(digits).parse().ok()
    }

    /// The value of a parameter of type `Duration`.
    #[must_use]
    pub fn duration(&self, name: &str) -> Option<Duration> {
        parse_duration(self.one(name)?.to_str()?)
    }

    /// The value of a parameter of type `Switch`.
    #[must_use]
    pub fn switch(&self, name: &str) -> Option<bool> {
        parse_switch(self.one(name)?.to_str()?)
    }

    /// The value of a parameter of type `Fraction`, from 0 to 1.
    #[must_use]
    pub fn fraction(&self, name: &str) -> Option<f64> {
        parse_fraction(self.one(name)?.to_str()?)
    }

    /// The value of a parameter of type `Path`.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.one(name).map(PathBuf::from)
    }

    /// The value of a parameter of type `Choice`, or any other that is text.
    #[must_use]
    pub fn word(&self, name: &str) -> Option<String> {
        self.one(name)?.into_string().ok()
    }

    /// Whether `word` is in the value of a parameter of type `Words`.
    #[must_use]
    pub fn has_word(&self, name: &str, word: &str) -> bool {
        let value = self.word(name).unwrap_or_default();
        value.split('+').any(|known| known == word)
    }

    /// What is handed on, in order.
    #[must_use]
    pub fn into_others(self) -> Vec<(String, OsString)> {
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
        ParameterType::Duration if text.and_then(parse_duration).is_none() => Err(format!(
            "{name}={shown:?} is not a time as 10ms, 1.5s, 2m, or a number of seconds"
        )),
        ParameterType::Switch if text.and_then(parse_switch).is_none() => {
            Err(format!("{name}={shown:?} is neither on nor off"))
        }
        ParameterType::Fraction if text.and_then(parse_fraction).is_none() => Err(format!(
            "{name}={shown:?} is not a part of all, from 0 to 1 or as 5%"
        )),
        ParameterType::Choice(words) if !text.is_some_and(|text| words.contains(&text)) => {
            Err(format!("{name}={shown:?} is none of {}", words.join(", ")))
        }
        ParameterType::Words(words)
            if !text.is_some_and(|text| text.split('+').all(|word| words.contains(&word))) =>
        {
            let words = words.join(", ");
            Err(format!(
                "{name}={shown:?} is not some of {words}, with + between them"
            ))
        }
        _ => Ok(()),
    }
}

/// A time: seconds, unless there is a unit behind the number.
fn parse_duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = match unit {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "ms" => 1e-3,
        "us" | "\u{b5}s" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * unit).ok()
}

fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "1" => Some(true),
        "off" | "no" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn parse_fraction(text: &str) -> Option<f64> {
    let number: f64 = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&number).then_some(number)
}

fn missing(grammar: &Grammar, parameter: &Parameter) -> String {
    format!("{} is missing: write {}", parameter.name, grammar.syntax)
}

fn unknown(grammar: &Grammar, piece: &OsStr) -> String {
    let key = split_pair(piece).map_or_else(|| printable(piece), |(key, _)| key);
    let known: Vec<_> = grammar.parameters.iter().map(|known| known.name).collect();
    match &known[..] {
        [] => format!("there is no parameter {key:?}"),
        known => format!(
            "there is no parameter {key:?}, only {}; a comma in a value is written ',,'",
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

    static PARAMETERS: &[Parameter] = &[
        Parameter::new("size", ParameterType::Size, "how much").first(),
        Parameter::new("wait", ParameterType::Duration, "how long").or("10ms"),
        Parameter::new("part", ParameterType::Fraction, "how often").or("0.5"),
        Parameter::new("sync", ParameterType::Switch, "whether").or("off"),
        Parameter::new("mode", ParameterType::Choice(&["fast", "slow"]), "how").or("slow"),
        Parameter::new("on", ParameterType::Words(&["read", "write"]), "what").or("read"),
    ];

    fn read(text: &str) -> Result<Values, String> {
        let grammar = Grammar {
            name: "x",
            syntax: "x:...",
            parameters: PARAMETERS,
            others: false,
            others_repeat: false,
        };
        Values::read(&grammar, OsStr::new(text))
    }

    #[test]
    fn values_are_what_their_types_say_and_defaults_hold() {
        let values = read("4K,wait=1.5,part=25%,sync=yes").expect("valid");
        assert_eq!(values.size("size"), Some(4096));
        assert_eq!(values.duration("wait"), Some(Duration::from_millis(1500)));
        assert_eq!(values.fraction("part"), Some(0.25));
        assert_eq!(values.switch("sync"), Some(true));
        assert_eq!(values.word("mode").as_deref(), Some("slow"));
        assert!(values.has_word("on", "read") && !values.has_word("on", "write"));
        assert!(
            read("on=write+read")
                .expect("valid")
                .has_word("on", "write")
        );
        let values = read("").expect("valid");
        assert_eq!(values.size("size"), None);
        assert_eq!(values.duration("wait"), Some(Duration::from_millis(10)));
        assert_eq!(values.fraction("part"), Some(0.5));
        assert_eq!(values.switch("sync"), Some(false));
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_the_key() {
        for (text, key) in [
            ("wait=soon", "wait"),
            ("wait=-1", "wait"),
            ("wait=1e999", "wait"),
            ("part=2", "part"),
            ("part=101%", "part"),
            ("sync=maybe", "sync"),
            ("mode=", "mode"),
            ("on=read,write", "write"),
            ("on=read+", "on"),
            ("1x", "size"),
            ("speed=1", "speed"),
            ("sync=on,sync=on", "sync"),
        ] {
            let refusal = read(text).expect_err(text);
            assert!(refusal.contains(key), "{text}: {refusal}");
        }
    }
}
