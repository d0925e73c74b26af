//! Files of certificates and keys, in PEM.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use crate::{Error, Result};

/// The names of the files in a directory.
pub(crate) const AUTHORITIES: &str = "ca-cert.pem";
pub(crate) const REVOKED: &str = "ca-crl.pem";
pub(crate) const CLIENT_CERTIFICATE: &str = "client-cert.pem";
pub(crate) const CLIENT_KEY: &str = "client-key.pem";
pub(crate) const SERVER_CERTIFICATE: &str = "server-cert.pem";
pub(crate) const SERVER_KEY: &str = "server-key.pem";

/// A certificate chain, the own certificate first, and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) files: IdentityFiles,
}

/// Where a certificate and its key come from, for messages.
pub(crate) struct IdentityFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The authorities of a directory.
pub(crate) fn authorities(directory: &Path) -> Result<RootCertStore> {
    let path = directory.join(AUTHORITIES);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|error| contents(&path, format!("not a certificate: {error}")))?;
    }
    Ok(roots)
}

/// The authorities that the system trusts.
pub(crate) fn system_authorities() -> Result<RootCertStore> {
    // What cannot be read or understood is left out; it is enough that there is one.
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(Error::NoAuthorities),
        _ => Ok(roots),
    }
}

/// How many authorities the system trusts: those that a client believes which names no others.
///
/// # Errors
/// [`Error::NoAuthorities`] when there is none.
pub fn trusted_by_system() -> Result<usize> {
    Ok(system_authorities()?.len())
}

/// What the authorities of a directory have revoked, where there is a list of it.
pub(crate) fn revoked(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let path = directory.join(REVOKED);
    match read_if_there(&path)? {
        None => Ok(Vec::new()),
        Some(bytes) => all(&path, &bytes, "certificate revocation list"),
    }
}

/// What a client of a directory shows, where there is anything.
pub(crate) fn client_identity(directory: &Path) -> Result<Option<Identity>> {
    identity(
        directory.join(CLIENT_CERTIFICATE),
        directory.join(CLIENT_KEY),
    )
}

/// What a server of a directory shows.
pub(crate) fn server_identity(directory: &Path) -> Result<Identity> {
    let files = IdentityFiles {
        certificate: directory.join(SERVER_CERTIFICATE),
        key: directory.join(SERVER_KEY),
    };
    let (chain, secret) = (read(&files.certificate)?, read(&files.key)?);
    files.parse(&chain, &secret)
}

fn identity(certificate: PathBuf, key: PathBuf) -> Result<Option<Identity>> {
    let half = |found, missing| Err(Error::Half { found, missing });
    match (read_if_there(&certificate)?, read_if_there(&key)?) {
        (None, None) => Ok(None),
        (Some(_), None) => half(certificate, key),
        (None, Some(_)) => half(key, certificate),
        (Some(chain), Some(secret)) => IdentityFiles { certificate, key }
            .parse(&chain, &secret)
            .map(Some),
    }
}

impl IdentityFiles {
    fn parse(self, chain: &[u8], secret: &[u8]) -> Result<Identity> {
        let chain = all(&self.certificate, chain, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(secret)
            .map_err(|error| bad_pem(&self.key, &error, "private key"))?;
        Ok(Identity {
            chain,
            key,
            files: self,
        })
    }

    /// What is wrong with a certificate and key that were read.
    pub(crate) fn cannot_be_used(&self, error: &rustls::Error) -> Error {
        let problem = match error {
            rustls::Error::InconsistentKeys(_) => {
                let key = self.key.file_name().unwrap_or_default().display();
                format!("the key in {key} does not belong to this certificate")
            }
            other => format!("this certificate and its key cannot be used: {other}"),
        };
        contents(&self.certificate, problem)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    all(path, &read(path)?, "certificate")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Everything of one kind in a file; at least one.
fn all<T: PemObject>(path: &Path, bytes: &[u8], what: &str) -> Result<Vec<T>> {
    let found: Vec<T> = T::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad_pem(path, &error, what))?;
    match found.is_empty() {
        true => Err(bad_pem(path, &pem::Error::NoItemsFound, what)),
        false => Ok(found),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File {
            path: path.to_owned(),
            source,
        }),
    }
}

fn bad_pem(path: &Path, error: &pem::Error, what: &str) -> Error {
    match error {
        pem::Error::NoItemsFound => contents(path, format!("there is no {what} in PEM in it")),
        // What the parser quotes of the file may be a part of a key.
        _ => contents(path, format!("the PEM of a {what} in it is damaged")),
    }
}

pub(crate) fn contents(path: &Path, problem: String) -> Error {
    Error::Contents {
        path: path.to_owned(),
        problem,
    }
}
