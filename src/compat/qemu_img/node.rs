//! What is told of the file, or the server, that an image lies in.

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use blockferry_sys as sys;

use crate::{
    block::{BlockDevice, ByteRange, Mapping},
    endpoint::{Endpoint, EndpointKind, printable},
    proto::{NbdUri, Transport},
};

use super::super::qemu::tree::{Tree, size_text};

/// What QEMU counts bytes in.
pub(super) const SECTOR: u64 = 512;

/// Something that bytes lie in.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// What it is to the image: `file`, `extents.0`.
    role: String,
    name: String,
    /// The driver: `file`, `host_device`, `nbd`, ...
    protocol: &'static str,
    length: u64,
    /// How much space it takes, where that is known.
    pub(super) space: Option<u64>,
}

impl Node {
    /// What `source`, whose bytes are in `bytes`, lies in.
    pub(super) fn of(source: &Endpoint, bytes: &dyn BlockDevice) -> Self {
        let (whole, is_part) = whole(source);
        let length = match (is_part, file_length(bytes)) {
            (true, Some(length)) => length,
            _ => bytes.info().size,
        };
        Self {
            role: "file".to_owned(),
            name: text(&name_of(whole)),
            protocol: protocol(whole, bytes),
            length: length.next_multiple_of(SECTOR),
            space: space(bytes).or_else(|| empty_space(whole)),
        }
    }

    /// The file at `path` that an image names.
    pub(super) fn named(role: String, path: &Path, bytes: &dyn BlockDevice) -> Self {
        Self {
            role,
            name: text(path),
            protocol: "file",
            length: bytes.info().size.next_multiple_of(SECTOR),
            space: space(bytes),
        }
    }

    /// As a member of JSON's `children`.
    pub(super) fn tree(&self) -> Tree {
        let mut info = vec![
            ("children", Tree::List(Vec::new())),
            ("virtual-size", Tree::number(self.length)),
            ("filename", Tree::text(&self.name)),
            ("format", Tree::text(self.protocol)),
        ];
        if let Some(space) = self.space {
            info.push(("actual-size", Tree::number(space)));
        }
        if self.is_file() {
            // QEMU gives what it knows of devices the name of files.
            let specific = vec![
                ("type", Tree::text("file")),
                ("data", Tree::Map(Vec::new())),
            ];
            info.push(("format-specific", Tree::Map(specific)));
            info.push(("dirty-flag", Tree::Switch(false)));
        }
        Tree::Map(vec![
            ("name", Tree::text(&self.role)),
            ("info", Tree::Map(info)),
        ])
    }

    /// As text.
    pub(super) fn lines(&self) -> String {
        let Self {
            role,
            name,
            protocol,
            length,
            space,
        } = self;
        format!(
            "Child node '/{role}':\n    filename: {}\n    protocol type: {protocol}\n    file length: {} ({length} \
             bytes)\n    disk size: {}\n",
            printable(OsStr::new(name)),
            size_text(*length),
            space.map_or("unavailable".to_owned(), size_text)
        )
    }

    /// Whether it is something of this machine.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.protocol, "file" | "host_device")
    }
}

/// The name of an image as QEMU shows it: that of its file, or the URI of its server.
pub(super) fn name_of(source: &Endpoint) -> PathBuf {
    match whole(source).0.kind() {
        EndpointKind::File(path) => path.clone(),
        EndpointKind::Nbd(uri) => PathBuf::from(uri_text(uri)),
        EndpointKind::Null(_) => PathBuf::from("null-co://"),
        _ => PathBuf::from(&**source.name()),
    }
}

/// A URI as QEMU writes it: without what is the usual.
fn uri_text(uri: &NbdUri) -> String {
    let export = match &*uri.export {
        "" => String::new(),
        export => format!("/{export}"),
    };
    match &uri.transport {
        Transport::Unix { path } => format!("nbd+unix://{export}?socket={}", path.display()),
        Transport::Tcp { host, port } => format!("nbd://{host}:{port}{export}"),
        _ => uri.to_string(),
    }
}

/// What `source` is a part of, and whether it is one.
fn whole(source: &Endpoint) -> (&Endpoint, bool) {
    let mut whole = source;
    while let EndpointKind::Part { of, .. } = whole.kind() {
        whole = of;
    }
    (whole, !std::ptr::eq(whole, source))
}

fn protocol(whole: &Endpoint, bytes: &dyn BlockDevice) -> &'static str {
    match whole.kind() {
        EndpointKind::Nbd(_) => "nbd",
        EndpointKind::Null(_) => "null-co",
        _ => match inspect(bytes) {
            Some(facts) if facts.kind == sys::FileKind::Regular => "file",
            None => match whole.kind() {
                EndpointKind::File(path) if path.is_file() => "file",
                _ => "host_device",
            },
            Some(_) => "host_device",
        },
    }
}

fn file_length(bytes: &dyn BlockDevice) -> Option<u64> {
    let facts = inspect(bytes)?;
    (facts.kind == sys::FileKind::Regular).then_some(facts.size)
}

fn space(bytes: &dyn BlockDevice) -> Option<u64> {
    Some(inspect(bytes)?.allocated)
}

/// The space of a file without bytes, which lie nowhere.
fn empty_space(whole: &Endpoint) -> Option<u64> {
    match whole.kind() {
        EndpointKind::File(path) => Some(std::fs::metadata(path).ok()?.blocks() * 512),
        _ => None,
    }
}

/// The file that the bytes lie in, where there is one.
fn inspect(bytes: &dyn BlockDevice) -> Option<sys::FileFacts> {
    match bytes.mapping(ByteRange::between(0, bytes.info().size.min(1))) {
        Mapping::File { fd, .. } => sys::inspect(fd).ok(),
        _ => None,
    }
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
