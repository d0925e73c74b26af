//! What a client trusts and shows.

use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption, UnbufferedClientConnection, WebPkiServerVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateRevocationListDer, ServerName},
    sign::CertifiedKey,
};

use crate::{
    Error, Result, Session, certificates,
    error::{Expected, server_name},
    reread::Reread,
    verifier::AcceptsAnyCertificate,
};

/// How a client decides whom it talks to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Where certificates are.
    pub certificates: Certificates,
    /// Whom the server's certificate must be for: a DNS name or an IP address.
    pub hostname: String,
    /// Whether the server's certificate is looked at. Default: it is.
    pub verification: Verification,
}

/// Where certificates are: the trusted authorities, and those that a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// In this directory, which must have a `ca-cert.pem`.
    Directory(PathBuf),
    /// In the first of these that has a `ca-cert.pem`. Where none has, the system says which authorities are
    /// trusted, and the client has nothing to show.
    FirstOf(Vec<PathBuf>),
}

/// Whether the peer has to prove who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Its certificate is valid and signed by a trusted authority; a server's is for the host.
    #[default]
    On,
    /// Any certificate of a server will do: whoever can change what goes over the network can read and change
    /// everything. A client need not have one.
    Off,
}

impl ClientOptions {
    /// To talk to `hostname`, whose certificate is verified with what is in `certificates`.
    #[must_use]
    pub fn new(hostname: impl Into<String>, certificates: Certificates) -> Self {
        Self {
            certificates,
            hostname: hostname.into(),
            verification: Verification::On,
        }
    }

    /// Reads the certificates and begins a session: its handshake comes first.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn session(&self) -> Result<Session> {
        self.session_of(&self.load()?)
    }

    fn load(&self) -> Result<Loaded> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let directory = self.certificates.directory();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.into()))?;
        let (trust, builder) = match self.verification {
            Verification::On => {
                let trust = Trust::load(directory)?;
                let verifier = trust.verifier(&provider)?;
                let builder = builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier);
                (trust.place, builder)
            }
            Verification::Off => {
                let verifier = Arc::new(AcceptsAnyCertificate(provider));
                let builder = builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier);
                (String::new(), builder)
            }
        };
        let identity = match directory {
            Some(directory) => certificates::client_identity(directory)?,
            None => None,
        };
        let mut config = match identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain, identity.key)
                .map_err(|error| identity.files.cannot_be_used(&error))?,
            None => builder.with_no_client_auth(),
        };
        // The server proves each time who it is.
        config.resumption = Resumption::disabled();
        Ok(Loaded { config, trust })
    }

    fn session_of(&self, Loaded { config, trust }: &Loaded) -> Result<Session> {
        let name = self.server_name()?;
        let (asked, shown) = (Arc::<AtomicBool>::default(), Arc::default());
        let mut config = config.clone();
        config.client_auth_cert_resolver = Arc::new(Remembers {
            identity: config.client_auth_cert_resolver,
            asked: Arc::clone(&asked),
            shown: Arc::clone(&shown),
        });
        let connection = UnbufferedClientConnection::new(Arc::new(config), name);
        let expected = Expected::Server {
            name: self.hostname.clone(),
            trust: trust.clone(),
        };
        Ok(Session::client(
            connection.map_err(|error| Error::Setup(error.into()))?,
            expected,
            asked,
            shown,
        ))
    }

    fn server_name(&self) -> Result<ServerName<'static>> {
        match (server_name(&self.hostname), self.verification) {
            // An address is never sent, so it does for a host without a name, too.
            (Err(_), Verification::Off) => Ok(ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())),
            (name, _) => name,
        }
    }
}

/// TLS as a client does it again and again.
///
/// The files of a directory are read when a session begins and they are not what they were; what the system trusts
/// is read once. Where files are not there any more, or wrong, no session begins; where they may not be read any
/// more, it goes on with what was read.
pub struct ClientTls {
    options: ClientOptions,
    known: Reread<Loaded>,
}

/// What was made of the files.
struct Loaded {
    config: ClientConfig,
    /// Who vouches for the server, for messages.
    trust: String,
}

const FILES: [&str; 4] = [
    certificates::AUTHORITIES,
    certificates::REVOKED,
    certificates::CLIENT_CERTIFICATE,
    certificates::CLIENT_KEY,
];

impl ClientTls {
    /// TLS as `options` say. Nothing is read yet: [`check`](Self::check) does.
    #[must_use]
    pub fn new(options: ClientOptions) -> Self {
        let files = match options.certificates.directory() {
            Some(directory) => FILES.map(|file| directory.join(file)).into(),
            None => Vec::new(),
        };
        Self {
            options,
            known: Reread::new(files),
        }
    }

    /// Reads the files, to find out early what is wrong with them, or with the name of the server.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn check(&self) -> Result<()> {
        self.session().map(drop)
    }

    /// Begins the session of a new connection: its handshake comes first.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn session(&self) -> Result<Session> {
        let loaded = self.known.current(|| self.options.load())?;
        self.options.session_of(&loaded)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// The directory that is used, if any is.
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::FirstOf(directories) => directories
                .iter()
                .find(|directory| directory.join(certificates::AUTHORITIES).exists())
                .map(PathBuf::as_path),
        }
    }
}

/// The authorities and what they revoked.
struct Trust {
    authorities: RootCertStore,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    /// For messages.
    place: String,
}

impl Trust {
    fn load(directory: Option<&Path>) -> Result<Self> {
        match directory {
            Some(directory) => Ok(Self {
                authorities: certificates::authorities(directory)?,
                revoked: certificates::revoked(directory)?,
                place: directory
                    .join(certificates::AUTHORITIES)
                    .display()
                    .to_string(),
            }),
            None => Ok(Self {
                authorities: certificates::system_authorities()?,
                revoked: Vec::new(),
                place: "this system's list of trusted ones".to_owned(),
            }),
        }
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
        let authorities = Arc::new(self.authorities.clone());
        let builder =
            WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(provider))
                .with_crls(self.revoked.iter().cloned())
                // An authority without a list has revoked nothing.
                .allow_unknown_revocation_status();
        builder
            .build()
            .map_err(|error| Error::Setup(rustls::Error::General(error.to_string()).into()))
    }
}

/// What a client shows, if it has anything; it remembers whether it was asked, and whether it has shown it.
#[derive(Debug)]
struct Remembers {
    identity: Arc<dyn ResolvesClientCert>,
    /// It was asked and has nothing.
    asked: Arc<AtomicBool>,
    shown: Arc<AtomicBool>,
}

impl ResolvesClientCert for Remembers {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let key = self.identity.resolve(authorities, schemes);
        match self.identity.has_certs() {
            true => self.shown.fetch_or(key.is_some(), Ordering::Relaxed),
            false => self.asked.swap(true, Ordering::Relaxed),
        };
        key
    }

    fn only_raw_public_keys(&self) -> bool {
        self.identity.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.identity.has_certs()
    }
}
