//! What is known of a server and its exports, whatever it came from and however it is shown.

use serde::Serialize;

use crate::{
    block::{Capabilities, DeviceInfo},
    cli::args::Size,
    proto::{
        HandshakeStyle, ListReport, Listed, NbdUri, Negotiated, ReplyMode,
        TransmissionFlags as Flags, Transport,
    },
};

use super::image::Image;

/// Everything that is known.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// What holds for the connection to the server, where there is one.
    #[serde(flatten)]
    pub server: Option<Server>,
    /// What was looked at: one image, or all exports of a server.
    pub exports: Vec<Export>,
}

/// What holds for the whole connection.
#[derive(Debug, Serialize)]
pub struct Server {
    /// The style of the handshake: `newstyle-fixed`, ...
    pub protocol: &'static str,
    /// Whether it is encrypted.
    #[serde(rename = "TLS")]
    pub tls: bool,
    /// Whether replies come in chunks.
    pub structured: bool,
    /// Whether requests have 64 bit lengths.
    pub extended: bool,
}

/// One export, in the order of nbdinfo's keys. What came from the server is as hostile as the server.
#[derive(Debug, Serialize)]
pub struct Export {
    /// The name; of what needs no server, as it was written.
    #[serde(rename = "export-name")]
    pub name: String,
    /// The name to ask for it, which may be another one.
    #[serde(skip)]
    pub(crate) asked: String,
    /// What the server says of it to people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What kind of data it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Where others find it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Why nothing more is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it is and can do.
    #[serde(flatten)]
    pub details: Option<Details>,
    /// How much space it takes, in bytes.
    #[serde(rename = "disk-size", skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// What is known of the image that its bytes are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Image>,
}

/// What is known of an export that could be asked.
#[derive(Debug, Serialize)]
pub struct Details {
    /// The metadata contexts that it knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<String>,
    /// What it can do.
    #[serde(flatten)]
    pub abilities: Abilities,
    /// The block sizes that it told.
    #[serde(flatten)]
    pub block_sizes: Option<BlockSizes>,
    /// Its size in bytes; of an image in a format, that of its disk.
    #[serde(rename = "export-size")]
    pub size: u64,
    /// The same for people.
    #[serde(rename = "export-size-str")]
    pub size_text: String,
}

/// What an export is and can do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Abilities {
    /// It says that it is a spinning disk.
    pub is_rotational: bool,
    /// It takes no writes.
    pub is_read_only: bool,
    /// It can be asked for some of its contexts.
    pub can_block_status_payload: bool,
    /// It can be asked to read ahead.
    pub can_cache: bool,
    /// It can be asked for unfragmented replies.
    pub can_df: bool,
    /// It says at once where zeroing would be no faster than writing.
    pub can_fast_zero: bool,
    /// It can be asked to make writes durable.
    pub can_flush: bool,
    /// Single writes can be durable.
    pub can_fua: bool,
    /// Several connections see the same.
    pub can_multi_conn: bool,
    /// Ranges can be discarded.
    pub can_trim: bool,
    /// Ranges can be zeroed without sending zeroes.
    pub can_zero: bool,
}

/// The block sizes of an export.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BlockSizes {
    /// What offsets and lengths are multiples of, in bytes.
    #[serde(rename = "block_size_minimum")]
    pub minimum: u32,
    /// The size that works best, in bytes.
    #[serde(rename = "block_size_preferred")]
    pub preferred: u32,
    /// The longest request, in bytes.
    #[serde(rename = "block_size_maximum")]
    pub maximum: u32,
}

impl Facts {
    /// One export of a server. `uri` is where others find it, if they can.
    pub(crate) fn of_export(negotiated: &Negotiated, name: &str, uri: Option<&NbdUri>) -> Self {
        Self {
            server: Some(Server::of(negotiated)),
            exports: vec![Export::of(negotiated, name, uri)],
        }
    }

    /// All exports of a server.
    pub(crate) fn of_list(report: ListReport, uri: Option<&NbdUri>) -> Self {
        let server = Server::new(report.style, report.mode, report.tls);
        let exports = report.exports.into_iter();
        Self {
            server: Some(server),
            exports: exports.map(|one| Export::of_listed(one, uri)).collect(),
        }
    }

    /// A device that needs no server, and the image that it is the disk of.
    /// It takes so much space, where that is known.
    pub(crate) fn of_device(
        info: &DeviceInfo,
        image: Option<Image>,
        disk_size: Option<u64>,
    ) -> Self {
        let export = Export {
            disk_size,
            format: image,
            ..Export::of_device(info)
        };
        Self {
            server: None,
            exports: vec![export],
        }
    }
}

impl Server {
    pub(crate) fn of(negotiated: &Negotiated) -> Self {
        Self::new(negotiated.style, negotiated.mode, negotiated.tls)
    }

    fn new(style: HandshakeStyle, mode: ReplyMode, tls: bool) -> Self {
        Self {
            protocol: style.as_str(),
            tls,
            structured: mode.is_chunked(),
            extended: mode == ReplyMode::Extended,
        }
    }
}

impl Export {
    fn of(negotiated: &Negotiated, name: &str, uri: Option<&NbdUri>) -> Self {
        let export = &negotiated.export;
        let contexts = negotiated.contexts.iter();
        let details = Details {
            contexts: contexts.map(|context| context.name.clone()).collect(),
            abilities: Abilities::of(negotiated),
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
            asked: name.to_owned(),
            description: export.description.clone().filter(|text| !text.is_empty()),
            content: None,
            uri: uri.and_then(|uri| uri_of(uri, name)),
            error: None,
            details: Some(details),
            disk_size: None,
            format: None,
        }
    }

    /// As nbdinfo shows one: the name is the export's own where it tells it, the description and what a
    /// client has to ask for (the URI) are the list's.
    fn of_listed(listed: Listed, uri: Option<&NbdUri>) -> Self {
        let described = listed.export;
        let export = match &listed.info {
            Ok(negotiated) => Self::of(negotiated, &described.name, uri),
            Err(error) => Self {
                name: described.name.clone(),
                asked: described.name,
                description: None,
                content: None,
                uri: None,
                error: Some(error.to_string()),
                details: None,
                disk_size: None,
                format: None,
            },
        };
        Self {
            description: Some(described.description).filter(|text| !text.is_empty()),
            ..export
        }
    }

    fn of_device(info: &DeviceInfo) -> Self {
        let details = Details {
            contexts: info.contexts.iter().map(ToString::to_string).collect(),
            abilities: Abilities::of_device(info),
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
            asked: String::new(),
            description: info.description.clone(),
            content: None,
            uri: None,
            error: None,
            details: Some(details),
            disk_size: None,
            format: None,
        }
    }
}

impl Abilities {
    pub(crate) fn of(negotiated: &Negotiated) -> Self {
        let can = |flag| negotiated.export.flags.contains(flag);
        Self {
            is_rotational: can(Flags::ROTATIONAL),
            is_read_only: can(Flags::READ_ONLY),
            // The flag of the command that it allows exists in extended requests only.
            can_block_status_payload: can(Flags::BLOCK_STATUS_PAYLOAD)
                && negotiated.mode == ReplyMode::Extended,
            can_cache: can(Flags::SEND_CACHE),
            can_df: can(Flags::SEND_DF),
            can_fast_zero: can(Flags::SEND_FAST_ZERO),
            can_flush: can(Flags::SEND_FLUSH),
            can_fua: can(Flags::SEND_FUA),
            can_multi_conn: can(Flags::CAN_MULTI_CONN),
            can_trim: can(Flags::SEND_TRIM),
            can_zero: can(Flags::SEND_WRITE_ZEROES),
        }
    }

    fn of_device(info: &DeviceInfo) -> Self {
        Self {
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
        }
    }
}

/// The URI of another export of the same server; `None` where its socket's path is no text.
pub(crate) fn uri_of(server: &NbdUri, export: &str) -> Option<String> {
    if let Transport::Unix { path } = &server.transport
        && path.to_str().is_none()
    {
        return None;
    }
    let mut uri = server.clone();
    uri.export = export.to_owned();
    Some(format!("{uri:#}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::proto::{ExportInfo, HandshakeFlags, ListedExport, MetaContext};

    pub(crate) fn negotiated(name: &str) -> Negotiated {
        Negotiated {
            export_name: name.to_owned(),
            export: ExportInfo {
                name: None,
                description: Some("a \u{1b}[31mred\u{1b}[0m disk".to_owned()),
                size: 1 << 20,
                flags: Flags::HAS_FLAGS
                    | Flags::READ_ONLY
                    | Flags::SEND_FLUSH
                    | Flags::BLOCK_STATUS_PAYLOAD,
                block_sizes: None,
            },
            style: HandshakeStyle::FixedNew,
            mode: ReplyMode::Structured,
            contexts: vec![MetaContext {
                id: 1,
                name: "base:allocation".to_owned(),
            }],
            tls: false,
            handshake_flags: HandshakeFlags::FIXED_NEWSTYLE,
        }
    }

    fn listed(name: &str, description: &str) -> Listed {
        Listed {
            export: ListedExport {
                name: name.to_owned(),
                description: description.to_owned(),
            },
            info: Ok(negotiated(name)),
        }
    }

    #[test]
    fn a_list_names_each_export_as_a_client_has_to() {
        let uri: NbdUri = "nbd://host/".parse().expect("a URI");
        let report = ListReport {
            exports: vec![listed("good", "a good disk"), listed("a b", "")],
            style: HandshakeStyle::FixedNew,
            mode: ReplyMode::Simple,
            tls: true,
        };
        let facts = Facts::of_list(report, Some(&uri));
        let [good, other] = &facts.exports[..] else {
            panic!("two exports: {facts:?}")
        };
        assert_eq!(good.name, "good");
        assert_eq!(good.uri.as_deref(), Some("nbd://host:10809/good"));
        assert_eq!(good.description.as_deref(), Some("a good disk"));
        assert_eq!(other.uri.as_deref(), Some("nbd://host:10809/a%20b"));
        assert_eq!(other.description, None);
        let server = facts.server.expect("a server");
        assert!(server.tls && !server.structured);
    }

    #[test]
    fn a_payload_of_block_status_needs_extended_headers() {
        let mut negotiated = negotiated("x");
        assert!(!Abilities::of(&negotiated).can_block_status_payload);
        negotiated.mode = ReplyMode::Extended;
        assert!(Abilities::of(&negotiated).can_block_status_payload);
    }

    #[test]
    fn a_device_has_no_server() {
        let facts = Facts::of_device(&DeviceInfo::new("disk.raw", 513), None, None);
        assert!(facts.server.is_none());
        assert_eq!(facts.exports[0].name, "disk.raw");
        assert_eq!(
            facts.exports[0].details.as_ref().map(|all| &*all.size_text),
            Some("513")
        );
    }
}
