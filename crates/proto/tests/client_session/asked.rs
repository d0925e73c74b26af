//! A session with one request in flight, and what servers answer to it.

use blockferry_proto::{
    ClientSession, Command, CommandFlags, Cookie, Errno, Error, ExportInfo, HandshakeFlags,
    HandshakeStyle, MetaContext, Misbehaviour, Negotiated, ReplyEvent, ReplyMode, Request,
    RequestHeader, ServerError, TransmissionFlags,
};

pub(crate) const DONE: u16 = 1;
pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const STATUS: u16 = 5;
pub(crate) const STATUS_EXT: u16 = 6;
pub(crate) const ERROR: u16 = 0x8001;
pub(crate) const ERROR_OFFSET: u16 = 0x8002;

pub(crate) fn negotiated(mode: ReplyMode) -> Negotiated {
    let context = |id, name: &str| MetaContext {
        id,
        name: name.to_owned(),
    };
    Negotiated {
        export_name: "disk".to_owned(),
        export: ExportInfo {
            name: None,
            description: None,
            size: 1 << 40,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: None,
        },
        mode,
        contexts: vec![context(1, "base:allocation"), context(40, "a:depth")],
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

/// A session with one request in flight.
pub(crate) struct Asked {
    pub(crate) session: ClientSession,
    pub(crate) cookie: Cookie,
    pub(crate) request: Request,
}

pub(crate) fn ask_with(mode: ReplyMode, command: Command, flags: CommandFlags) -> Asked {
    let mut session = ClientSession::new(&negotiated(mode));
    let request = Request {
        command,
        flags,
        offset: if command == Command::Flush { 0 } else { 1000 },
        length: if command == Command::Flush { 0 } else { 100 },
    };
    let cookie = session.submit(request, &mut RequestHeader::new()).unwrap();
    Asked {
        session,
        cookie,
        request,
    }
}

pub(crate) fn ask(mode: ReplyMode, command: Command) -> Asked {
    ask_with(mode, command, CommandFlags::empty())
}

impl Asked {
    pub(crate) fn simple(&self, errno: u32) -> Vec<u8> {
        simple(self.cookie, errno)
    }

    pub(crate) fn chunk(&self, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u64;
        let mut bytes = self.head(kind, flags, length);
        bytes.extend(body);
        bytes
    }

    pub(crate) fn head(&self, kind: u16, flags: u16, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let extended = self.session.negotiated().mode == ReplyMode::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.cookie.0.to_be_bytes());
        if extended {
            bytes.extend(self.request.offset.to_be_bytes());
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend((length as u32).to_be_bytes());
        }
        bytes
    }

    /// The start of a data chunk, up to its payload.
    pub(crate) fn data(&self, flags: u16, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = self.head(DATA, flags, length + 8);
        bytes.extend(offset.to_be_bytes());
        bytes
    }

    pub(crate) fn hole(&self, flags: u16, offset: u64, length: u32) -> Vec<u8> {
        let mut body = offset.to_be_bytes().to_vec();
        body.extend(length.to_be_bytes());
        self.chunk(HOLE, flags, &body)
    }

    pub(crate) fn status(&self, flags: u16, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
        let mut body = context.to_be_bytes().to_vec();
        if self.session.negotiated().mode == ReplyMode::Extended {
            body.extend((extents.len() as u32).to_be_bytes());
            for (length, status) in extents {
                body.extend(length.to_be_bytes());
                body.extend(status.to_be_bytes());
            }
            self.chunk(STATUS_EXT, flags, &body)
        } else {
            for (length, status) in extents {
                body.extend((*length as u32).to_be_bytes());
                body.extend((*status as u32).to_be_bytes());
            }
            self.chunk(STATUS, flags, &body)
        }
    }

    /// What all of these bytes mean, payloads left out.
    pub(crate) fn events(&mut self, bytes: &[u8]) -> Result<Vec<ReplyEvent>, Error> {
        let mut events = Vec::new();
        let mut rest = bytes;
        loop {
            let (taken, event) = self.session.receive(rest)?;
            rest = &rest[taken..];
            if event == ReplyEvent::NeedMore {
                assert!(rest.is_empty());
                return Ok(events);
            }
            events.push(event);
        }
    }

    pub(crate) fn misbehaves(&mut self, bytes: &[u8]) -> Misbehaviour {
        match self.events(bytes) {
            Err(Error::Misbehaved(misbehaviour)) => misbehaviour,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn done(&self) -> ReplyEvent {
        ReplyEvent::Done {
            cookie: self.cookie,
            result: Ok(()),
        }
    }

    pub(crate) fn failed(
        &self,
        errno: Errno,
        message: Option<&str>,
        offset: Option<u64>,
    ) -> ReplyEvent {
        ReplyEvent::Done {
            cookie: self.cookie,
            result: Err(ServerError {
                errno,
                message: message.map(str::to_owned),
                offset,
            }),
        }
    }

    pub(crate) fn payload(&self, offset: u64, length: u64) -> ReplyEvent {
        ReplyEvent::Payload {
            cookie: self.cookie,
            offset,
            length,
        }
    }
}

pub(crate) fn simple(cookie: Cookie, errno: u32) -> Vec<u8> {
    let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
    bytes.extend(errno.to_be_bytes());
    bytes.extend(cookie.0.to_be_bytes());
    bytes
}

pub(crate) fn error_body(errno: u32, message: &[u8], offset: Option<u64>) -> Vec<u8> {
    let mut body = errno.to_be_bytes().to_vec();
    body.extend((message.len() as u16).to_be_bytes());
    body.extend(message);
    body.extend(offset.map(u64::to_be_bytes).into_iter().flatten());
    body
}

pub(crate) const CHUNKED: [ReplyMode; 2] = [ReplyMode::Structured, ReplyMode::Extended];
