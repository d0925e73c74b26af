//! What was copied how, in words, and on what machine.

use std::{env, fs, num::NonZero, thread, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    block::HumanSize,
    copy::{Order, Report, RequestKind},
    endpoint::DestinationFormat,
};

use super::{
    super::{failure::Failure, options::CopyJob, report::HumanTime},
    counters_row,
    record::Record,
};

type Rows = Vec<(String, String)>;

/// When the page was written, in UTC.
pub(super) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

/// Everything that was counted.
pub(super) fn numbers(
    record: &Record,
    job: &CopyJob,
    result: Result<&(Report, Duration), &Failure>,
) -> Rows {
    let mut rows = Rows::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let progress = record.progress;
    if let Some(size) = result.ok().map(|(it, _)| it.size).or(record.size) {
        row("size of the image", bytes(size));
    }
    row("done", bytes(progress.done));
    row("of it data", bytes(progress.data));
    row("of it zero", bytes(progress.zero));
    row("done before", bytes(record.before));
    let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f64());
    row("time", seconds(record.elapsed()));
    let (flushing, verifying) = (record.flushing, record.verifying);
    if let Some(flushing) = flushing {
        let end = verifying.unwrap_or(record.elapsed());
        row(
            "of it until all was durable",
            seconds(end.saturating_sub(flushing)),
        );
    }
    if let Some(verifying) = verifying {
        let verified = record.elapsed().saturating_sub(verifying);
        row("of it to read all back", seconds(verified));
    }
    let total = record.timeline.total();
    for (kind, name) in [
        (RequestKind::Read, "reads"),
        (RequestKind::Write, "writes"),
        (RequestKind::TakeOver, "ranges taken over by the kernel"),
    ] {
        let Some(latency) = total.latency(kind) else {
            continue;
        };
        let quantile = |part| {
            let time = latency.quantile(part).unwrap_or_default();
            format!("{:.3} ms", time.as_secs_f64() * 1e3)
        };
        let [median, slow, most] = [0.5, 0.99, 1.0].map(quantile);
        let value = format!(
            "{}: {median} in the median, {slow} for 99%, {most} at most",
            latency.total()
        );
        row(name, value);
    }
    if total.zeroing > 0 {
        row("requests that made zeroes", total.zeroing.to_string());
    }
    if total.in_flight > 0 {
        row("most bytes in flight", bytes(total.in_flight));
    }
    if let Ok((report, _)) = result {
        row("questions for extents", report.extent_requests.to_string());
        row(
            "connections to the source",
            report.source_connections.to_string(),
        );
        let connections = report.destination_connections;
        row("connections to the destination", connections.to_string());
        row("connections opened again", report.reconnections.to_string());
        row("request size in the end", bytes(report.request_size.into()));
        row("allowed in flight in the end", bytes(report.queue_size));
        row("flushed", yes(report.flushed));
        row("verified", yes(report.verified));
        if let (Some(digest), Some(options)) = (report.digest, job.engine.digest) {
            row("digest", format!("{digest} ({options})"));
        }
    }
    if let Some(expected) = job.digest.expect {
        row("expected digest", expected.to_string());
    }
    rows.extend(record.filters.iter().map(counters_row));
    rows
}

/// The two sides.
pub(super) fn sides(record: &Record, job: &CopyJob) -> Rows {
    let mut rows = vec![("source".to_owned(), job.source.to_string())];
    for filter in job.source.filters() {
        rows.push(("behind the filter".to_owned(), filter.to_string()));
    }
    rows.push(("destination".to_owned(), job.destination.to_string()));
    rows.push(("becomes".to_owned(), becomes(&job.format).to_owned()));
    rows.extend(record.sides.iter().cloned());
    rows
}

fn becomes(format: &DestinationFormat) -> &'static str {
    match format {
        DestinationFormat::Raw => "a raw image",
        DestinationFormat::RawInPlace => "a raw image, in place",
        DestinationFormat::Qcow2(new) if new.create.compress => "a compressed qcow2 image",
        DestinationFormat::Qcow2(_) => "a qcow2 image",
        DestinationFormat::Vmdk(_) => "a VMDK image",
        DestinationFormat::Vpc(_) => "a VHD image",
        DestinationFormat::Vhdx(_) => "a VHDX image",
        DestinationFormat::Vdi(_) => "a VDI image",
        DestinationFormat::Packed(_) => "the image's bytes, compressed",
        DestinationFormat::Qcow2InPlace => "a qcow2 image, in place",
    }
}

/// Every option as it was resolved.
pub(super) fn options(job: &CopyJob) -> Rows {
    let engine = &job.engine;
    let adaptive = |value: Option<String>| value.unwrap_or_else(|| "adaptive".to_owned());
    let wait = |time: Option<Duration>| match time {
        Some(time) => HumanTime(time).to_string(),
        None => "as long as it takes".to_owned(),
    };
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let order = match engine.order {
        Order::Any => "as answers come",
        Order::Ascending => "from front to back",
    };
    let rate = match (&job.rate.file, job.rate.limit) {
        (Some(file), _) => format!("as {} says", file.display()),
        (None, Some(rate)) if rate > 0 => format!("{}/s", HumanSize(rate)),
        _ => "none".to_owned(),
    };
    let rows = [
        ("connections", engine.connections.to_string()),
        (
            "requests on each",
            adaptive(engine.requests.map(|it| it.to_string())),
        ),
        (
            "request size",
            adaptive(engine.request_size.map(|it| bytes(it.into()))),
        ),
        ("bytes in flight", adaptive(engine.queue_size.map(bytes))),
        ("order", order.to_owned()),
        (
            "zeroes become holes from",
            or_none(engine.sparse.map(|it| bytes(it.into()))),
        ),
        ("allocated", yes(engine.allocated)),
        ("destination is zero", yes(engine.destination_is_zero)),
        ("flush", yes(engine.flush)),
        ("extents are asked for", yes(engine.extents)),
        ("attempts to connect again", engine.retries.to_string()),
        ("digest", or_none(engine.digest.map(|it| it.to_string()))),
        ("verify", yes(engine.verify)),
        (
            "checkpoint",
            or_none(job.checkpoint.as_ref().map(|it| it.display().to_string())),
        ),
        ("limit of the rate", rate),
        (
            "longest wait for a connection",
            wait(Some(job.timeouts.connect)),
        ),
        ("longest wait for an answer", wait(job.timeouts.request)),
        ("longest wait for a flush", wait(job.timeouts.flush)),
    ];
    rows.map(|(name, value)| (name.to_owned(), value)).into()
}

/// The program, and the machine that it ran on, without its name.
pub(super) fn machine() -> Rows {
    let kernel = |file: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{file}"));
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let kernel = format!("{} {}", kernel("ostype"), kernel("osrelease"));
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    [
        ("blockferry", env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel", kernel),
        ("architecture", env::consts::ARCH.to_owned()),
        ("processors", processors.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// A number of bytes as people read it, and all of it where that is not the same.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => HumanSize(bytes).to_string(),
        _ => format!("{} ({bytes} bytes)", HumanSize(bytes)),
    }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
