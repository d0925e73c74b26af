//! Where the sockets of `serve` are for its clients, and sockets that only it has.

use std::{io, net::SocketAddr};

use blockferry_sys::vsock;

use crate::{
    proto::{NbdUri, Transport},
    server::Listener,
};

use crate::cli::failure::Failure;

/// Listens on a port of AF_VSOCK.
pub(crate) fn bind_vsock(port: u32) -> Result<Listener, Failure> {
    let name = format!("vsock port {port}");
    Listener::bind_vsock(port).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            Failure::failed(format!("{name}: another server listens there"))
        }
        _ => Failure::system(&name, &error),
    })
}

/// The URI at which this machine reaches an export of a listener; `None` for a Unix socket without a name.
pub(crate) fn uri_of(listener: &Listener, tls: bool, export: &str) -> Option<NbdUri> {
    let transport = match listener {
        Listener::Unix(listener) => {
            let address = listener.local_addr().ok()?;
            let path = std::path::absolute(address.as_pathname()?).ok()?;
            Transport::Unix { path }
        }
        Listener::Tcp(listener) => tcp_transport(listener.local_addr().ok()?),
        Listener::Vsock(_) => Transport::Vsock {
            cid: vsock::LOCAL,
            port: listener.vsock_port()?,
        },
    };
    Some(NbdUri {
        transport,
        tls,
        user: None,
        export: export.to_owned(),
        parameters: Vec::new(),
    })
}

fn tcp_transport(address: SocketAddr) -> Transport {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        ip => ip.to_string(),
    };
    Transport::Tcp {
        host,
        port: address.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::listen::bind_tcp, *};

    #[test]
    fn uris_tell_how_to_connect() {
        let listener = bind_tcp("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let uri = uri_of(&listener.into(), false, "")
            .expect("a URI")
            .to_string();
        assert_eq!(
            uri.parse::<NbdUri>().map(|uri| uri.transport),
            Ok(Transport::Tcp {
                host: "127.0.0.1".to_owned(),
                port,
            })
        );
    }

    #[test]
    fn no_address_is_every_address() {
        let listener = bind_tcp(":0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let uri = uri_of(&listener.into(), true, "a b").expect("a URI");
        assert_eq!(uri.to_string(), format!("nbds://localhost:{port}/a%20b"));
    }

    #[test]
    fn a_vsock_listener_is_reached_at_this_machine() {
        // Any port that is free.
        match bind_vsock(u32::MAX) {
            Ok(listener) => {
                let port = listener.vsock_port().expect("a port");
                let uri = uri_of(&listener, false, "").expect("a URI");
                assert_eq!(uri.to_string(), format!("nbd+vsock://1:{port}/"));
            }
            Err(failure) => assert!(failure.to_string().contains("vsock port"), "{failure}"),
        }
    }
}
