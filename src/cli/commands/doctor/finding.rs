//! What was found out: one ability or one limit each, in groups.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Yes,
    No,
    /// It is there, and less than is good.
    Limited,
    /// It is not there, and needed.
    Missing,
    /// It could not be found out.
    Unknown,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// One ability or one limit.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    #[serde(skip)]
    pub(super) name: String,
    pub(super) state: State,
    /// What was measured, in bytes where it is an amount; for programs.
    pub(super) value: Option<Value>,
    /// The same for people.
    pub(super) shown: String,
    /// What follows from it for the user.
    pub(super) meaning: Option<String>,
}

/// Findings about one thing.
#[derive(Clone, Debug)]
pub(super) struct Group(pub(super) Vec<Finding>);

/// What was found out about a place in the file system.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Place {
    #[serde(serialize_with = "printable_path")]
    pub(super) path: PathBuf,
    /// What it is: `directory`, `file`, `block-device`...
    pub(super) kind: &'static str,
    pub(super) findings: Group,
}

impl Finding {
    pub(super) fn new(name: impl Into<String>, state: State) -> Self {
        Self {
            name: name.into(),
            state,
            value: None,
            shown: state.word().to_owned(),
            meaning: None,
        }
    }

    /// There, or not, as `tried` says; `without` is what follows when it is not.
    pub(super) fn tried(
        name: &str,
        tried: &std::io::Result<()>,
        with: &str,
        without: &str,
    ) -> Self {
        match tried {
            Ok(()) => Self::new(name, State::Yes).meaning(with),
            Err(_) => Self::new(name, State::No).meaning(without),
        }
    }

    /// An amount or a name.
    pub(super) fn value(mut self, value: impl Into<Value>, shown: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self.shown = shown.into();
        self
    }

    /// In other words than those of its state.
    pub(super) fn shown(mut self, shown: impl Into<String>) -> Self {
        self.shown = shown.into();
        self
    }

    pub(super) fn meaning(mut self, meaning: impl Into<String>) -> Self {
        let meaning = meaning.into();
        self.meaning = (!meaning.is_empty()).then_some(meaning);
        self
    }

    /// The name as a key for programs.
    pub(super) fn key(&self) -> String {
        let to_key = |c: char| match c {
            '/' => None,
            ' ' | '_' => Some('-'),
            c => Some(c.to_ascii_lowercase()),
        };
        self.name.chars().filter_map(to_key).collect()
    }
}

impl Group {
    /// The names of what is missing.
    pub(super) fn missing(&self) -> impl Iterator<Item = &str> {
        let missing = self.0.iter().filter(|it| it.state == State::Missing);
        missing.map(|finding| &*finding.name)
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|finding| (finding.key(), finding)))
    }
}

fn printable_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::block::printable(path.as_os_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words_for_programs() {
        let key = |name: &str| Finding::new(name, State::Yes).key();
        assert_eq!(key("copy_file_range"), "copy-file-range");
        assert_eq!(key("memory limit"), "memory-limit");
        assert_eq!(key("IPv6"), "ipv6");
        assert_eq!(key("/proc"), "proc");
    }

    #[test]
    fn findings_keep_their_order_in_json() {
        let group = Group(vec![
            Finding::new("splice", State::No).meaning("slower"),
            Finding::new("b", State::Missing).value(3, "3 of them"),
        ]);
        assert_eq!(
            serde_json::to_string(&group).expect("JSON"),
            r#"{"splice":{"state":"no","value":null,"shown":"no","meaning":"slower"},"b":{"state":"missing","value":3,"shown":"3 of them","meaning":null}}"#
        );
        assert_eq!(group.missing().collect::<Vec<_>>(), ["b"]);
    }
}
