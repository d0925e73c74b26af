//! The handshake as a client leads it (section "Handshake"): one option after the other, the next
//! one chosen by what became of the last.
//!
//! ```text
//! oldstyle greeting -> transmission
//! greeting -> [STARTTLS] -> [EXTENDED_HEADERS] -refused-> [STRUCTURED_REPLY]
//!   Transmit: [LIST_META_CONTEXT] -> [SET_META_CONTEXT] -> GO -unsupported-> EXPORT_NAME
//!   Info:     INFO -> [LIST_META_CONTEXT] -> ABORT
//!   List:     LIST -> (INFO -> [LIST_META_CONTEXT]) for each export -> ABORT
//! ```
//!
//! Here is what becomes of the answers; the questions are in [`questions`](super::questions).

use std::collections::VecDeque;

use super::config::{ClientConfig, Goal, Tls};
use super::options::{self, InfoCollector, ReplyHead};
use super::outcome::{InfoReport, Listed, Outcome};
use crate::error::{Error, Incompatibility, Misbehaviour, Misuse, Result};
use crate::limits;
use crate::option::{OptionCode, OptionError, OptionErrorCode};
use crate::reader::{self, Put, Reader};
use crate::types::{ExportInfo, HandshakeStyle, ListedExport, MetaContext, Negotiated, ReplyMode};
use crate::wire::{self, HandshakeFlags};

/// What the driver of a [`ClientHandshake`] must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write all of this.
    Send(Vec<u8>),
    /// Read exactly this many bytes and give them to [`ClientHandshake::receive`].
    Receive(usize),
    /// Do the TLS handshake, then call [`ClientHandshake::tls_ready`].
    StartTls,
    /// Nothing: it is over.
    Done,
}

/// The handshake of a client.
///
/// The driver alternates between [`step`](Self::step) and what the step asks for. After an error,
/// further steps say goodbye if that is possible, and end in [`Step::Done`] without an outcome.
#[derive(Debug)]
pub struct ClientHandshake {
    pub(super) config: ClientConfig,
    pub(super) state: State,
    pub(super) outgoing: Vec<u8>,
    pub(super) style: HandshakeStyle,
    flags: HandshakeFlags,
    pub(super) tls: bool,
    pub(super) mode: ReplyMode,
    /// Bytes kept of the replies so far.
    kept: usize,
    /// Replies to the current option so far.
    pub(super) replies: usize,
    pub(super) infos: InfoCollector,
    pub(super) described: Option<ExportInfo>,
    pub(super) contexts: Vec<MetaContext>,
    /// Exports named by the server and not yet asked about; the first is being asked about.
    pub(super) pending: VecDeque<ListedExport>,
    pub(super) listed: Vec<Listed>,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Magic,
    Style,
    Flags,
    OldStyle,
    ReplyHead(OptionCode),
    ReplyPayload(ReplyHead),
    ExportNameReply,
    Upgrade,
    Over,
}

impl ClientHandshake {
    /// A handshake on a new connection.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] for names that the protocol cannot carry.
    pub fn new(config: ClientConfig) -> Result<Self> {
        if config.contexts.len() > limits::CONTEXTS {
            return Err(Misuse::TooManyContexts(limits::CONTEXTS).into());
        }
        let valid = |name: &String| reader::name(name.as_bytes()).is_some();
        if !valid(&config.export) || !config.contexts.iter().all(valid) {
            return Err(Misuse::Name.into());
        }
        Ok(Self {
            config,
            state: State::Magic,
            outgoing: Vec::new(),
            style: HandshakeStyle::default(),
            flags: HandshakeFlags::empty(),
            tls: false,
            mode: ReplyMode::Simple,
            kept: 0,
            replies: 0,
            infos: InfoCollector::default(),
            described: None,
            contexts: Vec::new(),
            pending: VecDeque::new(),
            listed: Vec::new(),
            outcome: None,
        })
    }

    /// What to do next. What was to be sent is given once; everything else until it is done.
    #[must_use]
    pub fn step(&mut self) -> Step {
        if !self.outgoing.is_empty() {
            return Step::Send(std::mem::take(&mut self.outgoing));
        }
        match self.state {
            State::Upgrade => Step::StartTls,
            State::Over => Step::Done,
            _ => Step::Receive(self.wanted()),
        }
    }

    /// Takes the bytes that [`Step::Receive`] asked for.
    ///
    /// # Errors
    ///
    /// Any but [`Error::Misuse`] ends the handshake.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<()> {
        let wanted = self.wanted();
        if bytes.len() != wanted || wanted == 0 || !self.outgoing.is_empty() {
            let given = bytes.len();
            return Err(Misuse::WrongLength { wanted, given }.into());
        }
        let result = match self.state {
            State::Magic => self.on_magic(bytes),
            State::Style => self.on_style(bytes),
            State::Flags => self.on_flags(bytes),
            State::OldStyle => self.on_old_style(bytes),
            State::ReplyHead(option) => self.on_reply_head(option, bytes),
            State::ReplyPayload(head) => self.on_reply(head, bytes),
            State::ExportNameReply => self.on_export_name(bytes),
            State::Upgrade | State::Over => Ok(()),
        };
        if let Err(error) = &result {
            let polite = match error {
                Error::Refused(_) => true,
                Error::Incompatible(_) => matches!(self.state, State::ReplyHead(_)),
                _ => false,
            };
            self.state = State::Over;
            self.outgoing.clear();
            if polite {
                self.outgoing = options::option(OptionCode::Abort, &[]);
            }
        }
        result
    }

    /// TLS has started: everything from here on goes through it.
    pub fn tls_ready(&mut self) {
        if matches!(self.state, State::Upgrade) {
            self.tls = true;
            self.ask_for_mode();
        }
    }

    /// What the handshake came to, once, after [`Step::Done`].
    #[must_use]
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// What it means that the server closed the connection at this point.
    #[must_use]
    pub fn hung_up(&self) -> Error {
        match self.state {
            // The only way for a server to refuse this option.
            State::ExportNameReply => Error::Refused(OptionError {
                option: OptionCode::ExportName,
                code: OptionErrorCode::Unknown,
                message: String::new(),
            }),
            _ => Misbehaviour::HungUp.into(),
        }
    }

    fn wanted(&self) -> usize {
        match self.state {
            State::Magic | State::Style => 8,
            State::Flags => 2,
            State::OldStyle => wire::OLD_STYLE_REST_LEN,
            State::ReplyHead(_) => wire::OPTION_REPLY_LEN,
            State::ReplyPayload(head) => head.length,
            State::ExportNameReply if self.flags.contains(HandshakeFlags::NO_ZEROES) => 10,
            State::ExportNameReply => 134,
            State::Upgrade | State::Over => 0,
        }
    }

    fn on_magic(&mut self, bytes: &[u8]) -> Result<()> {
        let magic = Reader::new(bytes).u64().unwrap_or_default();
        if magic != wire::NBD_MAGIC {
            return Err(Incompatibility::NotNbd(magic).into());
        }
        self.state = State::Style;
        Ok(())
    }

    fn on_style(&mut self, bytes: &[u8]) -> Result<()> {
        match Reader::new(bytes).u64().unwrap_or_default() {
            wire::OPTION_MAGIC => self.state = State::Flags,
            wire::OLD_STYLE_MAGIC if self.suits_old_style() => self.state = State::OldStyle,
            wire::OLD_STYLE_MAGIC => return Err(Incompatibility::OldStyle.into()),
            magic => return Err(Incompatibility::UnknownStyle(magic).into()),
        }
        Ok(())
    }

    /// Whether what is wanted can be had without names and options. A name that cannot be told to the
    /// server must not be taken for that of the one export which it has.
    fn suits_old_style(&self) -> bool {
        self.config.tls != Tls::Require
            && self.config.goal != Goal::List
            && self.config.export.is_empty()
    }

    fn on_flags(&mut self, bytes: &[u8]) -> Result<()> {
        let offered = Reader::new(bytes).u16().unwrap_or_default();
        // The client answers with those of the server's flags that it knows.
        self.flags = HandshakeFlags::from_bits_truncate(offered);
        let fixed = self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        if !fixed && (self.config.tls == Tls::Require || self.config.goal == Goal::List) {
            return Err(Incompatibility::NotFixedNewstyle.into());
        }
        self.outgoing.put_u32(self.flags.bits().into());
        if !fixed {
            self.style = HandshakeStyle::New;
            self.ask_by_name();
        } else if self.config.tls == Tls::Off {
            self.ask_for_mode();
        } else {
            self.ask(OptionCode::StartTls, &[]);
        }
        Ok(())
    }

    fn on_reply_head(&mut self, option: OptionCode, bytes: &[u8]) -> Result<()> {
        let head = ReplyHead::parse(bytes, option)?;
        // A rough account of what keeping a reply costs beside its bytes.
        self.kept += head.length + 64;
        if self.kept > limits::HANDSHAKE_BYTES {
            return Err(Misbehaviour::HandshakeTooLong(limits::HANDSHAKE_BYTES).into());
        }
        if head.length == 0 {
            self.on_reply(head, &[])
        } else {
            self.state = State::ReplyPayload(head);
            Ok(())
        }
    }

    fn on_reply(&mut self, head: ReplyHead, payload: &[u8]) -> Result<()> {
        let option = head.option;
        self.state = State::ReplyHead(option);
        if head.is_error() {
            return self.on_refusal(head.error(payload));
        }
        if head.kind == wire::REP_ACK {
            return self.on_success(option);
        }
        let limit = match option {
            OptionCode::List => limits::LISTED_EXPORTS,
            OptionCode::ListMetaContext => limits::LISTED_CONTEXTS,
            OptionCode::SetMetaContext => limits::CONTEXTS,
            _ => limits::INFO_REPLIES,
        };
        self.replies += 1;
        if self.replies > limit {
            return Err(Misbehaviour::TooManyReplies { option, limit }.into());
        }
        match option {
            OptionCode::List => self.pending.push_back(head.export(payload)?),
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                self.add_context(option, head.context(payload)?)?;
            }
            _ => self.infos.add(&head, payload)?,
        }
        Ok(())
    }

    fn on_success(&mut self, option: OptionCode) -> Result<()> {
        match option {
            OptionCode::StartTls => self.state = State::Upgrade,
            OptionCode::ExtendedHeaders => {
                self.mode = ReplyMode::Extended;
                self.ask_for_goal();
            }
            OptionCode::StructuredReply => {
                self.mode = ReplyMode::Structured;
                self.ask_for_goal();
            }
            OptionCode::SetMetaContext => self.ask_for_info(OptionCode::Go),
            OptionCode::List => self.ask_about_next(),
            OptionCode::Go | OptionCode::Info => {
                let info = std::mem::take(&mut self.infos).finish(option)?;
                if option == OptionCode::Go {
                    self.outcome = Some(Outcome::Transmit(self.settle(info)));
                    self.state = State::Over;
                } else {
                    self.described = Some(info);
                    self.ask_for_available_contexts();
                }
            }
            OptionCode::ListMetaContext if self.config.goal == Goal::Transmit => {
                self.choose_listed();
                self.ask_for_contexts();
            }
            OptionCode::ListMetaContext => self.export_described()?,
            OptionCode::ExportName | OptionCode::Abort | OptionCode::Other(_) => {}
        }
        Ok(())
    }

    fn on_refusal(&mut self, error: OptionError) -> Result<()> {
        let asking_one_of_many = self.config.goal == Goal::List;
        match (error.option, error.code) {
            (_, OptionErrorCode::Shutdown) => return Err(Error::Refused(error)),
            (OptionCode::StartTls, _) if self.config.tls == Tls::Require => {
                return Err(Incompatibility::TlsRefused.into());
            }
            (OptionCode::StartTls, _) => self.ask_for_mode(),
            (OptionCode::Info, _) if asking_one_of_many => self.export_refused(error),
            (_, OptionErrorCode::TlsRequired) if !self.tls => {
                return Err(Incompatibility::TlsRequired.into());
            }
            (OptionCode::ExtendedHeaders, _) => self.ask_for_structured_replies(),
            (OptionCode::StructuredReply, _) => self.ask_for_goal(),
            (OptionCode::SetMetaContext, _) => {
                self.contexts.clear();
                self.ask_for_info(OptionCode::Go);
            }
            (OptionCode::ListMetaContext, _) if self.config.goal == Goal::Transmit => {
                self.contexts.clear();
                self.ask_for_contexts();
            }
            (OptionCode::ListMetaContext, _) => {
                self.contexts.clear();
                self.export_described()?;
            }
            // Forbidden after extended headers.
            (OptionCode::Go | OptionCode::Info, OptionErrorCode::Unsupported)
                if self.mode != ReplyMode::Extended =>
            {
                self.ask_by_name();
            }
            _ => return Err(Error::Refused(error)),
        }
        Ok(())
    }

    fn on_old_style(&mut self, bytes: &[u8]) -> Result<()> {
        self.style = HandshakeStyle::Old;
        self.on_opened(options::old_style_greeting(bytes)?);
        Ok(())
    }

    fn on_export_name(&mut self, bytes: &[u8]) -> Result<()> {
        self.on_opened(options::export_name_reply(bytes)?);
        Ok(())
    }

    /// Transmission has begun, whether it was wanted or not.
    fn on_opened(&mut self, info: ExportInfo) {
        let negotiated = self.settle(info);
        self.state = State::Over;
        self.outcome = Some(match self.config.goal {
            Goal::Transmit => Outcome::Transmit(negotiated),
            Goal::Info | Goal::List => {
                // Nobody wanted it: say goodbye to it.
                self.outgoing.put_u32(wire::REQUEST_MAGIC);
                self.outgoing.put_u16(0);
                self.outgoing.put_u16(wire::Command::Disconnect.to_wire());
                self.outgoing.put(&[0; 20]);
                Outcome::Info(InfoReport { negotiated })
            }
        });
    }

    fn add_context(&mut self, option: OptionCode, context: MetaContext) -> Result<()> {
        let selecting = option == OptionCode::SetMetaContext;
        if selecting && !self.config.contexts.contains(&context.name) {
            return Err(Misbehaviour::ContextNotRequested(context.name).into());
        }
        // Ids of a list mean nothing, and a name listed twice does no harm.
        let known = |other: &MetaContext| {
            other.name == context.name || (selecting && other.id == context.id)
        };
        if selecting && self.contexts.iter().any(known) {
            let MetaContext { id, name } = context;
            return Err(Misbehaviour::DuplicateContext { id, name }.into());
        }
        self.contexts.push(context);
        Ok(())
    }

    /// The name of the export that is being asked about.
    pub(super) fn export(&self) -> &str {
        match self.pending.front() {
            Some(listed) => &listed.name,
            None => &self.config.export,
        }
    }

    pub(super) fn export_described(&mut self) -> Result<()> {
        let info = self.described.take();
        let info = info.ok_or(Misbehaviour::MissingExportInfo(OptionCode::Info))?;
        self.export_settled(info);
        Ok(())
    }

    pub(super) fn export_settled(&mut self, info: ExportInfo) {
        let negotiated = self.settle(info);
        match self.pending.pop_front() {
            Some(export) => {
                let info = Ok(negotiated);
                self.listed.push(Listed { export, info });
                self.ask_about_next();
            }
            None => self.leave(Outcome::Info(InfoReport { negotiated })),
        }
    }

    fn export_refused(&mut self, error: OptionError) {
        if let Some(export) = self.pending.pop_front() {
            let info = Err(error);
            self.listed.push(Listed { export, info });
        }
        self.ask_about_next();
    }

    fn settle(&mut self, export: ExportInfo) -> Negotiated {
        Negotiated {
            export_name: self.export().to_owned(),
            export,
            style: self.style,
            mode: self.mode,
            contexts: std::mem::take(&mut self.contexts),
            tls: self.tls,
            handshake_flags: self.flags,
        }
    }

    pub(super) fn leave(&mut self, outcome: Outcome) {
        self.outgoing = options::option(OptionCode::Abort, &[]);
        self.state = State::Over;
        self.outcome = Some(outcome);
    }
}
