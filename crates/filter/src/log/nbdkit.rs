//! The lines that nbdkit-log-filter(1) writes, section "Files": programs search them for requests.
//!
//! Its lines on what is not a device's (`Ready`, `Fork`, `Preconnect`) are not written.

use std::fmt::Write;

use blockferry_block::{
    Capabilities, Context, DeviceInfo, ErrorKind, Operation, Status, ZeroFlags,
};
use time::OffsetDateTime;

use crate::watched::{Outcome, Request};

use super::Facts;

/// A device was opened.
pub(super) fn opened(handle: u64, facts: &Facts, info: &DeviceInfo) -> String {
    let can = |ability| u8::from(info.can(ability));
    // 0: not at all, 1: by other requests, 2: by itself.
    let natively = |ability| 2 * can(ability);
    let writes = info.can(Capabilities::WRITE) && !facts.read_only;
    let limits = info.limits;
    line(
        handle,
        format_args!(
            "Connect export={} tls={} size={:#x} minsize={:#x} prefsize={:#x} maxsize={:#x} write={} flush={} \
             rotational={} trim={} zero={} fua={} extents={} cache={} fast_zero={}",
            quoted(&facts.export),
            u8::from(facts.tls),
            info.size,
            limits.minimum,
            limits.preferred,
            limits.maximum,
            u8::from(writes),
            can(Capabilities::FLUSH),
            u8::from(info.rotational),
            can(Capabilities::TRIM),
            natively(Capabilities::ZERO),
            natively(Capabilities::FUA),
            u8::from(info.knows_allocation()),
            natively(Capabilities::CACHE),
            can(Capabilities::FAST_ZERO),
        ),
    )
}

/// A device was closed.
pub(super) fn closed(handle: u64, requests: u64) -> String {
    line(handle, format_args!("Disconnect transactions={requests}"))
}

/// A request begins.
pub(super) fn begun(handle: u64, number: u64, request: &Request<'_>) -> String {
    let mut text = format!("{} id={number}", verb(request.operation));
    let flag = |flag| u8::from(request.flags.contains(flag));
    // Writing to a string cannot fail.
    if request.operation != Operation::Flush {
        let (offset, count) = (request.range.start(), request.range.len());
        let _ = write!(text, " offset={offset:#x} count={count:#x}");
    }
    match request.operation {
        Operation::Write | Operation::Trim => {
            let _ = write!(text, " fua={}", flag(ZeroFlags::FUA));
        }
        Operation::Zero => {
            let may_trim = 1 - flag(ZeroFlags::NO_HOLE);
            let (fua, fast) = (flag(ZeroFlags::FUA), flag(ZeroFlags::FAST));
            let _ = write!(text, " trim={may_trim} fua={fua} fast={fast}");
        }
        // Below the server nobody asks for one extent alone.
        Operation::Extents => text.push_str(" req_one=0"),
        _ => {}
    }
    line(handle, format_args!("{text} ..."))
}

/// A request has ended.
pub(super) fn ended(
    handle: u64,
    number: u64,
    request: &Request<'_>,
    outcome: Outcome<'_>,
) -> String {
    let verb = verb(request.operation);
    let result = match outcome {
        Outcome::Done => "return=0".to_owned(),
        Outcome::Extents(list) => {
            let is_allocation = request.context.is_none_or(|it| *it == Context::Allocation);
            let extents = list.iter().map(|extent| {
                let (start, length) = (extent.range.start(), extent.range.len());
                let kind = match (is_allocation, extent.status) {
                    (true, status) => kind(status).to_owned(),
                    (false, Status(bits)) => bits.to_string(),
                };
                format!("{start:#x} {length:#x} \"{kind}\"")
            });
            let extents: Vec<_> = extents.collect();
            format!("extents=({}) return=0", extents.join(" "))
        }
        Outcome::Failed(error) => format!("return=-1 error={}", errno(error.kind())),
        Outcome::GivenUp => "return=-1 error=ECANCELED".to_owned(),
    };
    line(handle, format_args!("...{verb} id={number} {result}"))
}

fn kind(status: Status) -> &'static str {
    match (status.is_hole(), status.is_zero()) {
        (true, true) => "hole,zero",
        (true, false) => "hole",
        (false, true) => "zero",
        (false, false) => "",
    }
}

/// A name as a shell would read it.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) {
        return name.to_owned();
    }
    let mut text = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' | '$' | '`' => text.extend(['\\', c]),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "Read",
        Operation::Write => "Write",
        Operation::Zero => "Zero",
        Operation::Trim => "Trim",
        Operation::Flush => "Flush",
        Operation::Extents => "Extents",
        Operation::Cache => "Cache",
        Operation::Resize => "Resize",
        _ => "Other",
    }
}

fn errno(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotPermitted => "EPERM",
        ErrorKind::ReadOnly => "EROFS",
        ErrorKind::OutOfMemory => "ENOMEM",
        ErrorKind::InvalidInput | ErrorKind::OutOfBounds => "EINVAL",
        ErrorKind::NoSpace => "ENOSPC",
        ErrorKind::Overflow => "EOVERFLOW",
        ErrorKind::Unsupported => "ENOTSUP",
        ErrorKind::ShuttingDown => "ESHUTDOWN",
        ErrorKind::TimedOut => "ETIMEDOUT",
        _ => "EIO",
    }
}

fn line(handle: u64, text: std::fmt::Arguments<'_>) -> String {
    let now = OffsetDateTime::now_utc();
    let (hour, minute, second, micros) = now.to_hms_micro();
    format!(
        "{} {hour:02}:{minute:02}:{second:02}.{micros:06} connection={handle} {text}",
        now.date()
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use blockferry_block::{
        BlockDevice, Buffer, ByteRange, MemoryDevice, SingleExport, WriteFlags,
    };

    use crate::{Chain, LogFormat, LogRequests, NamedFilter};

    #[test]
    fn names_are_quoted_where_a_shell_would_mind() {
        for (name, shown) in [
            ("", "\"\""),
            ("disk-1_a./=,:", "disk-1_a./=,:"),
            ("a b", "\"a b\""),
            ("a\"$`\\", "\"a\\\"\\$\\`\\\\\""),
            ("a\nb", "\"a\\nb\""),
        ] {
            assert_eq!(super::quoted(name), shown);
        }
    }

    #[tokio::test]
    async fn requests_are_told_when_they_begin_and_when_they_end() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("log");
        let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(1 << 20));
        let filter = LogRequests {
            format: LogFormat::Nbdkit,
            ..LogRequests::to(&path)
        };
        let exports = Arc::new(SingleExport::new(below));
        let chain = Chain::new(&[NamedFilter::new(filter)], exports).expect("a chain");
        let open = chain.exports().open("", Default::default()).await;
        let device = open.expect("an export").device;
        let data = Buffer::zeroed(4096);
        let written = device.write(8192, data, WriteFlags::FUA).await;
        written.expect("written");
        let beyond = device.read(1 << 20, Buffer::zeroed(512)).await;
        beyond.expect_err("out of bounds");
        let all = ByteRange::between(0, 65536);
        let asked = device.extents(all, &"base:allocation".into()).await;
        asked.expect("extents");
        drop(device);
        chain.exports().close().await;
        let text = fs::read_to_string(&path).expect("a log");
        let lines: Vec<_> = text.lines().map(|line| &line[27..]).collect();
        assert!(lines[0].starts_with("connection=1 Connect export=\"\" tls=0 size=0x100000 "));
        assert_eq!(
            lines[1..],
            [
                "connection=1 Write id=1 offset=0x2000 count=0x1000 fua=1 ...",
                "connection=1 ...Write id=1 return=0",
                "connection=1 Read id=2 offset=0x100000 count=0x200 ...",
                "connection=1 ...Read id=2 return=-1 error=EINVAL",
                "connection=1 Extents id=3 offset=0x0 count=0x10000 req_one=0 ...",
                "connection=1 ...Extents id=3 extents=(0x0 0x8000 \"\" 0x8000 0x8000 \"hole,zero\") return=0",
                "connection=1 Disconnect transactions=3",
            ]
        );
    }
}
