//! What is known of an image in a format, with the keys that qemu-img has.

use serde::Serialize;

use crate::format::{
    RelatedFile,
    qcow2::{BitmapDetails, Compression, Details, Snapshot},
};

/// An image in a format. Texts are as hostile as it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) compat: &'static str,
    pub(crate) virtual_size: u64,
    pub(crate) cluster_size: u64,
    pub(crate) refcount_bits: u32,
    pub(crate) compression_type: &'static str,
    pub(crate) lazy_refcounts: bool,
    pub(crate) extended_l2: bool,
    pub(crate) corrupt: bool,
    pub(crate) dirty_flag: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backing_filename_format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_file_raw: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) snapshots: Vec<State>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bitmaps: Vec<Bitmap>,
}

/// A snapshot inside an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct State {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) virtual_size: u64,
    pub(crate) vm_state_size: u64,
    pub(crate) date_sec: u64,
    pub(crate) date_nsec: u32,
    pub(crate) vm_clock_sec: u64,
    pub(crate) vm_clock_nsec: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) icount: Option<u64>,
}

/// A bitmap inside an image.
#[derive(Debug, Serialize)]
pub(crate) struct Bitmap {
    pub(crate) name: String,
    pub(crate) granularity: u64,
    pub(crate) flags: Vec<&'static str>,
}

impl From<&Details> for Image {
    fn from(details: &Details) -> Self {
        let name = |file: &RelatedFile| String::from_utf8_lossy(&file.name).into_owned();
        let backing = details.backing.as_ref();
        Self {
            name: "qcow2",
            compat: details.compat(),
            virtual_size: details.virtual_size,
            cluster_size: details.cluster_size,
            refcount_bits: details.refcount_bits,
            compression_type: match details.compression {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            },
            lazy_refcounts: details.lazy_refcounts,
            extended_l2: details.extended_l2,
            corrupt: details.is_corrupt,
            dirty_flag: details.is_dirty,
            backing_filename: backing.map(name),
            backing_filename_format: backing.and_then(|file| file.format.clone()),
            data_file: details.data_file.as_ref().map(name),
            data_file_raw: details.data_file.as_ref().map(|_| details.data_file_raw),
            snapshots: details.snapshots.iter().map(State::from).collect(),
            bitmaps: details.bitmaps.iter().map(Bitmap::from).collect(),
        }
    }
}

impl From<&Snapshot> for State {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id.clone(),
            name: snapshot.name.clone(),
            virtual_size: snapshot.size,
            vm_state_size: snapshot.state_size,
            date_sec: snapshot.date.as_secs(),
            date_nsec: snapshot.date.subsec_nanos(),
            vm_clock_sec: snapshot.guest_clock.as_secs(),
            vm_clock_nsec: snapshot.guest_clock.subsec_nanos(),
            icount: snapshot.instructions,
        }
    }
}

impl From<&BitmapDetails> for Bitmap {
    fn from(bitmap: &BitmapDetails) -> Self {
        let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
        Self {
            name: bitmap.name.clone(),
            granularity: bitmap.granularity,
            flags: flags
                .into_iter()
                .filter(|flag| flag.1)
                .map(|flag| flag.0)
                .collect(),
        }
    }
}
