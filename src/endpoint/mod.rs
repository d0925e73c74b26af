//! Endpoints: what can stand for an image on a command line, and how it becomes a device.
//!
//! | text | what it is |
//! |---|---|
//! | `-` | standard input or output |
//! | `null:[SIZE]` | a place that forgets everything; with a size also a disk of zeroes |
//! | `memory:SIZE` | a disk in memory |
//! | `sample:SIZE[,seed=N,data=N]` | as a source, a generated disk image |
//! | `pattern:SIZE` | as a source, a disk whose bytes hold their offsets |
//! | `data:DATA` | a disk in memory of bytes that are written out |
//! | `split:FILE,FILE...` | files joined |
//! | `dir:PATH` | the files of a directory, as exports to serve |
//! | `sh:SCRIPT`, `eval:METHOD=SHELL...` | a disk whose answers come from a script |
//! | `fd:N` | a file that this process was started with |
//! | `nbd://HOST[:PORT]/[EXPORT]`, `nbd+unix://...` | an NBD export |
//! | `nbds://...`, `nbds+unix://...` | the same through TLS |
//! | `[ CMD ARGS... ]` | a server that is started for us (socket activation) |
//! | `file:PATH`, anything else | a file or a block device |
//!
//! Each can be taken for an image in a format ([`Endpoint::interpreted`]); its disk is what is meant then.
//!
//! [`SOURCES`] is the table of all of them, with their parameters. [`Endpoint`] is the parsed text and has
//! touched nothing yet; [`open_source`], [`open_destination`], [`open_device`] and [`open_exports`] do. [`NewImage`],
//! [`resize_image`], [`rebase_image`], [`commit_image`], [`change_snapshots`], [`change_image_bitmap`] and [`amend_image`] make and
//! change images.

mod amend;
mod bitmap;
mod child;
mod command;
mod commit;
mod connection;
mod create;
mod deep_chain;
mod destination_file;
mod destination_format;
mod exports;
mod filtered;
mod formats;
mod guess;
mod identity;
mod image_options;
mod in_use;
mod layers;
mod open;
mod ova;
mod parse;
mod rebase;
mod related;
mod repair;
mod resize;
mod servers;
mod snapshot;
mod sources;
mod space;
mod streams;

pub(crate) use crate::block::printable;
pub use crate::block::{Parameter, ParameterPlace, ParameterType, escape_commas};
pub use amend::amend_image;
pub use bitmap::change_image_bitmap;
pub use child::ServerChild;
pub use command::{ServerCommand, collapse_groups};
pub use commit::{Commit, commit_image};
pub use connection::Connection;
pub use create::NewImage;
pub use destination_file::DestinationFile;
pub use destination_format::{DestinationFormat, UnfinishedImage};
pub use exports::{OpenExports, open_exports};
pub(crate) use filtered::access_below;
pub use formats::{FormatKind, ImageFormat, image_details};
pub(crate) use guess::seems_to_be;
pub use identity::is_same_image;
pub use image_options::{
    BackingName, DataFileName, NewQcow2, QCOW2_OPTIONS, image_options, image_options_help,
    new_packed, new_vdi, new_vhdx, new_vmdk, new_vpc, raw_is_allocated,
};
pub use in_use::is_written_by_others;
pub use layers::{Layer, Layers};
pub use open::{
    Notices, OpenDestination, OpenDevice, OpenOptions, OpenSource, open_destination, open_device,
    open_size, open_source,
};
pub use parse::{Endpoint, EndpointError, EndpointKind};
pub use rebase::{Rebase, RebaseOnto, rebase_image};
pub(crate) use related::beside;
pub use repair::repair_qcow2;
pub use resize::{NewSize, resize_image};
pub use snapshot::{SnapshotChange, change_snapshots};
pub use sources::{Roles, SOURCES, SourceKind};
pub use space::Space;
