//! The plugins by their names: what each is called with, what is said of it, and the source that it is here.

use crate::{
    cli::{
        failure::Failure,
        options::{Opening, ServedSource},
    },
    endpoint::{Endpoint, EndpointKind},
};

use super::{module_name, parameters::Parameters};

mod disks;
mod files;
mod proxy;
mod scripts;

/// A plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) name: &'static str,
    /// The key of a parameter that has none.
    pub(super) magic: Option<&'static str>,
    /// What `--help` says of its parameters.
    pub(super) help: &'static str,
    /// Its methods, as `--dump-plugin` lists them.
    pub(super) methods: &'static [&'static str],
    /// Whether it is a script that answers.
    pub(super) scripted: bool,
    /// What `--dump-plugin` says beside that.
    pub(super) facts: &'static [&'static str],
    /// The source that its parameters describe.
    pub(super) build: fn(Parameters) -> Result<Served, Failure>,
}

/// What is served for a plugin, and how.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) source: ServedSource,
    /// Whether it is one disk, which is every client's, whatever name it asks for.
    pub(super) any_name: bool,
    /// Whether it cannot be written.
    pub(super) read_only: bool,
    /// How often a lost connection to another server is tried again, where more than usual.
    pub(super) retries: u32,
}

const PLUGINS: &[&Plugin] = &[
    &disks::DATA,
    &scripts::EVAL,
    &files::FILE,
    &disks::MEMORY,
    &proxy::NBD,
    &disks::NULL,
    &disks::PATTERN,
    &scripts::SH,
    &disks::SPARSE_RANDOM,
    &files::SPLIT,
    &disks::ZERO,
];

/// The methods of a disk that is only read.
const READING: &[&str] = &["open", "get_size", "can_multi_conn", "pread"];

/// The methods of a disk that is written too.
const WRITING: &[&str] = &[
    "open",
    "get_size",
    "can_fast_zero",
    "can_fua",
    "can_multi_conn",
    "pread",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "extents",
];

impl Plugin {
    /// The plugin of that name, or of the file that would hold it.
    pub(super) fn named(given: &str) -> Result<&'static Self, Failure> {
        let name = module_name(given, "plugin");
        let plugin = PLUGINS.iter().find(|plugin| plugin.name == name);
        plugin.copied().ok_or_else(|| {
            let known: Vec<_> = PLUGINS.iter().map(|plugin| plugin.name).collect();
            Failure::usage(format!(
                "cannot open plugin '{name}': there is no such plugin here, only {}",
                known.join(", ")
            ))
        })
    }
}

impl Served {
    /// One disk, open all the time.
    fn disk(plugin: &str, kind: EndpointKind) -> Self {
        Self {
            source: ServedSource {
                name: None,
                source: Endpoint::new(plugin, kind),
                description: None,
                open: Opening::AtStart,
            },
            any_name: true,
            read_only: false,
            retries: 0,
        }
    }

    /// The same, open while it has clients.
    fn on_demand(mut self) -> Self {
        self.source.open = Opening::OnDemand;
        self
    }

    /// The same, open from the first client on.
    fn on_first_use(mut self) -> Self {
        self.source.open = Opening::FirstUse;
        self
    }

    /// The same with exports of its own.
    fn with_exports(mut self) -> Self {
        self.any_name = false;
        self
    }

    fn read_only_if(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn build(words: &[&str]) -> Result<Served, String> {
        let plugin = Plugin::named(words[0]).expect("a plugin");
        let words: Vec<_> = words[1..].iter().map(OsString::from).collect();
        Parameters::read(&words, plugin.magic)
            .and_then(plugin.build)
            .map_err(|failure| failure.to_string())
    }

    fn kind(words: &[&str]) -> EndpointKind {
        let served = build(words).expect("valid");
        served.source.source.kind().clone()
    }

    fn refusal(words: &[&str]) -> String {
        build(words).expect_err("refused")
    }

    #[test]
    fn a_plugin_is_named_or_its_file_is() {
        for name in [
            "null",
            "/usr/lib/nbdkit/plugins/nbdkit-null-plugin.so",
            "./nbdkit-null-plugin.so",
        ] {
            assert_eq!(Plugin::named(name).expect("known").name, "null");
        }
        let refusal = Plugin::named("curl").expect_err("unknown").to_string();
        assert!(refusal.contains("'curl'"), "{refusal}");
        assert!(refusal.contains("file, memory"), "{refusal}");
    }

    #[test]
    fn disks_are_as_large_as_they_are_told() {
        assert!(matches!(
            kind(&["memory", "1M", "allocator=zstd"]),
            EndpointKind::Memory { size: 0x10_0000 }
        ));
        assert!(matches!(
            kind(&["memory", "size=1", "2k"]),
            EndpointKind::Memory { size: 2048 }
        ));
        assert!(matches!(kind(&["null"]), EndpointKind::Null(Some(0))));
        assert!(matches!(
            kind(&["null", "1M"]),
            EndpointKind::Null(Some(0x10_0000))
        ));
        assert!(matches!(
            kind(&["pattern", "64k"]),
            EndpointKind::Pattern { size: 65536 }
        ));
        assert!(refusal(&["memory"]).contains("size"));
        assert!(refusal(&["memory", "1x"]).contains("1x"));
        assert!(refusal(&["memory", "1M", "allocator=foo"]).contains("foo"));
        assert!(refusal(&["null", "1M", "bogus=1"]).contains("unknown parameter 'bogus'"));
    }

    #[test]
    fn a_sparse_random_disk_is_a_sample_of_a_tenth_data() {
        let EndpointKind::CheckingSample(options) = kind(&["sparse-random", "1G", "seed=7"]) else {
            panic!("no sample")
        };
        assert_eq!((options.size, options.seed), (1 << 30, 7));
        assert_eq!(options.data_percent, 10);
        let words = ["sparse-random", "1G", "percent=50", "runlength=1M"];
        let EndpointKind::CheckingSample(options) = kind(&words) else {
            panic!("no sample")
        };
        assert_eq!(options.data_percent, 50);
        assert!(refusal(&["sparse-random", "1G", "percent=101"]).contains("101"));
    }

    #[test]
    fn data_comes_from_one_parameter_and_others_are_variables() {
        use crate::block::DataContents;
        let words = ["data", "$a * 2", "a=0x55", "size=1k"];
        let EndpointKind::Data(options) = kind(&words) else {
            panic!("no data")
        };
        assert_eq!(
            options.contents,
            DataContents::Expression(b"$a * 2".to_vec())
        );
        assert_eq!(options.size, Some(1024));
        assert_eq!(options.variables, [("a".to_owned(), b"0x55".to_vec())]);
        let EndpointKind::Data(options) = kind(&["data", "base64=MTIz"]) else {
            panic!("no data")
        };
        assert_eq!(options.contents, DataContents::Bytes(b"123".to_vec()));
        assert!(refusal(&["data"]).contains("not specified"));
        assert!(refusal(&["data", "1", "raw=x"]).contains("once"));
        assert!(refusal(&["data", "1", "2"]).contains("once"));
    }

    #[test]
    fn files_are_one_or_a_directory_or_several() {
        assert!(matches!(
            kind(&["file", "/dev/null"]),
            EndpointKind::File(_)
        ));
        assert!(matches!(
            kind(&["file", "dir=/"]),
            EndpointKind::Directory(_)
        ));
        assert!(matches!(
            kind(&["file", "fd=3"]),
            EndpointKind::Descriptor(3)
        ));
        assert!(refusal(&["file"]).contains("file="));
        assert!(refusal(&["file", "a", "dir=b"]).contains("same time"));
        assert!(refusal(&["file", "a", "cache=x"]).contains("cache"));
        let EndpointKind::Split(files) = kind(&["split", "/a", "file=/b", "/c"]) else {
            panic!("no split")
        };
        assert_eq!(files.len(), 3);
        assert!(refusal(&["split"]).contains("file"));
    }

    #[test]
    fn another_server_is_named_in_one_way() {
        let uri = |words: &[&str]| match kind(words) {
            EndpointKind::Nbd(uri) => uri.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            uri(&["nbd", "socket=/s", "export=a"]),
            "nbd+unix:///a?socket=/s"
        );
        assert_eq!(
            uri(&["nbd", "hostname=h", "port=1", "tls=require"]),
            "nbds://h:1/"
        );
        assert_eq!(uri(&["nbd", "nbd://h/x"]), "nbd://h/x");
        let words = [
            "nbd",
            "uri=nbds://h/",
            "tls-certificates=/pki",
            "tls-verify=0",
        ];
        assert_eq!(
            uri(&words),
            "nbds://h/?tls-certificates=/pki&tls-verify-peer=false"
        );
        let EndpointKind::Command(command) = kind(&["nbd", "command=a", "arg=b", "arg=c"]) else {
            panic!("no command")
        };
        assert_eq!(command.arguments(), ["b", "c"]);
        assert!(refusal(&["nbd"]).contains("exactly one"));
        assert!(refusal(&["nbd", "socket=/s", "uri=nbd://h"]).contains("exactly one"));
        assert!(refusal(&["nbd", "socket=/s", "port=1"]).contains("port"));
        assert!(refusal(&["nbd", "socket=/s", "tls-psk=/f"]).contains("tls-psk"));
        assert!(refusal(&["nbd", "socket=/s", "dynamic-export=1"]).contains("dynamic-export"));
    }

    #[test]
    fn scripts_get_what_is_no_method_of_theirs() {
        use crate::script::Program;
        let words = ["eval", "get_size=echo 1", "pread=cat", "x=1", "x=2"];
        let EndpointKind::Script(options) = kind(&words) else {
            panic!("no script")
        };
        let Program::Methods(methods) = &options.program else {
            panic!("no methods")
        };
        assert_eq!(methods.len(), 2);
        assert_eq!(options.parameters.len(), 2);
        let EndpointKind::Script(options) = kind(&["sh", "script=#!/bin/sh\nexit 2", "a=b"]) else {
            panic!("no script")
        };
        assert!(matches!(options.program, Program::Inline(_)));
        assert_eq!(options.parameters.len(), 1);
        assert!(refusal(&["sh"]).contains("script"));
        assert!(refusal(&["eval", "pread=a", "pread=b"]).contains("pread"));
    }
}
