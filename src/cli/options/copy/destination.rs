//! What becomes of a copy's destination, and what does not go together with that.

use crate::{
    cli::{
        args::{CopyArgs, FormatArg},
        failure::Failure,
    },
    endpoint::{BackingName, DestinationFormat, Endpoint, EndpointKind, FormatKind},
    format::Format,
};

use super::super::{NewFormat, formats::kind, sides::check_readable};

/// What becomes of the destination, and whether all of a raw one is allocated.
pub(super) fn destination_format(
    args: &CopyArgs,
    destination: &Endpoint,
) -> Result<(DestinationFormat, bool), Failure> {
    if args.no_create {
        return Ok((in_place(args)?, false));
    }
    let said = kind(Some(args.output_format.unwrap_or(FormatArg::Raw)));
    if said != FormatKind::Image(Format::Qcow2) {
        let needing = [
            (args.compress, "--compress"),
            (args.backing.is_some(), "--backing"),
        ];
        if let Some((_, option)) = needing.iter().find(|(is, _)| *is) {
            let failure = Failure::usage(format!("{option}: no destination but qcow2 has that"));
            return Err(failure.hint("-O qcow2 makes an image that can have it"));
        }
    }
    let new = NewFormat {
        kind: said,
        options: &args.option,
        backing: args.backing.as_ref().map(|name| BackingName {
            name: name.clone(),
            format: kind(args.backing_format),
        }),
        compress: args.compress,
        out_of_order: args.out_of_order,
        threads: args.parallel.map_or(0, usize::from),
    };
    let (format, is_allocated) = new.resolve().map_err(|message| {
        let failure = Failure::usage(format!("-O {said}: {message}"));
        match said {
            FormatKind::Raw => failure.hint("-O qcow2 makes an image that has more options"),
            _ => failure,
        }
    })?;
    if is_allocated && args.destination_is_zero {
        let message = "--destination-is-zero writes no zeroes, and -o preallocation all of them";
        return Err(Failure::usage(message));
    }
    if let DestinationFormat::Qcow2(new) = &format
        && !matches!(destination.kind(), EndpointKind::File(_))
        && let Some(name) = new.relative_names().first()
    {
        return Err(Failure::usage(format!(
            "{name} is relative to the directory of the image, and {destination} is in none: write the whole path"
        )));
    }
    Ok((format, is_allocated))
}

/// What becomes of a destination that is there already, and written as it is.
fn in_place(args: &CopyArgs) -> Result<DestinationFormat, Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    if args.compress {
        return refuse("--compress is for images that are made, and --no-create makes none");
    }
    if !args.option.is_empty() {
        return refuse("-o says how an image is made, and --no-create makes none");
    }
    if args.backing.is_some() {
        return refuse("--backing is of an image that is made, and --no-create makes none");
    }
    match args.output_format {
        Some(FormatArg::Qcow2) => Ok(DestinationFormat::Qcow2InPlace),
        None | Some(FormatArg::Raw) => Ok(DestinationFormat::RawInPlace),
        Some(_) => refuse(
            "only raw and qcow2 images are written in place; without --no-create one is made",
        ),
    }
}

/// Refuses what does not go together.
pub(super) fn check_conversion(
    args: &CopyArgs,
    source: &Endpoint,
    format: &DestinationFormat,
) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    let is_raw = matches!(
        format,
        DestinationFormat::Raw | DestinationFormat::RawInPlace
    );
    if args.checkpoint.is_some() && !is_raw {
        return refuse(
            "--checkpoint needs a raw destination: an image that is not whole cannot be gone on with",
        );
    }
    if args.allocated && !is_raw {
        let failure = Failure::usage("--allocated is for raw destinations");
        return Err(failure.hint("-o preallocation=falloc, or =full, allocates a qcow2 image"));
    }
    if args.verify && matches!(format, DestinationFormat::Packed(_)) {
        let failure = Failure::usage("--verify does not unpack a destination again");
        return Err(failure.hint("'blockferry compare' does, afterwards"));
    }
    let overlays = match format {
        DestinationFormat::Qcow2(new) => new.backing.is_some(),
        _ => false,
    };
    if args.destination_is_zero && overlays {
        return refuse("--destination-is-zero is not true of an image with a backing file");
    }
    let joined = args.sides()?.0.len() > 1;
    let is_raw_source = args.formats.format == Some(FormatArg::Raw);
    if args.snapshot.is_some() {
        if joined {
            return refuse("--snapshot is of one source, and several are joined");
        }
        if is_raw_source {
            return refuse("--snapshot needs a source in a format, and -f says that it is raw");
        }
    }
    if !args.bitmaps {
        return Ok(());
    }
    if is_raw || is_raw_source {
        return refuse("--bitmaps needs qcow2 on both sides: raw images have none");
    }
    if args.no_create {
        return refuse("--bitmaps is for images that are made, and --no-create makes none");
    }
    if joined || args.snapshot.is_some() || !args.filters.filter.is_empty() {
        return refuse(
            "--bitmaps are about one image as it is: they do not go with --snapshot, --filter or several sources",
        );
    }
    check_readable(source)
}

/// How files are called that are in a format.
const SUFFIXES: &[&str] = &[
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vhdx",
    "vhd",
    "vdi",
    "vpc",
    "parallels",
    "ova",
    "gz",
    "xz",
    "zst",
    "bz2",
];

/// What may not be meant as it was said.
pub(super) fn doubts(args: &CopyArgs, destination: &Endpoint) -> Vec<String> {
    let EndpointKind::File(path) = destination.kind() else {
        return Vec::new();
    };
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    let suffix = suffix.map(str::to_ascii_lowercase).unwrap_or_default();
    if args.output_format.is_some() || !SUFFIXES.contains(&&*suffix) {
        return Vec::new();
    }
    let advice = match &*suffix {
        "qcow2" => "-O qcow2 makes a qcow2 image of it",
        "vmdk" => "-O vmdk makes a VMDK image of it",
        "vhd" | "vpc" => "-O vpc makes a VHD image of it",
        "vhdx" => "-O vhdx makes a VHDX image of it",
        "vdi" => "-O vdi makes a VDI image of it",
        "gz" => "-O gzip compresses it",
        "zst" => "-O zstd compresses it",
        _ => "-O raw says that this is meant",
    };
    vec![format!(
        "{destination} becomes a raw image, whatever it is called; {advice}"
    )]
}
