//! `-o`: the options of a new image, in QEMU's spelling.
//!
//! They are those of our own `-o`, which has them under the same names; what QEMU has besides is taken where it asks
//! for nothing.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use crate::{
    block::{Parameter, ParameterType, escape_commas},
    cli::failure::Failure,
    endpoint::{FormatKind, image_options, printable},
    format::Format,
};

use super::{
    super::qemu::{format, keywords::words, size::decimal, text},
    command::Stop,
};

/// What QEMU knows and we have not: the format (`None` for all of them), the option, the values that ask for nothing.
const NOT_HERE: &[(Option<FormatKind>, &str, &[&str])] = &[
    (None, "encryption", &["off", "no", "false"]),
    (QCOW2, "encrypt.format", &[]),
    (QCOW2, "encrypt.key-secret", &[]),
    (VMDK, "backing_file", &[]),
    (VMDK, "backing_fmt", &[]),
    (VMDK, "compat6", &["off", "no", "false"]),
    (VMDK, "toolsversion", &[]),
    (VMDK, "zeroed_grain", &["off", "no", "false"]),
];

const QCOW2: Option<FormatKind> = Some(FormatKind::Image(Format::Qcow2));
const VMDK: Option<FormatKind> = Some(FormatKind::Image(Format::Vmdk));

/// The options of one new image.
#[derive(Clone, Debug, Default)]
pub(super) struct NewOptions {
    values: BTreeMap<String, String>,
    /// Whether they were asked for.
    is_help: bool,
}

impl NewOptions {
    /// Takes the argument of one `-o`.
    pub(super) fn add(&mut self, argument: &OsStr) -> Result<(), Failure> {
        let argument = text("options", argument)?;
        if argument.is_empty() || argument.starts_with(',') || argument.ends_with([',']) {
            return Err(Failure::usage(format!(
                "Invalid option list: {}",
                printable(argument.as_ref())
            )));
        }
        for word in words(&argument) {
            match word.split_once('=') {
                Some((key, value)) => {
                    self.values.insert(key.to_owned(), value.to_owned());
                }
                None if word == "help" || word == "?" => self.is_help = true,
                None => {
                    self.values.insert(word, "on".to_owned());
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty() && !self.is_help
    }

    /// The value of `key`, which is then no longer there.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    /// Gives `key` a value, in the place of the one that it has.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.values.insert(key.to_owned(), value.to_owned());
    }

    /// Whether the options themselves were asked for.
    pub(super) fn is_help(&self) -> bool {
        self.is_help
    }

    /// The first key that is left.
    pub(super) fn first(&self) -> Option<&str> {
        self.values.keys().next().map(String::as_str)
    }

    /// What there is to be said of a format's options, where that was asked for.
    pub(super) fn help_for(&self, format: &str) -> Result<Option<String>, Stop> {
        match self.is_help {
            true => Ok(Some(help(made(format)?))),
            false => Ok(None),
        }
    }

    /// The same as our own parsers read them. The size, which they have not, is to be taken before.
    pub(super) fn into_ours(mut self, kind: FormatKind) -> Result<Vec<OsString>, Failure> {
        for (of, key, harmless) in NOT_HERE {
            if of.is_some_and(|of| of != kind) {
                continue;
            }
            match self.values.remove(*key) {
                Some(value) if !harmless.contains(&&*value) => {
                    let value = printable(value.as_ref());
                    return Err(Failure::usage(format!(
                        "-o {key}={value} is not done by blockferry: use QEMU's own qemu-img"
                    )));
                }
                _ => {}
            }
        }
        // Hints to the file system.
        self.values.remove("extent_size_hint");
        self.values.remove("nocow");
        let known = image_options(kind);
        let unknown = |key: &&String| !known.iter().any(|option| option.name == **key);
        if let Some(key) = self.values.keys().find(unknown) {
            let key = printable(key.as_ref());
            return Err(Failure::usage(format!("Invalid parameter '{key}'")));
        }
        if kind == FormatKind::Image(Format::Vmdk) {
            // Ours is for transport.
            let subformat = self.values.entry("subformat".to_owned());
            subformat.or_insert_with(|| "monolithicSparse".to_owned());
        }
        let is_size = |key: &str| {
            let mut known = known.iter();
            known.any(|option| option.name == key && matches!(option.kind, ParameterType::Size))
        };
        let ours = self.values.iter();
        let ours = ours.map(|(key, value)| {
            let mut option = OsString::from(format!("{key}="));
            match is_size(key) {
                true => option.push(&*decimal(value)),
                false => option.push(escape_commas(value.as_ref())),
            }
            option
        });
        Ok(ours.collect())
    }
}

/// The format of that name, in which images are made.
pub(super) fn made(name: &str) -> Result<FormatKind, Stop> {
    let unknown = || {
        Failure::usage(format!(
            "Unknown file format '{}'",
            printable(name.as_ref())
        ))
    };
    match format::known(name) {
        Ok(kind @ (FormatKind::Raw | FormatKind::Image(_))) => Ok(kind),
        Ok(kind) => Err(not_made(&kind.to_string())),
        Err(_) if ["qcow", "qed", "parallels", "luks"].contains(&name) => Err(not_made(name)),
        Err(_) => Err(unknown().into()),
    }
}

fn not_made(format: &str) -> Stop {
    Failure::usage(format!(
        "images in the format {format} are not made by blockferry: use QEMU's own qemu-img"
    ))
    .into()
}

/// The options of a format, a line each.
fn help(kind: FormatKind) -> String {
    let size = Parameter::new("size", ParameterType::Size, "The size of the disk");
    let mut options: Vec<_> = image_options(kind).iter().chain([&size]).collect();
    options.sort_by_key(|option| option.name);
    let lines = options.iter().map(|option| {
        let kind = match option.kind {
            ParameterType::Switch => "bool (on/off)",
            ParameterType::Size => "size",
            ParameterType::Number => "num",
            _ => "str",
        };
        let name = format!("{}=<{kind}>", option.name);
        let values = match option.kind {
            ParameterType::Choice(values) => format!(" ({})", values.join(", ")),
            _ => String::new(),
        };
        format!("  {name:<22} - {}{values}\n", option.help)
    });
    format!("Supported {kind} options:\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QCOW2: FormatKind = FormatKind::Image(Format::Qcow2);
    const VMDK: FormatKind = FormatKind::Image(Format::Vmdk);

    fn ours(kind: FormatKind, texts: &[&str]) -> Result<Vec<OsString>, String> {
        let mut options = NewOptions::default();
        for text in texts {
            let added = options.add(text.as_ref());
            added.map_err(|failure| failure.to_string())?;
        }
        let ours = options.into_ours(kind);
        ours.map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_last_value_counts_and_commas_come_through() {
        let texts = [
            "backing_file=a,,b,lazy_refcounts",
            "cluster_size=4k,cluster_size=8k",
        ];
        assert_eq!(
            ours(QCOW2, &texts),
            Ok(
                ["backing_file=a,,b", "cluster_size=8k", "lazy_refcounts=on"]
                    .map(OsString::from)
                    .to_vec()
            )
        );
        assert_eq!(
            ours(VMDK, &["zeroed_grain=off"]),
            Ok(vec![OsString::from("subformat=monolithicSparse")])
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (kind, text, named) in [
            (QCOW2, "bogus=1", "Invalid parameter 'bogus'"),
            (
                FormatKind::Raw,
                "cluster_size=1",
                "Invalid parameter 'cluster_size'",
            ),
            (QCOW2, "encryption=on", "-o encryption=on"),
            (QCOW2, "encrypt.format=luks", "-o encrypt.format=luks"),
            (VMDK, "backing_file=x", "-o backing_file=x"),
            (QCOW2, "cluster_size=4k,", "Invalid option list"),
        ] {
            let refused = ours(kind, &[text]).expect_err(text);
            assert!(refused.contains(named), "{text}: {refused}");
        }
        assert_eq!(ours(QCOW2, &["encryption=off,nocow=off"]), Ok(Vec::new()));
    }

    #[test]
    fn the_help_names_the_options_as_scripts_look_for_them() {
        let help = help(QCOW2);
        assert!(help.starts_with("Supported qcow2 options:\n  backing_file=<str>     - "));
        for option in [
            "  cluster_size=<size>    - ",
            "  lazy_refcounts=<bool (on/off)> - ",
            "  preallocation=<str>    - ",
            "  refcount_bits=<num>    - ",
            "  size=<size>            - ",
        ] {
            assert!(help.contains(option), "{option}: {help}");
        }
    }
}
