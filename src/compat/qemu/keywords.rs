//! Lists of `key=value` with commas between them. Two commas are one in a value.

use std::collections::BTreeMap;

use crate::{cli::failure::Failure, endpoint::printable};

use super::{json, size::parse_size};

/// The keys of one option, each to be asked for once.
#[derive(Debug)]
pub(in crate::compat) struct Keywords(BTreeMap<String, String>);

impl Keywords {
    /// Reads `text`, which may be JSON. A first word without `=` is the value of `implied`; any other is a key that is
    /// on. The last value of a key counts.
    pub(in crate::compat) fn parse(text: &str, implied: Option<&str>) -> Result<Self, Failure> {
        if text.starts_with('{') {
            return Self::of_json(text);
        }
        let mut keywords = BTreeMap::new();
        for (index, word) in words(text).into_iter().enumerate() {
            let (key, value) = match (word.split_once('='), implied) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(implied)) if index == 0 => (implied.to_owned(), word),
                (None, _) => (word, "on".to_owned()),
            };
            keywords.insert(key, value);
        }
        Ok(Self(keywords))
    }

    /// Reads an object in JSON.
    pub(in crate::compat) fn of_json(text: &str) -> Result<Self, Failure> {
        json::keywords(text).map(Self).map_err(Failure::usage)
    }

    /// Gives `key` a value, in the place of the one that it has.
    pub(in crate::compat) fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.to_owned());
    }

    pub(in crate::compat) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Whether `key` has an empty value, as `null` is in JSON.
    pub(in crate::compat) fn is_null(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(String::is_empty)
    }

    /// Whether there is nothing left.
    pub(in crate::compat) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`, which is then no longer there.
    pub(in crate::compat) fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// The same of a key that is on or off.
    pub(in crate::compat) fn take_switch(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match &*value {
            "on" | "yes" | "true" | "y" => Ok(Some(true)),
            "off" | "no" | "false" | "n" => Ok(Some(false)),
            _ => Err(Failure::usage(format!(
                "Parameter '{key}' expects 'on' or 'off'"
            ))),
        }
    }

    /// The same of a key that is a number of bytes.
    pub(in crate::compat) fn take_bytes(&mut self, key: &str) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let bytes = parse_size(&value).ok();
        bytes.map(Some).ok_or_else(|| {
            let value = printable(value.as_ref());
            Failure::usage(format!("Parameter '{key}' expects a size, not '{value}'"))
        })
    }

    /// The keys that begin with `prefix` and a dot, without them.
    pub(in crate::compat) fn take_inner(&mut self, prefix: &str) -> Self {
        let mut inner = BTreeMap::new();
        self.0.retain(|key, value| {
            let name = key
                .strip_prefix(prefix)
                .and_then(|key| key.strip_prefix('.'));
            if let Some(name) = name {
                inner.insert(name.to_owned(), std::mem::take(value));
            }
            name.is_none()
        });
        Self(inner)
    }

    /// Refuses what nobody has asked for. `what` has the keys.
    pub(in crate::compat) fn end(self, what: &str) -> Result<(), Failure> {
        match self.first() {
            None => Ok(()),
            Some(key) => Err(Failure::usage(format!("{what}: '{key}' is not supported"))),
        }
    }

    /// One of the keys that are left, printable.
    pub(in crate::compat) fn first(&self) -> Option<String> {
        self.0.keys().next().map(|key| printable(key.as_ref()))
    }
}

/// `text` taken apart at single commas.
pub(in crate::compat) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != ',' {
            word.push(c);
        } else if rest.next_if_eq(&',').is_some() {
            word.push(',');
        } else {
            words.push(std::mem::take(&mut word));
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_commas_are_one_in_a_value() {
        let mut keywords =
            Keywords::parse("raw,name=a,,b,,,size=3,", Some("driver")).expect("good");
        assert_eq!(keywords.take("driver").as_deref(), Some("raw"));
        assert_eq!(keywords.take("name").as_deref(), Some("a,b,"));
        assert_eq!(keywords.take("size").as_deref(), Some("3"));
        keywords.end("all").expect("nothing left");
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let mut keywords = Keywords::parse("read-only,direct=off,x=maybe", None).expect("good");
        assert_eq!(keywords.take_switch("read-only").expect("on"), Some(true));
        assert_eq!(keywords.take_switch("direct").expect("off"), Some(false));
        assert_eq!(keywords.take_switch("direct").expect("gone"), None);
        assert!(keywords.take_switch("x").is_err());
    }

    #[test]
    fn what_nobody_asked_for_is_named() {
        let mut keywords =
            Keywords::parse("file.filename=x,file.locking=off,filename=y", None).expect("good");
        let mut file = keywords.take_inner("file");
        assert_eq!(file.take("filename").as_deref(), Some("x"));
        let refused = file.end("file").expect_err("locking").to_string();
        assert!(refused.contains("'locking'"), "{refused}");
        assert_eq!(keywords.take("filename").as_deref(), Some("y"));
        keywords.end("all").expect("nothing left");
        assert!(Keywords::parse("{\"driver\"}", None).is_err());
    }

    #[test]
    fn sizes_are_sizes() {
        let mut keywords = Keywords::parse("offset=1M,size=5x", None).expect("good");
        assert_eq!(
            keywords.take_bytes("offset").expect("a size"),
            Some(1 << 20)
        );
        assert!(keywords.take_bytes("size").is_err());
    }
}
