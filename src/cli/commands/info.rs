//! `blockferry info`: what a server or a file offers, as text or JSON with nbdinfo's keys.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    block::{Access, Capabilities, DeviceInfo},
    client::{ConnectOptions, blocking},
    endpoint::{EndpointKind, ServerChild, open_device},
    proto::{
        HandshakeFlags, Listed, NbdUri, Negotiated, ReplyMode, TransmissionFlags as Flags,
        Transport,
    },
};

use super::super::{
    args::Size,
    failure::Failure,
    options::{InfoJob, open_options},
    output::print,
};

pub(crate) fn run(job: &InfoJob) -> Result<(), Failure> {
    let facts = match job.endpoint.kind() {
        EndpointKind::Nbd(uri) => ask(uri, job, true)?,
        EndpointKind::Command(command) => {
            let mut child = ServerChild::start(command, &open_options(job.timeouts))?;
            let asked = ask(&child.uri(), job, false);
            asked.map_err(|error| child.explain(error))?
        }
        _ => look(job)?,
    };
    let text = match job.json {
        true => facts.json(),
        false => facts.text(),
    };
    print(&text).map_err(|error| super::standard_output(&error))
}

/// Asks a server, without opening the export. `public` tells whether others can use its URI.
fn ask(uri: &NbdUri, job: &InfoJob, public: bool) -> crate::block::Result<Facts> {
    let options = ConnectOptions {
        name: Some(job.endpoint.name().clone()),
        connect_timeout: job.timeouts.connect,
        ..ConnectOptions::default()
    };
    let shown = public.then_some(uri);
    if job.list {
        return Ok(Facts::of_list(blocking::list(uri, &options)?, shown));
    }
    let negotiated = blocking::info(uri, &options)?.negotiated;
    Ok(Facts {
        server: Some(Server::of(&negotiated)),
        exports: vec![Export::of(&negotiated, &uri.export, shown)],
    })
}

/// Looks at what needs no server. A file is opened as a copy's destination would be, so that what can
/// be done to it is known; a device is not, because closing it then makes the system look at it anew.
fn look(job: &InfoJob) -> Result<Facts, Failure> {
    let options = open_options(job.timeouts);
    let runtime = super::runtime()?;
    let open = |access| runtime.block_on(open_device(&job.endpoint, access, &options));
    let is_file = matches!(job.endpoint.kind(), EndpointKind::File(path) if path.is_file());
    let open = match is_file.then(|| open(Access::ReadWrite)) {
        Some(Ok(open)) => open,
        _ => open(Access::ReadOnly)?,
    };
    Ok(Facts {
        server: None,
        exports: vec![Export::of_device(open.device.info())],
    })
}

/// Everything that is shown.
#[derive(Serialize)]
struct Facts {
    #[serde(flatten)]
    server: Option<Server>,
    exports: Vec<Export>,
}

/// What holds for the whole connection.
#[derive(Serialize)]
struct Server {
    protocol: &'static str,
    #[serde(rename = "TLS")]
    tls: bool,
    structured: bool,
    extended: bool,
}

/// One export, in the order of nbdinfo's keys.
#[derive(Serialize)]
struct Export {
    #[serde(rename = "export-name")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    /// Why nothing more is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Serialize)]
struct Details {
    contexts: Vec<String>,
    is_rotational: bool,
    is_read_only: bool,
    can_block_status_payload: bool,
    can_cache: bool,
    can_df: bool,
    can_fast_zero: bool,
    can_flush: bool,
    can_fua: bool,
    can_multi_conn: bool,
    can_trim: bool,
    can_zero: bool,
    #[serde(flatten)]
    block_sizes: Option<BlockSizes>,
    #[serde(rename = "export-size")]
    size: u64,
    #[serde(rename = "export-size-str")]
    size_text: String,
}

#[derive(Serialize)]
struct BlockSizes {
    #[serde(rename = "block_size_minimum")]
    minimum: u32,
    #[serde(rename = "block_size_preferred")]
    preferred: u32,
    #[serde(rename = "block_size_maximum")]
    maximum: u32,
}

impl Facts {
    fn of_list(listed: Vec<Listed>, uri: Option<&NbdUri>) -> Self {
        let server = listed.iter().find_map(|one| one.info.as_ref().ok());
        Self {
            server: server.map(Server::of),
            exports: listed
                .into_iter()
                .map(|one| Export::of_listed(one, uri))
                .collect(),
        }
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings, numbers and names") + "\n"
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(server) = &self.server {
            let tls = if server.tls { "with" } else { "without" };
            let packets = match (server.extended, server.structured) {
                (true, _) => "extended",
                (false, true) => "structured",
                (false, false) => "simple",
            };
            let protocol = server.protocol;
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(
                text,
                "protocol: {protocol} {tls} TLS, using {packets} packets"
            );
        }
        for export in &self.exports {
            export.write(&mut text);
        }
        text
    }
}

impl Server {
    fn of(negotiated: &Negotiated) -> Self {
        let fixed = negotiated
            .handshake_flags
            .contains(HandshakeFlags::FIXED_NEWSTYLE);
        Self {
            protocol: if fixed { "newstyle-fixed" } else { "newstyle" },
            tls: negotiated.tls,
            structured: negotiated.mode != ReplyMode::Simple,
            extended: negotiated.mode == ReplyMode::Extended,
        }
    }
}

impl Export {
    fn of(negotiated: &Negotiated, name: &str, uri: Option<&NbdUri>) -> Self {
        let export = &negotiated.export;
        let can = |flag| export.flags.contains(flag);
        let details = Details {
            contexts: negotiated
                .contexts
                .iter()
                .map(|context| context.name.clone())
                .collect(),
            is_rotational: can(Flags::ROTATIONAL),
            is_read_only: can(Flags::READ_ONLY),
            can_block_status_payload: can(Flags::BLOCK_STATUS_PAYLOAD),
            can_cache: can(Flags::SEND_CACHE),
            can_df: can(Flags::SEND_DF),
            can_fast_zero: can(Flags::SEND_FAST_ZERO),
            can_flush: can(Flags::SEND_FLUSH),
            can_fua: can(Flags::SEND_FUA),
            can_multi_conn: can(Flags::CAN_MULTI_CONN),
            can_trim: can(Flags::SEND_TRIM),
            can_zero: can(Flags::SEND_WRITE_ZEROES),
            block_sizes: export.block_sizes.map(|sizes| BlockSizes {
                minimum: sizes.minimum(),
                preferred: sizes.preferred(),
                maximum: sizes.maximum(),
            }),
            size: export.size,
            size_text: Size(export.size).to_string(),
        };
        Self {
            name: export.name.clone().unwrap_or_else(|| name.to_owned()),
            description: export.description.clone().filter(|text| !text.is_empty()),
            uri: uri.and_then(|uri| uri_of(uri, name)),
            error: None,
            details: Some(details),
        }
    }

    fn of_listed(listed: Listed, uri: Option<&NbdUri>) -> Self {
        let mut export = match &listed.info {
            Ok(negotiated) => Self::of(negotiated, &listed.export.name, uri),
            Err(error) => Self {
                name: listed.export.name.clone(),
                description: None,
                uri: None,
                error: Some(error.to_string()),
                details: None,
            },
        };
        // What the list calls it is what a client has to ask for.
        export.name = listed.export.name;
        let said = Some(listed.export.description).filter(|text| !text.is_empty());
        export.description = export.description.or(said);
        export
    }

    fn of_device(info: &DeviceInfo) -> Self {
        let details = Details {
            contexts: info.contexts.iter().map(ToString::to_string).collect(),
            is_rotational: info.rotational,
            is_read_only: !info.can(Capabilities::WRITE),
            can_block_status_payload: false,
            can_cache: info.can(Capabilities::CACHE),
            can_df: false,
            can_fast_zero: info.can(Capabilities::FAST_ZERO),
            can_flush: info.can(Capabilities::FLUSH),
            can_fua: info.can(Capabilities::FUA),
            can_multi_conn: info.can(Capabilities::MULTI_CONN),
            can_trim: info.can(Capabilities::TRIM),
            can_zero: info.can(Capabilities::ZERO),
            block_sizes: Some(BlockSizes {
                minimum: info.limits.minimum,
                preferred: info.limits.preferred,
                maximum: info.limits.maximum,
            }),
            size: info.size,
            size_text: Size(info.size).to_string(),
        };
        Self {
            name: info.name.to_string(),
            description: info.description.clone(),
            uri: None,
            error: None,
            details: Some(details),
        }
    }

    fn write(&self, text: &mut String) {
        let _ = writeln!(text, "export=\"{}\":", self.name.escape_debug());
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "\t{key}: {value}");
        };
        if let Some(description) = &self.description {
            line("description", &description.escape_debug());
        }
        if let Some(error) = &self.error {
            line("error", &error.escape_debug());
        }
        let Some(details) = &self.details else { return };
        line(
            "export-size",
            &format_args!("{} ({})", details.size, details.size_text),
        );
        if let Some(uri) = &self.uri {
            line("uri", uri);
        }
        details.write(text);
    }
}

impl Details {
    fn write(&self, text: &mut String) {
        if !self.contexts.is_empty() {
            text.push_str("\tcontexts:\n");
            for context in &self.contexts {
                let _ = writeln!(text, "\t\t{}", context.escape_debug());
            }
        }
        let facts = [
            ("is_rotational", self.is_rotational),
            ("is_read_only", self.is_read_only),
            ("can_block_status_payload", self.can_block_status_payload),
            ("can_cache", self.can_cache),
            ("can_df", self.can_df),
            ("can_fast_zero", self.can_fast_zero),
            ("can_flush", self.can_flush),
            ("can_fua", self.can_fua),
            ("can_multi_conn", self.can_multi_conn),
            ("can_trim", self.can_trim),
            ("can_zero", self.can_zero),
        ];
        for (key, value) in facts {
            let _ = writeln!(text, "\t{key}: {value}");
        }
        if let Some(sizes) = &self.block_sizes {
            let _ = writeln!(text, "\tblock_size_minimum: {}", sizes.minimum);
            let _ = writeln!(text, "\tblock_size_preferred: {}", sizes.preferred);
            let _ = writeln!(text, "\tblock_size_maximum: {}", sizes.maximum);
        }
    }
}

/// The URI of another export of the same server.
fn uri_of(server: &NbdUri, export: &str) -> Option<String> {
    if let Transport::Unix { path } = &server.transport
        && path.to_str().is_none()
    {
        return None;
    }
    let mut uri = server.clone();
    uri.export = export.to_owned();
    Some(uri.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ExportInfo, ListedExport, MetaContext};

    fn negotiated(name: &str) -> Negotiated {
        Negotiated {
            export_name: name.to_owned(),
            export: ExportInfo {
                name: None,
                description: Some("a \u{1b}[31mred\u{1b}[0m disk".to_owned()),
                size: 1 << 20,
                flags: Flags::HAS_FLAGS | Flags::READ_ONLY | Flags::SEND_FLUSH,
                block_sizes: None,
            },
            mode: ReplyMode::Structured,
            contexts: vec![MetaContext {
                id: 1,
                name: "base:allocation".to_owned(),
            }],
            tls: false,
            handshake_flags: HandshakeFlags::FIXED_NEWSTYLE,
        }
    }

    fn facts() -> Facts {
        let uri: NbdUri = "nbd://host/x".parse().expect("a URI");
        let negotiated = negotiated("x");
        Facts {
            server: Some(Server::of(&negotiated)),
            exports: vec![Export::of(&negotiated, "x", Some(&uri))],
        }
    }

    #[test]
    fn the_text_is_nbdinfos() {
        let text = facts().text();
        assert!(
            text.starts_with(
                "protocol: newstyle-fixed without TLS, using structured packets\nexport=\"x\":\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n\texport-size: 1048576 (1M)\n"), "{text}");
        assert!(text.contains("\n\turi: nbd://host/x\n"), "{text}");
        assert!(text.contains("\n\tis_read_only: true\n"), "{text}");
    }

    #[test]
    fn what_a_server_says_cannot_steer_the_terminal() {
        assert!(!facts().text().contains('\u{1b}'));
        assert!(!facts().json().contains('\u{1b}'));
    }

    #[test]
    fn the_json_has_nbdinfos_keys_and_types() {
        let value: serde_json::Value = serde_json::from_str(&facts().json()).expect("JSON");
        assert_eq!(value["protocol"], "newstyle-fixed");
        assert_eq!(value["TLS"], false);
        assert_eq!(value["structured"], true);
        let export = &value["exports"][0];
        assert_eq!(export["export-name"], "x");
        assert_eq!(export["export-size"], 1 << 20);
        assert_eq!(export["export-size-str"], "1M");
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["can_flush"], true);
        assert_eq!(export["can_trim"], false);
        assert!(export.get("block_size_minimum").is_none());
    }

    #[test]
    fn an_export_that_cannot_be_asked_is_listed_with_the_reason() {
        let good = Listed {
            export: ListedExport {
                name: "good".to_owned(),
                description: String::new(),
            },
            info: Ok(negotiated("good")),
        };
        let uri: NbdUri = "nbd://host/".parse().expect("a URI");
        let facts = Facts::of_list(vec![good], Some(&uri));
        assert_eq!(facts.exports[0].name, "good");
        assert_eq!(facts.exports[0].uri.as_deref(), Some("nbd://host/good"));
        assert!(facts.server.is_some());
    }

    #[test]
    fn a_device_has_no_server() {
        let facts = Facts {
            server: None,
            exports: vec![Export::of_device(&DeviceInfo::new("disk.raw", 512))],
        };
        assert!(facts.text().starts_with("export=\"disk.raw\":\n"));
        let value: serde_json::Value = serde_json::from_str(&facts.json()).expect("JSON");
        assert!(value.get("protocol").is_none());
        assert_eq!(value["exports"][0]["export-size-str"], "512");
    }
}
