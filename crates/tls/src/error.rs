//! What can go wrong, in words for whoever has to put it right.

use std::{fmt, io, path::PathBuf, time::Duration};

use rustls::{AlertDescription, CertificateError, pki_types::ServerName};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of certificates or keys that cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("{} is there, but not {}: a client certificate needs both", found.display(), missing.display())]
    Half {
        /// The one.
        found: PathBuf,
        /// The other.
        missing: PathBuf,
    },
    /// A file that does not hold what its name says.
    #[error("{}: {problem}", path.display())]
    Contents {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No authority is trusted at all.
    #[error(
        "this system has no trusted certificate authorities; name a directory that has a ca-cert.pem with tls-certificates=DIRECTORY"
    )]
    NoAuthorities,
    /// The name that the server's certificate should be for is none that a certificate can be for.
    #[error(
        "{0:?} is not a host name or address that a certificate could be for; say with tls-hostname=NAME which to expect"
    )]
    Hostname(String),
    /// The peer's certificate was looked at and refused.
    #[error("{0}")]
    Certificate(CertificateProblem),
    /// A client showed no certificate and has to.
    #[error("the client has no certificate to show")]
    NoCertificate,
    /// The peer ended the session and said why.
    #[error("{}", alert_text(*.from, alert.0))]
    Alert {
        /// Who it was.
        from: Role,
        /// What it said.
        alert: Alert,
    },
    /// What a client sent first is no beginning of TLS.
    #[error("the client sent plaintext where TLS was to begin")]
    Plaintext,
    /// The peer does not speak TLS, or not as it should.
    #[error("{}: {source}", protocol_text(*.by))]
    Protocol {
        /// Who it was.
        by: Role,
        /// What is wrong with what it said.
        source: Problem,
    },
    /// A client went away in the middle of the handshake, when it had seen the server's certificate.
    #[error("the client hung up in the TLS handshake: it may not trust this server's certificate")]
    HungUp,
    /// A client connected and went away without a word.
    #[error("the client hung up without a TLS handshake")]
    NeverBegan,
    /// The peer did not do its part of the handshake in time.
    #[error("{}", timeout_text(*.by, *.begun, *.limit))]
    TimedOut {
        /// Who it was.
        by: Role,
        /// Whether it had said anything.
        begun: bool,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The stream below failed in the handshake.
    #[error("the connection failed in the TLS handshake: {0}")]
    Stream(#[source] io::Error),
    /// The stream ended without TLS's own end: cut, by whomever.
    #[error("the connection was cut")]
    Cut,
    /// So much was sent that the keys are used up, under TLS 1.2, which knows no others. A new connection helps.
    #[error("the keys of this connection are used up")]
    Exhausted,
    /// This side's options do not work.
    #[error("TLS cannot be set up: {0}")]
    Setup(Problem),
}

/// What TLS itself found wrong, in its own words.
#[derive(Clone, Debug)]
pub struct Problem(pub(crate) rustls::Error);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Problem {}

impl From<rustls::Error> for Problem {
    fn from(error: rustls::Error) -> Self {
        Self(error)
    }
}

/// What a peer said when it ended a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Alert(AlertDescription);

impl Alert {
    /// Its number (RFC 8446, section 6).
    #[must_use]
    pub fn code(self) -> u8 {
        self.0.into()
    }
}

impl fmt::Debug for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that connects.
    Client,
    /// The one that listens.
    Server,
}

/// The stable kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Files or options on this side are wrong.
    Configuration,
    /// The peer is not who it should be, or cannot prove it.
    Untrusted,
    /// The peer does not want this side.
    Rejected,
    /// The two have no version or cipher in common.
    Incompatible,
    /// The peer broke the rules.
    Protocol,
    /// The connection has ended; another one may work.
    Lost,
}

impl Error {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. }
            | Self::Half { .. }
            | Self::Contents { .. }
            | Self::NoAuthorities
            | Self::Hostname(_)
            | Self::Setup(_) => ErrorKind::Configuration,
            Self::Certificate(_) | Self::NoCertificate => ErrorKind::Untrusted,
            Self::Alert { alert, .. } if is_about_certificate(alert.0) => ErrorKind::Rejected,
            Self::Alert { alert, .. } => match alert.0 {
                AlertDescription::AccessDenied => ErrorKind::Rejected,
                AlertDescription::UserCanceled => ErrorKind::Lost,
                _ => ErrorKind::Incompatible,
            },
            Self::Protocol {
                source: Problem(rustls::Error::PeerIncompatible(_)),
                ..
            } => ErrorKind::Incompatible,
            Self::Protocol { .. } | Self::Plaintext => ErrorKind::Protocol,
            Self::Cut
            | Self::HungUp
            | Self::NeverBegan
            | Self::TimedOut { .. }
            | Self::Stream(_)
            | Self::Exhausted => ErrorKind::Lost,
        }
    }

    /// What rustls found wrong with the peer, which was to be as `expected`, and has been `answered` or not even
    /// that.
    pub(crate) fn from_peer(error: rustls::Error, expected: &Expected, answered: bool) -> Self {
        let role = expected.role();
        match error {
            rustls::Error::InvalidCertificate(problem) => Self::Certificate(CertificateProblem {
                problem,
                expected: expected.clone(),
            }),
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(alert) => Self::Alert {
                from: role,
                alert: Alert(alert),
            },
            rustls::Error::EncryptError => Self::Exhausted,
            rustls::Error::InvalidMessage(_) if role == Role::Client && !answered => {
                Self::Plaintext
            }
            error => Self::Protocol {
                by: role,
                source: Problem(error),
            },
        }
    }
}

/// Who the peer was to be.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Server {
        /// Its name, as the user knows it.
        name: String,
        /// Who vouches for it: a file, or the system.
        trust: String,
    },
    Client {
        /// The file with those who vouch for it.
        trust: String,
    },
}

impl Expected {
    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Server { .. } => Role::Server,
            Self::Client { .. } => Role::Client,
        }
    }

    fn trust(&self) -> &str {
        match self {
            Self::Server { trust, .. } | Self::Client { trust } => trust,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Server { name, .. } => name,
            Self::Client { .. } => "this client",
        }
    }
}

/// What is wrong with a peer's certificate.
#[derive(Clone, Debug)]
pub struct CertificateProblem {
    problem: CertificateError,
    expected: Expected,
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, trust) = (self.expected.name(), self.expected.trust());
        let role = self.expected.role();
        write!(f, "the {role}'s certificate ")?;
        match &self.problem {
            CertificateError::NotValidForName => write!(f, "is not for {name:?}"),
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().map(|it| plain_name(it)).collect();
                match names.is_empty() {
                    true => f.write_str("is for no host at all (it has no subjectAltName)")?,
                    false => write!(f, "is for {}", names.join(", "))?,
                }
                write!(
                    f,
                    ", not for {name:?}; tls-hostname=NAME says which name to expect"
                )
            }
            CertificateError::UnknownIssuer => write!(
                f,
                "is self-signed, or signed by an authority that is not in {trust}"
            ),
            CertificateError::BadSignature => {
                write!(
                    f,
                    "was not signed by the authority in {trust} that it names"
                )
            }
            CertificateError::Revoked => f.write_str("was revoked"),
            other => f.write_str(&own_problem(other, role)),
        }
    }
}

/// What is wrong with a certificate of `role` whoever has signed it, as the end of a sentence.
pub(crate) fn own_problem(problem: &CertificateError, role: Role) -> String {
    match problem {
        CertificateError::Expired => "has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            let since = time.as_secs().saturating_sub(not_after.as_secs());
            format!("expired {} ago", Roughly(since))
        }
        CertificateError::NotValidYet => "is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            let until = not_before.as_secs().saturating_sub(time.as_secs());
            let until = Roughly(until);
            let clocks = match role {
                Role::Client => "is the clock right?",
                Role::Server => "are both clocks right?",
            };
            format!("is not valid yet, but in {until}: {clocks}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("is not one for {role}s")
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
            "is that of an authority: the {role} needs one of its own, signed by the authority"
        ),
        other => format!("is not good: {other}"),
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// A name out of a certificate, safe to print: rustls gives them as `DnsName("host")`, `IpAddress(::1)`.
fn plain_name(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .map_or(name, |inner| inner.trim_matches('"'));
    inner.escape_debug().to_string()
}

/// A number of seconds in its largest unit.
struct Roughly(u64);

impl fmt::Display for Roughly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (86_400, "day"),
            (3600, "hour"),
            (60, "minute"),
            (1, "second"),
        ];
        let (size, unit) = units
            .into_iter()
            .find(|(size, _)| self.0 >= *size)
            .unwrap_or((1, "second"));
        let count = self.0 / size;
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} {unit}{plural}")
    }
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Said;
    matches!(
        alert,
        Said::NoCertificate
            | Said::BadCertificate
            | Said::UnsupportedCertificate
            | Said::CertificateRevoked
            | Said::CertificateExpired
            | Said::CertificateUnknown
            | Said::UnknownCA
            | Said::CertificateRequired
    )
}

fn protocol_text(by: Role) -> &'static str {
    match by {
        Role::Server => "the server does not answer in TLS",
        Role::Client => "the client does not speak TLS as this server does",
    }
}

fn timeout_text(by: Role, begun: bool, limit: Duration) -> String {
    let part = match begun {
        true => "did not finish",
        false => "did not begin",
    };
    let seconds = limit.as_secs_f64();
    format!("the {by} {part} its TLS handshake in {seconds} s")
}

fn alert_text(from: Role, alert: AlertDescription) -> String {
    match from {
        Role::Server => server_alert_text(alert),
        Role::Client => client_alert_text(alert),
    }
}

/// An alert as the specification calls it (RFC 8446, section 6): rustls's `UnknownCA` is `unknown_ca`.
fn alert_name(alert: AlertDescription) -> String {
    let AlertDescription::Unknown(number) = alert else {
        let mut name = String::new();
        let mut before_is_lower = false;
        for c in format!("{alert:?}").chars() {
            if c.is_ascii_uppercase() && before_is_lower {
                name.push('_');
            }
            before_is_lower = c.is_ascii_lowercase();
            name.push(c.to_ascii_lowercase());
        }
        return name;
    };
    number.to_string()
}

fn server_alert_text(alert: AlertDescription) -> String {
    use AlertDescription as Said;
    let said = alert_name(alert);
    match alert {
        Said::CertificateRequired | Said::NoCertificate => {
            "the server wants a client certificate: put client-cert.pem and client-key.pem into the directory that tls-certificates names".to_owned()
        }
        _ if is_about_certificate(alert) => {
            format!("the server does not accept this client's certificate (alert {said})")
        }
        Said::HandshakeFailure | Said::InsufficientSecurity | Said::ProtocolVersion => format!(
            "the server and this client have no way of TLS in common (alert {said}); servers with pre-shared keys alone are not supported"
        ),
        _ => format!("the server ended the TLS session (alert {said})"),
    }
}

fn client_alert_text(alert: AlertDescription) -> String {
    use AlertDescription as Said;
    let said = alert_name(alert);
    match alert {
        Said::CertificateExpired => {
            "the client says that this server's certificate has expired".to_owned()
        }
        Said::CertificateRevoked => {
            "the client says that this server's certificate was revoked".to_owned()
        }
        _ if is_about_certificate(alert) => {
            format!("the client does not trust this server's certificate (alert {said})")
        }
        Said::HandshakeFailure | Said::InsufficientSecurity | Said::ProtocolVersion => {
            format!("the client and this server have no way of TLS in common (alert {said})")
        }
        _ => format!("the client ended the TLS session (alert {said})"),
    }
}

/// The server's name as TLS knows it.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>> {
    // The zone of an IPv6 address is this side's own business.
    let name = name.split('%').next().unwrap_or_default();
    ServerName::try_from(name.to_owned()).map_err(|_| Error::Hostname(name.to_owned()))
}

/// Not one that anybody has had to wait for.
pub(crate) const LONGEST_MESSAGE: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_the_names_of_the_specification() {
        for (alert, name) in [
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::BadRecordMac, "bad_record_mac"),
            (AlertDescription::HandshakeFailure, "handshake_failure"),
            (AlertDescription::Unknown(200), "200"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "1 minute"),
            (7200, "2 hours"),
            (86_400 * 3 + 5, "3 days"),
        ] {
            assert_eq!(Roughly(seconds).to_string(), text);
        }
    }

    #[test]
    fn names_of_certificates_are_told_as_people_write_them() {
        assert_eq!(plain_name("DnsName(\"example.org\")"), "example.org");
        assert_eq!(plain_name("IpAddress(::1)"), "::1");
        assert_eq!(plain_name("DnsName(\"a\u{1b}b\")"), "a\\u{1b}b");
        assert_eq!(plain_name("strange"), "strange");
    }

    #[test]
    fn names_that_no_certificate_is_for_are_refused() {
        for name in [
            "localhost",
            "example.org",
            "127.0.0.1",
            "::1",
            "fe80::1%eth0",
        ] {
            server_name(name).expect("a name");
        }
        for name in ["", "a b", "-"] {
            server_name(name).expect_err("no name");
        }
    }
}
