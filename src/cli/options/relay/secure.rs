//! What `relay` is told of TLS and of telling targets who their client is.

use std::path::PathBuf;

use crate::{
    cli::{
        args::{ProxyProtocolArg, RelayArgs},
        failure::Failure,
    },
    relay::proxy_protocol::Version,
    tls::Verification,
};

use super::Address;

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsListenJob {
    /// The directory with server-cert.pem and server-key.pem.
    pub(crate) directory: PathBuf,
    /// Whether clients have to show a certificate that its ca-cert.pem has signed.
    pub(crate) clients: Verification,
}

/// TLS towards targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsTargetJob {
    /// The directory with ca-cert.pem; the system says who is trusted without it.
    pub(crate) certificates: Option<PathBuf>,
    /// Whom their certificates must be for, instead of the hosts in their addresses.
    pub(crate) hostname: Option<String>,
    pub(crate) verification: Verification,
}

impl TlsListenJob {
    pub(super) fn resolve(args: &RelayArgs, listen: &Address) -> Result<Option<Self>, Failure> {
        let Some(directory) = args.tls_listen.clone() else {
            return Ok(None);
        };
        if *listen == Address::Standard {
            return Err(needs_sockets("--tls-listen", "listens"));
        }
        let clients = verification(args.tls_verify_peer);
        Ok(Some(Self { directory, clients }))
    }
}

impl TlsTargetJob {
    pub(super) fn resolve(args: &RelayArgs, targets: &[Address]) -> Result<Option<Self>, Failure> {
        if !args.tls_target {
            return Ok(None);
        }
        if targets.contains(&Address::Standard) {
            return Err(needs_sockets("--tls-target", "connects"));
        }
        Ok(Some(Self {
            certificates: args.tls_certificates.clone(),
            hostname: args.tls_hostname.clone(),
            verification: verification(!args.no_tls_verify_target),
        }))
    }
}

fn verification(on: bool) -> Verification {
    match on {
        true => Verification::On,
        false => Verification::Off,
    }
}

/// The version of the PROXY protocol, where targets are told.
pub(super) fn proxy_protocol(
    args: &RelayArgs,
    targets: &[Address],
) -> Result<Option<Version>, Failure> {
    let Some(version) = args.proxy_protocol else {
        return Ok(None);
    };
    if targets.contains(&Address::Standard) {
        return Err(needs_sockets("--proxy-protocol", "connects"));
    }
    Ok(Some(match version {
        ProxyProtocolArg::V1 => Version::V1,
        ProxyProtocolArg::V2 => Version::V2,
    }))
}

fn needs_sockets(option: &str, does: &str) -> Failure {
    let failure = Failure::usage(format!(
        "{option}: standard input and output are not a socket"
    ));
    failure.hint(format!("{option} is for a relay that {does} there"))
}
