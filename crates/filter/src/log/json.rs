//! Lines of JSON, one for a request: see [`LogFormat::Json`](super::LogFormat::Json).

use std::time::Duration;

use blockferry_block::{Capabilities, DeviceInfo, Operation, ZeroFlags};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::watched::{Outcome, Request};

use super::{Facts, command};

/// A device was opened.
pub(super) fn opened(handle: u64, facts: &Facts, info: &DeviceInfo) -> String {
    let names = info.capabilities.iter_names();
    let capabilities: Vec<_> = names.map(|(name, _)| name.to_lowercase()).collect();
    line(json!({
        "event": "opened",
        "handle": handle,
        "export": facts.export,
        "size": info.size,
        "read_only": facts.read_only || !info.can(Capabilities::WRITE),
        "tls": facts.tls,
        "capabilities": capabilities,
    }))
}

/// A device was closed.
pub(super) fn closed(handle: u64, requests: u64) -> String {
    line(json!({ "event": "closed", "handle": handle, "requests": requests }))
}

/// A request has ended.
pub(super) fn ended(
    handle: u64,
    number: u64,
    request: &Request<'_>,
    outcome: Outcome<'_>,
    elapsed: Duration,
) -> String {
    let mut event = json!({
        "event": "request",
        "handle": handle,
        "request": number,
        "command": command(request.operation),
        "offset": request.range.start(),
        "length": request.range.len(),
        "fua": request.flags.contains(ZeroFlags::FUA),
        "seconds": elapsed.as_secs_f64(),
        "error": null,
    });
    if let Some(fields) = event.as_object_mut() {
        add_details(fields, request, outcome);
    }
    line(event)
}

fn add_details(fields: &mut Map<String, Value>, request: &Request<'_>, outcome: Outcome<'_>) {
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    if request.operation == Operation::Zero {
        let flag = |flag| request.flags.contains(flag).into();
        set("no_hole", flag(ZeroFlags::NO_HOLE));
        set("fast", flag(ZeroFlags::FAST));
    }
    if let Some(context) = request.context {
        set("context", context.to_string().into());
    }
    match outcome {
        Outcome::Done => {}
        Outcome::Extents(list) => {
            set("extents", list.len().into());
        }
        Outcome::Failed(error) => {
            set("error", error.to_string().into());
            set("kind", format!("{:?}", error.kind()).into());
        }
        Outcome::GivenUp => {
            set("error", "nobody waited for it".into());
            set("kind", "Cancelled".into());
        }
    }
}

/// An event and the time.
fn line(mut event: Value) -> String {
    let now = OffsetDateTime::now_utc().format(&Rfc3339);
    event["time"] = now.unwrap_or_default().into();
    event.to_string()
}
