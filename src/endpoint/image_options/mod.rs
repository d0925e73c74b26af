//! How new images in a format are made, as it is written: `-o KEY=VALUE,...`.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use crate::{
    block::{Error, ErrorKind, Grammar, NullDevice, Parameter, ParameterType, Values},
    format::{
        Format,
        qcow2::{Backing, Compression, CreateOptions, DataFile, Preallocation},
    },
};

use super::{FormatKind, printable};

mod others;

use others::{PACKED_OPTIONS, VDI_OPTIONS, VHDX_OPTIONS, VMDK_OPTIONS, VPC_OPTIONS};
pub use others::{new_packed, new_vdi, new_vhdx, new_vmdk, new_vpc};

/// How a new qcow2 image is made: what the format's own options say, and the names of other files, which nobody
/// has opened yet.
#[derive(Clone)]
pub struct NewQcow2 {
    /// The options, without other files.
    pub create: CreateOptions,
    /// The backing file.
    pub backing: Option<BackingName>,
    /// The data file.
    pub data_file: Option<DataFileName>,
}

/// The backing file of a new image, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// The name as it will stand in the image: relative to the image's directory, unless it is a whole path.
    pub name: OsString,
    /// Its format.
    pub format: FormatKind,
}

/// The data file of a new image, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFileName {
    /// The name as it will stand in the image: relative to the image's directory, unless it is a whole path.
    pub name: OsString,
    /// It can be read as a raw image, too.
    pub raw: bool,
}

const FORMATS: &[&str] = &["raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi"];

/// The options of qcow2. Their names are those of qemu-img where it has them.
pub static QCOW2_OPTIONS: &[Parameter] = &[
    Parameter::new(
        "backing_file",
        ParameterType::Path,
        "What shows through where the image has nothing of its own; as -b",
    ),
    Parameter::new(
        "backing_fmt",
        ParameterType::Choice(FORMATS),
        "The format of that file; as -F",
    ),
    Parameter::new(
        "cluster_size",
        ParameterType::Size,
        "The size of clusters: a power of two from 512 to 2M",
    )
    .or("64K"),
    Parameter::new(
        "compat",
        ParameterType::Choice(&["0.10", "1.1", "v2", "v3"]),
        "The version of the format: 0.10 or v2, which older programs read, too; 1.1 or v3",
    )
    .or("1.1"),
    Parameter::new(
        "compression_level",
        ParameterType::Number,
        "How hard it is compressed: 1 to 9 by zlib, 1 to 22 by zstd; what pays without it",
    ),
    Parameter::new(
        "compression_type",
        ParameterType::Choice(&["zlib", "zstd"]),
        "How it is compressed",
    )
    .or("zlib"),
    Parameter::new(
        "compression_window",
        ParameterType::Size,
        "How far back zlib may refer: 4K, which every reader takes, or 32K, which takes less space",
    )
    .or("4K"),
    Parameter::new(
        "data_file",
        ParameterType::Path,
        "Puts the data into this file; the image has its tables only",
    ),
    Parameter::new(
        "data_file_raw",
        ParameterType::Switch,
        "Whether the data file can be read as a raw image, too",
    )
    .or("off"),
    Parameter::new(
        "extended_l2",
        ParameterType::Switch,
        "Whether a cluster has 32 subclusters; clusters have 16K at least then",
    )
    .or("off"),
    Parameter::new(
        "lazy_refcounts",
        ParameterType::Switch,
        "Whether those who write the image later may write refcounts late",
    )
    .or("off"),
    Parameter::new(
        "preallocation",
        ParameterType::Choice(&["off", "metadata", "falloc", "full"]),
        "What is allocated in advance: nothing, the tables, and the data without or with writing it",
    )
    .or("off"),
    Parameter::new(
        "refcount_bits",
        ParameterType::Number,
        "The width of refcounts: 1, 2, 4, 8, 16, 32 or 64",
    )
    .or("16"),
];

/// The options of raw images. Their names are those of qemu-img.
static RAW_OPTIONS: &[Parameter] = &[Parameter::new(
    "preallocation",
    ParameterType::Choice(&["off", "falloc", "full"]),
    "What is allocated in advance: nothing, or all of it, as --allocated does",
)
.or("off")];

const RAW_GRAMMAR: Grammar = Grammar {
    name: "raw",
    parameters: RAW_OPTIONS,
    ..GRAMMAR
};

const GRAMMAR: Grammar = Grammar {
    name: "qcow2",
    syntax: "KEY=VALUE,...",
    parameters: QCOW2_OPTIONS,
    others: false,
    others_repeat: false,
};

impl NewQcow2 {
    /// Reads options: `texts` as if they were one, with commas between them.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn parse(texts: &[OsString]) -> Result<Self, String> {
        let text = texts.join(OsStr::new(","));
        if let Some(key) = meant_for_others(&text) {
            return Err(key.to_owned());
        }
        let values = Values::read(&GRAMMAR, &text)?;
        let too_large = |name: &str| format!("{name} is too large");
        let small = |name: &str| {
            let size = values.size(name).map(u32::try_from).transpose();
            size.map_err(|_| too_large(name))
        };
        let number = |name: &str| {
            let number = values.number::<u64>(name).map(u32::try_from).transpose();
            number.map_err(|_| too_large(name))
        };
        let word = |name: &str| values.word(name).unwrap_or_default();
        let mut create = CreateOptions::default();
        create.cluster_size = small("cluster_size")?.unwrap_or(create.cluster_size);
        create.version = match &*word("compat") {
            "0.10" | "v2" => 2,
            _ => 3,
        };
        create.compression = match &*word("compression_type") {
            "zstd" => Compression::Zstd,
            _ => Compression::Zlib,
        };
        create.compression_level = number("compression_level")?;
        create.compression_window =
            small("compression_window")?.unwrap_or(create.compression_window);
        create.refcount_bits = number("refcount_bits")?.unwrap_or(create.refcount_bits);
        create.extended_l2 = values.switch("extended_l2").unwrap_or(false);
        create.lazy_refcounts = values.switch("lazy_refcounts").unwrap_or(false);
        create.preallocation = match &*word("preallocation") {
            "metadata" => Preallocation::Metadata,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            _ => Preallocation::Off,
        };
        let format = values.word("backing_fmt");
        let backing = values.one("backing_file").map(|name| BackingName {
            name,
            // The grammar has looked at the name.
            format: format
                .as_deref()
                .and_then(|name| name.parse().ok())
                .unwrap_or(FormatKind::Probe),
        });
        if format.is_some() && backing.is_none() {
            return Err("backing_fmt is the format of a backing_file, which is missing".to_owned());
        }
        let raw = values.switch("data_file_raw").unwrap_or(false);
        let data_file = values
            .one("data_file")
            .map(|name| DataFileName { name, raw });
        if raw && data_file.is_none() {
            return Err("data_file_raw is of a data_file, which is missing".to_owned());
        }
        Ok(Self {
            create,
            backing,
            data_file,
        })
    }
}

impl NewQcow2 {
    /// Checks that the options make sense together, also with the files that were named and not opened.
    ///
    /// # Errors
    /// `InvalidInput`, with what does not and what would.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(backing) = &self.backing
            && let FormatKind::Packed(_) | FormatKind::Ova = backing.format
        {
            let message = format!(
                "a backing file in the format {} is one that nobody reads: unpack it first",
                backing.format
            );
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        let mut create = self.create.clone();
        create.backing = self.backing.as_ref().map(|backing| Backing {
            name: backing.name.as_bytes().to_vec(),
            format: None,
            device: None,
        });
        create.data_file = self.data_file.as_ref().map(|file| DataFile {
            name: file.name.as_bytes().to_vec(),
            raw: file.raw,
            device: Arc::new(NullDevice::new(0)),
        });
        create.check()
    }

    /// The names of other files that are relative to the image's directory, printable.
    #[must_use]
    pub fn relative_names(&self) -> Vec<String> {
        let backing = self.backing.iter().map(|backing| &backing.name);
        let data_file = self.data_file.iter().map(|file| &file.name);
        let names = backing.chain(data_file);
        let relative = names.filter(|name| Path::new(name).is_relative());
        relative.map(|name| printable(name)).collect()
    }
}

/// Reads options of a raw image, `texts` as if they were one, with commas between them: whether all of it is to be
/// allocated.
///
/// # Errors
/// What is wrong with them, for people.
pub fn raw_is_allocated(texts: &[OsString]) -> Result<bool, String> {
    if texts.is_empty() {
        return Ok(false);
    }
    let values = Values::read(&RAW_GRAMMAR, &texts.join(OsStr::new(",")))?;
    Ok(values
        .word("preallocation")
        .is_some_and(|word| word != "off"))
}

/// What to say to options that others have, and that do not go with a copy.
fn meant_for_others(text: &OsStr) -> Option<&'static str> {
    let mut pieces = text.as_bytes().split(|byte| *byte == b',');
    pieces.find_map(|piece| {
        let key = piece.split(|byte| *byte == b'=').next()?;
        Some(match key {
            b"size" => "size: the image gets the size of the source",
            b"encryption" | b"encrypt.format" | b"encrypt.key-secret" => {
                "encrypted images are not made"
            }
            _ => return None,
        })
    })
}

/// The options of a format in which images are made; none of any other.
#[must_use]
pub fn image_options(kind: FormatKind) -> &'static [Parameter] {
    match kind {
        FormatKind::Raw => RAW_OPTIONS,
        FormatKind::Image(Format::Qcow2) => QCOW2_OPTIONS,
        FormatKind::Image(Format::Vmdk) => VMDK_OPTIONS,
        FormatKind::Image(Format::Vpc) => VPC_OPTIONS,
        FormatKind::Image(Format::Vhdx) => VHDX_OPTIONS,
        FormatKind::Image(Format::Vdi) => VDI_OPTIONS,
        _ => &[],
    }
}

/// The options of all formats, for people.
#[must_use]
pub fn image_options_help() -> String {
    let qcow2 = "Options of qcow2 (-O qcow2 -o KEY=VALUE,...):\n".to_owned();
    let mut text = add_options(qcow2, QCOW2_OPTIONS);
    for (name, options) in [
        ("raw", RAW_OPTIONS),
        ("vmdk", VMDK_OPTIONS),
        ("vpc", VPC_OPTIONS),
        ("vhdx", VHDX_OPTIONS),
        ("vdi", VDI_OPTIONS),
        ("gzip and zstd", PACKED_OPTIONS),
    ] {
        text = add_options(text + "Options of " + name + ":\n", options);
    }
    text
}

fn add_options(mut text: String, parameters: &[Parameter]) -> String {
    for parameter in parameters {
        let Parameter { name, kind, .. } = parameter;
        let value = match kind {
            ParameterType::Choice(_) | ParameterType::Switch => kind.to_string(),
            _ => kind.to_string().to_uppercase(),
        };
        text += &format!("  {name}={value}\n        {}", parameter.help);
        if let Some(default) = parameter.default {
            text += &format!("; {default} without it");
        }
        text.push('\n');
    }
    text
}

impl fmt::Debug for NewQcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let create = &self.create;
        f.debug_struct("NewQcow2")
            .field("cluster_size", &create.cluster_size)
            .field("version", &create.version)
            .field("compress", &create.compress)
            .field("backing", &self.backing)
            .field("data_file", &self.data_file)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<NewQcow2, String> {
        let texts: Vec<_> = texts.iter().map(OsString::from).collect();
        NewQcow2::parse(&texts)
    }

    #[test]
    fn without_options_an_image_is_as_usual() {
        let (made, usual) = (parse(&[]).expect("options"), CreateOptions::default());
        let create = &made.create;
        assert_eq!(
            (create.cluster_size, create.version, create.refcount_bits),
            (usual.cluster_size, usual.version, usual.refcount_bits)
        );
        assert_eq!(create.compression, usual.compression);
        assert_eq!(create.compression_window, usual.compression_window);
        assert_eq!(create.preallocation, usual.preallocation);
        assert_eq!((made.backing, made.data_file), (None, None));
    }

    #[test]
    fn several_texts_are_read_as_one() {
        let made = parse(&[
            "cluster_size=2M,compat=v3,compression_type=zstd",
            "compression_level=19,compression_window=32k,preallocation=metadata,extended_l2=on",
            "backing_file=a,,b,backing_fmt=raw,lazy_refcounts=yes,refcount_bits=64",
        ]);
        let NewQcow2 {
            create, backing, ..
        } = made.expect("options");
        assert_eq!((create.cluster_size, create.version), (2 << 20, 3));
        assert_eq!(create.compression, Compression::Zstd);
        assert_eq!(create.compression_level, Some(19));
        assert_eq!(create.compression_window, 32768);
        assert_eq!(create.preallocation, Preallocation::Metadata);
        assert!(create.extended_l2 && create.lazy_refcounts);
        assert_eq!(create.refcount_bits, 64);
        let backing = backing.expect("a backing file");
        assert_eq!(backing.name, "a,b");
        assert_eq!(backing.format, FormatKind::Raw);
        let made = parse(&["data_file=d,data_file_raw=on,compat=0.10"]).expect("options");
        assert_eq!(made.create.version, 2);
        let (name, raw) = (OsString::from("d"), true);
        assert_eq!(made.data_file, Some(DataFileName { name, raw }));
    }

    #[test]
    fn mistakes_are_named_with_what_is_known() {
        for (text, part) in [
            (
                "clustersize=4k",
                "only backing_file, backing_fmt, cluster_size",
            ),
            ("size=1G", "the size of the source"),
            ("encryption=on", "encrypted images"),
            ("compat=2", "none of 0.10, 1.1, v2, v3"),
            ("cluster_size=8G", "too large"),
            ("refcount_bits=x", "not a number"),
            ("lazy_refcounts=maybe", "neither on nor off"),
            ("backing_fmt=raw", "backing_file"),
            ("data_file_raw=on", "data_file"),
            ("cluster_size=4k,cluster_size=8k", "given twice"),
            ("compression_type=lzma", "none of zlib, zstd"),
            ("backing_file=x,backing_fmt=qed", "none of raw, qcow2"),
        ] {
            let refusal = parse(&[text]).expect_err(text);
            assert!(refusal.contains(part), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_help_has_every_option_and_its_default() {
        let help = image_options_help();
        for parameter in QCOW2_OPTIONS {
            let line = format!("  {}=", parameter.name);
            assert!(help.contains(&line), "{help}");
        }
        assert!(help.contains("64K without it"), "{help}");
    }
}
