//! `blockferry check`: whether an image contradicts itself. `compat/qemu_img` checks in the same way.
//!
//! A qcow2 image counts its clusters. Other formats count nothing: there every table is read.

use std::process::ExitCode;

use serde::Serialize;

use crate::{
    block::{Access, ByteRange, Error, ErrorKind},
    endpoint::{Endpoint, FormatKind, OpenDevice, OpenOptions, open_device, repair_qcow2},
    format::{
        Format,
        qcow2::{self, CheckReport, RepairMode},
    },
};

use super::{
    super::{
        failure::Failure,
        options::{CheckJob, open_options},
        output::{print, tell},
        signals::Signals,
    },
    copy::unless_interrupted,
    info::json,
};

/// The exit codes, which are those of qemu-img.
const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKING: u8 = 3;
const WITHOUT_CHECKS: u8 = 63;

/// What was found.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) format: Format,
    pub(crate) report: CheckReport,
}

/// What is shown of it, with the keys of qemu-img. Numbers that say nothing are left out.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown<'a> {
    filename: &'a str,
    format: &'static str,
    check_errors: u64,
    corruptions: u64,
    leaks: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    #[serde(flatten)]
    clusters: Option<Clusters>,
    findings: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Clusters {
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    image_end_offset: u64,
}

impl Checked {
    /// The exit code that says what was found.
    pub(crate) fn code(&self) -> u8 {
        match &self.report {
            report if report.check_errors > 0 => NOT_CHECKED,
            report if report.corruptions > 0 => CORRUPT,
            report if report.leaks > 0 => LEAKING,
            _ => 0,
        }
    }
}

pub(crate) fn run(job: &CheckJob) -> Result<ExitCode, Failure> {
    let options = job.trust.in_options(open_options(job.timeouts));
    let Some(checked) = check_unless_interrupted(&job.endpoint, job.repair, &options)? else {
        let message = format!("{}: there is nothing to check in a raw image", job.endpoint);
        tell(&format!("blockferry: {message}"));
        return Ok(ExitCode::from(WITHOUT_CHECKS));
    };
    let text = match job.json {
        true => json::pretty(&shown(job.endpoint.name(), &checked)),
        false if job.quiet => String::new(),
        false => text(job.endpoint.name(), &checked),
    };
    print(&text)?;
    Ok(ExitCode::from(checked.code()))
}

/// The same as [`check`], until a signal asks for the end. An image that is being mended is no worse then than it was.
///
/// # Errors
/// As those of [`check`], and the interruption.
pub(crate) fn check_unless_interrupted(
    endpoint: &Endpoint,
    repair: Option<RepairMode>,
    options: &OpenOptions,
) -> Result<Option<Checked>, Failure> {
    let runtime = super::runtime()?;
    let checked = runtime.block_on(async {
        let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
        let checked = unless_interrupted(check(endpoint, repair, options), &mut signals).await;
        checked.map_err(|failure| match repair {
            Some(_) => failure.note(format!(
                "{endpoint} is no worse than it was, and may be mended in part: the repair can be done again"
            )),
            None => failure,
        })
    });
    // What is in flight still is not waited for.
    runtime.shutdown_background();
    Ok(checked??)
}

/// Checks the image that the endpoint is; `None` where its bytes are the disk.
///
/// # Errors
/// What opening, reading and mending failed with; `Unsupported` where there is nothing that can be mended.
async fn check(
    endpoint: &Endpoint,
    repair: Option<RepairMode>,
    options: &OpenOptions,
) -> Result<Option<Checked>, Error> {
    let opened = open_device(endpoint, Access::ReadOnly, options).await;
    let kind = match &opened {
        Ok(opened) => opened.connection.format(),
        // What a check looks at is in the image itself.
        Err(error) if error.kind() == ErrorKind::NotPermitted => FormatKind::Image(Format::Qcow2),
        Err(_) => endpoint.format().kind,
    };
    let (format, report) = match (kind, opened) {
        (FormatKind::Image(Format::Qcow2), opened) => {
            if let Ok(opened) = opened {
                opened.connection.abandon().await;
            }
            let report = match repair {
                Some(mode) => repair_qcow2(endpoint, mode, options).await?,
                None => count(endpoint, options).await?,
            };
            (Format::Qcow2, report)
        }
        (FormatKind::Image(format), Ok(opened)) if repair.is_some() => {
            opened.connection.abandon().await;
            let message = format!("{format} images are not mended: only qcow2 images are");
            let error = Error::with_message(ErrorKind::Unsupported, message);
            return Err(error.on(endpoint.name()));
        }
        (FormatKind::Image(format), Ok(opened)) => (format, walk(opened).await),
        (_, Ok(opened)) => {
            opened.connection.close().await?;
            return Ok(None);
        }
        (_, Err(error)) => return Err(error),
    };
    Ok(Some(Checked { format, report }))
}

/// Counts the clusters of a qcow2 image.
async fn count(endpoint: &Endpoint, options: &OpenOptions) -> Result<CheckReport, Error> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadOnly, options).await?;
    let report = qcow2::check(&*device).await;
    drop(device);
    connection.abandon().await;
    report.map_err(|error| error.on(endpoint.name()))
}

/// Reads every table of an image.
async fn walk(opened: OpenDevice) -> CheckReport {
    let mut report = CheckReport::default();
    let layers = opened.connection.layers();
    if let Some(image) = layers.chain().next().and_then(|layer| layer.image.as_ref()) {
        let mut rest = ByteRange::between(0, image.info().size);
        while !rest.is_empty() {
            let end = match image.placed(rest).await {
                Ok(placed) => placed.last().map_or(rest.end(), |last| last.range.end()),
                Err(error) => {
                    // What lies behind the damage cannot be told apart from it.
                    match error.kind() {
                        ErrorKind::Corrupt => report.corruptions += 1,
                        _ => report.check_errors += 1,
                    }
                    report.findings.push(error.to_string());
                    break;
                }
            };
            rest = ByteRange::between(end.max(rest.start() + 1), rest.end().max(end));
        }
    }
    opened.connection.abandon().await;
    report
}

fn shown<'a>(name: &'a str, checked: &'a Checked) -> Shown<'a> {
    let report = &checked.report;
    Shown {
        filename: name,
        format: checked.format.name(),
        check_errors: report.check_errors,
        corruptions: report.corruptions,
        leaks: report.leaks,
        corruptions_fixed: report.corruptions_fixed,
        leaks_fixed: report.leaks_fixed,
        clusters: (checked.format == Format::Qcow2).then_some(Clusters {
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: report.compressed_clusters,
            image_end_offset: report.image_end,
        }),
        findings: &report.findings,
    }
}

fn text(name: &str, checked: &Checked) -> String {
    let report = &checked.report;
    let mut text: String = report
        .findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    let counted = [
        (report.corruptions_fixed, "corruptions mended"),
        (report.leaks_fixed, "leaked clusters given back"),
        (report.check_errors, "could not be looked at"),
        (report.corruptions, "corrupt"),
        (
            report.leaks,
            "clusters leaked, which wastes space and harms no data",
        ),
    ];
    for (count, what) in counted.into_iter().filter(|counted| counted.0 > 0) {
        text += &format!("{name}: {count} {what}\n");
    }
    if checked.code() == 0 {
        text += &format!("{name}: sound\n");
    }
    if checked.format == Format::Qcow2 {
        text = text + &clusters_text(report) + "\n";
    }
    text
}

/// `6/1024 = 0.59% allocated, 16.67% fragmented, 16.67% compressed clusters`, as qemu-img says it.
pub(crate) fn clusters_text(report: &CheckReport) -> String {
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    format!(
        "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
        percent(allocated, total),
        percent(report.fragmented_clusters, allocated),
        percent(report.compressed_clusters, allocated)
    )
}
