//! Scenarios are data: one TOML file says what is compared, on which images, behind which servers.
//!
//! A file is checked as a whole when it is read, so that a wrong name is an error before the first
//! image is made and not after the first round.

mod check;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    placeholder,
    size::Size,
    target::{Bound, Target},
};

/// One question that is put to several programs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// The name on the command line, and of the result files. The file is `NAME.toml`.
    pub(crate) name: String,
    /// What is done, in a few words: the row of the README's table.
    pub(crate) title: String,
    /// Its name in the overview of all scenarios, in at most 40 characters; without one it is not shown there.
    #[serde(default)]
    pub(crate) overview: Option<String>,
    /// What it shows, in a sentence or two.
    pub(crate) shows: String,
    /// How many rounds count.
    #[serde(default = "five")]
    pub(crate) runs: usize,
    /// What is compared.
    #[serde(default)]
    pub(crate) measure: Measure,
    /// The size of the images: `{size}` in a command.
    pub(crate) size: Option<Amount>,
    /// The images, made once, but for the empty ones. Each lies at `{image:NAME}`.
    #[serde(default, rename = "image")]
    pub(crate) images: Vec<Image>,
    /// The servers. Those that a contender's command names are started anew before each of its runs.
    /// Each is reached at `{uri:NAME}` and listens at `{socket:NAME}`, or at the port `{port:NAME}` of 127.0.0.1.
    #[serde(default, rename = "server")]
    pub(crate) servers: Vec<Server>,
    /// Where the contenders themselves listen, for servers that connect to something: `{socket:NAME}` or `{port:NAME}`,
    /// in the commands of both.
    #[serde(default)]
    pub(crate) places: Vec<String>,
    /// The programs, in the order in which each round runs them.
    #[serde(rename = "contender")]
    pub(crate) contenders: Vec<Contender>,
    /// How much better than which rival we mean to be.
    #[serde(default, rename = "target")]
    pub(crate) targets: Vec<Target>,
    /// What we mean to take at most.
    #[serde(default, rename = "bound")]
    pub(crate) bounds: Vec<Bound>,
}

fn five() -> usize {
    5
}

/// What a scenario compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Measure {
    /// The seconds from the start of the command to its end.
    #[default]
    Wall,
    /// The number that the command prints: GB/s (10^9 bytes).
    Rate,
    /// The same in requests a second, and where it prints one behind it a latency in microseconds.
    Iops,
}

impl Measure {
    /// Whether it is the command that says it.
    pub(crate) fn is_printed(self) -> bool {
        self != Self::Wall
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Wall => "wall s",
            Self::Rate => "GB/s",
            Self::Iops => "IOPS",
        }
    }
}

/// One size for a real run, and a small one for `--quick`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    full: Size,
    quick: Size,
}

impl Amount {
    pub(crate) fn of(&self, quick: bool) -> &Size {
        if quick { &self.quick } else { &self.full }
    }
}

/// An image, and how it is made.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Image {
    /// As large as the scenario's `size`, filled with random bytes, the same ones each time.
    Random { name: String },
    /// A sparse image of the scenario's `size` with an ext4 file system that holds files of `/usr`, up to
    /// `files` bytes of them.
    Ext4 { name: String, files: Amount },
    /// An image of what the raw image `of` contains in this format, made by `qemu-img convert` with `options`.
    Converted {
        name: String,
        of: String,
        format: Format,
        #[serde(default)]
        options: Vec<String>,
    },
    /// What the raw image `of` contains, packed by a program that reads it from its standard input and writes to its
    /// standard output.
    Packed {
        name: String,
        of: String,
        command: Vec<String>,
    },
    /// A sparse qcow2 image of the scenario's `size` whose tables say that there are so many `extents`: clusters that
    /// lie somewhere in the file, and none between them.
    Scattered { name: String, extents: Amount },
    /// A file of the scenario's `size` in which pieces of random bytes and holes alternate, `piece` bytes
    /// each.
    Fragmented { name: String, piece: Size },
    /// An image of the scenario's `size` with nothing in it, to be written to: it is made anew before each
    /// run of a contender that names it, or whose servers do.
    Empty { name: String, format: Format },
}

/// The format of an image that is written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    #[default]
    Raw,
    Qcow2,
    Vmdk,
}

impl Format {
    /// Its name, as qemu-img has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

impl Image {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Random { name }
            | Self::Ext4 { name, .. }
            | Self::Converted { name, .. }
            | Self::Packed { name, .. }
            | Self::Fragmented { name, .. }
            | Self::Scattered { name, .. }
            | Self::Empty { name, .. } => name,
        }
    }
}

/// A server. It has to outlive a client, for we ask it whether it is there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// The command, with `{socket}` for the path it is to listen at, or `{port}` for the port.
    pub(crate) command: Vec<String>,
    /// Variables that it is given, with the same placeholders.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
}

/// One of the programs that are compared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Whether it is ours. The others are its rivals.
    #[serde(default)]
    pub(crate) ours: bool,
    pub(crate) command: Vec<String>,
    /// The format of what it writes to `{out}`.
    #[serde(default)]
    pub(crate) format: Format,
    /// Where its standard output goes.
    #[serde(default)]
    pub(crate) stdout: Stdout,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stdout {
    /// `/dev/null` itself.
    #[default]
    Null,
    /// A pipe whose other end reads as fast as it can.
    Pipe,
}

impl Scenario {
    /// Reads the scenario and checks that everything it names is there.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let scenario: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        scenario
            .check()
            .with_context(|| path.display().to_string())?;
        let stem = path.file_stem().unwrap_or_default();
        ensure!(
            stem == scenario.name.as_str(),
            "{}: the file of scenario `{}` has another name",
            path.display(),
            scenario.name
        );
        Ok(scenario)
    }

    /// Our contender that the rivals are compared with: the first of ours.
    pub(crate) fn ours(&self) -> &Contender {
        let ours = self.contenders.iter().find(|contender| contender.ours);
        ours.expect("checked when the scenario was read")
    }

    /// The servers that the contender's command names.
    pub(crate) fn servers_of(&self, contender: &Contender) -> impl Iterator<Item = &Server> {
        let names = named_by(&contender.command);
        self.servers.iter().filter(move |server| {
            names.iter().any(|name| match name.split_once(':') {
                Some(("uri" | "socket" | "port", named)) => named == server.name,
                _ => *name == "uri",
            })
        })
    }

    /// Whether it is another program, behind servers of others: what we are measured by, and not a comparison of
    /// one way of ours with another.
    pub(crate) fn is_foreign(&self, contender: &Contender) -> bool {
        let of_ours = |argument: &String| argument.contains("{blockferry}");
        let servers = self.servers_of(contender);
        let mut commands = servers.flat_map(|server| &server.command);
        !contender.ours && !contender.command.iter().any(of_ours) && !commands.any(of_ours)
    }

    /// The empty images that the contender or one of its servers is given, and their formats.
    pub(crate) fn empty_images_of(&self, contender: &Contender) -> Vec<(&str, Format)> {
        let servers = self.servers_of(contender);
        let names: BTreeSet<&str> = servers
            .flat_map(Server::names)
            .chain(named_by(&contender.command))
            .collect();
        let images = self.images.iter().filter_map(|image| match image {
            Image::Empty { name, format } => Some((&**name, *format)),
            _ => None,
        });
        let is_named = |image: &str| {
            let with_name = names
                .iter()
                .any(|n| n.strip_prefix("image:") == Some(image));
            with_name || names.contains("image")
        };
        images.filter(|(name, _)| is_named(name)).collect()
    }

    /// The servers and places that need a port, by name.
    pub(crate) fn with_ports(&self) -> BTreeSet<&str> {
        let servers = self.servers.iter();
        let contenders = self.contenders.iter();
        let own = servers.clone().filter(|server| server.has_port());
        servers
            .flat_map(Server::names)
            .chain(contenders.flat_map(|contender| named_by(&contender.command)))
            .filter_map(|name| name.strip_prefix("port:"))
            .chain(own.map(|server| &*server.name))
            .collect()
    }

    /// Whether system calls are to be counted.
    pub(crate) fn counts_system_calls(&self) -> bool {
        self.bounds.iter().any(|bound| bound.system_calls.is_some())
    }

    /// The contender that a target or a bound is about.
    pub(crate) fn the_one_or_ours<'a>(&'a self, of: Option<&'a str>) -> Result<&'a str> {
        let Some(name) = of else {
            return Ok(&self.ours().name);
        };
        ensure!(
            self.contenders.iter().any(|c| c.name == name),
            "there is no contender `{name}`"
        );
        Ok(name)
    }
}

impl Server {
    /// Whether it listens at a port and not at a path.
    pub(crate) fn has_port(&self) -> bool {
        self.names().any(|name| name == "port")
    }

    /// What it is given, wherever.
    fn arguments(&self) -> impl Iterator<Item = &String> {
        self.command.iter().chain(self.environment.values())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let arguments = self.arguments();
        arguments
            .filter_map(|argument| placeholder::names(argument).ok())
            .flatten()
    }
}

impl Contender {
    /// Whether it is told to write to `{out}`.
    pub(crate) fn writes_out(&self) -> bool {
        named_by(&self.command).contains(&"out")
    }
}

/// The placeholders of a command that was checked.
fn named_by(command: &[String]) -> Vec<&str> {
    let names = command.iter().map(|argument| placeholder::names(argument));
    names.flatten().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        name = "small"
        title = "few bytes"
        shows = "something"
        size = { full = "1G", quick = "1M" }
        [[image]]
        kind = "random"
        name = "noise"
        [[server]]
        name = "qemu"
        command = ["qemu-nbd", "-k", "{socket}", "{image}"]
        [[contender]]
        name = "we"
        ours = true
        command = ["{blockferry}", "copy", "{uri}", "null:"]
        [[contender]]
        name = "they"
        command = ["nbdcopy", "{uri:qemu}", "{out}"]
        [[target]]
        rival = "they"
        speed = 1.5
    "#;

    fn parse(text: &str) -> Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    #[test]
    fn a_sound_scenario_is_accepted_with_its_defaults() {
        let scenario = parse(SMALL).unwrap();
        assert_eq!(scenario.runs, 5);
        assert_eq!(scenario.measure, Measure::Wall);
        assert_eq!(scenario.ours().name, "we");
        assert_eq!(scenario.contenders[1].stdout, Stdout::Null);
        let size = scenario.size.unwrap();
        assert_eq!(
            (size.of(false).bytes, size.of(true).bytes),
            (1 << 30, 1 << 20)
        );
    }

    #[test]
    fn what_is_named_and_not_there_is_refused() {
        for (right, wrong) in [
            ("{socket}", "{sockets}"),
            ("{uri:qemu}", "{uri:other}"),
            ("\"{image}\"", "\"{image:other}\""),
            ("rival = \"they\"", "rival = \"we\""),
            ("ours = true", "ours = false"),
            ("name = \"they\"", "name = \"we\""),
            ("speed = 1.5", "sped = 1.5"),
            ("size = { full = \"1G\", quick = \"1M\" }", ""),
            ("{out}", "{socket}"),
            ("rival = \"they\"", "rival = [\"they\", \"others\"]"),
            ("rival = \"they\"", "rival = []"),
            ("rival = \"they\"", "rival = \"they\"\nof = \"others\""),
            ("speed = 1.5", ""),
            ("speed = 1.5", "speed = 1.5\n[[bound]]"),
            (
                "speed = 1.5",
                "speed = 1.5\n[[bound]]\nof = \"others\"\nsystem_calls = 1.0",
            ),
        ] {
            assert!(SMALL.contains(right));
            assert!(parse(&SMALL.replace(right, wrong)).is_err(), "{wrong}");
        }
    }

    const COPY: &str = r#"
        name = "copy"
        title = "a copy"
        shows = "something"
        size = { full = "1G", quick = "1M" }
        image = [
            { kind = "fragmented", name = "pieces", piece = "64K" },
            { kind = "empty", name = "new", format = "qcow2" },
        ]
        server = [
            { name = "from", command = ["qemu-nbd", "-k", "{socket}", "{image:pieces}"] },
            { name = "to", command = ["qemu-nbd", "-k", "{socket}", "{image:new}"] },
        ]
        contender = [
            { name = "both", ours = true, command = ["{blockferry}", "{uri:from}", "{uri:to}"] },
            { name = "one", command = ["nbdcopy", "{uri:from}", "null:"] },
            { name = "none", command = ["cp", "{image:pieces}", "{out}"] },
        ]
        target = [{ rival = ["one", "none"], cpu = 1.0 }]
        bound = [{ peak_memory = "64M", system_calls = 3 }]
    "#;

    #[test]
    fn a_contender_has_the_servers_and_the_empty_images_that_it_names() {
        let scenario = parse(COPY).unwrap();
        let used = scenario.contenders.iter().map(|contender| {
            let servers = scenario.servers_of(contender);
            let servers: Vec<_> = servers.map(|server| server.name.as_str()).collect();
            (servers, scenario.empty_images_of(contender))
        });
        let expected = [
            (vec!["from", "to"], vec![("new", Format::Qcow2)]),
            (vec!["from"], vec![]),
            (vec![], vec![]),
        ];
        assert!(used.eq(expected));
        assert!(scenario.counts_system_calls());
    }

    const RELAY: &str = r#"
        name = "relay"
        title = "bytes"
        shows = "something"
        places = ["target"]
        [[server]]
        name = "by-port"
        command = ["{relay-tokio}", "tcp:127.0.0.1:{port}", "{socket:target}"]
        [[server]]
        name = "by-path"
        command = ["haproxy"]
        environment = { FROM = "{socket}", TO = "{port:target}" }
        [[contender]]
        name = "first"
        ours = true
        command = ["{relay-traffic}", "{port:by-port}", "{socket:target}"]
        [[contender]]
        name = "second"
        command = ["{relay-traffic}", "{socket:by-path}", "{port:target}"]
    "#;

    #[test]
    fn servers_and_places_have_ports_where_they_are_asked_for() {
        let scenario = parse(RELAY).unwrap();
        assert!(scenario.with_ports().iter().eq(&["by-port", "target"]));
        for (contender, server) in scenario.contenders.iter().zip(["by-port", "by-path"]) {
            let servers = scenario.servers_of(contender);
            assert!(servers.map(|server| &*server.name).eq([server]));
        }
    }

    #[test]
    fn ports_and_paths_that_nothing_listens_at_are_errors() {
        for (right, wrong) in [
            ("{port:by-port}", "{socket:by-port}"),
            ("{socket:by-path}", "{port:by-path}"),
            ("\"{port:target}\" }", "\"{port:elsewhere}\" }"),
            ("\"haproxy\"", "\"{configuration:no-such-file}\""),
            ("\"target\"]", "\"target\", \"by-path\"]"),
        ] {
            let text = RELAY.replacen(right, wrong, 1);
            assert_ne!(text, RELAY);
            assert!(parse(&text).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_contender_writes_to_one_place() {
        let wrong = COPY.replace("\"{uri:to}\"", "\"{uri:to}\", \"{out}\"");
        assert!(parse(&wrong).is_err());
    }

    #[test]
    fn every_scenario_of_the_project_is_sound() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut count = 0;
        for entry in fs::read_dir(directory).unwrap() {
            Scenario::read(&entry.unwrap().path()).unwrap();
            count += 1;
        }
        assert!(count > 0);
    }
}
