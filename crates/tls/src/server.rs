//! What a server shows, and what it wants to see of its clients.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
        UnbufferedServerConnection, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};

use crate::{
    Error, Result, Role, Session, Verification,
    certificates::{self, AUTHORITIES, Identity, REVOKED, SERVER_CERTIFICATE, SERVER_KEY},
    error::{Expected, own_problem},
    reread::Reread,
};

/// TLS as a server does it, with the certificates in a directory.
///
/// The files are read when a session begins and they are not what they were: who renews a certificate, or
/// revokes one, need not tell the server. Where they are not there any more, or wrong, no session begins; where
/// the server may not read them any more, having given up the right to, it goes on with what it has read. TLS 1.2 and 1.3 are spoken; no session is resumed, so each
/// connection's certificates are looked at.
pub struct ServerTls {
    directory: PathBuf,
    clients: Verification,
    known: Reread<ServerConfig>,
}

const FILES: [&str; 4] = [SERVER_CERTIFICATE, SERVER_KEY, AUTHORITIES, REVOKED];

impl ServerTls {
    /// TLS with what is in `directory`: `server-cert.pem` with the server's certificate and those between it
    /// and the authority, `server-key.pem`, and where `clients` are verified `ca-cert.pem` with the authorities
    /// that sign theirs, and `ca-crl.pem` with what those revoked, if there is such a file.
    ///
    /// Nothing is read yet: [`check`](Self::check) does.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, clients: Verification) -> Self {
        let directory = directory.into();
        Self {
            known: Reread::new(FILES.map(|file| directory.join(file)).into()),
            directory,
            clients,
        }
    }

    /// Where the certificates are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the files, to find out early what is wrong with them. A certificate that has expired, or is none
    /// for servers, is found here only: for a server that runs already, its clients say it.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn check(&self) -> Result<()> {
        self.config()?;
        check_own(&certificates::server_identity(&self.directory)?)
    }

    /// Begins the session of a new connection: its handshake comes first.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), with the file that is at fault.
    pub fn session(&self) -> Result<Session> {
        let mut config = ServerConfig::clone(&*self.config()?);
        let asked_for = Arc::new(OnceLock::new());
        config.cert_resolver = Arc::new(RemembersName {
            identity: config.cert_resolver,
            asked_for: Arc::clone(&asked_for),
        });
        let connection = UnbufferedServerConnection::new(Arc::new(config))
            .map_err(|error| Error::Setup(error.into()))?;
        let trust = self.directory.join(AUTHORITIES).display().to_string();
        let expected = Expected::Client { trust };
        Ok(Session::server(connection, expected, asked_for))
    }

    fn config(&self) -> Result<Arc<ServerConfig>> {
        self.known.current(|| self.load())
    }

    fn load(&self) -> Result<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.into()))?;
        let builder = match self.clients {
            Verification::Off => builder.with_no_client_auth(),
            Verification::On => builder.with_client_cert_verifier(self.verifier(&provider)?),
        };
        let Identity { chain, key, files } = certificates::server_identity(&self.directory)?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| files.cannot_be_used(&error))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
        let authorities = Arc::new(certificates::authorities(&self.directory)?);
        let revoked = certificates::revoked(&self.directory)?;
        WebPkiClientVerifier::builder_with_provider(authorities, Arc::clone(provider))
            .with_crls(revoked)
            // An authority without a list has revoked nothing.
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| {
                let path = self.directory.join(REVOKED);
                certificates::contents(&path, format!("it cannot be used: {error}"))
            })
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("directory", &self.directory)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

/// A server's certificate, which remembers the name that the client of one connection has asked for: rustls
/// tells it here only.
#[derive(Debug)]
struct RemembersName {
    identity: Arc<dyn ResolvesServerCert>,
    asked_for: Arc<OnceLock<String>>,
}

impl ResolvesServerCert for RemembersName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(name) = hello.server_name() {
            // A client says hello once, or the same again.
            let _ = self.asked_for.set(name.to_owned());
        }
        self.identity.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.identity.only_raw_public_keys()
    }
}

/// Whether a certificate will do for clients that look at it, as far as that can be said without knowing
/// whom they trust: its time and its purpose.
fn check_own(identity: &Identity) -> Result<()> {
    let Some(own) = identity.chain.first() else {
        return Ok(());
    };
    let refused = |problem: String| {
        let problem = format!("the certificate {problem}");
        Err(certificates::contents(&identity.files.certificate, problem))
    };
    let certificate = match ParsedCertificate::try_from(own) {
        Ok(certificate) => certificate,
        Err(error) => return refused(format!("cannot be understood: {error}")),
    };
    // Nobody is trusted here, so one without a fault of its own ends as one of an unknown issuer.
    let verified = verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all,
    );
    use CertificateError as Problem;
    match verified {
        Err(rustls::Error::InvalidCertificate(
            problem @ (Problem::Expired
            | Problem::ExpiredContext { .. }
            | Problem::NotValidYet
            | Problem::NotValidYetContext { .. }
            | Problem::InvalidPurpose
            | Problem::InvalidPurposeContext { .. }),
        )) => refused(own_problem(&problem, Role::Server)),
        // Some clients take what others do not.
        _ => Ok(()),
    }
}
