//! The options of the commands that look at one image: `info`, `map`, `check`, `measure`,
//! `snapshot`, `bitmap`.

use std::path::PathBuf;

use crate::{
    block::{Context, Error},
    cli::{
        args::{
            CheckArgs, Common, FormatArg, InfoArgs, ListingArgs, MapArgs, MeasureArgs, RepairArg,
            SnapshotArgs,
        },
        commands::measure::{Subject, Target},
        failure::Failure,
    },
    endpoint::{Endpoint, EndpointKind, ImageFormat, NewQcow2, SnapshotChange, raw_is_allocated},
    format::qcow2::RepairMode,
    inspect::InspectOptions,
};

use super::{Timeouts, Trust, filters, formats::kind, open_options, sides::seekable};

/// A resolved `info`.
#[derive(Debug)]
pub(crate) struct InfoJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) list: bool,
    /// The images behind it are looked at, too.
    pub(crate) backing_chain: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

/// A resolved `map`.
#[derive(Debug)]
pub(crate) struct MapJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) context: Context,
    pub(crate) totals: bool,
    /// Where everything lies is wanted.
    pub(crate) offsets: bool,
    /// Whether the extents are printed.
    pub(crate) list: bool,
    pub(crate) picture: bool,
    /// The file that a picture is written to.
    pub(crate) svg: Option<PathBuf>,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

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

/// A resolved `snapshot`.
#[derive(Debug)]
pub(crate) enum SnapshotJob {
    List(ListingJob),
    Change {
        image: Endpoint,
        change: SnapshotChange,
        timeouts: Timeouts,
        quiet: bool,
    },
}

/// A resolved `bitmap`, or a `snapshot` that lists.
#[derive(Debug)]
pub(crate) struct ListingJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

impl InfoJob {
    pub(crate) fn resolve(args: &InfoArgs) -> Result<Self, Failure> {
        let endpoint = seekable(&args.endpoint)?.interpreted(kind(args.formats.format));
        let is_server = matches!(
            endpoint.kind(),
            EndpointKind::Nbd(_) | EndpointKind::Command(_)
        );
        if args.list && !is_server {
            return Err(Failure::usage(format!(
                "{endpoint}: --list needs an NBD server"
            )));
        }
        Ok(Self {
            endpoint,
            trust: Trust::resolve(&args.formats.follow),
            list: args.list,
            backing_chain: args.backing_chain,
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }

    /// What is to be found out.
    pub(crate) fn options(&self) -> InspectOptions {
        InspectOptions {
            list: self.list,
            backing_chain: self.backing_chain,
            open: self.trust.in_options(open_options(self.timeouts)),
        }
    }
}

impl MapJob {
    pub(crate) fn resolve(args: &MapArgs) -> Result<Self, Failure> {
        let endpoint = seekable(&args.endpoint)?.interpreted(kind(args.formats.format));
        Ok(Self {
            endpoint: endpoint.behind(filters(&args.filters)?),
            trust: Trust::resolve(&args.formats.follow),
            context: Context::from(&*args.context),
            totals: args.totals,
            offsets: args.offsets,
            list: args.totals || args.offsets || args.json || !(args.picture || args.svg.is_some()),
            picture: args.picture,
            svg: args.svg.clone(),
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }
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
                    ..ImageFormat::default()
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

impl SnapshotJob {
    pub(crate) fn resolve(args: &SnapshotArgs, common: Common) -> Result<Self, Failure> {
        let create = args.create.clone().map(SnapshotChange::Create);
        let apply = args.apply.clone().map(SnapshotChange::Apply);
        let delete = args.delete.clone().map(SnapshotChange::Delete);
        let listing = ListingJob::resolve(&args.listing)?;
        Ok(match create.or(apply).or(delete) {
            None => Self::List(listing),
            Some(change) => Self::Change {
                image: listing.endpoint,
                change,
                timeouts: listing.timeouts,
                quiet: common.quiet,
            },
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
