//! What `--list` prints of a server's exports.

use std::fmt::Write;

use crate::{
    cli::{commands::info::ask_server, failure::Failure, options::Timeouts},
    client::blocking,
    endpoint::{Endpoint, printable},
    proto::{Listed, Negotiated, ReplyMode, TransmissionFlags as Flags},
};

/// The names of the transmission flags in the order of their bits.
const FLAGS: &[(Flags, &str)] = &[
    (Flags::READ_ONLY, "readonly"),
    (Flags::SEND_FLUSH, "flush"),
    (Flags::SEND_FUA, "fua"),
    (Flags::ROTATIONAL, "rotational"),
    (Flags::SEND_TRIM, "trim"),
    (Flags::SEND_WRITE_ZEROES, "zeroes"),
    (Flags::SEND_DF, "df"),
    (Flags::CAN_MULTI_CONN, "multi"),
    (Flags::SEND_RESIZE, "resize"),
    (Flags::SEND_CACHE, "cache"),
    (Flags::SEND_FAST_ZERO, "fast-zero"),
    (Flags::BLOCK_STATUS_PAYLOAD, "block-status-payload"),
];

/// Everything that the server at `endpoint` tells of its exports.
pub(super) fn list(endpoint: &Endpoint) -> Result<String, Failure> {
    let report = ask_server(endpoint, Timeouts::PATIENT, |server| {
        blocking::list(server.uri, &server.options)
    })?;
    Ok(text(&report.exports))
}

fn text(exports: &[Listed]) -> String {
    let mut text = format!("exports available: {}\n", exports.len());
    for listed in exports {
        // Names and descriptions are the server's: nothing in them reaches the terminal as a command.
        let line = |text: &mut String, line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        let (name, description) = (&listed.export.name, &listed.export.description);
        line(
            &mut text,
            format!(" export: '{}'", printable(name.as_ref())),
        );
        if !description.is_empty() {
            let description = printable(description.as_ref());
            line(&mut text, format!("  description: {description}"));
        }
        match &listed.info {
            Ok(negotiated) => details(&mut text, negotiated),
            Err(error) => line(&mut text, format!("  error: {error}")),
        }
    }
    text
}

fn details(text: &mut String, negotiated: &Negotiated) {
    let export = &negotiated.export;
    let flags = export.flags;
    // Writing into a string fails never.
    let _ = writeln!(text, "  size:  {}", export.size);
    let names = FLAGS.iter().filter(|(flag, _)| flags.contains(*flag));
    let names: String = names.map(|(_, name)| format!(" {name}")).collect();
    let _ = writeln!(text, "  flags: {:#x} ({names} )", flags.bits());
    if let Some(sizes) = export.block_sizes {
        let _ = writeln!(text, "  min block: {}", sizes.minimum());
        let _ = writeln!(text, "  opt block: {}", sizes.preferred());
        let _ = writeln!(text, "  max block: {}", sizes.maximum());
    }
    let bits = match negotiated.mode {
        ReplyMode::Extended => 64,
        _ => 32,
    };
    let _ = writeln!(text, "  transaction size: {bits}-bit");
    if negotiated.contexts.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "  available meta contexts: {}",
        negotiated.contexts.len()
    );
    for context in &negotiated.contexts {
        let _ = writeln!(text, "   {}", printable(context.name.as_ref()));
    }
}
