//! What tells an image from others in a checkpoint: which one it was, and whether it is the same still.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    block::ByteRange,
    copy::Done,
    endpoint::{DestinationFile, Endpoint, EndpointKind, FormatKind, ImageFormat, printable},
};

/// What tells an image from others.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Image {
    File {
        path: String,
        device: u64,
        inode: u64,
        /// Of a source: a destination changes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<FileVersion>,
    },
    BlockDevice {
        path: String,
        device: u64,
        size: u64,
    },
    /// Files that are joined.
    Joined {
        endpoint: String,
        size: u64,
        files: Vec<Image>,
    },
    /// An NBD export, a server that is started for it, a generated image.
    Named { endpoint: String, size: u64 },
    /// The disk of an image in a format.
    Formatted {
        image: Box<Image>,
        format: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
        size: u64,
    },
    /// What is seen of an image through filters.
    Filtered {
        image: Box<Image>,
        filters: Vec<String>,
        size: u64,
    },
}

/// What changes with a file's contents.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct FileVersion {
    size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
}

impl Image {
    pub(super) fn source(endpoint: &Endpoint, size: u64) -> io::Result<Self> {
        let image = Self::formatted(endpoint, size)?;
        Ok(match endpoint.filters() {
            [] => image,
            filters => Self::Filtered {
                image: Box::new(image),
                filters: filters.iter().map(ToString::to_string).collect(),
                size,
            },
        })
    }

    /// The disk, where `endpoint` is known to be an image in a format.
    fn formatted(endpoint: &Endpoint, size: u64) -> io::Result<Self> {
        let image = Self::bytes(endpoint, size)?;
        let ImageFormat { kind, snapshot, .. } = endpoint.format();
        Ok(match kind {
            FormatKind::Raw | FormatKind::Probe | FormatKind::ProbeImage => image,
            FormatKind::Image(_) | FormatKind::Packed(_) | FormatKind::Ova => Self::Formatted {
                image: Box::new(image),
                format: kind.to_string(),
                snapshot: snapshot.clone(),
                size,
            },
        })
    }

    fn bytes(endpoint: &Endpoint, size: u64) -> io::Result<Self> {
        let file = |path: &PathBuf| {
            let metadata = fs::metadata(path)?;
            let version = FileVersion {
                size: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            };
            Self::of_file(path, &metadata, size, Some(version))
        };
        match endpoint.kind() {
            EndpointKind::File(path) => file(path),
            EndpointKind::Split(paths) => Self::joined(endpoint, size, paths, file),
            EndpointKind::Joined(parts) => Self::joined(endpoint, size, parts, |part| {
                // Only the size of all of them is known.
                Self::formatted(part, 0)
            }),
            _ => Ok(Self::named(endpoint, size)),
        }
    }

    fn joined<P>(
        endpoint: &Endpoint,
        size: u64,
        parts: &[P],
        image: impl Fn(&P) -> io::Result<Self>,
    ) -> io::Result<Self> {
        Ok(Self::Joined {
            endpoint: endpoint.to_string(),
            size,
            files: parts.iter().map(image).collect::<io::Result<_>>()?,
        })
    }

    pub(super) fn destination(
        endpoint: &Endpoint,
        size: u64,
        file: Option<&DestinationFile>,
    ) -> io::Result<Self> {
        let Some(file) = file else {
            return match endpoint.kind() {
                EndpointKind::Split(paths) => Self::joined(endpoint, size, paths, |path| {
                    Self::of_file(path, &fs::metadata(path)?, size, None)
                }),
                _ => Ok(Self::named(endpoint, size)),
            };
        };
        // The inode stays when the file gets its own name.
        let data = file.data_path().unwrap_or_else(|| file.path().to_owned());
        let metadata = fs::metadata(&data)?;
        Self::of_file(file.path(), &metadata, size, None)
    }

    fn of_file(
        path: &Path,
        metadata: &Metadata,
        size: u64,
        version: Option<FileVersion>,
    ) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let path = printable(path.as_os_str());
        Ok(match metadata.file_type().is_block_device() {
            true => Self::BlockDevice {
                path,
                device: metadata.rdev(),
                size,
            },
            false => Self::File {
                path,
                device: metadata.dev(),
                inode: metadata.ino(),
                version,
            },
        })
    }

    fn named(endpoint: &Endpoint, size: u64) -> Self {
        Self::Named {
            endpoint: endpoint.to_string(),
            size,
        }
    }

    /// How what was noted differs from what there is now, if it does.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        if self == now {
            return None;
        }
        let (noted, name) = (self.name(), now.name());
        Some(match (self, now) {
            _ if noted != name => format!("{}, not {}", noted.escape_debug(), name.escape_debug()),
            (
                Self::File {
                    version: Some(one), ..
                },
                Self::File {
                    version: Some(other),
                    ..
                },
            ) if one != other => {
                format!("{name} was changed since")
            }
            (Self::Joined { files: one, .. }, Self::Joined { files: other, .. }) => {
                let mut files = one.iter().zip(other);
                let differing = files.find_map(|(one, other)| one.difference(other));
                differing.unwrap_or_else(|| format!("{name} has other files"))
            }
            (Self::Formatted { image: one, .. }, Self::Formatted { image: other, .. }) => {
                let differing = one.difference(other);
                differing.unwrap_or_else(|| {
                    format!("{name} has another size, or another snapshot is read")
                })
            }
            (Self::Formatted { .. }, _) | (_, Self::Formatted { .. }) => {
                format!("{name} is read in another format")
            }
            (Self::Filtered { image: one, .. }, Self::Filtered { image: other, .. }) => {
                let differing = one.difference(other);
                differing.unwrap_or_else(|| format!("{name} is seen through other filters"))
            }
            (Self::Filtered { .. }, _) | (_, Self::Filtered { .. }) => {
                format!("{name} is seen through other filters")
            }
            (
                Self::Named { size: one, .. } | Self::BlockDevice { size: one, .. },
                Self::Named { size: other, .. } | Self::BlockDevice { size: other, .. },
            ) if one != other => format!("{name} had {one} bytes and has {other} now"),
            _ => format!("what is at {name} now is not what was there"),
        })
    }

    /// Whether what is said to be done can be of this image.
    pub(super) fn holds(&self, done: &Done) -> bool {
        let size = match self {
            Self::File { version, .. } => version.map(|version| version.size),
            Self::BlockDevice { size, .. }
            | Self::Named { size, .. }
            | Self::Filtered { size, .. }
            | Self::Formatted { size, .. }
            | Self::Joined { size, .. } => Some(*size),
        };
        let end = done.ranges.iter().last().map(ByteRange::end);
        size >= end || size.is_none()
    }

    fn name(&self) -> &str {
        match self {
            Self::File { path, .. } | Self::BlockDevice { path, .. } => path,
            Self::Named { endpoint, .. } | Self::Joined { endpoint, .. } => endpoint,
            Self::Filtered { image, .. } | Self::Formatted { image, .. } => image.name(),
        }
    }
}
