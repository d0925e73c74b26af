//! What is known of an image in a format, with the keys that qemu-img has.

use serde::Serialize;

use crate::format::{
    Details, RelatedFile,
    qcow2::{BitmapDetails, Compression, Snapshot},
    vmdk, vpc,
};

/// An image in a format. Texts are as hostile as it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_size: Option<u64>,
    /// What only its format has to tell.
    #[serde(flatten)]
    pub(crate) specific: Specific,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backing_filename_format: Option<String>,
    /// The images behind it, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) chain: Vec<Behind>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) snapshots: Vec<State>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bitmaps: Vec<Bitmap>,
}

/// What only one format has to tell.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Specific {
    Qcow2(Qcow2),
    Vmdk(Vmdk),
    Vpc(Vpc),
    Vhdx(Vhdx),
    Vdi(Vdi),
    /// Nothing that is known here.
    Other {},
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Qcow2 {
    pub(crate) compat: &'static str,
    pub(crate) refcount_bits: u32,
    pub(crate) compression_type: &'static str,
    pub(crate) lazy_refcounts: bool,
    pub(crate) extended_l2: bool,
    pub(crate) corrupt: bool,
    pub(crate) dirty_flag: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_file_raw: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Vmdk {
    pub(crate) create_type: String,
    pub(crate) cid: u32,
    pub(crate) parent_cid: u32,
    pub(crate) extents: Vec<Extent>,
}

/// A part of a VMDK image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Extent {
    pub(crate) kind: String,
    pub(crate) virtual_size: u64,
    pub(crate) compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filename: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Vpc {
    pub(crate) kind: &'static str,
    pub(crate) creator: String,
    pub(crate) uuid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Vhdx {
    pub(crate) kind: &'static str,
    pub(crate) logical_sector_size: u32,
    pub(crate) physical_sector_size: u32,
    pub(crate) dirty_flag: bool,
    pub(crate) data_uuid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Vdi {
    pub(crate) kind: &'static str,
    pub(crate) uuid: String,
}

/// An image behind another one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Behind {
    pub(crate) filename: String,
    pub(crate) format: &'static str,
    pub(crate) virtual_size: u64,
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
        let backing = details.backing();
        let qcow2 = details.as_qcow2();
        let states = qcow2.into_iter().flat_map(|it| &it.snapshots);
        let bitmaps = qcow2.into_iter().flat_map(|it| &it.bitmaps);
        Self {
            name: details.format().name(),
            virtual_size: details.virtual_size(),
            cluster_size: details.cluster_size(),
            specific: Specific::from(details),
            backing_filename: backing.map(name),
            backing_filename_format: backing.and_then(|file| file.format.clone()),
            chain: Vec::new(),
            snapshots: states.map(State::from).collect(),
            bitmaps: bitmaps.map(Bitmap::from).collect(),
        }
    }
}

impl From<&Details> for Specific {
    fn from(details: &Details) -> Self {
        match details {
            Details::Qcow2(details) => Self::Qcow2(Qcow2 {
                compat: details.compat(),
                refcount_bits: details.refcount_bits,
                compression_type: match details.compression {
                    Compression::Zlib => "zlib",
                    Compression::Zstd => "zstd",
                },
                lazy_refcounts: details.lazy_refcounts,
                extended_l2: details.extended_l2,
                corrupt: details.is_corrupt,
                dirty_flag: details.is_dirty,
                data_file: details.data_file.as_ref().map(name),
                data_file_raw: details.data_file.as_ref().map(|_| details.data_file_raw),
            }),
            Details::Vmdk(details) => Self::Vmdk(Vmdk {
                create_type: details.create_type.clone(),
                cid: details.cid,
                parent_cid: details.parent_cid,
                extents: details.extents.iter().map(Extent::from).collect(),
            }),
            Details::Vpc(details) => Self::Vpc(Vpc {
                kind: match details.kind {
                    vpc::Kind::Fixed => "fixed",
                    vpc::Kind::Dynamic => "dynamic",
                    vpc::Kind::Differencing => "differencing",
                },
                creator: details.creator.clone(),
                uuid: hex(details.uuid),
            }),
            Details::Vhdx(details) => Self::Vhdx(Vhdx {
                kind: match (&details.parent, details.is_fixed) {
                    (Some(_), _) => "differencing",
                    (None, true) => "fixed",
                    (None, false) => "dynamic",
                },
                logical_sector_size: details.logical_sector_size,
                physical_sector_size: details.physical_sector_size,
                dirty_flag: details.is_dirty,
                data_uuid: hex(details.data_uuid),
            }),
            Details::Vdi(details) => Self::Vdi(Vdi {
                kind: if details.is_static {
                    "static"
                } else {
                    "dynamic"
                },
                uuid: hex(details.uuid),
            }),
            _ => Self::Other {},
        }
    }
}

impl From<&vmdk::ExtentDetails> for Extent {
    fn from(extent: &vmdk::ExtentDetails) -> Self {
        Self {
            kind: extent.kind.clone(),
            virtual_size: extent.virtual_size,
            compressed: extent.is_compressed,
            cluster_size: extent.cluster_size,
            filename: extent.file.as_ref().map(name),
        }
    }
}

fn name(file: &RelatedFile) -> String {
    String::from_utf8_lossy(&file.name).into_owned()
}

/// An identity, byte for byte as it stands in the image.
fn hex(uuid: [u8; 16]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
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
