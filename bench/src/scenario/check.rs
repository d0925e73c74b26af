//! Whether a scenario is sound: everything that it names is there, and nothing contradicts itself.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::{Format, Image, Measure, Scenario, Server, Stdout};
use crate::{placeholder, tools};

impl Scenario {
    /// An error if anything that it names is not there, or makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.runs > 0, "`runs` has to be at least 1");
        ensure!(
            self.overview
                .as_ref()
                .is_none_or(|name| name.chars().count() <= 40),
            "its name in the overview is too long"
        );
        distinct("image", self.images.iter().map(Image::name))?;
        let servers = self.servers.iter().map(|server| &*server.name);
        // Each of them has a socket of its own.
        let places = self.places.iter().map(String::as_str);
        distinct("server or place", servers.chain(places))?;
        distinct("contender", self.contenders.iter().map(|c| &*c.name))?;
        ensure!(
            self.contenders.iter().any(|contender| contender.ours),
            "none of the contenders is `ours`"
        );
        self.check_images()?;
        for server in &self.servers {
            self.check_command(server.arguments(), true)
                .with_context(|| format!("server `{}`", server.name))?;
            ensure!(
                !server.command.is_empty(),
                "server `{}` has no command",
                server.name
            );
        }
        for contender in &self.contenders {
            self.check_command(contender.command.iter(), false)
                .with_context(|| format!("contender `{}`", contender.name))?;
            ensure!(
                !contender.command.is_empty(),
                "contender `{}` has no command",
                contender.name
            );
            ensure!(
                self.measure == Measure::Wall || contender.stdout == Stdout::Null,
                "a contender that prints a rate has no other use for its output"
            );
            ensure!(
                contender.format == Format::Raw || contender.writes_out(),
                "contender `{}` has a format and writes nothing to `{{out}}`",
                contender.name
            );
            ensure!(
                self.empty_images_of(contender).len() + usize::from(contender.writes_out()) <= 1,
                "contender `{}` writes to more than one place, and one is compared",
                contender.name
            );
        }
        self.check_targets()
    }

    fn check_targets(&self) -> Result<()> {
        for target in &self.targets {
            target.check()?;
            let of = self.the_one_or_ours(target.of.as_deref())?;
            for rival in target.rival.names() {
                ensure!(
                    self.contenders.iter().any(|c| c.name == *rival) && rival != of,
                    "a target names `{rival}`, which is no rival of `{of}`"
                );
            }
        }
        for bound in &self.bounds {
            bound.check()?;
            self.the_one_or_ours(bound.of.as_deref())?;
            ensure!(
                bound.system_calls.is_none() || self.size.is_some(),
                "a bound on system calls needs a `size`"
            );
        }
        Ok(())
    }

    fn check_images(&self) -> Result<()> {
        for (index, image) in self.images.iter().enumerate() {
            match image {
                Image::Random { name }
                | Image::Ext4 { name, .. }
                | Image::Fragmented { name, .. }
                | Image::Scattered { name, .. }
                | Image::Empty { name, .. } => {
                    ensure!(self.size.is_some(), "image `{name}` needs a `size`");
                }
                Image::Converted { name, of, .. } | Image::Packed { name, of, .. } => {
                    let before = self.images[..index].iter().any(|other| other.name() == of);
                    ensure!(
                        before,
                        "image `{name}` is made of `{of}`, which is not there"
                    );
                }
            }
            if let Image::Packed { name, command, .. } = image {
                ensure!(!command.is_empty(), "image `{name}` has no command");
            }
            if let Image::Scattered { name, extents } = image {
                let some = extents.full.bytes > 0 && extents.quick.bytes > 0;
                ensure!(some, "image `{name}` has no extents");
            }
            if let Image::Fragmented { name, piece } = image {
                ensure!(piece.bytes > 0, "image `{name}` has pieces of no bytes");
            }
        }
        Ok(())
    }

    fn check_command<'a>(
        &self,
        arguments: impl Iterator<Item = &'a String>,
        is_server: bool,
    ) -> Result<()> {
        for argument in arguments {
            for name in placeholder::names(argument)? {
                let known = match name.split_once(':') {
                    Some(("image", image)) => self.images.iter().any(|i| i.name() == image),
                    Some(("socket" | "port", place)) if self.places.iter().any(|p| p == place) => {
                        true
                    }
                    Some(("socket", server)) => {
                        let there = self.servers.iter().find(|s| s.name == server);
                        !is_server && there.is_some_and(|server| !server.has_port())
                    }
                    Some(("port", server)) => {
                        let there = self.servers.iter().find(|s| s.name == server);
                        !is_server && there.is_some_and(Server::has_port)
                    }
                    Some(("uri", server)) => {
                        !is_server && self.servers.iter().any(|s| s.name == server)
                    }
                    Some(("example", _)) => true,
                    Some(("configuration", file)) => tools::configuration(file).is_file(),
                    Some(_) => false,
                    None => match name {
                        "blockferry" | "zero-scan" | "idle-clients" => true,
                        "relay-traffic" | "relay-tokio" | "relay-splice2" => true,
                        "size" => self.size.is_some(),
                        "socket" | "port" => is_server,
                        "out" => !is_server,
                        "uri" => !is_server && self.servers.len() == 1,
                        "image" => self.images.len() == 1,
                        _ => false,
                    },
                };
                if !known {
                    bail!("`{{{name}}}` stands for nothing here");
                }
            }
        }
        Ok(())
    }
}

fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure!(seen.insert(name), "there are two {what}s named `{name}`");
    }
    Ok(())
}
