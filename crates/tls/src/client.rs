//! What a client trusts and shows.

use std::{
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
    verifier::AcceptsAnyCertificate,
};

/// How a client decides whom it talks to.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where certificates are.
    pub certificates: Certificates,
    /// Whom the server's certificate must be for: a DNS name or an IP address.
    pub hostname: String,
    /// Whether the server's certificate is looked at.
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
    /// Reads the certificates and begins a session: its handshake comes first.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn session(&self) -> Result<Session> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let directory = self.certificates.directory();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::Setup)?;
        let (name, trust, builder) = match self.verification {
            Verification::On => {
                let trust = Trust::load(directory)?;
                let verifier = trust.verifier(&provider)?;
                let builder = builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier);
                (server_name(&self.hostname)?, trust.place, builder)
            }
            Verification::Off => {
                let verifier = Arc::new(AcceptsAnyCertificate(provider));
                let builder = builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier);
                // An address is never sent, so it does for a host without a name, too.
                let nameless = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
                let name = server_name(&self.hostname).unwrap_or(nameless);
                (name, String::new(), builder)
            }
        };
        let identity = match directory {
            Some(directory) => certificates::client_identity(directory)?,
            None => None,
        };
        let asked = Arc::new(AtomicBool::new(false));
        let shown = Arc::new(AtomicBool::new(false));
        let mut config = match identity {
            Some(identity) => {
                let mut config = builder
                    .with_client_auth_cert(identity.chain, identity.key)
                    .map_err(|error| identity.files.cannot_be_used(&error))?;
                config.client_auth_cert_resolver = Arc::new(RemembersShowing {
                    identity: Arc::clone(&config.client_auth_cert_resolver),
                    shown: Arc::clone(&shown),
                });
                config
            }
            None => builder.with_client_cert_resolver(Arc::new(NothingToShow {
                asked: Arc::clone(&asked),
            })),
        };
        // A session is made for one connection: certificates that were renewed are read again for the next, and
        // the server proves each time who it is.
        config.resumption = Resumption::disabled();
        let connection = UnbufferedClientConnection::new(Arc::new(config), name);
        let expected = Expected::Server {
            name: self.hostname.clone(),
            trust,
        };
        Ok(Session::client(
            connection.map_err(Error::Setup)?,
            expected,
            asked,
            shown,
        ))
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
            .map_err(|error| Error::Setup(rustls::Error::General(error.to_string())))
    }
}

/// A client with a certificate, which remembers whether it has shown it.
#[derive(Debug)]
struct RemembersShowing {
    identity: Arc<dyn ResolvesClientCert>,
    shown: Arc<AtomicBool>,
}

impl ResolvesClientCert for RemembersShowing {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let key = self.identity.resolve(authorities, schemes);
        self.shown.fetch_or(key.is_some(), Ordering::Relaxed);
        key
    }

    fn only_raw_public_keys(&self) -> bool {
        self.identity.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.identity.has_certs()
    }
}

/// A client without a certificate, which remembers whether it was asked for one.
#[derive(Debug)]
struct NothingToShow {
    asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for NothingToShow {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
