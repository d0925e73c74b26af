//! The options of the formats that have few.

use std::ffi::{OsStr, OsString};

use crate::{
    block::{Grammar, Parameter, ParameterType, Values},
    format::{
        packed::{PackOptions, Packing},
        vdi, vhdx,
        vmdk::{self, Subformat},
        vpc::{self, Kind},
    },
};

use super::GRAMMAR;

/// The options of VMDK. Their names are those of qemu-img where it has them.
pub(super) static VMDK_OPTIONS: &[Parameter] = &[
    Parameter::new(
        "adapter_type",
        ParameterType::Choice(&["ide", "buslogic", "lsilogic", "legacyESX"]),
        "The adapter that the image asks for",
    )
    .or("ide"),
    Parameter::new(
        "compression_level",
        ParameterType::Number,
        "How hard streamOptimized is compressed: 1 to 9; what pays without it",
    ),
    Parameter::new(
        "hwversion",
        ParameterType::Number,
        "The version of the virtual hardware that the image asks for",
    )
    .or("4"),
    Parameter::new(
        "subformat",
        ParameterType::Choice(&["streamOptimized", "monolithicSparse"]),
        "How it is laid out: compressed, for transport, or as one file that grows",
    )
    .or("streamOptimized"),
];

/// The options of VHD.
pub(super) static VPC_OPTIONS: &[Parameter] = &[
    Parameter::new(
        "azure",
        ParameterType::Switch,
        "Whether it is an image that Azure takes, whatever else is said: a fixed one of exactly its size, rounded up to whole MiB",
    )
    .or("off"),
    Parameter::new(
        "force_size",
        ParameterType::Switch,
        "Whether the disk has exactly its size, and not that of a geometry of cylinders, heads and sectors",
    )
    .or("off"),
    Parameter::new(
        "subformat",
        ParameterType::Choice(&["dynamic", "fixed"]),
        "Whether blocks are allocated as they are needed, or all of them",
    )
    .or("dynamic"),
];

/// The options of VDI.
pub(super) static VDI_OPTIONS: &[Parameter] = &[Parameter::new(
    "static",
    ParameterType::Switch,
    "Whether all blocks are allocated",
)
.or("off")];

/// The options of VHDX.
pub(super) static VHDX_OPTIONS: &[Parameter] = &[
    Parameter::new(
        "block_size",
        ParameterType::Size,
        "The size of a block, a power of two from 1M to 256M; 8M to 64M, as the disk is large, without it",
    ),
    Parameter::new(
        "block_state_zero",
        ParameterType::Switch,
        "Whether blocks that are not there are said to be zero, or undefined, as Hyper-V has them",
    )
    .or("on"),
    Parameter::new(
        "log_size",
        ParameterType::Size,
        "The length of the log, in whole MiB",
    )
    .or("1M"),
    Parameter::new(
        "subformat",
        ParameterType::Choice(&["dynamic", "fixed"]),
        "Whether blocks are allocated as they are needed, or all of them",
    )
    .or("dynamic"),
];

/// The options of compressed streams.
pub(super) static PACKED_OPTIONS: &[Parameter] = &[Parameter::new(
    "compression_level",
    ParameterType::Number,
    "How hard it is compressed: 1 to 9 by gzip, 1 to 22 by zstd; what pays without it",
)];

fn values(
    name: &'static str,
    parameters: &'static [Parameter],
    texts: &[OsString],
) -> Result<Values, String> {
    let grammar = Grammar {
        name,
        parameters,
        ..GRAMMAR
    };
    Values::read(&grammar, &texts.join(OsStr::new(",")))
}

/// Reads the options of a new VMDK image, `texts` as if they were one, with commas between them.
///
/// # Errors
/// What is wrong with them, for people.
pub fn new_vmdk(texts: &[OsString]) -> Result<vmdk::CreateOptions, String> {
    let values = values("vmdk", VMDK_OPTIONS, texts)?;
    let mut create = vmdk::CreateOptions::default();
    create.subformat = match values.word("subformat").as_deref() {
        Some("monolithicSparse") => Subformat::MonolithicSparse,
        _ => Subformat::StreamOptimized,
    };
    create.compression_level = level(&values, 9)?;
    create.adapter_type = values.word("adapter_type");
    create.hardware_version = values.word("hwversion");
    Ok(create)
}

/// Reads the options of a new VHD image, likewise.
///
/// # Errors
/// What is wrong with them, for people.
pub fn new_vpc(texts: &[OsString]) -> Result<vpc::CreateOptions, String> {
    let values = values("vpc", VPC_OPTIONS, texts)?;
    let mut create = vpc::CreateOptions::default();
    create.azure = values.switch("azure").unwrap_or(false);
    create.force_size = values.switch("force_size").unwrap_or(false);
    create.kind = match values.word("subformat").as_deref() {
        Some("fixed") => Kind::Fixed,
        _ => Kind::Dynamic,
    };
    Ok(create)
}

/// Reads the options of a new VDI image, likewise.
///
/// # Errors
/// What is wrong with them, for people.
pub fn new_vdi(texts: &[OsString]) -> Result<vdi::CreateOptions, String> {
    let values = values("vdi", VDI_OPTIONS, texts)?;
    let mut create = vdi::CreateOptions::default();
    create.is_static = values.switch("static").unwrap_or(false);
    Ok(create)
}

/// Reads the options of a new VHDX image, likewise.
///
/// # Errors
/// What is wrong with them, for people.
pub fn new_vhdx(texts: &[OsString]) -> Result<vhdx::CreateOptions, String> {
    let values = values("vhdx", VHDX_OPTIONS, texts)?;
    // 0 is what qemu calls the usual.
    let size = |name: &str| {
        let size = values.size(name).filter(|size| *size > 0);
        let size = size.map(|size| u32::try_from(size).map_err(|_| format!("{name} is too large")));
        size.transpose()
    };
    let mut create = vhdx::CreateOptions::default();
    create.block_size = size("block_size")?;
    create.log_size = size("log_size")?;
    create.leaves_undefined = values.switch("block_state_zero") == Some(false);
    create.is_fixed = values.word("subformat").as_deref() == Some("fixed");
    Ok(create)
}

/// Reads the options of a new compressed stream, likewise.
///
/// # Errors
/// What is wrong with them, for people.
pub fn new_packed(packing: Packing, texts: &[OsString]) -> Result<PackOptions, String> {
    let values = values(packing.name(), PACKED_OPTIONS, texts)?;
    let most = match packing {
        Packing::Zstd => 22,
        _ => 9,
    };
    let mut options = PackOptions::new(packing);
    options.level = level(&values, most)?;
    Ok(options)
}

fn level(values: &Values, most: u32) -> Result<Option<u32>, String> {
    match values.number::<u32>("compression_level") {
        Some(level) if !(1..=most).contains(&level) => {
            Err(format!("compression_level is 1 to {most}"))
        }
        level => Ok(level),
    }
}
