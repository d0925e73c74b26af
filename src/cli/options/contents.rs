//! The options that are about what images contain: comparisons and digests.

use std::path::PathBuf;

use crate::{
    cli::{
        args::{ChecksumArgs, Common, CompareArgs},
        failure::Failure,
    },
    copy::{CompareOptions, CopyOptions, DigestOptions, ExpectedDigest},
    endpoint::Endpoint,
};

use super::{
    Show, Terminals, Timeouts, Trust, filters,
    formats::kind,
    sides::{check_source, seekable},
};

/// A resolved `compare`.
#[derive(Debug)]
pub(crate) struct CompareJob {
    pub(crate) sides: [Endpoint; 2],
    /// What sizes and the place of a difference are counted in, in bytes.
    pub(crate) size_unit: u64,
    /// Images of one size differ that have other parts allocated.
    pub(crate) statuses: bool,
    pub(crate) trust: Trust,
    pub(crate) engine: CompareOptions,
    pub(crate) show: Show,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) timeouts: Timeouts,
}

/// A resolved `checksum`.
#[derive(Debug)]
pub(crate) struct ChecksumJob {
    pub(crate) image: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) engine: CopyOptions,
    pub(crate) options: DigestOptions,
    pub(crate) expect: Option<ExpectedDigest>,
    pub(crate) show: Show,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) timeouts: Timeouts,
}

/// What becomes of the digest of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct DigestJob {
    /// What it should be.
    pub(crate) expect: Option<ExpectedDigest>,
    pub(crate) to: DigestTo,
}

/// Where a digest is printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum DigestTo {
    /// Nowhere, or in the report.
    #[default]
    Nowhere,
    /// To standard output, with the image's name.
    Output,
    /// To standard error, for standard output is the destination.
    Error,
    /// To standard output, without a name.
    Plain,
    /// To standard error, without a name.
    PlainError,
    /// Into a file, without a name.
    File(PathBuf),
}

impl CompareJob {
    pub(crate) fn resolve(
        args: &CompareArgs,
        common: Common,
        terminals: Terminals,
    ) -> Result<Self, Failure> {
        let mut engine = CompareOptions::default();
        engine.strict = args.strict;
        engine.connections = usize::from(args.reading.connections);
        engine.extents = !args.reading.no_extents;
        engine.retries = args.reading.retries;
        Ok(Self {
            sides: [
                seekable(&args.a)?.interpreted(kind(args.format)),
                seekable(&args.b)?.interpreted(kind(args.other_format)),
            ],
            size_unit: 1,
            statuses: false,
            trust: Trust::resolve(&args.follow),
            engine,
            show: Show::resolve(args.reading.progress, common, terminals),
            json: args.json,
            quiet: common.quiet,
            timeouts: Timeouts::resolve(args.reading.timeouts),
        })
    }
}

impl ChecksumJob {
    pub(crate) fn resolve(
        args: &ChecksumArgs,
        common: Common,
        terminals: Terminals,
    ) -> Result<Self, Failure> {
        let image = Endpoint::parse(&args.image)?.interpreted(kind(args.formats.format));
        let image = image.behind(filters(&args.filters)?);
        check_source(&image, terminals)?;
        let options = digest_options(args.algorithm, args.expect)?.unwrap_or_default();
        let mut engine = CopyOptions::default();
        engine.connections = usize::from(args.reading.connections);
        engine.extents = !args.reading.no_extents;
        engine.retries = args.reading.retries;
        engine.digest = Some(options);
        Ok(Self {
            image,
            trust: Trust::resolve(&args.formats.follow),
            engine,
            options,
            expect: args.expect,
            show: Show::resolve(args.reading.progress, common, terminals),
            json: args.json,
            quiet: common.quiet,
            verbose: common.verbose,
            timeouts: Timeouts::resolve(args.reading.timeouts),
        })
    }
}

/// Which digest is to be computed, where the algorithm was said or a digest is expected.
pub(super) fn digest_options(
    said: Option<DigestOptions>,
    expect: Option<ExpectedDigest>,
) -> Result<Option<DigestOptions>, Failure> {
    let Some(expect) = expect else {
        return Ok(said);
    };
    let options = match (said, expect.options) {
        (Some(said), Some(expected)) if said != expected => {
            return Err(Failure::usage(format!(
                "a digest of {expected} is expected, and one of {said} asked for"
            )));
        }
        (said, expected) => said.or(expected).unwrap_or_default(),
    };
    expect.check(options).map_err(|error| {
        let failure = Failure::usage(format!("--expect: {error}"));
        failure.hint("write which digest it is: --expect ALG/SIZE:HEX")
    })?;
    Ok(Some(options))
}
