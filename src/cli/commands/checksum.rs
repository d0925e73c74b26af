//! `blockferry checksum`: the digest of an image, of anything that can be read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    block::{Error, ErrorKind, NullDevice},
    copy::{self, Control, Destination, Digest, DigestOptions, ExpectedDigest, Report},
    endpoint::{Endpoint, OpenSource, open_source},
};

use super::{
    super::{
        failure::Failure,
        options::{ChecksumJob, open_options},
        output::{print, tell},
        progress::{End, View},
        report::rate,
        signals::Signals,
    },
    copy::unless_interrupted,
};

pub(crate) fn run(job: ChecksumJob) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let result = runtime.block_on(checksum(job));
    // A thread that sits in a read of standard input would never let a usual shutdown end.
    runtime.shutdown_background();
    result
}

async fn checksum(job: ChecksumJob) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let mut options = job.trust.in_options(open_options(job.timeouts));
    if !job.engine.extents {
        options.contexts.clear();
    }
    let source = open_source(&job.image, &options);
    let OpenSource {
        source,
        mut connection,
    } = unless_interrupted(source, &mut signals).await??;

    let view = View::new(job.show.clone(), job.quiet);
    let control = Control::new();
    let begun = Instant::now();
    // The image is copied to nowhere. There is nothing to finish when somebody wants that to end.
    let nowhere = Destination::Device(Arc::new(NullDevice::new(0)));
    let reading = copy::copy(source, nowhere, &job.engine, &control, &view);
    let read = unless_interrupted(reading, &mut signals).await;
    view.finish(match read {
        Ok(Ok(_)) => End::Whole,
        _ => End::Failed,
    });
    match read? {
        Ok(report) => {
            let elapsed = begun.elapsed();
            connection.close().await?;
            tell_digest(&job, &report, elapsed)
        }
        Err(error) => {
            let mut failure = Failure::from(&error.error);
            if let Some(end) = connection.early_end() {
                failure = failure.note(end);
            }
            let _ = unless_interrupted(connection.abandon(), &mut signals).await;
            Err(failure)
        }
    }
}

/// Prints the digest, and fails if it is not the one that is expected.
fn tell_digest(job: &ChecksumJob, report: &Report, elapsed: Duration) -> Result<(), Failure> {
    let Some(digest) = report.digest else {
        return Err(Failure::failed("no digest was computed"));
    };
    if job.verbose {
        let speed = rate(report.size, elapsed);
        tell(&format!(
            "{}: {} bytes, {} of them data, {speed} bytes/s",
            job.options, report.size, report.data,
        ));
    }
    let text = match job.json {
        true => json(job, report, digest, elapsed),
        false => line(digest, &job.image),
    };
    print(&text)?;
    match wrong_digest(job.expect, digest, &job.image) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// A digest as `sha256sum` and its like print it.
pub(super) fn line(digest: Digest, image: &Endpoint) -> String {
    format!("{digest}  {image}\n")
}

/// The failure of an image that has another digest than is expected.
pub(super) fn wrong_digest(
    expect: Option<ExpectedDigest>,
    digest: Digest,
    image: &Endpoint,
) -> Option<Failure> {
    let expected = expect?.digest;
    (expected != digest).then(|| {
        let message = format!("its digest is {digest}, and {expected} is expected");
        Error::with_message(ErrorKind::Mismatch, message)
            .on(image.name())
            .into()
    })
}

/// A digest in a JSON report.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct JsonDigest {
    algorithm: &'static str,
    block_size: u32,
    digest: String,
}

impl JsonDigest {
    pub(crate) fn new(options: DigestOptions, digest: Digest) -> Self {
        Self {
            algorithm: options.algorithm().as_str(),
            block_size: options.block_size(),
            digest: digest.to_string(),
        }
    }
}

fn json(job: &ChecksumJob, report: &Report, digest: Digest, elapsed: Duration) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        image: &'a str,
        #[serde(flatten)]
        digest: JsonDigest,
        size: u64,
        data: u64,
        zero: u64,
        seconds: f64,
    }
    let value = Json {
        image: job.image.name(),
        digest: JsonDigest::new(job.options, digest),
        size: report.size,
        data: report.data,
        zero: report.zero,
        seconds: elapsed.as_secs_f64(),
    };
    let text = serde_json::to_string_pretty(&value).expect("numbers and names only");
    text + "\n"
}
