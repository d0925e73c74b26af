//! `blockferry info`: what a server or a file offers, as text or JSON with nbdinfo's keys.
//!
//! | file | what it does |
//! |---|---|
//! | `facts` | what is known, whatever it came from |
//! | `image` | what is known of an image in a format |
//! | `text`, `json` | how it is shown; `compat/nbdinfo` shows it in the same way |

pub(crate) mod facts;
pub(crate) mod image;
pub(crate) mod json;
pub(crate) mod text;

use std::{os::unix::fs::MetadataExt, sync::Arc};

use crate::{
    block::{Access, DeviceInfo, Error, ErrorKind},
    client::{ConnectOptions, blocking},
    endpoint::{Endpoint, EndpointKind, Layer, ServerChild, image_details, open_device},
    proto::NbdUri,
};

use super::super::{
    failure::Failure,
    options::{InfoJob, Timeouts, open_options},
    output::print,
    style::Colour,
};
use facts::Facts;
use image::{Behind, Image};

type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn run(job: &InfoJob) -> Result<(), Failure> {
    let facts = match job.endpoint.kind() {
        EndpointKind::Nbd(_) | EndpointKind::Command(_) if job.endpoint.is_bytes() => {
            ask_server(&job.endpoint, job.timeouts, |server| match job.list {
                true => list(server),
                false => export(server),
            })?
        }
        _ => look(job)?,
    };
    let text = match job.json {
        true => json::pretty(&facts),
        false => text::text(&facts, Colour::Never),
    };
    print(&text).map_err(|error| super::standard_output(&error))
}

/// A server that can be asked.
pub(crate) struct Asked<'a> {
    pub(crate) uri: &'a NbdUri,
    pub(crate) options: ConnectOptions,
    /// Whether others can use its URI.
    pub(crate) public: bool,
}

impl Asked<'_> {
    /// The URI, where others can use it.
    pub(crate) fn public_uri(&self) -> Option<&NbdUri> {
        self.public.then_some(self.uri)
    }
}

/// Asks the server that `endpoint` names, or one that is started for it and ends afterwards.
pub(crate) fn ask_server<T>(
    endpoint: &Endpoint,
    timeouts: Timeouts,
    ask: impl FnOnce(&Asked<'_>) -> Result<T>,
) -> Result<T, Failure> {
    let mut options = ConnectOptions::default();
    options.name = Some(endpoint.name().clone());
    options.connect_timeout = timeouts.connect;
    let asked = |uri, public| Asked {
        uri,
        options,
        public,
    };
    match endpoint.kind() {
        EndpointKind::Nbd(uri) => Ok(ask(&asked(uri, true))?),
        EndpointKind::Command(command) => {
            let mut child = ServerChild::start(command, &open_options(timeouts))?;
            let result = ask(&asked(&child.uri(), false));
            Ok(result.map_err(|error| child.explain(error))?)
        }
        _ => Err(Failure::usage(format!("{endpoint} is no NBD server"))),
    }
}

/// What a server says of the export in its URI, without opening it.
pub(crate) fn export(server: &Asked<'_>) -> Result<Facts> {
    let negotiated = blocking::info(server.uri, &server.options)?.negotiated;
    let name = &server.uri.export;
    Ok(Facts::of_export(&negotiated, name, server.public_uri()))
}

/// What a server says of all of its exports.
pub(crate) fn list(server: &Asked<'_>) -> Result<Facts> {
    let report = blocking::list(server.uri, &server.options)?;
    Ok(Facts::of_list(report, server.public_uri()))
}

/// Looks at what needs no server. A file is opened as a copy's destination would be, so that what can
/// be done to it is known; a device is not, because closing it then makes the system look at it anew.
fn look(job: &InfoJob) -> Result<Facts, Failure> {
    let options = job.trust.in_options(open_options(job.timeouts));
    let runtime = super::runtime()?;
    let disk_size = match job.endpoint.kind() {
        EndpointKind::File(path) => path.metadata().ok().map(|it| it.blocks() * 512),
        _ => None,
    };
    if let Some(details) = runtime.block_on(image_details(&job.endpoint, &options))? {
        let mut image = Image::from(&details);
        let info = match runtime.block_on(open_device(&job.endpoint, Access::ReadOnly, &options)) {
            Ok(open) => {
                if job.backing_chain {
                    let layers = open.connection.layers();
                    image.chain = layers.chain().skip(1).map(behind).collect();
                }
                open.device.info().clone()
            }
            // What it says of itself can be told without the files that it needs.
            Err(error) if error.kind() == ErrorKind::NotPermitted && !job.backing_chain => {
                DeviceInfo::new(Arc::clone(job.endpoint.name()), details.virtual_size())
            }
            Err(error) => return Err(error.into()),
        };
        return Ok(Facts::of_device(&info, Some(image), disk_size));
    }
    let open = |access| runtime.block_on(open_device(&job.endpoint, access, &options));
    let is_file = matches!(job.endpoint.kind(), EndpointKind::File(path) if path.is_file());
    let open = match is_file.then(|| open(Access::ReadWrite)) {
        Some(Ok(open)) => open,
        _ => open(Access::ReadOnly)?,
    };
    Ok(Facts::of_device(open.device.info(), None, disk_size))
}

/// An image behind the one that is looked at.
fn behind(layer: &Layer) -> Behind {
    let details = layer.image.as_ref().map(|image| image.details());
    Behind {
        filename: layer.path.to_string_lossy().into_owned(),
        format: details.as_ref().map_or("raw", |it| it.format().name()),
        virtual_size: details.map_or(layer.bytes.info().size, |it| it.virtual_size()),
    }
}
