//! Options as a server reads them, and the replies that it writes (sections "Option types" and
//! "Option reply types").

use super::config::{OptionRefusal, ServedExport};
use crate::limits;
use crate::option::{OptionCode, OptionErrorCode};
use crate::reader::{self, Put, Reader, Truncated};
use crate::types::{ListedExport, MetaContext};
use crate::wire::{self, TransmissionFlags};

/// The first words of a server: fixed newstyle, and no zeroes if the client agrees.
pub(super) fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(18);
    bytes.put_u64(wire::NBD_MAGIC);
    bytes.put_u64(wire::OPTION_MAGIC);
    bytes.put_u16(flags);
    bytes
}

/// The payload of `NBD_OPT_INFO` or `NBD_OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) name: String,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
}

impl InfoRequest {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, OptionRefusal> {
        let mut reader = Reader::new(payload);
        let name = export_name(&mut reader)?;
        let count = reader.u16().map_err(malformed)?;
        let mut request = Self {
            name,
            wants_name: false,
            wants_description: false,
        };
        for _ in 0..count {
            match reader.u16().map_err(malformed)? {
                wire::INFO_NAME => request.wants_name = true,
                wire::INFO_DESCRIPTION => request.wants_description = true,
                // The block sizes are told without being asked for.
                _ => {}
            }
        }
        if reader.is_empty() {
            Ok(request)
        } else {
            Err(malformed(Truncated))
        }
    }
}

/// The payload of `NBD_OPT_LIST_META_CONTEXT` or `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextRequest {
    pub(super) name: String,
    pub(super) queries: Vec<String>,
}

impl ContextRequest {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, OptionRefusal> {
        let mut reader = Reader::new(payload);
        let name = export_name(&mut reader)?;
        let count = reader.u32().map_err(malformed)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            // Each takes at least four bytes of a bounded payload, so this ends.
            queries.push(string(reader.prefixed().map_err(malformed)?)?);
        }
        if reader.is_empty() {
            Ok(Self { name, queries })
        } else {
            Err(malformed(Truncated))
        }
    }

    /// Those of the available contexts that were asked for, each once.
    pub(super) fn select(&self, available: &[String], option: OptionCode) -> Vec<MetaContext> {
        let listing = option == OptionCode::ListMetaContext;
        let asked = |name: &String| {
            (listing && self.queries.is_empty())
                || self.queries.iter().any(|query| {
                    query == name || (listing && query.ends_with(':') && name.starts_with(query))
                })
        };
        let mut selected: Vec<MetaContext> = Vec::new();
        for name in available.iter().filter(|name| asked(name)) {
            if selected.iter().all(|context| context.name != *name) {
                let id = selected.len() as u32 + 1;
                let name = name.clone();
                selected.push(MetaContext { id, name });
            }
        }
        selected
    }
}

fn malformed(_: Truncated) -> OptionRefusal {
    OptionRefusal::new(OptionErrorCode::Invalid, "the option is malformed")
}

/// A name in an option; the payload is bounded.
fn export_name(reader: &mut Reader<'_>) -> Result<String, OptionRefusal> {
    string(reader.prefixed().map_err(malformed)?)
}

fn string(bytes: &[u8]) -> Result<String, OptionRefusal> {
    if bytes.len() > limits::STRING {
        return Err(OptionRefusal::new(
            OptionErrorCode::TooBig,
            "a name is longer than 4096 bytes",
        ));
    }
    reader::name(bytes).ok_or_else(|| {
        OptionRefusal::new(OptionErrorCode::Invalid, "a name is not UTF-8 or has a NUL")
    })
}

/// Appends replies to one option.
pub(super) struct Replies<'a> {
    pub(super) option: u32,
    pub(super) out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn reply(&mut self, kind: u32, payload: &[u8]) {
        self.out.put_u64(wire::OPTION_REPLY_MAGIC);
        self.out.put_u32(self.option);
        self.out.put_u32(kind);
        self.out.put_prefixed(payload);
    }

    pub(super) fn ack(&mut self) {
        self.reply(wire::REP_ACK, &[]);
    }

    pub(super) fn refuse(&mut self, refusal: &OptionRefusal) {
        let message = reader::bounded(&refusal.message);
        self.reply(refusal.code.to_wire(), message.as_bytes());
    }

    /// An export of the list. One whose name the protocol cannot carry is left out: no client
    /// could ask for it.
    pub(super) fn server(&mut self, export: &ListedExport) {
        if reader::name(export.name.as_bytes()).is_none() {
            return;
        }
        let mut payload = Vec::new();
        payload.put_prefixed(export.name.as_bytes());
        payload.put(reader::bounded(&export.description).as_bytes());
        self.reply(wire::REP_SERVER, &payload);
    }

    pub(super) fn context(&mut self, id: u32, name: &str) {
        let mut payload = Vec::new();
        payload.put_u32(id);
        payload.put(name.as_bytes());
        self.reply(wire::REP_META_CONTEXT, &payload);
    }

    /// Everything about an export.
    pub(super) fn export(
        &mut self,
        export: &ServedExport,
        flags: TransmissionFlags,
        request: &InfoRequest,
    ) {
        let mut payload = Vec::new();
        payload.put_u16(wire::INFO_EXPORT);
        payload.put_u64(export.size);
        payload.put_u16(flags.bits());
        self.reply(wire::REP_INFO, &payload);

        let name = export.canonical_name.as_ref().unwrap_or(&request.name);
        if (request.wants_name || *name != request.name) && reader::name(name.as_bytes()).is_some()
        {
            self.text(wire::INFO_NAME, name);
        }
        if let Some(description) = export
            .description
            .as_ref()
            .filter(|_| request.wants_description)
        {
            self.text(wire::INFO_DESCRIPTION, reader::bounded(description));
        }
        if let Some(sizes) = export.block_sizes {
            payload.clear();
            payload.put_u16(wire::INFO_BLOCK_SIZE);
            payload.put_u32(sizes.minimum());
            payload.put_u32(sizes.preferred());
            payload.put_u32(sizes.maximum());
            self.reply(wire::REP_INFO, &payload);
        }
    }

    fn text(&mut self, info: u16, text: &str) {
        let mut payload = Vec::with_capacity(2 + text.len());
        payload.put_u16(info);
        payload.put(text.as_bytes());
        self.reply(wire::REP_INFO, &payload);
    }
}
