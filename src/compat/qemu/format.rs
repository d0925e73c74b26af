//! What format an image has: the one that was said, or what a regular file begins with.

use std::{fs::File, io::Read, path::Path};

use crate::{
    endpoint::{Endpoint, EndpointKind, FormatKind, printable},
    format::{self, PROBE_LENGTH, packed::Packing},
};

/// The drivers of QEMU that are not there, formats and protocols.
const OTHERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "http",
    "https",
    "io_uring",
    "iscsi",
    "iser",
    "luks",
    "nfs",
    "null-aio",
    "nvme",
    "nvme-io_uring",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "virtio-blk-vfio-pci",
    "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
    "vitastor",
    "vvfat",
];

/// The format of that name, in QEMU's words where it cannot be read.
pub(in crate::compat) fn known(name: &str) -> Result<FormatKind, String> {
    // Compressed streams have names here, and none there.
    match name.parse() {
        Ok(kind @ (FormatKind::Raw | FormatKind::Image(_))) => Ok(kind),
        _ if OTHERS.contains(&name) => Err(not_read(name)),
        _ => Err(format!("Unknown driver '{}'", printable(name.as_ref()))),
    }
}

/// Whether QEMU has a driver of that name.
pub(in crate::compat) fn exists(name: &str) -> bool {
    let kind = name.parse();
    matches!(kind, Ok(FormatKind::Raw | FormatKind::Image(_)))
        || OTHERS.contains(&name)
        || matches!(name, "file" | "host_device" | "nbd" | "null-co")
}

fn not_read(name: &str) -> String {
    format!("{name} is not supported: use QEMU's own tools for it")
}

/// The source as an image in the format that was said, or that its file begins as.
pub(in crate::compat) fn interpreted(
    source: Endpoint,
    format: Option<&str>,
) -> Result<Endpoint, String> {
    let kind = match (format, source.kind()) {
        (Some(format), _) => known(format)?,
        (None, EndpointKind::File(path)) => match probe(path) {
            None => FormatKind::Raw,
            Some(name) => match name.parse() {
                Ok(format) => FormatKind::Image(format),
                Err(_) if name.parse::<Packing>().is_ok() => FormatKind::Raw,
                Err(_) => {
                    return Err(format!("{name} is not supported; -f raw takes its bytes"));
                }
            },
        },
        _ => FormatKind::Raw,
    };
    Ok(source.interpreted(kind))
}

/// The format that the file at `path` seems to have; `None` for bytes. What cannot be read is found out when it is
/// opened.
fn probe(path: &Path) -> Option<&'static str> {
    // What a guest wrote to a disk is not believed; and opening a pipe would wait for its other end.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let mut start = Vec::with_capacity(PROBE_LENGTH);
    let file = File::open(path).ok()?;
    file.take(PROBE_LENGTH as u64)
        .read_to_end(&mut start)
        .ok()?;
    format::probe(&start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    #[test]
    fn what_a_file_begins_with_tells_its_format() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let taken = |format| interpreted(Endpoint::from(path.clone()), format);
        std::fs::write(&path, b"QED\0").expect("room");
        let refused = taken(None).expect_err("qed");
        assert!(refused.contains("qed is not supported"), "{refused}");
        for (bytes, kind) in [
            (&b"QFI\xfb\0\0\0\x03"[..], FormatKind::Image(Format::Qcow2)),
            (b"KDMV", FormatKind::Image(Format::Vmdk)),
            (b"", FormatKind::Raw),
            (b"QFI", FormatKind::Raw),
            (b"\x1f\x8b\x08\0\0\0\0\0", FormatKind::Raw),
            (&[0; 4096], FormatKind::Raw),
        ] {
            std::fs::write(&path, bytes).expect("room");
            let found = taken(None).expect("an image").format().kind;
            assert_eq!(found, kind, "{bytes:?}");
            let said = taken(Some("raw")).expect("its bytes").format().kind;
            assert_eq!(said, FormatKind::Raw);
        }
    }

    #[test]
    fn a_format_is_known_by_qemus_name_or_refused_by_it() {
        assert_eq!(known("vpc"), Ok(FormatKind::Image(Format::Vpc)));
        let luks = known("luks").expect_err("not there");
        assert!(luks.contains("luks is not supported"), "{luks}");
        for name in ["gzip", "bogus", ""] {
            let unknown = known(name).expect_err("unknown");
            assert_eq!(unknown, format!("Unknown driver '{name}'"));
        }
    }
}
