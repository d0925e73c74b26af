//! What there is to be known of an image without reading it: what `blockferry info` and `blockferry map` tell, as values.
//!
//! | file | what it has |
//! |---|---|
//! | `facts` | what is known of a server, its exports, and images, whatever it came from |
//! | `image` | what is known of an image in a format |
//! | `extents` | the extents of an image, one after the other |
//! | `places` | where the bytes of an image lie, through its chain |
//!
//! ```
//! use blockferry::inspect::{InspectOptions, inspect};
//!
//! # fn main() -> Result<(), blockferry::block::Error> {
//! let facts = inspect(&"sample:1M".parse().expect("an endpoint"), &InspectOptions::default())?;
//! let details = facts.exports[0].details.as_ref().expect("it could be asked");
//! assert_eq!(details.size, 1 << 20);
//! # Ok(())
//! # }
//! ```

mod extents;
pub(crate) mod facts;
mod image;
mod places;

use std::{os::unix::fs::MetadataExt, sync::Arc};

use tokio::runtime::Builder;

use crate::{
    block::{Access, DeviceInfo, Error, ErrorKind, Operation, Result},
    client::{ConnectOptions, blocking},
    endpoint::{
        Endpoint, EndpointKind, Layer, OpenOptions, ServerChild, image_details, open_device,
    },
    proto::NbdUri,
};

pub use extents::each_extent;
pub use facts::{Abilities, BlockSizes, Details, Export, Facts, Server};
pub use image::{
    Behind, Bitmap, Extent as VmdkExtent, Image, Qcow2, Specific, State, Vdi, Vhdx, Vmdk, Vpc,
};
pub use places::{MapEntry, Places, View};

/// What is to be found out, and how.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct InspectOptions {
    /// All exports of the server instead of the one that is named.
    pub list: bool,
    /// The images behind it, too.
    pub backing_chain: bool,
    /// How it is opened.
    pub open: OpenOptions,
}

/// Finds out what an NBD server, a file or an image offers. It blocks.
///
/// A server is asked without its export being opened. A file is opened as a copy's destination would be, so that what can
/// be done to it is known; a device is not, because closing it then makes the system look at it anew.
///
/// # Errors
/// What connecting or opening failed with; `InvalidInput` for a list of what is no server.
pub fn inspect(endpoint: &Endpoint, options: &InspectOptions) -> Result<Facts> {
    let is_server = matches!(
        endpoint.kind(),
        EndpointKind::Nbd(_) | EndpointKind::Command(_)
    );
    if is_server && endpoint.is_bytes() {
        return ask_server(endpoint, &options.open, |server| match options.list {
            true => list(server),
            false => export(server),
        });
    }
    if options.list {
        return Err(no_server(endpoint));
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(look(endpoint, options))
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
    options: &OpenOptions,
    ask: impl FnOnce(&Asked<'_>) -> Result<T>,
) -> Result<T> {
    let mut connecting = ConnectOptions::default();
    connecting.name = Some(endpoint.name().clone());
    connecting.connect_timeout = options.connect_timeout;
    let asked = |uri, public| Asked {
        uri,
        options: connecting,
        public,
    };
    match endpoint.kind() {
        EndpointKind::Nbd(uri) => ask(&asked(uri, true)),
        EndpointKind::Command(command) => {
            let mut child = ServerChild::start(command, options)?;
            let result = ask(&asked(&child.uri(), false));
            result.map_err(|error| child.explain(error))
        }
        _ => Err(no_server(endpoint)),
    }
}

fn no_server(endpoint: &Endpoint) -> Error {
    Error::with_message(ErrorKind::InvalidInput, "it is not an NBD server")
        .during(Operation::Open)
        .on(endpoint.name())
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

/// Looks at what needs no server.
async fn look(endpoint: &Endpoint, request: &InspectOptions) -> Result<Facts> {
    let options = &request.open;
    let disk_size = match endpoint.kind() {
        EndpointKind::File(path) => path.metadata().ok().map(|it| it.blocks() * 512),
        _ => None,
    };
    if let Some(details) = image_details(endpoint, options).await? {
        let mut image = Image::from(&details);
        let info = match open_device(endpoint, Access::ReadOnly, options).await {
            Ok(open) => {
                if request.backing_chain {
                    let layers = open.connection.layers();
                    image.chain = layers.chain().skip(1).map(behind).collect();
                }
                open.device.info().clone()
            }
            // What it says of itself can be told without the files that it needs.
            Err(error) if error.kind() == ErrorKind::NotPermitted && !request.backing_chain => {
                DeviceInfo::new(Arc::clone(endpoint.name()), details.virtual_size())
            }
            Err(error) => return Err(error),
        };
        return Ok(Facts::of_device(&info, Some(image), disk_size));
    }
    let is_file = matches!(endpoint.kind(), EndpointKind::File(path) if path.is_file());
    let writable = match is_file {
        true => open_device(endpoint, Access::ReadWrite, options).await.ok(),
        false => None,
    };
    let open = match writable {
        Some(open) => open,
        None => open_device(endpoint, Access::ReadOnly, options).await?,
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
