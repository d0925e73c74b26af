//! What follows the plugin's name: `KEY=VALUE`, and values whose key the plugin knows.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use crate::{cli::failure::Failure, endpoint::printable};

/// The parameters of a plugin, in order.
#[derive(Debug, Default)]
pub(super) struct Parameters(Vec<(String, OsString)>);

impl Parameters {
    /// Reads words as parameters of a plugin that has this magic key, or none.
    pub(super) fn read(words: &[OsString], magic: Option<&str>) -> Result<Self, Failure> {
        let mut parameters = Vec::new();
        for word in words {
            let parameter = match (split(word), magic) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(key)) => (key.to_owned(), word.clone()),
                (None, None) => {
                    let word = printable(word);
                    return Err(Failure::usage(format!(
                        "expecting key=value on the command line but got: {word}"
                    )));
                }
            };
            parameters.push(parameter);
        }
        Ok(Self(parameters))
    }

    /// Takes the value of `key`; the last one where there are several.
    pub(super) fn take(&mut self, key: &str) -> Option<OsString> {
        self.take_all(key).pop()
    }

    /// Takes the value of `key`, which may be given once.
    pub(super) fn take_one(&mut self, key: &str) -> Result<Option<OsString>, Failure> {
        let mut values = self.take_all(key);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(Failure::usage(format!(
                "the {key} parameter must be given only once"
            ))),
        }
    }

    /// Takes all values of `key`, in order.
    pub(super) fn take_all(&mut self, key: &str) -> Vec<OsString> {
        let taken = self.take_keys(&[key]).into_iter();
        taken.map(|(_, value)| value).collect()
    }

    /// Takes the values of several keys, with those, in order.
    pub(super) fn take_keys(&mut self, keys: &[&str]) -> Vec<(String, OsString)> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(known, _)| keys.contains(&&**known));
        self.0 = rest;
        taken
    }

    /// What was not taken, in order.
    pub(super) fn into_rest(self) -> Vec<(String, OsString)> {
        self.0
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(Failure::usage(format!("unknown parameter '{key}'"))),
        }
    }
}

/// The key and the value of a word that has a key: letters, digits, `-`, `_` and `.`, the first a letter.
fn split(word: &OsStr) -> Option<(&str, &OsStr)> {
    let bytes = word.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&bytes[..equals]).ok()?;
    let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    is_key.then(|| (key, OsStr::from_bytes(&bytes[equals + 1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], magic: Option<&str>) -> Result<Vec<(String, OsString)>, String> {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        let read = Parameters::read(&words, magic);
        read.map(Parameters::into_rest)
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_has_no_key_gets_the_magic_one() {
        let pairs = read(&["./a=b", "file=c", "=d", "1=e", "x"], Some("file")).expect("valid");
        let values: Vec<_> = pairs.iter().map(|(_, value)| value.as_os_str()).collect();
        assert_eq!(values, ["./a=b", "c", "=d", "1=e", "x"]);
        assert!(pairs.iter().all(|(key, _)| key == "file"));
        assert_eq!(
            read(&["a.b-c_1=x=y"], None).expect("valid"),
            [("a.b-c_1".to_owned(), OsString::from("x=y"))]
        );
        let refusal = read(&["x"], None).expect_err("no key");
        assert!(refusal.ends_with("but got: x"), "{refusal}");
    }

    #[test]
    fn parameters_are_taken_once_and_the_rest_is_refused() {
        let words = ["a=1", "b=2", "a=3", "c=4"].map(OsString::from);
        let mut parameters = Parameters::read(&words, None).expect("valid");
        assert_eq!(parameters.take("a"), Some(OsString::from("3")));
        assert_eq!(parameters.take("a"), None);
        assert_eq!(
            parameters.take_one("b").expect("one"),
            Some(OsString::from("2"))
        );
        let refusal = parameters.finish().expect_err("left over").to_string();
        assert!(refusal.ends_with("unknown parameter 'c'"), "{refusal}");
        let words = ["a=1", "a=1"].map(OsString::from);
        let mut parameters = Parameters::read(&words, None).expect("valid");
        assert!(parameters.take_one("a").is_err());
    }
}
