//! What is known of an image in a format, with the keys that qemu-img has.

use serde::Serialize;

use crate::format::{
    Details, RelatedFile,
    qcow2::{BitmapDetails, Snapshot},
    vmdk,
};

/// An image in a format. Texts are as hostile as it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// How it is called.
    pub name: &'static str,
    /// The size of its disk, in bytes.
    pub virtual_size: u64,
    /// The size of its clusters or blocks, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// What only its format has to tell.
    #[serde(flatten)]
    pub specific: Specific,
    /// The image behind it, as it names that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The format of that, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// The images behind it, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Behind>,
    /// The snapshots inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<State>,
    /// The persistent bitmaps inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<Bitmap>,
}

/// What only one format has to tell.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Specific {
    /// Of a qcow2 image.
    Qcow2(Qcow2),
    /// Of a VMDK image.
    Vmdk(Vmdk),
    /// Of a VHD image.
    Vpc(Vpc),
    /// Of a VHDX image.
    Vhdx(Vhdx),
    /// Of a VDI image.
    Vdi(Vdi),
    /// Nothing that is known here.
    Other {},
}

/// What a qcow2 image has to tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2 {
    /// The version, in qemu-img's words.
    pub compat: &'static str,
    /// How wide its reference counts are.
    pub refcount_bits: u32,
    /// How clusters are compressed.
    pub compression_type: &'static str,
    /// Whether reference counts may be written late.
    pub lazy_refcounts: bool,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// Whether it was marked as corrupt.
    pub corrupt: bool,
    /// Whether it was not closed.
    pub dirty_flag: bool,
    /// The file with its data, as it names that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether that can be read as a raw image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
}

/// What a VMDK image has to tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vmdk {
    /// The kind of image.
    pub create_type: String,
    /// What tells its contents from those of others.
    pub cid: u32,
    /// The same of the one behind it.
    pub parent_cid: u32,
    /// Its parts.
    pub extents: Vec<Extent>,
}

/// A part of a VMDK image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Extent {
    /// What kind it is of.
    pub kind: String,
    /// The size of its disk, in bytes.
    pub virtual_size: u64,
    /// Whether its data is compressed.
    pub compressed: bool,
    /// The size of its clusters or blocks, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Its file, as it is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// What a VHD image has to tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vpc {
    /// What kind it is of.
    pub kind: &'static str,
    /// The program that made it.
    pub creator: String,
    /// Its identity, in hexadecimal digits.
    pub uuid: String,
}

/// What a VHDX image has to tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vhdx {
    /// What kind it is of.
    pub kind: &'static str,
    /// The sectors that its disk says it has, in bytes.
    pub logical_sector_size: u32,
    /// The sectors beneath those, in bytes.
    pub physical_sector_size: u32,
    /// Whether it was not closed.
    pub dirty_flag: bool,
    /// The identity of its contents.
    pub data_uuid: String,
}

/// What a VDI image has to tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vdi {
    /// What kind it is of.
    pub kind: &'static str,
    /// Its identity, in hexadecimal digits.
    pub uuid: String,
}

/// An image behind another one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Behind {
    /// Its file, as it is named.
    pub filename: String,
    /// What it is an image in.
    pub format: &'static str,
    /// The size of its disk, in bytes.
    pub virtual_size: u64,
}

/// A snapshot inside an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct State {
    /// Its number, which may be any text.
    pub id: String,
    /// How it is called.
    pub name: String,
    /// The size of its disk, in bytes.
    pub virtual_size: u64,
    /// The size of the virtual machine's state in it, in bytes.
    pub vm_state_size: u64,
    /// When it was made, in seconds since 1970.
    pub date_sec: u64,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the machine had run, in seconds.
    pub vm_clock_sec: u64,
    /// And nanoseconds.
    pub vm_clock_nsec: u32,
    /// How many instructions it had run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
}

/// A bitmap inside an image.
#[derive(Debug, Serialize)]
pub struct Bitmap {
    /// How it is called.
    pub name: String,
    /// How many bytes a bit stands for.
    pub granularity: u64,
    /// `in-use`: it was not closed; `auto`: it is kept up.
    pub flags: Vec<&'static str>,
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
                compression_type: details.compression.name(),
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
                kind: details.kind.name(),
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
