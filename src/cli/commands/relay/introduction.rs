//! What a target is told of its client, ahead of the client's first byte.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr as UnixAddress},
    },
};

use crate::{
    relay::proxy_protocol::{Addresses, Certificate, Header, Tls, Version},
    tls::Facts,
};

use super::link::Socket;

/// A header of the PROXY protocol in the making, where targets expect one.
pub(super) struct Introduction {
    version: Version,
    header: Header,
}

impl Introduction {
    /// Of a client that has connected to `socket`, or of standard input and output.
    ///
    /// # Errors
    /// When the client has gone already: without its address the target would take what it said for ours.
    pub(super) fn new(version: Version, socket: Option<&Socket>) -> io::Result<Self> {
        let addresses = socket.map(addresses).transpose()?.unwrap_or_default();
        let header = Header {
            addresses,
            ..Header::default()
        };
        Ok(Self { version, header })
    }

    /// The client speaks TLS.
    pub(super) fn add(&mut self, facts: Facts) {
        self.header.authority = facts.server_name;
        self.header.alpn = facts.alpn;
        self.header.tls = Some(Tls {
            version: facts.version.map(str::to_owned),
            cipher: facts.cipher.map(str::to_owned),
            certificate: facts.certificate.map(|certificate| Certificate {
                common_name: certificate.common_name,
            }),
        });
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.header.encode(self.version)
    }
}

fn addresses(socket: &Socket) -> io::Result<Addresses> {
    Ok(match socket {
        Socket::Tcp(socket) => Addresses::Tcp {
            source: socket.peer_addr()?,
            destination: socket.local_addr()?,
        },
        Socket::Unix(socket) => {
            let name = |address: io::Result<_>| address.as_ref().map(name).unwrap_or_default();
            Addresses::Unix {
                source: name(socket.peer_addr()),
                destination: name(socket.local_addr()),
            }
        }
    })
}

/// The name of a unix socket as the kernel has it.
fn name(address: &UnixAddress) -> Vec<u8> {
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
        (None, Some(name)) => [&[0], name].concat(),
        (None, None) => Vec::new(),
    }
}
