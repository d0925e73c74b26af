//! The blocking client: plain calls on plain slices.
//!
//! ```no_run
//! use blockferry_client::blocking::Client;
//!
//! # fn main() -> Result<(), blockferry_block::Error> {
//! let mut disk = Client::connect("nbd://localhost/disk")?;
//! let mut sector = [0; 512];
//! disk.read(0, &mut sector)?;
//! # Ok(())
//! # }
//! ```
//!
//! A call that is longer than one request may be is cut into pieces, several of which are in flight at a
//! time, so that the server always has work. One call runs at a time; for more, open more clients, or use
//! [`crate::Client`].

mod batch;

use std::{fmt, sync::Arc, time::Duration};

use blockferry_block::{
    ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind, Extent, Operation, Result,
    WriteFlags, ZeroFlags,
};
use blockferry_proto::{
    ClientSession, Command, CommandFlags, Goal, InfoReport, ListReport, NbdUri, Negotiated,
    Outcome, Request, RequestHeader,
};

use crate::{
    ConnectOptions,
    connect::{connect, connect_for_transmission, unexpected_outcome},
    errors, handshake,
    info::{device_info, write_flags, zero_flags},
    receiver::Receiver,
    status::{context_id, extents_of},
    stream::BlockingStream,
    watchdog::Patience,
};
use batch::{Batch, Payload, Piece};

/// The length of the pieces that a long read or write is cut into, in bytes.
const PIECE: u64 = 256 << 10;

/// A connection to one export; every call blocks until it is answered.
pub struct Client {
    stream: BlockingStream,
    session: ClientSession,
    receiver: Receiver,
    negotiated: Negotiated,
    info: DeviceInfo,
    /// Whether a long read has come yet.
    warm: bool,
    patience: Patience,
    /// How long a call of the socket may wait at present.
    limit: Option<Duration>,
    /// Why the connection is of no use any more.
    failed: Option<Error>,
}

impl Client {
    /// Connects to an NBD URI, such as `nbd://host/export` or `nbd+unix:///export?socket=PATH`.
    ///
    /// # Errors
    /// When the URI is wrong, nobody answers, or the server refuses the export.
    pub fn connect(uri: &str) -> Result<Self> {
        let uri: NbdUri = uri.parse().map_err(|error| {
            Error::with_source(ErrorKind::InvalidInput, error)
                .during(Operation::Open)
                .on(&Arc::from(uri))
        })?;
        Self::connect_with(&uri, &ConnectOptions::default())
    }

    /// Connects as `options` say.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(uri: &NbdUri, options: &ConnectOptions) -> Result<Self> {
        let (stream, negotiated, name) = connect_for_transmission(uri, options)?;
        Ok(Self {
            stream,
            session: ClientSession::new(&negotiated),
            receiver: Receiver::new(),
            info: device_info(&negotiated, name),
            negotiated,
            warm: false,
            patience: Patience::new(options),
            limit: options.request_timeout,
            failed: None,
        })
    }

    /// The size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// The export as a device: size, block sizes, abilities.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What was negotiated with the server.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// When the range is out of bounds, the server answers with an error, or the connection is lost;
    /// the buffer's contents are of no use then.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = self.range(Operation::Read, offset, buffer.len())?;
        let size = self.piece_size();
        if !self.warm && range.len() > size {
            self.warm_up(range.split_at(size).0);
        }
        let pieces = self.pieces(Command::Read, CommandFlags::empty(), range, size);
        self.run(Operation::Read, pieces, Payload::Into(buffer))
            .map(drop)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`read`](Self::read); parts of the range may have been written.
    pub fn write(&mut self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let range = self.range(Operation::Write, offset, data.len())?;
        let (flags, size) = (write_flags(flags), self.piece_size());
        if !self.warm && range.len() > size {
            self.warm_up(range.split_at(size).0);
        }
        let pieces = self.pieces(Command::Write, flags, range, size);
        self.run(Operation::Write, pieces, Payload::From(data))
            .map(drop)
    }

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// `Unsupported` where the server has no such command; else as [`write`](Self::write).
    pub fn zero(&mut self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.info.check(Operation::Zero, range)?;
        let limit = self.session.max_length(Command::WriteZeroes);
        let pieces = self.pieces(Command::WriteZeroes, zero_flags(flags), range, limit);
        self.run(Operation::Zero, pieces, Payload::None).map(drop)
    }

    /// Discards `range`: its contents are undefined afterwards.
    ///
    /// # Errors
    /// As [`zero`](Self::zero).
    pub fn trim(&mut self, range: ByteRange, flags: WriteFlags) -> Result<()> {
        self.info.check(Operation::Trim, range)?;
        let limit = self.session.max_length(Command::Trim);
        let pieces = self.pieces(Command::Trim, write_flags(flags), range, limit);
        self.run(Operation::Trim, pieces, Payload::None).map(drop)
    }

    /// Makes everything durable that was written. A server without a flush command has nothing to do.
    ///
    /// # Errors
    /// When the server fails to, or the connection is lost.
    pub fn flush(&mut self) -> Result<()> {
        if !self.info.can(Capabilities::FLUSH) {
            return Ok(());
        }
        let flush = Request {
            command: Command::Flush,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 0,
        };
        self.run(
            Operation::Flush,
            [Piece {
                request: flush,
                range: 0..0,
            }],
            Payload::None,
        )
        .map(drop)
    }

    /// Asks the server to bring `range` into its cache. A server without that command is not asked.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn cache(&mut self, range: ByteRange) -> Result<()> {
        self.info.check(Operation::Cache, range)?;
        if !self.info.can(Capabilities::CACHE) {
            return Ok(());
        }
        let limit = self.session.max_length(Command::Cache);
        let pieces = self.pieces(Command::Cache, CommandFlags::empty(), range, limit);
        self.run(Operation::Cache, pieces, Payload::None).map(drop)
    }

    /// What the server knows of `range` in `context`, its block status: contiguous from its start, possibly shorter.
    ///
    /// # Errors
    /// `Unsupported` when the context was not negotiated; else as [`read`](Self::read).
    pub fn extents(&mut self, range: ByteRange, context: &Context) -> Result<Vec<Extent>> {
        self.info.check(Operation::Extents, range)?;
        let id = context_id(&self.negotiated, context).map_err(errors::naming(&self.info.name))?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, _) = range.split_at(self.session.max_length(Command::BlockStatus));
        let request = Request {
            command: Command::BlockStatus,
            flags: CommandFlags::empty(),
            offset: asked.start(),
            length: asked.len(),
        };
        let extents = self
            .run(
                Operation::Extents,
                [Piece {
                    request,
                    range: 0..0,
                }],
                Payload::None,
            )?
            .into_iter()
            .find_map(|(context, extents)| (context == id).then_some(extents));
        extents_of(asked, &extents.unwrap_or_default()).map_err(errors::naming(&self.info.name))
    }

    /// Says goodbye and closes the connection. Dropping a client does the same.
    pub fn disconnect(self) {}

    /// Asks for the block status of `range`, whatever the answer, before the first long read or
    /// write.
    ///
    /// qemu-nbd 10 takes the memory of each request from the kernel anew, page by page, until it has once
    /// freed something larger, and what it needs to answer this question is larger. Measured: 3 GiB in
    /// 1.7 seconds instead of 4.8, with 4,000 page faults in the server instead of 800,000.
    fn warm_up(&mut self, range: ByteRange) {
        self.warm = true;
        if self.info.knows_allocation() {
            // An error says nothing of reading; a lost connection is noticed there.
            let _ = self.extents(range, &Context::Allocation);
        }
    }

    fn range(&self, operation: Operation, offset: u64, length: usize) -> Result<ByteRange> {
        let range = ByteRange::new(offset, length as u64)
            .map_err(|error| Error::with_source(ErrorKind::OutOfBounds, error).during(operation))?;
        self.info
            .check(operation, range)
            .map_err(errors::naming(&self.info.name))?;
        Ok(range)
    }

    /// The length of pieces with payload: as the server likes them.
    fn piece_size(&self) -> u64 {
        let limits = self.info.limits;
        PIECE
            .max(u64::from(limits.preferred))
            .min(u64::from(limits.maximum))
    }

    fn pieces(
        &self,
        command: Command,
        flags: CommandFlags,
        range: ByteRange,
        limit: u64,
    ) -> impl Iterator<Item = Piece> + use<> {
        range.pieces(limit).map(move |piece| {
            // Inside the caller's slice when there is one, whose length is the range's.
            let start = (piece.start() - range.start()) as usize;
            Piece {
                request: Request {
                    command,
                    flags,
                    offset: piece.start(),
                    length: piece.len(),
                },
                range: start..start.saturating_add(piece.len() as usize),
            }
        })
    }

    /// Sends `pieces` and waits for all of their answers. A server's error leaves the connection usable;
    /// everything else ends it. Returns the block status answers, if any.
    fn run(
        &mut self,
        operation: Operation,
        pieces: impl IntoIterator<Item = Piece>,
        payload: Payload<'_>,
    ) -> Result<batch::StatusReplies> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut batch = Batch::new(operation, payload);
        let result = self.wait_for(operation).and_then(|()| {
            batch.run(
                &mut self.stream,
                &mut self.session,
                &mut self.receiver,
                &mut pieces.into_iter().fuse(),
            )
        });
        match result {
            Ok(()) => batch
                .into_result()
                .map_err(|error| error.during(operation).on(&self.info.name)),
            Err(error) => {
                let error = match (error.kind(), self.limit) {
                    (ErrorKind::TimedOut, Some(limit)) => errors::silent(limit),
                    _ => error,
                };
                let error = batch.blame(error).during(operation).on(&self.info.name);
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Lets the socket wait as long as `operation` may.
    fn wait_for(&mut self, operation: Operation) -> Result<()> {
        let flushes = usize::from(operation == Operation::Flush);
        let limit = self.patience.with(1, flushes);
        if limit != self.limit {
            self.stream.set_timeout(limit)?;
            self.limit = limit;
        }
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.info.name)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.failed.is_none() {
            let mut header = RequestHeader::default();
            self.session.disconnect(&mut header);
            // The connection closes anyway; a server that is gone needs no goodbye.
            let _ = handshake::send_all(&mut self.stream, header.as_bytes());
            self.stream.close();
        }
    }
}

/// What the server says of the export that `uri` names, without opening it for transmission.
///
/// # Errors
/// As [`Client::connect`].
pub fn info(uri: &NbdUri, options: &ConnectOptions) -> Result<InfoReport> {
    match connect(uri, options, Goal::Info)?.1 {
        Outcome::Info(report) => Ok(report),
        _ => Err(unexpected_outcome()),
    }
}

/// The exports that a server lists, and what it says of each.
///
/// # Errors
/// As [`Client::connect`]; `Unsupported` where the server keeps them to itself.
pub fn list(uri: &NbdUri, options: &ConnectOptions) -> Result<ListReport> {
    match connect(uri, options, Goal::List)?.1 {
        Outcome::List(report) => Ok(report),
        _ => Err(unexpected_outcome()),
    }
}
