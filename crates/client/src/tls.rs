//! TLS as a URI asks for it, in libnbd's words.
//!
//! | parameter | meaning |
//! |---|---|
//! | `tls-certificates=DIRECTORY` | `ca-cert.pem`, which must be there, and `client-cert.pem` with `client-key.pem` |
//! | `tls-hostname=NAME` | whom the server's certificate must be for, instead of the URI's host |
//! | `tls-verify-peer=false` | any certificate will do |
//! | `tls-psk-file=FILE` | refused: pre-shared keys are not supported |
//!
//! Without a directory it is the first of `$HOME/.pki/libnbd` and `$HOME/.config/pki/libnbd`, or for root
//! `/etc/pki/libnbd`, that has a `ca-cert.pem`; without any, the system says which authorities are trusted.
//!
//! Stricter than libnbd: a directory that was named must have a `ca-cert.pem`, a certificate without its key is
//! an error, and the server at a unix socket, which has no host, must be `localhost` unless `tls-hostname` says
//! otherwise.

use std::path::PathBuf;

use blockferry_block::{Error, ErrorKind, Result};
use blockferry_proto::{NbdUri, Transport};
use blockferry_tls::{self as tls, Certificates, ClientOptions, Session, Verification};

/// A session with the server of `uri`, if it is to be one. What is wrong on this side is noticed here, before
/// anybody is connected to.
pub(crate) fn session(uri: &NbdUri) -> Result<Option<Session>> {
    if !uri.tls {
        return Ok(None);
    }
    let session = options(uri)?.session();
    session.map(Some).map_err(from_tls)
}

fn options(uri: &NbdUri) -> Result<ClientOptions> {
    let parameter = |name: &str| {
        let found = uri.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    if parameter("tls-psk-file").is_some() {
        let message = "tls-psk-file: pre-shared keys are not supported; use certificates (tls-certificates=DIRECTORY)";
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    let verification = match parameter("tls-verify-peer") {
        None => Verification::On,
        Some(text) => match truth(text) {
            Some(true) => Verification::On,
            Some(false) => Verification::Off,
            None => {
                let message = format!("tls-verify-peer={text:?} is neither true nor false");
                return Err(Error::with_message(ErrorKind::InvalidInput, message));
            }
        },
    };
    let certificates = match parameter("tls-certificates") {
        Some(directory) => Certificates::Directory(PathBuf::from(directory)),
        None => Certificates::FirstOf(usual_directories()),
    };
    let hostname = match (parameter("tls-hostname"), &uri.transport) {
        (Some(name), _) => name,
        (None, Transport::Tcp { host, .. } | Transport::Ssh { host, .. }) => host,
        (None, Transport::Unix { .. } | Transport::Vsock { .. }) => "localhost",
    };
    let mut options = ClientOptions::new(hostname, certificates);
    options.verification = verification;
    Ok(options)
}

/// The ways to say yes and no in an NBD URI.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// Where libnbd looks for certificates.
fn usual_directories() -> Vec<PathBuf> {
    if blockferry_sys::is_root() {
        return vec![PathBuf::from("/etc/pki/libnbd")];
    }
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => {
            let home = PathBuf::from(home);
            [".pki/libnbd", ".config/pki/libnbd"]
                .map(|name| home.join(name))
                .to_vec()
        }
        None => Vec::new(),
    }
}

/// What went wrong with TLS, as a device error.
pub(crate) fn from_tls(error: tls::Error) -> Error {
    let kind = match error.kind() {
        tls::ErrorKind::Configuration => ErrorKind::InvalidInput,
        tls::ErrorKind::Rejected => ErrorKind::NotPermitted,
        tls::ErrorKind::Untrusted | tls::ErrorKind::Incompatible => ErrorKind::Incompatible,
        tls::ErrorKind::Lost => ErrorKind::ConnectionLost,
        _ => ErrorKind::Protocol,
    };
    Error::with_source(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Result<ClientOptions> {
        options(&uri.parse().expect("an NBD URI"))
    }

    #[test]
    fn the_certificate_must_be_for_the_host_unless_a_name_is_given() {
        for (uri, name) in [
            ("nbds://example.org/", "example.org"),
            ("nbds://[::1]:1234/", "::1"),
            ("nbds:///", "localhost"),
            ("nbds+unix:///?socket=/s", "localhost"),
            ("nbds+unix:///?socket=/s&tls-hostname=server", "server"),
            ("nbds://example.org/?tls-hostname=server", "server"),
        ] {
            assert_eq!(parsed(uri).expect("options").hostname, name, "{uri}");
        }
    }

    #[test]
    fn verification_ends_only_when_somebody_says_so() {
        for (text, expected) in [
            ("false", Verification::Off),
            ("0", Verification::Off),
            ("No", Verification::Off),
            ("true", Verification::On),
            ("1", Verification::On),
        ] {
            let options = parsed(&format!("nbds://host/?tls-verify-peer={text}"));
            assert_eq!(options.expect("options").verification, expected, "{text}");
        }
        assert_eq!(
            parsed("nbds://host/").expect("options").verification,
            Verification::On
        );
        let error = parsed("nbds://host/?tls-verify-peer=maybe").expect_err("neither");
        assert!(error.to_string().contains("tls-verify-peer"), "{error}");
    }

    #[test]
    fn pre_shared_keys_are_refused_by_name() {
        let error = parsed("nbds://host/?tls-psk-file=/keys").expect_err("no such thing");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains("tls-psk-file") && text.contains("tls-certificates"),
            "{text}"
        );
    }

    #[test]
    fn a_uri_without_tls_needs_nothing() {
        let uri = "nbd://host/?tls-psk-file=/keys".parse().expect("a URI");
        assert!(session(&uri).expect("nothing is wrong").is_none());
    }
}
