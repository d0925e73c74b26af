//! Options as a client writes them, and the replies that it reads (sections "Option types" and
//! "Option reply types").

use crate::error::{Misbehaviour, Result};
use crate::limits;
use crate::option::{OptionCode, OptionError, OptionErrorCode};
use crate::reader::{self, Put, Reader, Truncated};
use crate::types::{BlockSizes, ExportInfo, ListedExport, MetaContext};
use crate::wire::{self, TransmissionFlags};

/// A whole option.
pub(super) fn option(code: OptionCode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(wire::OPTION_LEN + payload.len());
    bytes.put_u64(wire::OPTION_MAGIC);
    bytes.put_u32(code.to_wire());
    bytes.put_prefixed(payload);
    bytes
}

/// The payload of `NBD_OPT_INFO` and `NBD_OPT_GO`: everything there is to know, and a promise to
/// respect the block sizes.
pub(super) fn info_request(export: &str) -> Vec<u8> {
    let wanted = [
        wire::INFO_NAME,
        wire::INFO_DESCRIPTION,
        wire::INFO_BLOCK_SIZE,
    ];
    let mut payload = Vec::with_capacity(4 + export.len() + 2 + 2 * wanted.len());
    payload.put_prefixed(export.as_bytes());
    payload.put_u16(wanted.len() as u16);
    for info in wanted {
        payload.put_u16(info);
    }
    payload
}

/// The payload of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(super) fn context_request(export: &str, queries: &[String]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.put_prefixed(export.as_bytes());
    payload.put_u32(queries.len() as u32);
    for query in queries {
        payload.put_prefixed(query.as_bytes());
    }
    payload
}

/// The header of a reply: checked against the option that it must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyHead {
    pub(super) option: OptionCode,
    pub(super) kind: u32,
    /// Bytes of payload, bounded by the kind of the reply.
    pub(super) length: usize,
}

impl ReplyHead {
    pub(super) fn parse(bytes: &[u8], asked: OptionCode) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let short = |_: Truncated| Misbehaviour::HungUp;
        let magic = reader.u64().map_err(short)?;
        if magic != wire::OPTION_REPLY_MAGIC {
            return Err(Misbehaviour::OptionReplyMagic(magic).into());
        }
        let answered = reader.u32().map_err(short)?;
        if answered != asked.to_wire() {
            return Err(Misbehaviour::ReplyToOtherOption { asked, answered }.into());
        }
        let kind = reader.u32().map_err(short)?;
        let length = reader.u32().map_err(short)?;
        let limit = payload_limit(asked, kind).ok_or(Misbehaviour::UnexpectedOptionReply {
            option: asked,
            reply: kind,
        })?;
        if length > limit {
            return Err(Misbehaviour::OptionReplyTooLong {
                option: asked,
                reply: kind,
                length,
                limit,
            }
            .into());
        }
        Ok(Self {
            option: asked,
            kind,
            length: length as usize,
        })
    }

    pub(super) fn is_error(&self) -> bool {
        self.kind & wire::REP_ERROR_BIT != 0
    }

    pub(super) fn error(&self, payload: &[u8]) -> OptionError {
        OptionError {
            option: self.option,
            code: OptionErrorCode::from_wire(self.kind),
            message: reader::lossy(payload),
        }
    }

    fn malformed(&self) -> Misbehaviour {
        Misbehaviour::OptionReplyMalformed {
            option: self.option,
            reply: self.kind,
        }
    }

    /// A reply to `NBD_OPT_LIST`.
    pub(super) fn export(&self, payload: &[u8]) -> Result<ListedExport> {
        let mut reader = Reader::new(payload);
        let name = reader.prefixed().map_err(|_| self.malformed())?;
        let description = reader.rest();
        if description.len() > limits::STRING {
            return Err(self.malformed().into());
        }
        Ok(ListedExport {
            name: reader::name(name).ok_or_else(|| self.malformed())?,
            description: reader::lossy(description),
        })
    }

    /// A reply to `NBD_OPT_LIST_META_CONTEXT` or `NBD_OPT_SET_META_CONTEXT`.
    pub(super) fn context(&self, payload: &[u8]) -> Result<MetaContext> {
        let mut reader = Reader::new(payload);
        let id = reader.u32().map_err(|_| self.malformed())?;
        let name = reader::name(reader.rest()).ok_or_else(|| self.malformed())?;
        Ok(MetaContext { id, name })
    }
}

/// The most bytes that a reply of this kind to this option has; `None` where it can't come.
fn payload_limit(option: OptionCode, kind: u32) -> Option<u32> {
    const STRING: u32 = limits::STRING as u32;
    match (kind, option) {
        (wire::REP_ACK, _) => Some(0),
        (wire::REP_SERVER, OptionCode::List) => Some(4 + 2 * STRING),
        (wire::REP_INFO, OptionCode::Info | OptionCode::Go) => Some(2 + STRING),
        (wire::REP_META_CONTEXT, OptionCode::SetMetaContext | OptionCode::ListMetaContext) => {
            Some(4 + STRING)
        }
        _ if kind & wire::REP_ERROR_BIT != 0 => Some(STRING),
        _ => None,
    }
}

/// Information replies, until the acknowledgement says that there are no more.
#[derive(Debug, Default)]
pub(super) struct InfoCollector {
    export: Option<(u64, TransmissionFlags)>,
    name: Option<String>,
    description: Option<String>,
    block_sizes: Option<(u32, u32, u32)>,
}

impl InfoCollector {
    pub(super) fn add(&mut self, head: &ReplyHead, payload: &[u8]) -> Result<()> {
        let malformed = |_: Truncated| head.malformed();
        let mut reader = Reader::new(payload);
        let kind = reader.u16().map_err(malformed)?;
        let duplicate = match kind {
            wire::INFO_EXPORT => {
                let size = reader.u64().map_err(malformed)?;
                let flags = reader.u16().map_err(malformed)?;
                self.export
                    .replace((size, TransmissionFlags::from_bits_retain(flags)))
                    .is_some()
            }
            wire::INFO_NAME => {
                let name = reader::name(reader.rest()).ok_or_else(|| head.malformed())?;
                self.name.replace(name).is_some()
            }
            wire::INFO_DESCRIPTION => {
                let description = reader::lossy(reader.rest());
                self.description.replace(description).is_some()
            }
            wire::INFO_BLOCK_SIZE => {
                let sizes = (
                    reader.u32().map_err(malformed)?,
                    reader.u32().map_err(malformed)?,
                    reader.u32().map_err(malformed)?,
                );
                self.block_sizes.replace(sizes).is_some()
            }
            // A server may say what nobody asked and nobody knows.
            _ => {
                reader.rest();
                false
            }
        };
        if duplicate {
            return Err(Misbehaviour::DuplicateInfo(kind).into());
        }
        if !reader.is_empty() {
            return Err(head.malformed().into());
        }
        Ok(())
    }

    pub(super) fn finish(self, option: OptionCode) -> Result<ExportInfo> {
        let (size, flags) = self.export.ok_or(Misbehaviour::MissingExportInfo(option))?;
        let block_sizes = match self.block_sizes {
            Some((minimum, preferred, maximum)) => {
                // The maximum may be less than the preferred size where the export itself is.
                // No request is longer than the export, so raising it permits nothing new.
                let maximum = if u64::from(maximum) >= size {
                    maximum.max(preferred)
                } else {
                    maximum
                };
                Some(BlockSizes::new(minimum, preferred, maximum)?)
            }
            None => None,
        };
        check_export(size, flags)?;
        Ok(ExportInfo {
            name: self.name,
            description: self.description,
            size,
            flags,
            block_sizes,
        })
    }
}

/// The reply to `NBD_OPT_EXPORT_NAME`, with or without its zeroes, which nobody looks at.
pub(super) fn export_name_reply(bytes: &[u8]) -> Result<ExportInfo> {
    let mut reader = Reader::new(bytes);
    let short = |_: Truncated| Misbehaviour::HungUp;
    let size = reader.u64().map_err(short)?;
    let flags = TransmissionFlags::from_bits_retain(reader.u16().map_err(short)?);
    bare_export(size, flags)
}

/// The rest of an oldstyle greeting, after its magics: size, global flags, transmission flags, and zeroes
/// that nobody looks at.
pub(super) fn old_style_greeting(bytes: &[u8]) -> Result<ExportInfo> {
    let mut reader = Reader::new(bytes);
    let short = |_: Truncated| Misbehaviour::HungUp;
    let size = reader.u64().map_err(short)?;
    let _global_flags = reader.u16().map_err(short)?;
    let flags = TransmissionFlags::from_bits_retain(reader.u16().map_err(short)?);
    bare_export(size, flags)
}

/// An export of which nothing more is known.
fn bare_export(size: u64, flags: TransmissionFlags) -> Result<ExportInfo> {
    check_export(size, flags)?;
    Ok(ExportInfo {
        name: None,
        description: None,
        size,
        flags,
        block_sizes: None,
    })
}

fn check_export(size: u64, flags: TransmissionFlags) -> Result<()> {
    if size > limits::EXPORT_SIZE {
        return Err(Misbehaviour::ExportSize(size).into());
    }
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        return Err(Misbehaviour::TransmissionFlags(flags.bits()).into());
    }
    Ok(())
}
