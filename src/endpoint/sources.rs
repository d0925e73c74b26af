//! The table of everything that can stand for an image: how it is written, what its parameters are, and
//! what it is good for. The parser reads endpoints by it, and the help and `blockferry sources` print it.

use std::{ffi::OsStr, path::PathBuf};

use crate::{
    block::{
        DataContents, DataOptions, Grammar, Parameter, ParameterPlace, ParameterType,
        SampleOptions, Values, decode_base64,
    },
    script::{Program, ScriptOptions, is_method},
};

use super::{EndpointKind, printable};

/// One row of the table: a kind of source.
#[derive(Debug)]
#[non_exhaustive]
pub struct SourceKind {
    /// What it is called; those that are written `NAME:...` begin with it.
    pub name: &'static str,
    /// How it is written, with placeholders in capitals and what may be left out in brackets.
    pub syntax: &'static str,
    /// What it is, in a sentence without a full stop.
    pub help: &'static str,
    /// Its parameters, the first ones first.
    pub parameters: &'static [Parameter],
    /// Which `KEY=VALUE` it takes beside them, for whoever answers for it; `None` when it takes no others.
    pub others: Option<&'static str>,
    /// What it is good for.
    pub roles: Roles,
    /// Whether one key may come several times among the others.
    pub(super) others_repeat: bool,
    /// What the text behind the colon means; `None` for what is not written `NAME:...`.
    pub(super) build: Option<Build>,
}

/// Makes an endpoint of its parameters and of the text that they stand in.
type Build = fn(Values, &OsStr) -> Result<EndpointKind, String>;

/// What a kind of source is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Roles {
    /// It can be read: by `copy`, `compare`, `checksum`, `map`.
    pub source: bool,
    /// `copy` can write it.
    pub destination: bool,
    /// `serve` can serve it.
    pub served: bool,
}

/// All kinds of sources, in the order in which they are shown.
pub static SOURCES: &[SourceKind] = &[
    SourceKind {
        name: "-",
        syntax: "-",
        help: "Standard input or output",
        roles: COPIED,
        ..NONE
    },
    SourceKind {
        name: "file",
        syntax: "FILE, file:PATH",
        help: "A raw image, a block device, or a named pipe; 'file:' before a name that looks like something else",
        parameters: &[PATH.with(
            ParameterPlace::Whole,
            "The file, as it is: commas are part of its name",
        )],
        build: Some(|values, _| {
            let path = values.one("path").ok_or("path is missing")?;
            Ok(EndpointKind::File(PathBuf::from(path)))
        }),
        ..NONE
    },
    SourceKind {
        name: "dir",
        syntax: "dir:PATH",
        help: "The files of a directory, each an export by its name",
        parameters: &[PATH.with(ParameterPlace::First, "The directory")],
        roles: SERVED,
        build: Some(|values, _| {
            let path = values.one("path").ok_or("path is missing")?;
            Ok(EndpointKind::Directory(PathBuf::from(path)))
        }),
        ..NONE
    },
    SourceKind {
        name: "split",
        syntax: "split:FILE,FILE...",
        help: "Files joined, one behind the other",
        parameters: &[PATH.with(ParameterPlace::Each, "A file or block device")],
        build: Some(|values, _| {
            let paths = values.all("path").map(PathBuf::from);
            Ok(EndpointKind::Split(paths.collect()))
        }),
        ..NONE
    },
    SourceKind {
        name: "fd",
        syntax: "fd:N",
        help: "The file or block device that the program was started with as descriptor N",
        parameters: &[Parameter {
            name: "fd",
            kind: ParameterType::Descriptor,
            help: "The number of the descriptor",
            ..REQUIRED
        }],
        build: Some(|values, _| {
            let number = values.number("fd").ok_or("fd is missing")?;
            Ok(EndpointKind::Descriptor(number))
        }),
        ..NONE
    },
    SourceKind {
        name: "nbd",
        syntax: "nbd://HOST[:PORT]/EXPORT",
        help: "An NBD export over TCP; quote URIs, the shell knows '?' and '&'",
        ..NONE
    },
    SourceKind {
        name: "nbd+unix",
        syntax: "nbd+unix:///EXPORT?socket=PATH",
        help: "An NBD export over a Unix socket",
        ..NONE
    },
    SourceKind {
        name: "nbds",
        syntax: "nbds://..., nbds+unix://...",
        help: "The same through TLS; '&tls-certificates=DIR' names the directory that has ca-cert.pem, and \
               client-cert.pem with client-key.pem if needed",
        ..NONE
    },
    SourceKind {
        name: "command",
        syntax: "[ CMD ARGS... ]",
        help: "A server started for this endpoint (nbdkit, qemu-nbd, or 'serve')",
        ..NONE
    },
    SourceKind {
        name: "memory",
        syntax: "memory:SIZE",
        help: "A sparse disk in memory, of zeroes at first, that is gone in the end",
        parameters: &[SIZE],
        build: Some(|values, _| {
            let size = values.size("size").ok_or("size is missing")?;
            Ok(EndpointKind::Memory { size })
        }),
        ..NONE
    },
    SourceKind {
        name: "null",
        syntax: "null:[SIZE]",
        help: "As a destination, nothing: data is thrown away; with a size also a disk of zeroes",
        parameters: &[Parameter {
            required: false,
            help: "The size that it has as a source",
            ..SIZE
        }],
        build: Some(|values, _| Ok(EndpointKind::Null(values.size("size")))),
        ..NONE
    },
    SourceKind {
        name: "sample",
        syntax: "sample:SIZE[,seed=N][,data=PERCENT]",
        help: "A generated image, sparse as real ones are, and the same everywhere",
        parameters: &[
            SIZE,
            Parameter {
                name: "seed",
                kind: ParameterType::Number,
                place: ParameterPlace::Named,
                required: false,
                default: Some("0"),
                help: "Which image it is among all of that size",
            },
            Parameter {
                name: "data",
                kind: ParameterType::Percent,
                place: ParameterPlace::Named,
                required: false,
                default: Some("25"),
                help: "How much of it is data",
            },
        ],
        roles: READ_ONLY,
        build: Some(|values, _| {
            Ok(EndpointKind::Sample(SampleOptions {
                size: values.size("size").ok_or("size is missing")?,
                seed: values.number("seed").unwrap_or(0),
                data_percent: values.number("data").unwrap_or(25),
            }))
        }),
        ..NONE
    },
    SourceKind {
        name: "pattern",
        syntax: "pattern:SIZE",
        help: "A disk of which each 8 bytes hold their offset, big-endian",
        parameters: &[SIZE],
        roles: READ_ONLY,
        build: Some(|values, _| {
            let size = values.size("size").ok_or("size is missing")?;
            Ok(EndpointKind::Pattern { size })
        }),
        ..NONE
    },
    SourceKind {
        name: "data",
        syntax: "data:DATA[,size=SIZE]",
        help: "A disk in memory of the bytes that DATA describes, as '0x55 0xaa @0x200 \"text\" (1 2)*8'",
        parameters: &[
            Parameter {
                name: "data",
                kind: ParameterType::Data,
                required: false,
                help: "The bytes, in the language of nbdkit-data-plugin(1)",
                ..REQUIRED
            },
            Parameter {
                name: "raw",
                kind: ParameterType::Bytes,
                place: ParameterPlace::Named,
                required: false,
                help: "The bytes as they are, instead of DATA",
                ..REQUIRED
            },
            Parameter {
                name: "base64",
                kind: ParameterType::Base64,
                place: ParameterPlace::Named,
                required: false,
                help: "The bytes in base64, instead of DATA",
                ..REQUIRED
            },
            Parameter {
                place: ParameterPlace::Named,
                required: false,
                help: "The size of the disk, which cuts what is longer",
                ..SIZE
            },
        ],
        others: Some("the value of $KEY in DATA; the environment's without it"),
        build: Some(data),
        ..NONE
    },
    SourceKind {
        name: "sh",
        syntax: "sh:SCRIPT[,KEY=VALUE...]",
        help: "A disk whose answers come from a script, as nbdkit-sh-plugin(3) calls it",
        parameters: &[Parameter {
            name: "script",
            ..PATH.with(ParameterPlace::First, "The program")
        }],
        others: Some("handed to the script's 'config'"),
        others_repeat: true,
        build: Some(|values, text| {
            let script = values.one("script").ok_or("script is missing")?;
            let program = Program::File(PathBuf::from(script));
            let mut options = ScriptOptions::new(program, format!("sh:{}", printable(text)));
            options.parameters = with_os_keys(values.into_others());
            Ok(EndpointKind::Script(options))
        }),
        ..NONE
    },
    SourceKind {
        name: "eval",
        syntax: "eval:METHOD=SHELL[,METHOD=SHELL...]",
        help: "The same with a shell command for each method, as nbdkit-eval-plugin(1)",
        others: Some("a method's command; what is no method is handed to 'config'"),
        others_repeat: true,
        build: Some(eval),
        ..NONE
    },
];

const COPIED: Roles = Roles {
    source: true,
    destination: true,
    served: false,
};
const SERVED: Roles = Roles {
    source: false,
    destination: false,
    served: true,
};
const READ_ONLY: Roles = Roles {
    source: true,
    destination: false,
    served: true,
};

/// Sources that are joined, which have no text of their own.
static JOINED: SourceKind = SourceKind {
    name: "several sources",
    roles: Roles {
        source: true,
        destination: false,
        served: false,
    },
    ..NONE
};

/// What the rows have in common.
const NONE: SourceKind = SourceKind {
    name: "",
    syntax: "",
    help: "",
    parameters: &[],
    others: None,
    roles: Roles {
        source: true,
        destination: true,
        served: true,
    },
    others_repeat: false,
    build: None,
};

const REQUIRED: Parameter = Parameter {
    name: "",
    kind: ParameterType::Bytes,
    place: ParameterPlace::First,
    required: true,
    default: None,
    help: "",
};

const SIZE: Parameter = Parameter {
    name: "size",
    kind: ParameterType::Size,
    help: "The size of the disk",
    ..REQUIRED
};

const PATH: Parameter = Parameter {
    name: "path",
    kind: ParameterType::Path,
    ..REQUIRED
};

fn data(values: Values, _: &OsStr) -> Result<EndpointKind, String> {
    let bytes = |name| {
        values
            .one(name)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
    };
    let contents = match (bytes("data"), bytes("raw"), bytes("base64")) {
        (Some(text), None, None) => DataContents::Expression(text),
        (None, Some(bytes), None) => DataContents::Bytes(bytes),
        (None, None, Some(text)) => {
            DataContents::Bytes(decode_base64(&text).map_err(|error| error.to_string())?)
        }
        _ => return Err("it needs one of data, raw and base64".to_owned()),
    };
    let size = values.size("size");
    let variables = values.into_others().into_iter();
    let variables =
        variables.map(|(key, value)| (key, std::os::unix::ffi::OsStringExt::into_vec(value)));
    let options = DataOptions {
        contents,
        size,
        variables: variables.collect(),
    };
    options.check().map_err(|error| error.to_string())?;
    Ok(EndpointKind::Data(options))
}

fn eval(values: Values, text: &OsStr) -> Result<EndpointKind, String> {
    let given = values.into_others();
    let (methods, parameters): (Vec<_>, Vec<_>) =
        given.into_iter().partition(|(key, _)| is_method(key));
    for (index, (method, _)) in methods.iter().enumerate() {
        if methods[..index].iter().any(|(known, _)| known == method) {
            return Err(format!("{method} is given twice"));
        }
    }
    if methods.is_empty() {
        return Err("no method is given: write eval:get_size='echo 1M',pread='...'".to_owned());
    }
    let name = format!("eval:{}", printable(text));
    let mut options = ScriptOptions::new(Program::Methods(methods), name);
    options.parameters = with_os_keys(parameters);
    Ok(EndpointKind::Script(options))
}

fn with_os_keys(
    pairs: Vec<(String, std::ffi::OsString)>,
) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (key.into(), value)).collect()
}

impl SourceKind {
    /// The row of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SOURCES.iter().find(|kind| kind.name == name)
    }

    /// The row whose `NAME:` the text begins with, and where the rest begins.
    pub(super) fn of_text(text: &[u8]) -> Option<(&'static Self, usize)> {
        let colon = text.iter().position(|byte| *byte == b':')?;
        let row = SOURCES
            .iter()
            .find(|kind| kind.build.is_some() && kind.name.as_bytes() == &text[..colon])?;
        Some((row, colon + 1))
    }

    /// How what stands behind the colon is read.
    pub(super) fn grammar(&self) -> Grammar {
        Grammar {
            name: self.name,
            syntax: self.syntax,
            parameters: self.parameters,
            others: self.others.is_some(),
            others_repeat: self.others_repeat,
        }
    }
}

impl EndpointKind {
    /// Its row in the table.
    #[must_use]
    pub fn source_kind(&self) -> &'static SourceKind {
        let name = match self {
            Self::Standard => "-",
            Self::Null(_) => "null",
            Self::Memory { .. } => "memory",
            Self::Sample(_) | Self::CheckingSample(_) => "sample",
            Self::Pattern { .. } => "pattern",
            Self::Data(_) => "data",
            Self::Split(_) => "split",
            Self::Directory(_) => "dir",
            Self::Script(options) if matches!(options.program, Program::Methods(_)) => "eval",
            Self::Script(_) => "sh",
            Self::Descriptor(_) => "fd",
            Self::Nbd(uri) if uri.tls => "nbds",
            Self::Nbd(_) => "nbd",
            Self::Command(_) => "command",
            Self::File(_) => "file",
            Self::Part { of, .. } => return of.kind().source_kind(),
            Self::Joined(_) => return &JOINED,
        };
        SourceKind::named(name).unwrap_or(&NONE)
    }

    /// What it is good for.
    #[must_use]
    pub fn roles(&self) -> Roles {
        let roles = self.source_kind().roles;
        match self {
            // There is nothing in it, not even zeroes.
            Self::Null(None) => Roles {
                source: false,
                served: false,
                ..roles
            },
            Self::Part { of, .. } => of.kind().roles(),
            _ => roles,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_explained_and_names_are_unique() {
        for (index, row) in SOURCES.iter().enumerate() {
            assert!(row.help.len() > 5 && !row.help.ends_with('.'), "{row:?}");
            assert!(SOURCES[..index].iter().all(|other| other.name != row.name));
            for parameter in row.parameters {
                assert!(parameter.help.len() > 5, "{parameter:?}");
                let name = parameter.name.to_uppercase();
                let shown = row.syntax.to_uppercase();
                assert!(
                    shown.contains(&name)
                        || parameter.place != ParameterPlace::Named
                        || row.name == "data",
                    "{} does not show {name}",
                    row.syntax
                );
            }
        }
    }

    #[test]
    fn every_prefix_is_written_in_the_syntax() {
        for row in SOURCES.iter().filter(|row| row.build.is_some()) {
            assert!(row.syntax.contains(&format!("{}:", row.name)), "{row:?}");
        }
    }
}
