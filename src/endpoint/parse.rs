//! The one place that reads an endpoint's text.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use crate::{
    block::SampleOptions,
    proto::{NbdUri, UriError, is_nbd_uri},
};

use super::{ServerCommand, printable};

/// A parsed endpoint: what the user wrote, and what it means. Nothing has been opened.
#[derive(Clone, Debug)]
pub struct Endpoint {
    name: Arc<str>,
    kind: EndpointKind,
}

/// What an endpoint is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EndpointKind {
    /// `-`: standard input as a source, standard output as a destination.
    Standard,
    /// `null:`: swallows what is written.
    Null,
    /// `sample:...`: a generated image.
    Sample(SampleOptions),
    /// An NBD export.
    Nbd(NbdUri),
    /// `[ CMD ARGS... ]`: a server that is started for this endpoint.
    Command(ServerCommand),
    /// A file, a block device, or a named pipe.
    File(PathBuf),
}

/// A text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Nothing was written.
    #[error("an endpoint cannot be empty")]
    Empty,
    /// A `[` has no `]` of its own.
    #[error("'[' without the ']' that ends the command")]
    UnterminatedGroup,
    /// `[ ]`.
    #[error("no command between '[' and ']'")]
    EmptyCommand,
    /// A scheme that nothing here speaks.
    #[error("{name}: '{scheme}' is not supported; known are {KNOWN_SCHEMES}")]
    UnknownScheme {
        /// The whole text, printable.
        name: String,
        /// What stands before the colon.
        scheme: String,
    },
    /// An NBD URI that breaks the rules.
    #[error("{name}: {error}")]
    Uri {
        /// The whole text, printable.
        name: String,
        /// Which rule.
        error: UriError,
    },
    /// Options of `sample:` or `null:` that make no sense.
    #[error("{name}: {message}")]
    Options {
        /// The whole text, printable.
        name: String,
        /// Why.
        message: String,
    },
}

const KNOWN_SCHEMES: &str = "nbd, nbds, nbd+unix and nbds+unix";

impl Endpoint {
    /// Reads an endpoint as it stands in an argument list; command groups were collapsed by
    /// [`collapse_groups`](super::collapse_groups).
    ///
    /// # Errors
    /// [`EndpointError`] says what is wrong with the text.
    pub fn parse(text: &OsStr) -> Result<Self, EndpointError> {
        if let Some(command) = ServerCommand::decode(text) {
            return command.map(Self::from);
        }
        let name = printable(text);
        let kind = match text.to_str() {
            Some(text) => Self::parse_text(text, &name)?,
            None => EndpointKind::File(PathBuf::from(text)),
        };
        Ok(Self {
            name: Arc::from(name),
            kind,
        })
    }

    fn parse_text(text: &str, name: &str) -> Result<EndpointKind, EndpointError> {
        let wrong = |message: String| EndpointError::Options {
            name: name.to_owned(),
            message,
        };
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if text == "-" {
            return Ok(EndpointKind::Standard);
        }
        if let Some(options) = text.strip_prefix("null:") {
            return match options {
                "" => Ok(EndpointKind::Null),
                _ => Err(wrong("'null:' takes no options".to_owned())),
            };
        }
        if let Some(options) = text.strip_prefix("sample:") {
            return SampleOptions::from_str(options)
                .map(EndpointKind::Sample)
                .map_err(|error| wrong(error.to_string()));
        }
        if is_nbd_uri(text) {
            return NbdUri::from_str(text)
                .map(EndpointKind::Nbd)
                .map_err(|error| EndpointError::Uri {
                    name: name.to_owned(),
                    error,
                });
        }
        match foreign_scheme(text) {
            Some(scheme) => Err(EndpointError::UnknownScheme {
                name: name.to_owned(),
                scheme: scheme.to_owned(),
            }),
            None => Ok(EndpointKind::File(PathBuf::from(text))),
        }
    }

    /// The endpoint as the user wrote it, safe to print.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &EndpointKind {
        &self.kind
    }
}

/// The scheme of a text that looks like a URI (`http://...`). A file of that name is written `./http:...`.
fn foreign_scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some(scheme)
}

impl From<ServerCommand> for Endpoint {
    fn from(command: ServerCommand) -> Self {
        Self {
            name: Arc::from(command.to_string()),
            kind: EndpointKind::Command(command),
        }
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self {
            name: Arc::from(printable(path.as_os_str())),
            kind: EndpointKind::File(path),
        }
    }
}

impl From<NbdUri> for Endpoint {
    fn from(uri: NbdUri) -> Self {
        Self {
            name: Arc::from(uri.to_string()),
            kind: EndpointKind::Nbd(uri),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Self::parse(OsStr::new(text))
    }
}

impl TryFrom<OsString> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: OsString) -> Result<Self, EndpointError> {
        Self::parse(&text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn kind(text: &str) -> EndpointKind {
        Endpoint::from_str(text).expect("an endpoint").kind
    }

    fn error(text: &str) -> String {
        Endpoint::from_str(text)
            .expect_err("no endpoint")
            .to_string()
    }

    #[test]
    fn each_kind_is_told_by_its_text() {
        assert!(matches!(kind("-"), EndpointKind::Standard));
        assert!(matches!(kind("null:"), EndpointKind::Null));
        assert!(matches!(kind("sample:4G"), EndpointKind::Sample(_)));
        assert!(matches!(kind("nbd://localhost/x"), EndpointKind::Nbd(_)));
        assert!(matches!(
            kind("nbd+unix:///?socket=/s"),
            EndpointKind::Nbd(_)
        ));
        assert!(matches!(kind("disk.raw"), EndpointKind::File(_)));
        assert!(matches!(kind("/dev/sda"), EndpointKind::File(_)));
        assert!(matches!(kind("nbd"), EndpointKind::File(_)));
    }

    #[test]
    fn a_file_may_have_a_colon_in_its_name() {
        assert!(matches!(kind("disk:1.raw"), EndpointKind::File(_)));
        assert!(matches!(kind("./http://x"), EndpointKind::File(_)));
        assert!(matches!(kind("./-"), EndpointKind::File(_)));
    }

    #[test]
    fn a_scheme_that_nobody_speaks_is_refused_with_those_that_are_spoken() {
        let text = error("https://host/disk.raw");
        assert!(text.contains("'https' is not supported"), "{text}");
        assert!(text.contains("nbd+unix"), "{text}");
    }

    #[test]
    fn mistakes_name_the_endpoint() {
        assert!(error("sample:lots").starts_with("sample:lots: "));
        assert!(error("null:x").starts_with("null:x: "));
        assert!(error("nbd://host:99999/").starts_with("nbd://host:99999/: "));
        assert_eq!(error(""), "an endpoint cannot be empty");
    }

    #[test]
    fn a_name_that_is_no_utf8_is_a_file() {
        let odd = OsString::from_vec(b"disk\xff.raw".to_vec());
        let endpoint = Endpoint::parse(&odd).expect("an endpoint");
        assert!(matches!(endpoint.kind(), EndpointKind::File(path) if path.as_os_str() == odd));
    }

    #[test]
    fn control_characters_never_reach_a_message() {
        let endpoint = Endpoint::from_str("disk\u{1b}[2J\n.raw").expect("an endpoint");
        assert_eq!(endpoint.to_string(), "disk\\u{1b}[2J\\n.raw");
    }
}
