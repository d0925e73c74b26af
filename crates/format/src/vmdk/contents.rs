//! What a file is: a sparse extent with its descriptor inside, or a descriptor that names the extents.

use std::sync::Arc;

use blockferry_block::{ByteRange, Error, ErrorKind, HumanSize, Result, read_exact_at};

use super::{
    Details, ExtentDetails,
    descriptor::{Descriptor, ExtentKind, LONGEST},
    header::{ESX_MAGIC, Header, Layout, MAGIC, SECTOR},
    read::{Part, PartKind},
    sparse::{Sparse, Tables, check_size, read_header},
};
use crate::{OpenOptions, Related, RelatedFile, corrupt::corrupt, host::HostFile};

/// How a descriptor begins that stands by itself, as far as it is looked at: `# Disk DescriptorFile`.
const DESCRIPTOR: &[u8; 4] = b"# Di";

/// What the file of an image says.
pub(crate) struct Contents {
    pub(crate) descriptor: Descriptor,
    /// That of the one extent that is in the file itself.
    pub(crate) header: Option<Header>,
}

impl Contents {
    /// Reads what the image in `file` says of itself.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Incompatible`; what reading failed with.
    pub(crate) async fn read(file: &HostFile) -> Result<Self> {
        let first = ByteRange::between(0, 4.min(file.end()));
        let magic = read_exact_at(&**file.device(), first).await?;
        if magic.len() < MAGIC.len() {
            return Err(corrupt("it is too short to be a VMDK image"));
        }
        if magic[..] == ESX_MAGIC[..] {
            let message = "it is an extent: what opens it is the descriptor that names it";
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        if magic[..] != MAGIC[..] {
            if file.end() > LONGEST {
                return Err(corrupt(match magic[..] == DESCRIPTOR[..] {
                    true => "its descriptor is too long",
                    false => "it is not a VMDK image: it begins with something else",
                }));
            }
            let text = ByteRange::between(0, file.end());
            let text = read_exact_at(&**file.device(), text).await?;
            let descriptor = Descriptor::parse(&text)?;
            if descriptor.extents.is_empty() {
                return Err(corrupt("its descriptor names no extents"));
            }
            if descriptor.extents.iter().any(|extent| extent.size == 0) {
                return Err(corrupt("its descriptor names an extent of no sectors"));
            }
            let header = None;
            return Ok(Self { descriptor, header });
        }
        let header = read_header(file).await?;
        let descriptor = embedded(file, &header).await?;
        if header.capacity == 0 && descriptor.size() > 0 {
            // A descriptor of its own in the clothes of an extent.
            let header = None;
            return Ok(Self { descriptor, header });
        }
        if descriptor.extents.len() > 1 {
            let message = "its descriptor names other extents beside the one that it is in";
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let header = Some(header);
        Ok(Self { descriptor, header })
    }

    /// The size of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        match &self.header {
            Some(header) => header.layout().size(),
            None => self.descriptor.size(),
        }
    }

    /// Refuses a disk that is larger than the bound.
    pub(crate) fn check_size(&self, most: Option<u64>) -> Result<()> {
        let Some(most) = most.filter(|most| self.size() > *most) else {
            return Ok(());
        };
        let (size, most) = (HumanSize(self.size()), HumanSize(most));
        let message = format!("its virtual size of {size} is above the bound of {most}");
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }

    /// What there is to be told, without any other file.
    pub(crate) fn details(&self) -> Details {
        let descriptor = &self.descriptor;
        let layout = self.header.as_ref().map(Header::layout);
        let extents = match &layout {
            Some(layout) => vec![own_extent(layout)],
            None => descriptor
                .extents
                .iter()
                .map(|line| ExtentDetails {
                    virtual_size: line.size,
                    file: line.related(),
                    cluster_size: None,
                    is_compressed: false,
                    kind: line.kind.name().to_owned(),
                })
                .collect(),
        };
        let derived = match &layout {
            Some(layout) if layout.packed.is_some() => "streamOptimized",
            Some(_) => "monolithicSparse",
            None => "",
        };
        Details {
            virtual_size: self.size(),
            cluster_size: layout.map(|layout| layout.grain_size()),
            create_type: match &*descriptor.create_type {
                "" => derived.to_owned(),
                told => told.to_owned(),
            },
            cid: descriptor.cid,
            parent_cid: descriptor.parent_cid,
            parent: descriptor.parent_file(),
            extents,
        }
    }

    /// The parts of the disk, and the file of each, of which this one is `own`. What is known of the extents then goes
    /// into `details`.
    pub(crate) async fn open_parts(
        &self,
        own: &HostFile,
        related: &dyn Related,
        options: &OpenOptions,
        details: &mut Details,
    ) -> Result<(Vec<Part>, Vec<HostFile>)> {
        let tables = Arc::new(Tables::new(options.table_memory));
        if let Some(header) = &self.header {
            let sparse = Sparse::open(own, header.layout(), 0, &tables).await?;
            let part = Part {
                range: ByteRange::between(0, self.size()),
                kind: PartKind::Sparse(Arc::new(sparse)),
            };
            return Ok((vec![part], vec![own.clone()]));
        }
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        let mut at = 0;
        for (line, number) in self.descriptor.extents.iter().zip(0..) {
            line.check()?;
            let range = ByteRange::between(at, at + line.size);
            at = range.end();
            let Some(named) = line.related() else {
                let kind = PartKind::Zero;
                parts.push(Part { range, kind });
                files.push(own.clone());
                continue;
            };
            let file = HostFile::new(related.open(&named, false).await?.device);
            let told = of_extent(&named);
            let kind = match line.kind {
                ExtentKind::Sparse => {
                    let header = read_header(&file).await.map_err(&told)?;
                    let layout = header.layout();
                    check_size(&layout, line.size).map_err(&told)?;
                    let sparse = Sparse::open(&file, layout, number, &tables).await;
                    PartKind::Sparse(Arc::new(sparse.map_err(&told)?))
                }
                ExtentKind::VmfsSparse => {
                    let first = ByteRange::between(0, SECTOR.min(file.end()));
                    let first = read_exact_at(&**file.device(), first).await?;
                    let layout = Layout::parse_esx(&first).map_err(&told)?;
                    check_size(&layout, line.size).map_err(&told)?;
                    let sparse = Sparse::open(&file, layout, number, &tables).await;
                    PartKind::Sparse(Arc::new(sparse.map_err(&told)?))
                }
                _ => {
                    let end = line.offset.saturating_add(line.size);
                    if end > file.end() {
                        let there = file.end();
                        let message = format!("it has {there} bytes, and {end} are needed");
                        return Err(told(corrupt(message)));
                    }
                    PartKind::Flat(line.offset)
                }
            };
            if let (PartKind::Sparse(sparse), Some(extent)) =
                (&kind, details.extents.get_mut(number as usize))
            {
                extent.cluster_size = Some(sparse.layout.grain_size());
                extent.is_compressed = sparse.layout.packed.is_some();
                details.cluster_size = details.cluster_size.or(extent.cluster_size);
            }
            parts.push(Part { range, kind });
            files.push(file);
        }
        Ok((parts, files))
    }

    /// Opens the parent, if there is one, and checks that it is what it was.
    pub(crate) async fn open_parent(&self, related: &dyn Related) -> Result<Option<HostFile>> {
        let Some(named) = self.descriptor.parent_file() else {
            return Ok(None);
        };
        let parent = related.open(&named, false).await?;
        let cid = match &parent.details {
            Some(crate::Details::Vmdk(details)) => details.cid,
            _ => return Err(corrupt(format!("{named} is not a VMDK image"))),
        };
        let expected = self.descriptor.parent_cid;
        if cid != expected {
            return Err(corrupt(format!(
                "{named} was changed since: its CID is {cid:08x}, and {expected:08x} is expected"
            )));
        }
        Ok(Some(HostFile::new(parent.device)))
    }
}

/// The descriptor that lies in the file of an extent.
async fn embedded(file: &HostFile, header: &Header) -> Result<Descriptor> {
    if header.descriptor == 0 || header.descriptor_length == 0 {
        return Err(corrupt(
            "it has no descriptor: it may be an extent, which its descriptor opens",
        ));
    }
    let length = header.descriptor_length.saturating_mul(SECTOR);
    if length > LONGEST {
        return Err(corrupt(format!(
            "its descriptor has {length} bytes, which is too long"
        )));
    }
    let place = header.descriptor.checked_mul(SECTOR);
    let place = place.and_then(|start| ByteRange::new(start, length).ok());
    let Some(place) = place.filter(|place| place.end() <= file.end()) else {
        return Err(corrupt("its descriptor lies past the end of the file"));
    };
    Descriptor::parse(&read_exact_at(&**file.device(), place).await?)
}

/// The one extent that is in the image's own file.
fn own_extent(layout: &Layout) -> ExtentDetails {
    ExtentDetails {
        virtual_size: layout.size(),
        file: None,
        cluster_size: Some(layout.grain_size()),
        is_compressed: layout.packed.is_some(),
        kind: ExtentKind::Sparse.name().to_owned(),
    }
}

/// An error of an extent, told with its name.
fn of_extent(file: &RelatedFile) -> impl Fn(Error) -> Error {
    move |error| Error::with_message(error.kind(), format!("{file}: {error}"))
}
