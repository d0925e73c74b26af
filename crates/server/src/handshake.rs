//! The handshake of one connection: carries out what the protocol's state machine asks for.

use std::{io, time::Duration};

use blockferry_block::{Capabilities, ClientFacts, DeviceInfo, ExportEntry, OpenExport};
use blockferry_proto::{
    BlockSizes, ListedExport, Negotiated, OptionErrorCode, OptionRefusal, ServedExport,
    ServerConfig, ServerHandshake, ServerStep, TlsPolicy, TransmissionFlags,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    errno,
    options::{ConnectionId, Ending, MAX_PAYLOAD, ServerEvent, ServerOptions, TlsOptions},
    server::Shared,
    stream::Stream,
};

/// What a client announced and nobody wants to see goes through a buffer of this many bytes.
const DISCARD_BUFFER: usize = 4096;

/// A client that is ready for requests, and the device that it chose.
pub(crate) struct Settled {
    pub(crate) negotiated: Negotiated,
    pub(crate) export: OpenExport,
}

/// Leads a client through the handshake. A device is opened when the client asks for it.
pub(crate) async fn negotiate(
    stream: &Stream,
    shared: &Shared,
    connection: ConnectionId,
) -> Result<Settled, Ending> {
    let options = &shared.options;
    let mut machine = ServerHandshake::new(config(options));
    let mut opened: Option<(String, OpenExport)> = None;
    let mut client = ClientFacts {
        read_only: options.read_only,
        tls: false,
    };
    let mut clock = Clock::new(options.handshake_timeout);
    loop {
        match machine.step() {
            ServerStep::Send(bytes) => clock.limit(stream.send_all(&bytes)).await?,
            ServerStep::Receive(length) => {
                let mut bytes = vec![0; length];
                clock.limit(stream.receive_exact(&mut bytes)).await?;
                machine.receive(&bytes).map_err(Ending::Misbehaved)?;
            }
            ServerStep::Discard(length) => clock.limit(discard(stream, length)).await?,
            ServerStep::Open { name, .. } => {
                let known = opened.take().filter(|(open, _)| *open == name);
                let export = match known {
                    Some((_, export)) => Ok(export),
                    None => clock.pause(shared.exports.open(&name, client)).await,
                };
                let answer = match export {
                    Ok(export) => {
                        let described = served_export(&export, options);
                        opened = Some((name, export));
                        described
                    }
                    Err(error) => {
                        shared.observe(&ServerEvent::OpenFailed {
                            connection,
                            export: &name,
                            error: &error,
                        });
                        Err(errno::refusal(&error))
                    }
                };
                machine.export(answer);
            }
            ServerStep::List => {
                let exports = clock.pause(shared.exports.list(client)).await;
                let exports = exports.map(|list| list.into_iter().map(listed).collect());
                machine.exports(exports.map_err(|error| errno::refusal(&error)));
            }
            ServerStep::Done(negotiated) => {
                return match opened {
                    Some((name, export)) if name == negotiated.export_name => {
                        Ok(Settled { negotiated, export })
                    }
                    _ => Err(Ending::Refused),
                };
            }
            ServerStep::StartTls => {
                let Some(TlsOptions { tls, .. }) = &options.tls else {
                    return Err(Ending::Refused);
                };
                let session = tls.session().map_err(Ending::Tls)?;
                // What a client sent behind its wish in the clear is still in the socket: it is nothing but
                // the beginning of TLS, and wrong as that.
                clock.limit(stream.secure(session)).await?;
                machine.tls_ready();
                client.tls = true;
                opened = None;
            }
            ServerStep::Close if machine.was_aborted() => return Err(Ending::Disconnected),
            ServerStep::Close => return Err(Ending::Refused),
        }
    }
}

fn config(options: &ServerOptions) -> ServerConfig {
    let mut config = ServerConfig::default();
    config.tls = options.tls.as_ref().map_or(TlsPolicy::Off, |it| it.policy);
    config.structured = options.structured;
    config.extended = options.extended;
    config.meta_contexts = options.meta_contexts;
    config.flags = options.handshake_flags;
    config
}

/// What a client is told of a device.
fn served_export(
    export: &OpenExport,
    options: &ServerOptions,
) -> Result<ServedExport, OptionRefusal> {
    let info = export.device.info();
    let limits = info.limits;
    let preferred = limits.preferred.max(limits.minimum).max(512);
    let block_sizes = BlockSizes::new(limits.minimum, preferred, MAX_PAYLOAD)
        .map_err(|error| OptionRefusal::new(OptionErrorCode::Platform, error.to_string()))?;
    let contexts = info.contexts.iter().map(ToString::to_string);
    Ok(ServedExport {
        canonical_name: export.canonical_name.clone(),
        description: export
            .description
            .clone()
            .or_else(|| info.description.clone()),
        size: info.size,
        flags: transmission_flags(info, options),
        block_sizes: Some(block_sizes),
        contexts: contexts.collect(),
    })
}

/// What a client may do: what the device can, and what is made of that in [`requests`](crate::requests).
fn transmission_flags(info: &DeviceInfo, options: &ServerOptions) -> TransmissionFlags {
    use TransmissionFlags as Flags;
    let writable = !options.read_only && info.can(Capabilities::WRITE);
    // A second connection would wait for the end of the first one.
    let several = options.max_connections > 1 && info.can(Capabilities::MULTI_CONN);
    let durable = info
        .capabilities
        .intersects(Capabilities::FLUSH | Capabilities::FUA);
    let mut flags = Flags::HAS_FLAGS | Flags::SEND_DF | Flags::BLOCK_STATUS_PAYLOAD;
    flags.set(Flags::READ_ONLY, !writable);
    flags.set(Flags::SEND_FLUSH, info.can(Capabilities::FLUSH));
    flags.set(Flags::SEND_FUA, writable && durable);
    flags.set(Flags::ROTATIONAL, info.rotational);
    flags.set(Flags::SEND_TRIM, writable && info.can(Capabilities::TRIM));
    flags.set(Flags::SEND_WRITE_ZEROES, writable);
    flags.set(
        Flags::SEND_FAST_ZERO,
        writable && info.can(Capabilities::FAST_ZERO),
    );
    flags.set(Flags::CAN_MULTI_CONN, several);
    flags.set(Flags::SEND_CACHE, info.can(Capabilities::CACHE));
    flags
}

/// An export as the protocol lists it.
fn listed(entry: ExportEntry) -> ListedExport {
    ListedExport {
        name: entry.name,
        description: entry.description.unwrap_or_default(),
    }
}

async fn discard(stream: &Stream, mut length: usize) -> io::Result<()> {
    let mut buffer = [0; DISCARD_BUFFER];
    while length > 0 {
        let part = length.min(buffer.len());
        stream.receive_exact(&mut buffer[..part]).await?;
        length -= part;
    }
    Ok(())
}

/// The time that a client has left.
struct Clock {
    deadline: Instant,
}

impl Clock {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            // A timeout beyond what the clock can say is none: a century.
            deadline: now
                .checked_add(timeout)
                .unwrap_or(now + Duration::from_secs(100 * 365 * 86400)),
        }
    }

    /// Waits for the client until the deadline.
    async fn limit<T>(&self, io: impl Future<Output = io::Result<T>>) -> Result<T, Ending> {
        match timeout_at(self.deadline, io).await {
            Ok(result) => result.map_err(Ending::from_io),
            Err(_) => Err(Ending::HandshakeTimedOut),
        }
    }

    /// Waits for something that is not the client's fault.
    async fn pause<T>(&mut self, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = work.await;
        self.deadline += start.elapsed();
        result
    }
}
