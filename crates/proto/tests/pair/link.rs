//! Two handshakes joined by byte queues, and exports for the server to serve.

use std::collections::VecDeque;

use blockferry_proto::Result;
use blockferry_proto::{
    BlockSizes, ClientConfig, ClientHandshake, ListedExport, Negotiated, OptionErrorCode,
    OptionRefusal, Outcome, ServedExport, ServerConfig, ServerHandshake, ServerStep, Step,
    TransmissionFlags,
};

/// A server that does not know `NBD_OPT_GO` is made out of one that does by renaming the option.
const GO: [u8; 4] = [0, 0, 0, 7];
const RENAMED: [u8; 4] = [0, 0, 0, 99];

/// What both sides came to.
pub(crate) struct Joined {
    pub(crate) client: Result<Option<Outcome>>,
    /// `None` where the server closed.
    pub(crate) server: Result<Option<Negotiated>>,
    pub(crate) tls: bool,
}

/// The exports `disk` (also the default) and `small`.
pub(crate) fn served(name: &str) -> Result<ServedExport, OptionRefusal> {
    match name {
        "" | "disk" => Ok(ServedExport {
            canonical_name: Some("disk".to_owned()),
            description: Some("the first disk".to_owned()),
            size: 64 << 10,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: BlockSizes::new(1, 4096, 32 << 20).ok(),
            contexts: vec!["base:allocation".to_owned(), "a:depth".to_owned()],
        }),
        "small" => Ok(ServedExport {
            canonical_name: None,
            description: None,
            size: 512,
            flags: TransmissionFlags::READ_ONLY,
            block_sizes: None,
            contexts: Vec::new(),
        }),
        _ => Err(OptionRefusal::new(
            OptionErrorCode::Unknown,
            "no such export here",
        )),
    }
}

/// Runs both handshakes to their ends.
pub(crate) fn join(client: ClientConfig, server: ServerConfig, knows_go: bool) -> Joined {
    let mut client = ClientHandshake::new(client).unwrap();
    let mut server = ServerHandshake::new(server);
    let (mut to_client, mut to_server) = (VecDeque::new(), VecDeque::new());
    let (mut client_end, mut server_end) = (None, None);
    let mut tls = (false, false);
    let mut idle = 0;
    while client_end.is_none() || server_end.is_none() {
        let mut progress = false;
        if client_end.is_none() {
            match client.step() {
                Step::Send(bytes) => {
                    let bytes = if knows_go {
                        bytes
                    } else {
                        rename(bytes, GO, RENAMED)
                    };
                    to_server.extend(bytes);
                    progress = true;
                }
                Step::Receive(count) if to_client.len() >= count => {
                    let bytes: Vec<u8> = to_client.drain(..count).collect();
                    if let Err(error) = client.receive(&bytes) {
                        client_end = Some(Err(error));
                    }
                    progress = true;
                }
                Step::Receive(_) if server_end.is_some() => {
                    client_end = Some(Err(client.hung_up()));
                }
                Step::Receive(_) => {}
                Step::StartTls => {
                    assert!(to_client.is_empty(), "plaintext before TLS");
                    tls.0 = true;
                    client.tls_ready();
                    progress = true;
                }
                Step::Done => client_end = Some(Ok(client.take_outcome())),
            }
        }
        if server_end.is_none() {
            match server.step() {
                ServerStep::Send(bytes) => {
                    let bytes = if knows_go {
                        bytes
                    } else {
                        rename(bytes, RENAMED, GO)
                    };
                    to_client.extend(bytes);
                    progress = true;
                }
                ServerStep::Receive(count) if to_server.len() >= count => {
                    let bytes: Vec<u8> = to_server.drain(..count).collect();
                    if let Err(error) = server.receive(&bytes) {
                        server_end = Some(Err(error));
                    }
                    progress = true;
                }
                ServerStep::Discard(count) => {
                    to_server.drain(..count);
                    progress = true;
                }
                // The client has hung up.
                ServerStep::Receive(_) if client_end.is_some() => server_end = Some(Ok(None)),
                ServerStep::Receive(_) => {}
                ServerStep::StartTls => {
                    assert!(to_server.is_empty(), "plaintext before TLS");
                    tls.1 = true;
                    server.tls_ready();
                    progress = true;
                }
                ServerStep::Open { name, .. } => server.export(served(&name)),
                ServerStep::List => server.exports(Ok(vec![
                    ListedExport {
                        name: "disk".to_owned(),
                        description: "the first disk".to_owned(),
                    },
                    ListedExport {
                        name: "ghost".to_owned(),
                        description: String::new(),
                    },
                ])),
                ServerStep::Done(negotiated) => server_end = Some(Ok(Some(negotiated))),
                ServerStep::Close => server_end = Some(Ok(None)),
            }
        }
        idle = if progress { 0 } else { idle + 1 };
        assert!(idle < 4, "both sides wait");
    }
    assert_eq!(tls.0, tls.1);
    Joined {
        client: client_end.unwrap(),
        server: server_end.unwrap(),
        tls: tls.0,
    }
}

fn rename(mut bytes: Vec<u8>, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    // The first option may come right behind the client's flags.
    for start in [0, 4] {
        let message = bytes.get_mut(start..).unwrap_or_default();
        let is_option = message.starts_with(b"IHAVEOPT");
        let is_reply = message.starts_with(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        if (is_option || is_reply) && message[8..12] == from {
            message[8..12].copy_from_slice(&to);
        }
    }
    bytes
}
