//! The options of the commands that look at one image: `check`, `measure`, `snapshot`, `bitmap`.

use crate::{
    block::Error,
    cli::{
        args::{CheckArgs, Common, FormatArg, ListingArgs, MeasureArgs, RepairArg},
        commands::measure::{Subject, Target},
        failure::Failure,
    },
    endpoint::{Endpoint, ImageFormat, NewQcow2, raw_is_allocated},
    format::qcow2::RepairMode,
};

use super::{Timeouts, Trust, formats::kind, seekable};

/// A resolved `check`.
#[derive(Debug)]
pub(crate) struct CheckJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) repair: Option<RepairMode>,
    pub(crate) trust: Trust,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

/// A resolved `measure`.
#[derive(Debug)]
pub(crate) struct MeasureJob {
    pub(crate) subject: Subject,
    pub(crate) target: Target,
    pub(crate) trust: Trust,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

/// A resolved `snapshot` or `bitmap`.
#[derive(Debug)]
pub(crate) struct ListingJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

impl CheckJob {
    pub(crate) fn resolve(args: &CheckArgs, common: Common) -> Result<Self, Failure> {
        Ok(Self {
            endpoint: seekable(&args.image)?.interpreted(kind(args.formats.format)),
            repair: args.repair.map(|what| match what {
                RepairArg::Leaks => RepairMode::Leaks,
                RepairArg::All => RepairMode::All,
            }),
            trust: Trust::resolve(&args.formats.follow),
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
            quiet: common.quiet,
        })
    }
}

impl MeasureJob {
    pub(crate) fn resolve(args: &MeasureArgs) -> Result<Self, Failure> {
        let subject = match (&args.image, args.size) {
            (Some(image), _) => {
                let format = ImageFormat {
                    kind: kind(args.formats.format),
                    snapshot: args.snapshot.clone(),
                };
                Subject::Copy(seekable(image)?.interpreted(format))
            }
            (None, size) => Subject::Size(size.map_or(0, |size| size.0)),
        };
        let wrong = |why: String| Failure::usage(format!("-o: {why}"));
        let target = match args.output_format {
            FormatArg::Raw => {
                raw_is_allocated(&args.option).map_err(wrong)?;
                Target::Raw
            }
            FormatArg::Qcow2 => {
                let new = NewQcow2::parse(&args.option).map_err(wrong)?;
                let checked = new.check();
                checked.map_err(|error: Error| wrong(error.to_string()))?;
                Target::Qcow2(Box::new(new))
            }
            _ => {
                return Err(Failure::usage(
                    "-O: only raw and qcow2 can be measured: how long others become is known at their end",
                ));
            }
        };
        Ok(Self {
            subject,
            target,
            trust: Trust::resolve(&args.formats.follow),
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }
}

impl ListingJob {
    pub(crate) fn resolve(args: &ListingArgs) -> Result<Self, Failure> {
        Ok(Self {
            endpoint: seekable(&args.image)?.interpreted(kind(args.format)),
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }
}
