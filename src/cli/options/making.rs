//! What `create`, `dd` and `resize` are told, resolved.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use crate::{
    block::parse_size,
    cli::{
        args::{Common, CreateArgs, DdArgs, FollowArgs, PreallocationArg, ResizeArgs},
        failure::Failure,
    },
    endpoint::{
        BackingName, DestinationFormat, Endpoint, EndpointKind, FormatKind, NewImage, NewQcow2,
        NewSize, new_packed, new_vdi, new_vhdx, new_vmdk, new_vpc, printable, raw_is_allocated,
    },
    format::{
        Format,
        packed::Packing,
        qcow2::{Preallocation, ResizeOptions},
    },
};

use super::{
    CopyJob, ReportStyle, Show, Terminals, Timeouts, Trust, formats::kind, sides::check_sides,
};

/// A resolved `create`.
pub(crate) struct CreateJob {
    pub(crate) destination: Endpoint,
    pub(crate) image: NewImage,
    /// What is said of an image of that size before it is made.
    pub(crate) announce: Option<Box<dyn FnOnce(u64) -> String>>,
    /// Whether it is said that it was made.
    pub(crate) quiet: bool,
    pub(crate) trust: Trust,
    pub(crate) timeouts: Timeouts,
}

/// A resolved `dd`.
pub(crate) struct DdJob {
    /// The copy of the whole source; what it copies is cut to the blocks.
    pub(crate) copy: CopyJob,
    pub(crate) blocks: Blocks,
}

/// Which part of an image is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// The size of a block in bytes.
    pub(crate) size: u64,
    /// How many are left out.
    pub(crate) skip: u64,
    /// How many come then; `None`: all.
    pub(crate) count: Option<u64>,
}

/// A resolved `resize`.
pub(crate) struct ResizeJob {
    pub(crate) image: Endpoint,
    pub(crate) size: NewSize,
    pub(crate) options: ResizeOptions,
    pub(crate) trust: Trust,
    pub(crate) quiet: bool,
}

/// How a new image is to be, in words.
#[derive(Debug, Default)]
pub(crate) struct NewFormat<'a> {
    pub(crate) kind: FormatKind,
    pub(crate) options: &'a [OsString],
    pub(crate) backing: Option<BackingName>,
    pub(crate) compress: bool,
    /// Whether what is compressed may be written in any order.
    pub(crate) out_of_order: bool,
    /// How many threads compress; 0: as many as pay.
    pub(crate) threads: usize,
}

impl NewFormat<'_> {
    /// The format, and whether all of a raw image is allocated.
    pub(crate) fn resolve(self) -> Result<(DestinationFormat, bool), String> {
        let kind = self.kind;
        let is_qcow2 = kind == FormatKind::Image(Format::Qcow2);
        if self.backing.is_some() && !is_qcow2 {
            return Err(format!("an image in the format {kind} has no backing file"));
        }
        let format = match kind {
            FormatKind::Image(Format::Qcow2) => DestinationFormat::Qcow2(Arc::new(self.qcow2()?)),
            FormatKind::Image(Format::Vmdk) => {
                let mut create = new_vmdk(self.options)?;
                create.threads = self.threads;
                DestinationFormat::Vmdk(create)
            }
            FormatKind::Image(Format::Vpc) => DestinationFormat::Vpc(new_vpc(self.options)?),
            FormatKind::Image(Format::Vhdx) => DestinationFormat::Vhdx(new_vhdx(self.options)?),
            FormatKind::Image(Format::Vdi) => DestinationFormat::Vdi(new_vdi(self.options)?),
            FormatKind::Packed(packing @ (Packing::Gzip | Packing::Zstd)) => {
                let mut options = new_packed(packing, self.options)?;
                options.threads = self.threads;
                DestinationFormat::Packed(options)
            }
            FormatKind::Raw | FormatKind::Probe => {
                return Ok((DestinationFormat::Raw, raw_is_allocated(self.options)?));
            }
            other => {
                return Err(format!(
                    "images in the format {other} are not made; raw, qcow2, vmdk, vpc, vhdx, vdi, gzip and zstd are"
                ));
            }
        };
        Ok((format, false))
    }

    fn qcow2(self) -> Result<NewQcow2, String> {
        let mut new = NewQcow2::parse(self.options)?;
        if let Some(backing) = self.backing {
            if new.backing.is_some() {
                return Err("the backing file is named twice".to_owned());
            }
            new.backing = Some(backing);
        }
        new.create.compress = self.compress;
        new.create.in_order = !self.out_of_order;
        new.create.threads = self.threads;
        new.check().map_err(|error| error.to_string())?;
        Ok(new)
    }
}

impl CreateJob {
    pub(crate) fn resolve(args: &CreateArgs, common: Common) -> Result<Self, Failure> {
        let destination = Endpoint::parse(&args.file)?;
        if let EndpointKind::Standard | EndpointKind::Null(_) | EndpointKind::Memory { .. } =
            destination.kind()
        {
            return Err(Failure::usage(format!(
                "{destination}: it keeps no image: name a file"
            )));
        }
        let backing = args.backing.as_ref().map(|name| BackingName {
            name: name.clone(),
            format: kind(args.backing_format),
        });
        let format = NewFormat {
            kind: kind(args.format),
            options: &args.option,
            backing,
            ..NewFormat::default()
        };
        if let FormatKind::Packed(packing) = format.kind {
            return Err(Failure::usage(format!(
                "-f {packing}: there is no use for an empty image that is compressed"
            )));
        }
        let mut image = NewImage::new(args.size.map(|size| size.0));
        let resolved = format.resolve();
        (image.format, image.allocated) =
            resolved.map_err(|message| Failure::usage(format!("-f, -o: {message}")))?;
        image.checks_backing = !args.backing_unsafe;
        Ok(Self {
            destination,
            image,
            announce: None,
            quiet: common.quiet,
            trust: Trust::default(),
            timeouts: Timeouts::resolve(args.timeouts),
        })
    }
}

/// The operands of `dd`, as they were written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DdOperands {
    pub(crate) input: Option<OsString>,
    pub(crate) output: Option<OsString>,
    pub(crate) bs: Option<OsString>,
    pub(crate) count: Option<OsString>,
    pub(crate) skip: Option<OsString>,
}

impl DdOperands {
    /// Reads `KEY=VALUE`; the last value of a key counts. The error is the key that there is not.
    pub(crate) fn read(operands: &[OsString]) -> Result<Self, String> {
        let mut read = Self::default();
        for operand in operands {
            let bytes = operand.as_bytes();
            let end = bytes.iter().position(|byte| *byte == b'=');
            let key = &bytes[..end.unwrap_or(bytes.len())];
            let place = match key {
                b"if" => &mut read.input,
                b"of" => &mut read.output,
                b"bs" => &mut read.bs,
                b"count" => &mut read.count,
                b"skip" => &mut read.skip,
                _ => return Err(printable(OsStr::from_bytes(key))),
            };
            let Some(end) = end else {
                return Err(printable(OsStr::from_bytes(key)));
            };
            *place = Some(OsStr::from_bytes(&bytes[end + 1..]).to_owned());
        }
        Ok(read)
    }

    /// Which blocks are meant.
    ///
    /// # Errors
    /// The operand that is wrong.
    pub(crate) fn blocks(&self) -> Result<Blocks, WrongBlocks> {
        let number = |name: &'static str, value: &Option<OsString>, least: u64, most: u64| {
            let Some(value) = value else {
                return Ok(None);
            };
            let text = value.to_str().unwrap_or_default();
            // Sizes are never negative, and none is larger than an image.
            let size = match text.strip_prefix('-').unwrap_or(text).parse::<u64>() {
                Ok(_) if text.starts_with('-') => Some(u64::MAX),
                _ => parse_size(text).ok(),
            };
            let wrong = |range| WrongBlocks {
                name,
                value: printable(value),
                range,
            };
            match size {
                None => Err(wrong(None)),
                Some(size) if (least..=most).contains(&size) => Ok(Some(size)),
                Some(_) => Err(wrong(Some((least, most)))),
            }
        };
        let most = i64::MAX.unsigned_abs();
        let longest = i32::MAX.unsigned_abs().into();
        Ok(Blocks {
            size: number("bs", &self.bs, 1, longest)?.unwrap_or(512),
            count: number("count", &self.count, 0, most)?,
            skip: number("skip", &self.skip, 0, most)?.unwrap_or(0),
        })
    }
}

/// An operand of `dd` that says no blocks.
#[derive(Debug)]
pub(crate) struct WrongBlocks {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    /// Where it must lie; `None` where it is no number.
    pub(crate) range: Option<(u64, u64)>,
}

impl From<WrongBlocks> for Failure {
    fn from(wrong: WrongBlocks) -> Self {
        let WrongBlocks { name, value, range } = wrong;
        let why = match range {
            Some((least, most)) => format!("it must be from {least} to {most}"),
            None => "it is not a number: write digits and a unit, such as 64K".to_owned(),
        };
        Self::usage(format!("{name}={value}: {why}"))
    }
}

impl Blocks {
    /// Which bytes of an image of `size` bytes they are: the first one and the length. `None` where the image ends
    /// before they begin.
    pub(crate) fn within(self, size: u64) -> Option<(u64, u64)> {
        let begin = self.skip.checked_mul(self.size)?;
        let room = size.checked_sub(begin)?;
        let wanted = self.count.map(|count| count.saturating_mul(self.size));
        Some((begin, wanted.map_or(room, |wanted| wanted.min(room))))
    }
}

/// How the two sides of `dd` are written.
const SIDES: &str = "blockferry dd if=SOURCE of=DESTINATION";

impl DdJob {
    pub(crate) fn resolve(
        args: &DdArgs,
        common: Common,
        terminals: Terminals,
    ) -> Result<Self, Failure> {
        let operands = DdOperands::read(&args.operands).map_err(|key| {
            Failure::usage(format!("{key}: dd knows if=, of=, bs=, count= and skip=")).hint(SIDES)
        })?;
        let blocks = operands.blocks()?;
        let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
            return Err(Failure::usage("dd needs a source and a destination").hint(SIDES));
        };
        let source = Endpoint::parse(input)?.interpreted(kind(args.formats.format));
        if let EndpointKind::Standard = source.kind() {
            return Err(Failure::usage(
                "dd needs an image with offsets, and standard input is a stream: use copy",
            ));
        }
        let destination = Endpoint::parse(output)?;
        check_sides(&source, &destination, false, terminals)?;
        let format = NewFormat {
            kind: kind(args.output_format),
            ..NewFormat::default()
        };
        let (format, _) = format
            .resolve()
            .map_err(|message| Failure::usage(format!("-O: {message}")))?;
        let copy = CopyJob {
            trust: Trust::resolve(&args.formats.follow),
            timeouts: Timeouts::resolve(args.timeouts),
            shared: args.force_share,
            show: Show::resolve(args.progress, common, terminals),
            report: match common.quiet {
                true => ReportStyle::Nothing,
                false => ReportStyle::Sentence,
            },
            warnings: !common.quiet,
            verbose: common.verbose,
            ..CopyJob::new(source, destination, format)
        };
        Ok(Self { copy, blocks })
    }
}

/// A new size: `SIZE`, `+SIZE`, `-SIZE`.
pub(crate) fn new_size(text: &str) -> Option<NewSize> {
    let size = |text: &str| parse_size(text.trim_start()).ok();
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => size(more).map(NewSize::Larger),
        (_, Some(less)) => size(less).map(NewSize::Smaller),
        _ => size(text).map(NewSize::Exactly),
    }
}

impl ResizeJob {
    pub(crate) fn resolve(args: &ResizeArgs, common: Common) -> Result<Self, Failure> {
        let size = new_size(&args.size).ok_or_else(|| {
            let size = printable(args.size.as_ref());
            Failure::usage(format!("{size}: it is not a size")).hint("write 10G, +512M or -1G")
        })?;
        let mut options = ResizeOptions::default();
        options.shrink = args.shrink;
        options.preallocation = match args.preallocation {
            PreallocationArg::Off => Preallocation::Off,
            PreallocationArg::Metadata => Preallocation::Metadata,
            PreallocationArg::Falloc => Preallocation::Falloc,
            PreallocationArg::Full => Preallocation::Full,
        };
        Ok(Self {
            image: Endpoint::parse(&args.file)?.interpreted(kind(args.format)),
            size,
            options,
            trust: Trust::resolve(&FollowArgs {
                allow_backing: args.allow_backing.clone(),
                max_size: None,
            }),
            quiet: common.quiet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(words: &[&str]) -> Result<Blocks, String> {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        let read = DdOperands::read(&words)?;
        read.blocks()
            .map_err(|wrong| Failure::from(wrong).to_string())
    }

    #[test]
    fn the_operands_of_dd_are_keys_with_values() {
        let words = ["if=a=b", "of=c", "bs=4k", "bs=1M"].map(OsString::from);
        let read = DdOperands::read(&words).expect("good");
        assert_eq!(read.input, Some(OsString::from("a=b")));
        assert_eq!(read.bs, Some(OsString::from("1M")));
        for word in ["seek=1", "conv=notrunc", "x", "if"] {
            let key = word.split('=').next().expect("a key");
            let refused = DdOperands::read(&[OsString::from(word)]);
            assert_eq!(refused, Err(key.to_owned()));
        }
        assert!(
            blocks(&["bs=0"])
                .expect_err("0")
                .contains("bs=0: it must be from 1 to")
        );
        assert!(blocks(&["bs=2G"]).expect_err("2G").contains("2147483647"));
        assert!(
            blocks(&["bs=x"])
                .expect_err("x")
                .contains("bs=x: it is not a number")
        );
        let negative = blocks(&["count=-1"]).expect_err("-1");
        assert!(negative.contains("it must be from 0 to"), "{negative}");
    }

    #[test]
    fn blocks_end_where_the_image_does() {
        let within = |words: &[&str], size| blocks(words).expect("good").within(size);
        assert_eq!(within(&[], 1000), Some((0, 1000)));
        assert_eq!(within(&["count=1"], 1000), Some((0, 512)));
        assert_eq!(within(&["skip=1", "count=1"], 2000), Some((512, 512)));
        assert_eq!(within(&["skip=1", "count=9"], 1000), Some((512, 488)));
        assert_eq!(within(&["bs=500", "skip=2"], 1000), Some((1000, 0)));
        assert_eq!(within(&["bs=500", "skip=3"], 1000), None);
        assert_eq!(within(&["bs=1G", "skip=7E"], 1000), None);
        assert_eq!(within(&["bs=1G", "count=7E"], 1000), Some((0, 1000)));
    }

    #[test]
    fn sizes_are_absolute_or_not() {
        assert_eq!(new_size("1M"), Some(NewSize::Exactly(1 << 20)));
        assert_eq!(new_size("+1k"), Some(NewSize::Larger(1024)));
        assert_eq!(new_size("-1"), Some(NewSize::Smaller(1)));
        for text in ["", "+", "-", "x", "+-1", "--1"] {
            assert_eq!(new_size(text), None, "{text}");
        }
        assert_eq!(NewSize::Larger(u64::MAX).after(1), None);
        assert_eq!(NewSize::Smaller(2).after(1), None);
        assert_eq!(NewSize::Smaller(2).after(3), Some(1));
    }
}
