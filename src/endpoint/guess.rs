//! What an endpoint's bytes are, where nobody said it.
//!
//! Only a regular local file is looked at. An image in a format is told by its first bytes. Unpacking costs time and
//! room, though, and a guest may write any first bytes to its disk: that a disk is compressed, or in an archive, is
//! believed where the file's name, which no guest chooses, says the same.

use std::{env, os::unix::fs::FileTypeExt, time::Duration};

use crate::{
    block::{BlockDevice, Buffer, ByteRange, Error, ErrorKind, Mapping, Result, read_exact_at},
    format::{self, PROBE_LENGTH, probe, probe_packing},
};

use blockferry_sys as sys;

use super::{Endpoint, EndpointKind, FormatKind, OpenOptions};

/// The format of `device`: what was said, or what it begins with.
pub(super) async fn told(
    endpoint: &Endpoint,
    options: &OpenOptions,
    device: &dyn BlockDevice,
) -> Result<FormatKind> {
    match endpoint.format().kind {
        FormatKind::Probe if may_probe(endpoint, device) => {
            let start = beginning(device).await?;
            match wrapping(&start) {
                Some(kind) if is_named_so(endpoint, kind) => Ok(kind),
                Some(kind) => {
                    options.notice(&format!(
                        "{endpoint}: it begins as {}, and its name does not say so: it is taken for the bytes of a disk; -f {kind} reads what is in it",
                        match kind {
                            FormatKind::Ova => "an OVA".to_owned(),
                            kind => format!("what {kind} compressed"),
                        }
                    ));
                    Ok(FormatKind::Raw)
                }
                None => kind_of(&start),
            }
        }
        FormatKind::ProbeImage if may_probe(endpoint, device) => probed(device).await,
        FormatKind::Probe | FormatKind::ProbeImage => Ok(FormatKind::Raw),
        kind => Ok(kind),
    }
}

/// How long a server may take to show how an image begins that is not looked into.
const PATIENCE: Duration = Duration::from_secs(2);

/// The format that a disk seems to be in which is taken for raw because it is no regular file, and nobody said what it
/// is. It is never opened as that; but whoever owns it may have meant it. `None` where nothing is known.
pub(crate) async fn seems_to_be(
    endpoint: &Endpoint,
    device: &dyn BlockDevice,
) -> Option<&'static str> {
    let is_looked_into = match endpoint.kind() {
        EndpointKind::Nbd(_) | EndpointKind::Command(_) => false,
        EndpointKind::File(path) => !path
            .metadata()
            .is_ok_and(|it| it.file_type().is_block_device()),
        _ => true,
    };
    if is_looked_into
        || endpoint.format().kind != FormatKind::Probe
        || !endpoint.filters().is_empty()
    {
        return None;
    }
    let start = tokio::time::timeout(PATIENCE, beginning(device)).await;
    probe(&start.ok()?.ok()?)
}

/// What a disk seems to be wrapped in that begins so.
fn wrapping(start: &[u8]) -> Option<FormatKind> {
    match probe_packing(start) {
        Some(packing) => Some(FormatKind::Packed(packing)),
        None => format::ova::begins(start).then_some(FormatKind::Ova),
    }
}

/// Whether the file's name ends as those of what is wrapped so.
fn is_named_so(endpoint: &Endpoint, kind: FormatKind) -> bool {
    let suffixes: &[&str] = match kind {
        FormatKind::Packed(packing) => packing.suffixes(),
        FormatKind::Ova => &["ova"],
        _ => &[],
    };
    let EndpointKind::File(path) = endpoint.kind() else {
        return false;
    };
    path.extension()
        .is_some_and(|suffix| suffixes.iter().any(|one| suffix.eq_ignore_ascii_case(one)))
}

/// The most data, in bytes, that is unpacked into a temporary file where nobody said what the endpoint is: no guess
/// takes the room that others need. `None` where somebody said it, or there is no bound.
pub(super) fn most_data(endpoint: &Endpoint) -> Option<u64> {
    if endpoint.format().kind != FormatKind::Probe {
        return None;
    }
    let free = sys::free_space(&env::temp_dir()).ok()??;
    Some(free / 2)
}

/// Whether it is a regular file of this machine.
fn may_probe(endpoint: &Endpoint, device: &dyn BlockDevice) -> bool {
    match device.mapping(ByteRange::between(0, 1)) {
        Mapping::File { fd, .. } if is_one_file(endpoint) => {
            sys::inspect(fd).is_ok_and(|facts| facts.kind == sys::FileKind::Regular)
        }
        _ => false,
    }
}

/// Whether its bytes are those of one file or block device, all of it.
pub(super) fn is_one_file(endpoint: &Endpoint) -> bool {
    matches!(
        endpoint.kind(),
        EndpointKind::File(_) | EndpointKind::Descriptor(_) | EndpointKind::Standard
    )
}

/// The format of images that `device` seems to be in.
///
/// # Errors
/// `Unsupported` for one that is not read here.
pub(super) async fn probed(device: &dyn BlockDevice) -> Result<FormatKind> {
    kind_of(&beginning(device).await?)
}

async fn beginning(device: &dyn BlockDevice) -> Result<Buffer> {
    let length = device.info().size.min(PROBE_LENGTH as u64);
    read_exact_at(device, ByteRange::between(0, length)).await
}

fn kind_of(start: &[u8]) -> Result<FormatKind> {
    let Some(name) = probe(start) else {
        return Ok(FormatKind::Raw);
    };
    match name.parse() {
        Ok(format) => Ok(FormatKind::Image(format)),
        Err(_) => {
            let message = format!(
                "it is an image in the format {name}, which is not supported; -f raw reads its bytes"
            );
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
    }
}
