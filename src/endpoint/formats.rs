//! What the bytes of an endpoint are taken for: just bytes, or an image in a format, whose disk is what is meant.
//!
//! Whoever says nothing gets the bytes. Only a regular local file is ever looked at to find out: what a block device
//! or another server holds was written by somebody's guest, who could make it look like anything.

use std::{fmt, str::FromStr};

/// What the bytes of an endpoint are taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFormat {
    /// The format.
    pub kind: FormatKind,
    /// The internal snapshot that is meant, by its ID or its name; it can only be read.
    pub snapshot: Option<String>,
}

/// A format, or that it is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// What a regular local file begins with tells; everything else is [raw](Self::Raw).
    Probe,
    /// The bytes are the disk.
    #[default]
    Raw,
    /// qcow2, versions 2 and 3.
    Qcow2,
}

impl From<FormatKind> for ImageFormat {
    fn from(kind: FormatKind) -> Self {
        Self {
            kind,
            snapshot: None,
        }
    }
}

impl FromStr for FormatKind {
    type Err = String;

    /// A format under the name that qemu gives it.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!(
                "the format {name:?} is not known here: raw and qcow2 are"
            )),
        }
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}
