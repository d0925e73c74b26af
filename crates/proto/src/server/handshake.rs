//! The handshake as a server answers it (section "Handshake").
//!
//! The machine keeps the rules: what may come before TLS and what starts anew after it, which
//! option needs which other one first, and that contexts belong to the export they were selected
//! for. What exports there are is the driver's business: it is asked with [`ServerStep::Open`] and
//! [`ServerStep::List`], and only after TLS where that is required.

use super::config::{OpenPurpose, OptionRefusal, ServedExport, ServerConfig, TlsPolicy};
use super::options::{self, ContextRequest, InfoRequest, Replies};
use crate::error::{Misbehaviour, Misuse, Result};
use crate::limits;
use crate::option::{OptionCode, OptionErrorCode};
use crate::reader::{self, Put, Reader};
use crate::types::{ExportInfo, HandshakeStyle, ListedExport, MetaContext, Negotiated, ReplyMode};
use crate::wire::{self, HandshakeFlags, TransmissionFlags};

/// What the driver of a [`ServerHandshake`] must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// Write all of this.
    Send(Vec<u8>),
    /// Read exactly this many bytes and give them to [`ServerHandshake::receive`].
    Receive(usize),
    /// Read this many bytes and forget them.
    Discard(usize),
    /// Do the TLS handshake, then call [`ServerHandshake::tls_ready`].
    StartTls,
    /// Look at an export and call [`ServerHandshake::export`].
    Open {
        /// As the client named it; empty for the default. At most 4096 bytes. Hostile: escape
        /// before printing, and never a path.
        name: String,
        /// What the client wants with it.
        purpose: OpenPurpose,
    },
    /// Call [`ServerHandshake::exports`] with the exports that a client may know of.
    List,
    /// Transmission begins.
    Done(Negotiated),
    /// Close the connection: the client said goodbye, or cannot be answered.
    Close,
}

/// The handshake of a server.
///
/// The driver alternates between [`step`](Self::step) and what the step asks for.
#[derive(Debug)]
pub struct ServerHandshake {
    config: ServerConfig,
    state: State,
    outgoing: Vec<u8>,
    flags: HandshakeFlags,
    tls: bool,
    mode: ReplyMode,
    /// Options received so far.
    options: u32,
    /// Whether the client ended the handshake itself.
    goodbye: bool,
    /// The contexts that were selected, and the export for which.
    selected: Option<(String, Vec<MetaContext>)>,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHead,
    Payload(OptionCode, usize),
    /// The payload of an option that is refused unread, and the refusal.
    Discard(usize, OptionCode, OptionRefusal),
    Open(Asked),
    List,
    Upgrade,
    Done(Box<Negotiated>),
    Close,
}

/// An option that needs to know about an export.
#[derive(Debug)]
enum Asked {
    Info(OptionCode, InfoRequest),
    Contexts(OptionCode, ContextRequest),
    ExportName(String),
}

impl ServerHandshake {
    /// A handshake on a new connection.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        let flags = config.flags;
        Self {
            config,
            state: State::ClientFlags,
            outgoing: options::greeting(flags.bits()),
            flags,
            tls: false,
            mode: ReplyMode::Simple,
            options: 0,
            goodbye: false,
            selected: None,
        }
    }

    /// What to do next. What was to be sent or dropped is given once; everything else until it is
    /// done.
    #[must_use]
    pub fn step(&mut self) -> ServerStep {
        if !self.outgoing.is_empty() {
            return ServerStep::Send(std::mem::take(&mut self.outgoing));
        }
        if let State::Discard(length, option, refusal) = &self.state {
            let (length, option, refusal) = (*length, *option, refusal.clone());
            self.refuse(option, &refusal);
            if length > 0 {
                return ServerStep::Discard(length);
            }
            return self.step();
        }
        match &self.state {
            State::Upgrade => ServerStep::StartTls,
            State::List => ServerStep::List,
            State::Close => ServerStep::Close,
            State::Done(negotiated) => ServerStep::Done(Negotiated::clone(negotiated)),
            State::Open(asked) => {
                let (name, purpose) = match asked {
                    Asked::Info(OptionCode::Go, request) => (&request.name, OpenPurpose::Go),
                    Asked::Info(_, request) => (&request.name, OpenPurpose::Info),
                    Asked::Contexts(_, request) => (&request.name, OpenPurpose::MetaContexts),
                    Asked::ExportName(name) => (name, OpenPurpose::ExportName),
                };
                let name = name.clone();
                ServerStep::Open { name, purpose }
            }
            _ => ServerStep::Receive(self.wanted()),
        }
    }

    /// Whether it is the client's `NBD_OPT_ABORT` that the connection is to be closed for.
    #[must_use]
    pub fn was_aborted(&self) -> bool {
        self.goodbye
    }

    /// Takes the bytes that [`ServerStep::Receive`] asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Misbehaved`](crate::Error::Misbehaved): the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<()> {
        let wanted = self.wanted();
        if bytes.len() != wanted || wanted == 0 || !self.outgoing.is_empty() {
            let given = bytes.len();
            return Err(Misuse::WrongLength { wanted, given }.into());
        }
        let result = match self.state {
            State::ClientFlags => {
                self.on_client_flags(bytes);
                Ok(())
            }
            State::OptionHead => self.on_option_head(bytes),
            State::Payload(option, _) => {
                self.on_option(option, bytes);
                Ok(())
            }
            _ => Ok(()),
        };
        if result.is_err() {
            self.state = State::Close;
        }
        result
    }

    /// TLS has started: everything from here on goes through it, and nothing from before counts.
    pub fn tls_ready(&mut self) {
        if matches!(self.state, State::Upgrade) {
            self.tls = true;
            self.mode = ReplyMode::Simple;
            self.selected = None;
            self.state = State::OptionHead;
        }
    }

    /// Answers [`ServerStep::Open`].
    pub fn export(&mut self, answer: Result<ServedExport, OptionRefusal>) {
        let state = std::mem::replace(&mut self.state, State::OptionHead);
        let State::Open(asked) = state else {
            self.state = state;
            return;
        };
        let answer = answer.and_then(|export| {
            if export.size > limits::EXPORT_SIZE {
                let message = "the export is larger than 2^63 - 1 bytes";
                return Err(OptionRefusal::new(OptionErrorCode::Platform, message));
            }
            Ok(export)
        });
        match (asked, answer) {
            (Asked::Info(option, request), Ok(export)) => {
                self.describe(option, &request, export);
            }
            (Asked::Contexts(option, request), Ok(export)) => {
                self.contexts(option, request, &export);
            }
            (Asked::ExportName(name), Ok(export)) => self.open_by_name(name, export),
            (Asked::Info(option, _) | Asked::Contexts(option, _), Err(refusal)) => {
                self.refuse(option, &refusal);
            }
            // There is no other way to say no.
            (Asked::ExportName(_), Err(_)) => self.state = State::Close,
        }
    }

    /// Answers [`ServerStep::List`].
    pub fn exports(&mut self, answer: Result<Vec<ListedExport>, OptionRefusal>) {
        if !matches!(self.state, State::List) {
            return;
        }
        self.state = State::OptionHead;
        match answer {
            Ok(exports) => {
                let mut replies = self.replies(OptionCode::List);
                for export in &exports {
                    replies.server(export);
                }
                replies.ack();
            }
            Err(refusal) => self.refuse(OptionCode::List, &refusal),
        }
    }

    fn wanted(&self) -> usize {
        match self.state {
            State::ClientFlags => 4,
            State::OptionHead => wire::OPTION_LEN,
            State::Payload(_, length) => length,
            _ => 0,
        }
    }

    fn on_client_flags(&mut self, bytes: &[u8]) {
        let bits = Reader::new(bytes).u32().unwrap_or(u32::MAX);
        let flags = u16::try_from(bits).ok().and_then(HandshakeFlags::from_bits);
        match flags {
            Some(flags) if self.config.flags.contains(flags) => {
                self.flags = flags;
                self.state = State::OptionHead;
            }
            // Section "Newstyle negotiation": close if the flags are not recognized.
            _ => self.state = State::Close,
        }
    }

    fn on_option_head(&mut self, bytes: &[u8]) -> Result<()> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().unwrap_or_default();
        if magic != wire::OPTION_MAGIC {
            return Err(Misbehaviour::OptionMagic(magic).into());
        }
        self.options += 1;
        if self.options > self.config.max_options {
            return Err(Misbehaviour::TooManyOptions(self.config.max_options).into());
        }
        let option = OptionCode::from_wire(reader.u32().unwrap_or_default());
        let length = reader.u32().unwrap_or_default();
        let bytes = length as usize;
        if option == OptionCode::ExportName {
            // Cannot be refused in words; a name too long is no name.
            self.state = if self.withholds(option) || bytes > limits::STRING {
                State::Close
            } else {
                State::Payload(option, bytes)
            };
        } else if let Some(refusal) = self.refusal(option, bytes) {
            if bytes > limits::OPTION_DISCARD {
                return Err(Misbehaviour::OptionTooLong { option, length }.into());
            }
            self.state = State::Discard(bytes, option, refusal);
            return Ok(());
        } else {
            self.state = State::Payload(option, bytes);
        }
        if let State::Payload(option, 0) = self.state {
            self.on_option(option, &[]);
        }
        Ok(())
    }

    /// Whether nothing is to be said before TLS.
    fn withholds(&self, option: OptionCode) -> bool {
        self.config.tls == TlsPolicy::Require
            && !self.tls
            && !matches!(option, OptionCode::StartTls | OptionCode::Abort)
    }

    /// Why an option is refused without a look at its payload.
    fn refusal(&self, option: OptionCode, length: usize) -> Option<OptionRefusal> {
        let extended = self.mode == ReplyMode::Extended;
        let has_payload = matches!(
            option,
            OptionCode::Info
                | OptionCode::Go
                | OptionCode::ListMetaContext
                | OptionCode::SetMetaContext
        );
        let (code, message) = match option {
            _ if self.withholds(option) => {
                (OptionErrorCode::TlsRequired, "this server requires TLS")
            }
            OptionCode::Other(_) => (OptionErrorCode::Unsupported, ""),
            OptionCode::StartTls if self.config.tls == TlsPolicy::Off => {
                (OptionErrorCode::Unsupported, "this server has no TLS")
            }
            OptionCode::StartTls if self.tls => {
                (OptionErrorCode::Invalid, "TLS has been started already")
            }
            OptionCode::ExtendedHeaders if !self.config.extended => {
                (OptionErrorCode::Unsupported, "")
            }
            OptionCode::StructuredReply if extended => (
                OptionErrorCode::ExtendedHeadersRequired,
                "extended headers have been negotiated already",
            ),
            OptionCode::StructuredReply if !self.config.structured => {
                (OptionErrorCode::Unsupported, "")
            }
            OptionCode::ListMetaContext | OptionCode::SetMetaContext
                if !self.config.meta_contexts =>
            {
                (OptionErrorCode::Unsupported, "")
            }
            OptionCode::ListMetaContext | OptionCode::SetMetaContext if !self.mode.is_chunked() => {
                (
                    OptionErrorCode::Invalid,
                    "metadata contexts need structured replies or extended headers",
                )
            }
            _ if length > limits::OPTION_PAYLOAD => {
                (OptionErrorCode::TooBig, "the option is too long")
            }
            // A goodbye is a goodbye, whatever is said with it.
            OptionCode::Abort => return None,
            _ if !has_payload && length > 0 => {
                (OptionErrorCode::Invalid, "this option has no payload")
            }
            _ => return None,
        };
        Some(OptionRefusal::new(code, message))
    }

    fn on_option(&mut self, option: OptionCode, payload: &[u8]) {
        self.state = State::OptionHead;
        match option {
            OptionCode::ExportName => self.on_export_name(payload),
            OptionCode::Abort => {
                self.replies(option).ack();
                self.goodbye = true;
                self.state = State::Close;
            }
            OptionCode::List => self.state = State::List,
            OptionCode::StartTls => {
                self.replies(option).ack();
                self.state = State::Upgrade;
            }
            OptionCode::StructuredReply => {
                self.mode = ReplyMode::Structured;
                self.replies(option).ack();
            }
            OptionCode::ExtendedHeaders => {
                self.mode = ReplyMode::Extended;
                self.replies(option).ack();
            }
            OptionCode::Info | OptionCode::Go => match InfoRequest::parse(payload) {
                Ok(request) => self.state = State::Open(Asked::Info(option, request)),
                Err(refusal) => self.refuse(option, &refusal),
            },
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                match ContextRequest::parse(payload) {
                    Ok(request) => self.state = State::Open(Asked::Contexts(option, request)),
                    Err(refusal) => self.refuse(option, &refusal),
                }
            }
            OptionCode::Other(_) => {
                let refusal = OptionRefusal::new(OptionErrorCode::Unsupported, "");
                self.refuse(option, &refusal);
            }
        }
    }

    fn on_export_name(&mut self, payload: &[u8]) {
        self.state = match reader::name(payload) {
            // Forbidden after extended headers, whose other half it could not convey.
            Some(name) if self.mode != ReplyMode::Extended => State::Open(Asked::ExportName(name)),
            _ => State::Close,
        };
    }

    fn describe(&mut self, option: OptionCode, request: &InfoRequest, export: ServedExport) {
        let flags = self.offered_flags(&export);
        let mut replies = self.replies(option);
        replies.export(&export, flags, request);
        replies.ack();
        if option == OptionCode::Go {
            self.begin(request.name.clone(), export);
        }
    }

    fn contexts(&mut self, option: OptionCode, request: ContextRequest, export: &ServedExport) {
        let selected = request.select(&export.contexts, option);
        let setting = option == OptionCode::SetMetaContext;
        if setting && selected.len() > limits::CONTEXTS {
            let message = "more than 64 metadata contexts";
            self.refuse(
                option,
                &OptionRefusal::new(OptionErrorCode::TooBig, message),
            );
            return;
        }
        let mut replies = self.replies(option);
        for context in &selected {
            // The id of a list means nothing.
            replies.context(if setting { context.id } else { 0 }, &context.name);
        }
        replies.ack();
        if setting {
            self.selected = Some((request.name, selected));
        }
    }

    fn open_by_name(&mut self, name: String, export: ServedExport) {
        let flags = self.offered_flags(&export);
        self.outgoing.put_u64(export.size);
        self.outgoing.put_u16(flags.bits());
        if !self.flags.contains(HandshakeFlags::NO_ZEROES) {
            self.outgoing.put(&[0; 124]);
        }
        self.begin(name, export);
    }

    fn begin(&mut self, export_name: String, export: ServedExport) {
        let flags = self.offered_flags(&export);
        let contexts = match self.selected.take() {
            // Contexts of another export are not those of this one, even if they are called so.
            Some((name, mut contexts)) if name == export_name => {
                contexts.retain(|context| export.contexts.contains(&context.name));
                contexts
            }
            _ => Vec::new(),
        };
        self.state = State::Done(Box::new(Negotiated {
            export_name,
            export: ExportInfo {
                name: export.canonical_name,
                description: export.description,
                size: export.size,
                flags,
                block_sizes: export.block_sizes,
            },
            style: match self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
                true => HandshakeStyle::FixedNew,
                false => HandshakeStyle::New,
            },
            mode: self.mode,
            contexts,
            tls: self.tls,
            handshake_flags: self.flags,
        }));
    }

    fn offered_flags(&self, export: &ServedExport) -> TransmissionFlags {
        let mut flags = export.flags | TransmissionFlags::HAS_FLAGS;
        // Section "Transmission flags": neither may be offered without what it builds on.
        if !self.mode.is_chunked() {
            flags -= TransmissionFlags::SEND_DF;
        }
        if self.mode != ReplyMode::Extended {
            flags -= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    fn refuse(&mut self, option: OptionCode, refusal: &OptionRefusal) {
        if option == OptionCode::SetMetaContext {
            self.selected = None;
        }
        self.state = State::OptionHead;
        self.replies(option).refuse(refusal);
    }

    fn replies(&mut self, option: OptionCode) -> Replies<'_> {
        Replies {
            option: option.to_wire(),
            out: &mut self.outgoing,
        }
    }
}
