//! The one place that reads an endpoint's text.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use crate::{
    block::{DataOptions, SampleOptions, Values},
    filter::NamedFilter,
    proto::{NbdUri, UriError, is_nbd_uri},
    script::ScriptOptions,
};

use super::{FormatKind, ImageFormat, ServerCommand, printable, sources::SourceKind};

/// A parsed endpoint: what the user wrote, and what it means. Nothing has been opened.
#[derive(Clone, Debug)]
pub struct Endpoint {
    name: Arc<str>,
    kind: EndpointKind,
    format: ImageFormat,
    filters: Vec<NamedFilter>,
}

/// What an endpoint is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EndpointKind {
    /// `-`: standard input as a source, standard output as a destination.
    Standard,
    /// `null:`, `null:SIZE`: swallows what is written; with a size also a source of so many zeroes.
    Null(Option<u64>),
    /// `memory:SIZE`: a sparse disk in memory.
    Memory {
        /// Its size in bytes.
        size: u64,
    },
    /// `sample:...`: a generated image.
    Sample(SampleOptions),
    /// A generated image that takes writes of what it holds already. It cannot be written as text.
    CheckingSample(SampleOptions),
    /// `pattern:SIZE`: each 8 bytes hold their offset.
    Pattern {
        /// Its size in bytes.
        size: u64,
    },
    /// `data:...`: literal bytes.
    Data(DataOptions),
    /// `split:FILE,FILE...`: files joined.
    Split(Vec<PathBuf>),
    /// `dir:PATH`: the files of a directory as exports by name. Has no image of its own.
    Directory(PathBuf),
    /// `sh:SCRIPT...`, `eval:METHOD=SHELL...`: the answers come from a script.
    Script(ScriptOptions),
    /// `fd:N`: a file or block device that this process was started with.
    Descriptor(RawFd),
    /// Several images, each behind the one before. Has no text of its own.
    Joined(Vec<Endpoint>),
    /// A part of another image. Has no text of its own.
    Part {
        /// The whole.
        of: Box<Endpoint>,
        /// Where in the whole it begins, in bytes.
        offset: u64,
        /// How many bytes it has; `None`: up to the end of the whole.
        length: Option<u64>,
    },
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
    /// Parameters of `NAME:...` that make no sense.
    #[error("{name}: {message}")]
    Options {
        /// The whole text, printable.
        name: String,
        /// Why.
        message: String,
    },
}

const KNOWN_SCHEMES: &str = "nbd, nbds, nbd+unix, nbds+unix, nbd+vsock and nbds+vsock";

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
        let kind = match SourceKind::of_text(text.as_bytes()) {
            Some((row, start)) => {
                let rest = OsStr::from_bytes(&text.as_bytes()[start..]);
                Self::parse_parameters(row, rest).map_err(|message| EndpointError::Options {
                    name: name.clone(),
                    message,
                })?
            }
            None => match text.to_str() {
                Some(text) => Self::parse_text(text, &name)?,
                None => EndpointKind::File(PathBuf::from(text)),
            },
        };
        Ok(Self::new(name, kind))
    }

    /// What `kind` is, under a name that messages give it: for what was not written as an endpoint.
    #[must_use]
    pub fn new(name: impl AsRef<str>, kind: EndpointKind) -> Self {
        Self {
            name: Arc::from(printable(OsStr::new(name.as_ref()))),
            kind,
            format: ImageFormat::default(),
            filters: Vec::new(),
        }
    }

    fn parse_parameters(row: &SourceKind, text: &OsStr) -> Result<EndpointKind, String> {
        let values = Values::read(&row.grammar(), text)?;
        match row.build {
            Some(build) => build(values, text),
            None => Err("it has no parameters".to_owned()),
        }
    }

    fn parse_text(text: &str, name: &str) -> Result<EndpointKind, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if text == "-" {
            return Ok(EndpointKind::Standard);
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

    /// The same as an image in a format: the disk in it is what is meant. Without this its bytes are.
    #[must_use]
    pub fn interpreted(mut self, format: impl Into<ImageFormat>) -> Self {
        self.format = format.into();
        self
    }

    /// The same, once it is known what it is: it is not looked at again.
    pub(crate) fn taken_for(mut self, kind: FormatKind) -> Self {
        self.format.kind = kind;
        self
    }

    /// Whether nothing is asked of its bytes that only an image in a format has. A file may turn out to be one.
    pub(crate) fn is_bytes(&self) -> bool {
        matches!(
            self.format.kind,
            FormatKind::Probe | FormatKind::ProbeImage | FormatKind::Raw
        ) && self.format.snapshot.is_none()
    }

    /// What its bytes are taken for.
    #[must_use]
    pub fn format(&self) -> &ImageFormat {
        &self.format
    }

    /// The same behind filters, the first one nearest to its reader.
    #[must_use]
    pub fn behind(mut self, filters: Vec<NamedFilter>) -> Self {
        self = self.probed_behind(&filters);
        self.filters = filters;
        self
    }

    /// The same as it is to be probed behind these filters: what one of them unwraps is not unwrapped before.
    pub(crate) fn probed_behind(mut self, filters: &[NamedFilter]) -> Self {
        if !filters.iter().any(|named| named.filter().unwraps()) {
            return self;
        }
        if self.format.kind == FormatKind::Probe {
            self.format.kind = FormatKind::ProbeImage;
        }
        if let EndpointKind::Joined(parts) = &mut self.kind {
            let probed = parts.drain(..).map(|part| part.probed_behind(filters));
            *parts = probed.collect();
        }
        self
    }

    /// Several as one, each behind the one before.
    #[must_use]
    pub fn joined(parts: Vec<Self>) -> Self {
        let names: Vec<_> = parts.iter().map(|part| &*part.name).collect();
        Self::new(names.join(" + "), EndpointKind::Joined(parts))
    }

    /// The files and block devices of this machine that it consists of, by the names that were written.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.kind {
            EndpointKind::File(path) => vec![path.clone()],
            EndpointKind::Split(paths) => paths.clone(),
            EndpointKind::Joined(parts) => parts.iter().flat_map(Self::files).collect(),
            EndpointKind::Part { of, .. } => of.files(),
            _ => Vec::new(),
        }
    }

    /// The filters in front of it, the first one nearest to its reader.
    #[must_use]
    pub fn filters(&self) -> &[NamedFilter] {
        &self.filters
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
            format: ImageFormat::default(),
            filters: Vec::new(),
        }
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self {
            name: Arc::from(printable(path.as_os_str())),
            kind: EndpointKind::File(path),
            format: ImageFormat::default(),
            filters: Vec::new(),
        }
    }
}

impl From<NbdUri> for Endpoint {
    fn from(uri: NbdUri) -> Self {
        Self {
            name: Arc::from(uri.to_string()),
            kind: EndpointKind::Nbd(uri),
            format: ImageFormat::default(),
            filters: Vec::new(),
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
    use crate::{block::DataContents, script::Program};

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
        assert!(matches!(kind("null:"), EndpointKind::Null(None)));
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
    fn parameters_are_read_by_the_table() {
        assert!(matches!(
            kind("null:1M"),
            EndpointKind::Null(Some(0x10_0000))
        ));
        assert!(matches!(
            kind("memory:2K"),
            EndpointKind::Memory { size: 2048 }
        ));
        assert!(matches!(
            kind("memory:size=2K"),
            EndpointKind::Memory { size: 2048 }
        ));
        assert!(matches!(
            kind("pattern:512"),
            EndpointKind::Pattern { size: 512 }
        ));
        assert!(matches!(kind("fd:3"), EndpointKind::Descriptor(3)));
        assert!(
            matches!(kind("dir:/a,,b"), EndpointKind::Directory(path) if path.as_os_str() == "/a,b")
        );
        assert!(
            matches!(kind("file:null:,x"), EndpointKind::File(path) if path.as_os_str() == "null:,x")
        );
        let EndpointKind::Split(paths) = kind("split:a=1,b,,c") else {
            panic!("not files joined");
        };
        assert_eq!(paths, [PathBuf::from("a=1"), PathBuf::from("b,c")]);
        let EndpointKind::Sample(sample) = kind("sample:1M,data=7%,seed=3") else {
            panic!("not a sample");
        };
        assert_eq!((sample.seed, sample.data_percent), (3, 7));
        let EndpointKind::Data(data) = kind("data:1 2 $x,x=3,size=1K") else {
            panic!("not data");
        };
        assert_eq!(data.contents, DataContents::Expression(b"1 2 $x".to_vec()));
        assert_eq!(data.variables, [("x".to_owned(), b"3".to_vec())]);
        assert_eq!(data.size, Some(1024));
        let EndpointKind::Data(data) = kind("data:base64=MTIz") else {
            panic!("not data");
        };
        assert_eq!(data.contents, DataContents::Bytes(b"123".to_vec()));
    }

    #[test]
    fn a_script_gets_the_parameters_that_are_not_its_own() {
        let EndpointKind::Script(script) = kind("sh:/x,a=1,script2=2,a=3") else {
            panic!("no script");
        };
        assert!(matches!(&script.program, Program::File(path) if path.as_os_str() == "/x"));
        let keys: Vec<_> = script
            .parameters
            .iter()
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(keys, ["a", "script2", "a"]);
        let EndpointKind::Script(script) = kind("eval:get_size=echo 1,,2,pread=x=y,key=v") else {
            panic!("no script");
        };
        let Program::Methods(methods) = script.program else {
            panic!("no methods");
        };
        let method = |name: &str, shell: &str| (name.to_owned(), OsString::from(shell));
        assert_eq!(
            methods,
            [method("get_size", "echo 1,2"), method("pread", "x=y")]
        );
        assert_eq!(script.parameters, [("key".into(), "v".into())]);
    }

    #[test]
    fn mistakes_in_parameters_are_named() {
        for (text, part) in [
            ("memory:", "size is missing: write memory:SIZE"),
            ("memory:1M,", "nothing between two commas"),
            ("memory:1M,size=2M", "given twice"),
            ("memory:9E", "larger than an image"),
            ("memory:1M,seed=1", "no parameter \"seed\", only size"),
            ("sample:1M,data=101", "percentage"),
            ("sample:1M,seed=-1", "not a number"),
            ("split:", "path is missing"),
            ("split:a,,,b,", "nothing between"),
            ("file:", "path is missing"),
            ("dir:a,b", "no parameter"),
            ("fd:x", "descriptor"),
            ("fd:2147483648", "descriptor"),
            ("data:size=1M", "one of data, raw and base64"),
            ("data:1,raw=2", "one of data, raw and base64"),
            ("data:base64=!", "base64"),
            ("eval:key=1", "no method"),
            ("eval:pread=1,pread=2", "given twice"),
            ("eval:x", "no parameter"),
        ] {
            let error = error(text);
            assert!(error.starts_with(&format!("{text}: ")), "{error}");
            assert!(error.contains(part), "{error}");
        }
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
