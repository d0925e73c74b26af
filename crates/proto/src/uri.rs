//! NBD URIs (the NBD project's `doc/uri.md`): where a server is, which export, and how to get in.
//!
//! ```text
//! nbd[s]://[user@]host[:port][/export]
//! nbd[s]+unix:///[export]?socket=PATH
//! nbd[s]+vsock://cid[:port][/export]
//! nbd[s]+ssh://[user@]host[:port][/export][?socket=PATH]
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use thiserror::Error;

use crate::limits;
use crate::wire::DEFAULT_PORT;

/// What stands for itself in a path; everything else is percent-encoded. `/` does: export names
/// may contain it.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// The same in the value of a parameter.
const QUERY: &AsciiSet = &PATH.add(b'&').add(b'+').add(b'=').add(b';');
/// The same in a user or a host name.
const AUTHORITY: &AsciiSet = &QUERY.add(b'/').add(b'@').add(b':');

/// The same in an IPv6 address, where only a zone has anything to encode.
const ADDRESS: &AsciiSet = &AUTHORITY.remove(b':');

/// The schemes, with and without TLS.
const SCHEMES: &str = "nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh";

/// Where an export is.
///
/// ```
/// use blockferry_proto::{NbdUri, Transport};
///
/// let uri: NbdUri = "nbd://server/disk".parse()?;
/// assert_eq!(uri.export, "disk");
/// assert_eq!(uri.transport, Transport::Tcp { host: "server".to_owned(), port: 10809 });
/// # Ok::<(), blockferry_proto::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// How to reach the server.
    pub transport: Transport,
    /// Whether TLS is required: the schemes that begin with `nbds`.
    pub tls: bool,
    /// The user to authenticate as.
    pub user: Option<String>,
    /// The export's name, at most 4096 bytes; empty for the server's default.
    pub export: String,
    /// The parameters behind `?` in their order, decoded, except those that are part of the
    /// transport: `tls-certificates`, `tls-psk-file`, `tls-hostname`, `tls-verify-peer`, and
    /// whatever else there is.
    pub parameters: Vec<(String, String)>,
}

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// A name or an address; an IPv6 address without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
    /// A socket between a virtual machine and its host.
    Vsock {
        /// Which machine.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A server on another machine, reached through `ssh`.
    Ssh {
        /// A name or an address, which never begins with `-`.
        host: String,
        /// The port of the SSH server.
        port: Option<u16>,
        /// The path of a Unix domain socket there; otherwise TCP there.
        socket: Option<PathBuf>,
    },
}

/// Why a string is no NBD URI.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UriError {
    /// No scheme, or not one of NBD's.
    #[error("{0:?} is not an NBD URI: the scheme must be one of {SCHEMES}")]
    Scheme(String),
    /// No `//` behind the scheme.
    #[error("an NBD URI needs \"//\" after the scheme")]
    NoAuthority,
    /// The port is no number from 1 to 65535.
    #[error("{0:?} is not a port number")]
    Port(String),
    /// The host is not a possible name or address.
    #[error("{0:?} is not a host name or address")]
    Host(String),
    /// A name that a program could take for an option.
    #[error("the {what} {value:?} must not begin with \"-\"")]
    LeadingDash {
        /// Host or user.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// No host where one is needed.
    #[error("an nbd+ssh URI needs a host")]
    NoHost,
    /// The context identifier is no number.
    #[error("{0:?} is not a vsock context identifier")]
    Cid(String),
    /// A Unix socket URI without the socket.
    #[error("an nbd+unix URI needs the parameter socket=PATH")]
    NoSocket,
    /// A host where none belongs.
    #[error("an nbd+unix URI has no host: write nbd+unix:///export?socket=PATH")]
    HostWithSocket,
    /// A socket where none belongs.
    #[error("the parameter \"socket\" belongs to nbd+unix and nbd+ssh URIs")]
    UnexpectedSocket,
    /// The same parameter twice.
    #[error("the parameter {0:?} is given twice")]
    DuplicateParameter(String),
    /// A user where none belongs.
    #[error("a user name does not belong in this kind of URI")]
    UnexpectedUser,
    /// `%` without two hexadecimal digits.
    #[error("\"%\" must be followed by two hexadecimal digits in {0:?}")]
    BadEscape(String),
    /// What was decoded is not UTF-8.
    #[error("{0:?} does not decode to UTF-8")]
    NotUtf8(String),
    /// A NUL byte.
    #[error("a URI must not contain a NUL byte")]
    Nul,
    /// An export name that the protocol cannot carry.
    #[error("an export name must not be longer than 4096 bytes")]
    ExportTooLong,
    /// A fragment.
    #[error("an NBD URI has no fragment: write \"#\" as %23")]
    Fragment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Vsock,
    Ssh,
}

/// Whether the string begins with a scheme of NBD and `:`; it may still be malformed behind it.
#[must_use]
pub fn is_nbd_uri(text: &str) -> bool {
    text.split_once(':')
        .is_some_and(|(scheme, _)| parse_scheme(scheme).is_some())
}

fn parse_scheme(scheme: &str) -> Option<(Kind, bool)> {
    // Schemes are case-insensitive (RFC 3986, section 3.1).
    let scheme = scheme.to_ascii_lowercase();
    let (base, transport) = match scheme.split_once('+') {
        Some((base, transport)) => (base, Some(transport)),
        None => (scheme.as_str(), None),
    };
    let tls = match base {
        "nbd" => false,
        "nbds" => true,
        _ => return None,
    };
    let kind = match transport {
        None => Kind::Tcp,
        Some("unix") => Kind::Unix,
        Some("vsock") => Kind::Vsock,
        Some("ssh") => Kind::Ssh,
        Some(_) => return None,
    };
    Some((kind, tls))
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (kind, tls, rest) = text
            .split_once(':')
            .and_then(|(scheme, rest)| parse_scheme(scheme).map(|(kind, tls)| (kind, tls, rest)))
            .ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let rest = rest.strip_prefix("//").ok_or(UriError::NoAuthority)?;
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        let export = decode(path)?;
        if export.len() > limits::STRING {
            return Err(UriError::ExportTooLong);
        }
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(decode(user)?), address),
            None => (None, authority),
        };
        let Query { parameters, socket } = parse_query(query)?;
        if socket.is_some() && !matches!(kind, Kind::Unix | Kind::Ssh) {
            return Err(UriError::UnexpectedSocket);
        }
        let transport = match kind {
            Kind::Tcp => parse_tcp(address)?,
            Kind::Unix if !address.is_empty() => return Err(UriError::HostWithSocket),
            Kind::Unix => Transport::Unix {
                path: socket.ok_or(UriError::NoSocket)?,
            },
            Kind::Vsock if user.is_some() => return Err(UriError::UnexpectedUser),
            Kind::Vsock => parse_vsock(address)?,
            Kind::Ssh => parse_ssh(address, user.as_deref(), socket)?,
        };
        Ok(Self {
            transport,
            tls,
            user,
            export,
            parameters,
        })
    }
}

fn parse_tcp(address: &str) -> Result<Transport, UriError> {
    let (host, port) = parse_host(address)?;
    Ok(Transport::Tcp {
        host: if host.is_empty() {
            "localhost".to_owned()
        } else {
            host
        },
        port: port.unwrap_or(DEFAULT_PORT),
    })
}

fn parse_vsock(address: &str) -> Result<Transport, UriError> {
    let (cid, port) = match address.split_once(':') {
        Some((cid, port)) => (cid, Some(port)),
        None => (address, None),
    };
    Ok(Transport::Vsock {
        cid: number(cid).ok_or_else(|| UriError::Cid(cid.to_owned()))?,
        port: match port {
            None | Some("") => DEFAULT_PORT.into(),
            Some(port) => number(port).ok_or_else(|| UriError::Port(port.to_owned()))?,
        },
    })
}

fn parse_ssh(
    address: &str,
    user: Option<&str>,
    socket: Option<PathBuf>,
) -> Result<Transport, UriError> {
    let (host, port) = parse_host(address)?;
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    for (what, value) in [("host", Some(host.as_str())), ("user", user)] {
        // These end up in the arguments of a program (CVE-2025-14946).
        if let Some(value) = value.filter(|value| value.starts_with('-')) {
            let value = value.to_owned();
            return Err(UriError::LeadingDash { what, value });
        }
    }
    Ok(Transport::Ssh { host, port, socket })
}

/// Splits `host[:port]` or `[address][:port]`; the host may be empty.
fn parse_host(address: &str) -> Result<(String, Option<u16>), UriError> {
    let bad_host = || UriError::Host(address.to_owned());
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad_host)?;
        let host = decode(host)?;
        // A zone may follow the address; its "%" was decoded from "%25".
        let ip = host.split('%').next().unwrap_or_default();
        if ip.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad_host());
        }
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(bad_host()),
        };
        (host, port)
    } else {
        let (host, port) = match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        };
        if port.is_some_and(|port| port.contains(':')) {
            return Err(bad_host());
        }
        let host = decode(host)?;
        if host.contains(':') {
            return Err(bad_host());
        }
        (host, port)
    };
    if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad_host());
    }
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(
            number(port)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|&port| port != 0)
                .ok_or_else(|| UriError::Port(port.to_owned()))?,
        ),
    };
    Ok((host, port))
}

/// What stands behind `?`.
struct Query {
    parameters: Vec<(String, String)>,
    /// The parameter of this name, which is part of the transport; never empty.
    socket: Option<PathBuf>,
}

fn parse_query(query: &str) -> Result<Query, UriError> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut socket = None;
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        let key = decode(key)?;
        let duplicate = if key == "socket" {
            socket.replace(decode_path(value)?).is_some()
        } else {
            parameters.iter().any(|(other, _)| *other == key)
        };
        if duplicate {
            return Err(UriError::DuplicateParameter(key));
        }
        if key != "socket" {
            parameters.push((key, decode(value)?));
        }
    }
    let socket = socket.filter(|path: &PathBuf| !path.as_os_str().is_empty());
    Ok(Query { parameters, socket })
}

/// Decimal digits and nothing else: no sign.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn decode_bytes(text: &str) -> Result<Vec<u8>, UriError> {
    let bad_escape = text.split('%').skip(1).any(|rest| {
        let digits = rest.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if bad_escape {
        return Err(UriError::BadEscape(text.to_owned()));
    }
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    if bytes.contains(&0) {
        return Err(UriError::Nul);
    }
    Ok(bytes)
}

fn decode(text: &str) -> Result<String, UriError> {
    String::from_utf8(decode_bytes(text)?).map_err(|_| UriError::NotUtf8(text.to_owned()))
}

/// A path is bytes where the system says so.
#[cfg(unix)]
fn decode_path(text: &str) -> Result<PathBuf, UriError> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = decode_bytes(text)?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

#[cfg(not(unix))]
fn decode_path(text: &str) -> Result<PathBuf, UriError> {
    decode(text).map(PathBuf::from)
}

fn encode<'a>(text: &'a str, set: &'static AsciiSet) -> impl fmt::Display + 'a {
    percent_encode(text.as_bytes(), set)
}

fn encode_path(path: &Path) -> impl fmt::Display + '_ {
    percent_encode(path.as_os_str().as_encoded_bytes(), QUERY)
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') {
        write!(f, "[{}]", encode(host, ADDRESS))
    } else {
        write!(f, "{}", encode(host, AUTHORITY))
    }
}

/// The alternate form (`{:#}`) names the port also where it is the default one.
impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.transport {
            Transport::Tcp { .. } => "",
            Transport::Unix { .. } => "+unix",
            Transport::Vsock { .. } => "+vsock",
            Transport::Ssh { .. } => "+ssh",
        };
        write!(f, "nbd{}{kind}://", if self.tls { "s" } else { "" })?;
        if let Some(user) = &self.user {
            write!(f, "{}@", encode(user, AUTHORITY))?;
        }
        let socket = match &self.transport {
            Transport::Tcp { host, port } => {
                write_host(f, host)?;
                if *port != DEFAULT_PORT || f.alternate() {
                    write!(f, ":{port}")?;
                }
                None
            }
            Transport::Unix { path } => Some(path),
            Transport::Vsock { cid, port } => {
                write!(f, "{cid}")?;
                if *port != u32::from(DEFAULT_PORT) || f.alternate() {
                    write!(f, ":{port}")?;
                }
                None
            }
            Transport::Ssh { host, port, socket } => {
                write_host(f, host)?;
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                socket.as_ref()
            }
        };
        write!(f, "/{}", encode(&self.export, PATH))?;
        let mut separator = '?';
        if let Some(path) = socket {
            write!(f, "{separator}socket={}", encode_path(path))?;
            separator = '&';
        }
        for (key, value) in &self.parameters {
            write!(
                f,
                "{separator}{}={}",
                encode(key, QUERY),
                encode(value, QUERY)
            )?;
            separator = '&';
        }
        Ok(())
    }
}
