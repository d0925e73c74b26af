//! Files of this machine.

use std::{fs::OpenOptions, io, path::Path};

use crate::{
    cli::failure::Failure,
    endpoint::{EndpointKind, printable},
};

use super::{
    super::{parameters::Parameters, values},
    Plugin, Served, WRITING,
};

pub(super) static FILE: Plugin = Plugin {
    name: "file",
    magic: Some("file"),
    help: "\
[file=]<FILENAME>       The file or block device to serve
dir=<DIRNAME>           A directory whose files are served, each under its name
fd=<FD>                 The descriptor of the file to serve
dirfd=<FD>              The descriptor of such a directory
cache=default|none      Understood; the kernel decides what it keeps
fadvise=normal|random|sequential
                        Understood; the kernel decides what it reads ahead",
    methods: WRITING,
    scripted: false,
    facts: &[
        "file_blksszget=yes",
        "file_blkzeroout=yes",
        "file_falloc_fl_punch_hole=yes",
        "file_falloc_fl_zero_range=yes",
    ],
    build: file,
};

pub(super) static SPLIT: Plugin = Plugin {
    name: "split",
    magic: Some("file"),
    help: "[file=]<FILENAME>       A file; repeat it for each (required)",
    methods: WRITING,
    scripted: false,
    facts: &[],
    build: |mut parameters| {
        let files = parameters.take_all("file").into_iter();
        let files = files.map(|file| values::path("file", &file));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        parameters.finish()?;
        if files.is_empty() {
            return Err(Failure::usage(
                "you must supply at least one file=<FILENAME> parameter",
            ));
        }
        let read_only = files.iter().any(|file| cannot_be_written(file));
        Ok(Served::disk("split", EndpointKind::Split(files))
            .on_demand()
            .read_only_if(read_only))
    },
};

fn file(mut parameters: Parameters) -> Result<Served, Failure> {
    choice(&mut parameters, "cache", &["default", "none"])?;
    choice(
        &mut parameters,
        "fadvise",
        &["normal", "random", "sequential"],
    )?;
    let mut given = Vec::new();
    for (spelling, key) in [
        ("file", "file"),
        ("dir", "dir"),
        ("directory", "dir"),
        ("fd", "fd"),
        ("dirfd", "dirfd"),
    ] {
        let values = parameters.take_all(spelling);
        given.extend(values.into_iter().map(|value| (key, value)));
    }
    parameters.finish()?;
    let (key, value) = match (given.pop(), given.pop()) {
        (Some(given), None) => given,
        (Some((one, _)), Some((other, _))) if one == other => {
            return Err(Failure::usage(format!("{one}= must be given only once")));
        }
        (Some((one, _)), Some((other, _))) => {
            return Err(Failure::usage(format!(
                "{other}= and {one}= cannot be used at the same time"
            )));
        }
        (None, _) => {
            return Err(Failure::usage(
                "you must supply either [file=]<FILENAME>, dir=<DIRNAME>, fd=<FD> or dirfd=<FD> \
                 after the plugin name on the command line",
            ));
        }
    };
    let descriptor = || {
        let number = value.to_str().and_then(|text| text.parse::<u16>().ok());
        let number = number.filter(|number| *number > 2);
        number.ok_or_else(|| {
            let value = printable(&value);
            Failure::usage(format!("{key}: {value:?} is not a descriptor of a file"))
        })
    };
    Ok(match key {
        "file" => {
            let path = values::path("file", &value)?;
            let read_only = cannot_be_written(&path);
            Served::disk(&printable(path.as_os_str()), EndpointKind::File(path))
                .on_demand()
                .read_only_if(read_only)
        }
        "fd" => Served::disk("file", EndpointKind::Descriptor(descriptor()?.into())),
        _ => {
            let path = match key {
                "dir" => values::path("dir", &value)?,
                _ => format!("/proc/self/fd/{}", descriptor()?).into(),
            };
            Served::disk(&printable(path.as_os_str()), EndpointKind::Directory(path)).with_exports()
        }
    })
}

/// A parameter that changes nothing here; what would be a mistake there is one here.
fn choice(parameters: &mut Parameters, key: &str, known: &[&str]) -> Result<(), Failure> {
    let Some(value) = parameters.take(key) else {
        return Ok(());
    };
    let value = printable(&value);
    match known.contains(&&*value) {
        true => Ok(()),
        false => Err(Failure::usage(format!("unknown {key} mode: {value}"))),
    }
}

/// Whether the file is there and may be read only: then it is, without being asked for.
fn cannot_be_written(path: &Path) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.is_err_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    })
}
