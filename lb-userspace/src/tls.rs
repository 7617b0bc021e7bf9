//! TLS towards other programs: registries and backends whose health is checked over https.
//!
//! One set-up for both: rustls with ring, certificates of authorities from a file or else the system's own. What is
//! checked is said by [`Verify`].

use std::{fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;

use crate::{Error, Result, error::Context as _};

/// How far the other end is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify<'a> {
    /// Its certificate must be good by the system's authorities.
    System,
    /// Its certificate must be good by the authorities in this file, PEM.
    File(&'a Path),
    /// Any certificate will do: for health checks by address, where the name of the server is not known.
    Nothing,
}

/// The client's own certificate and key, PEM files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Its certificate, with those in between.
    pub cert: &'a Path,
    /// Its key.
    pub key: &'a Path,
}

/// Opens TLS connections.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
}

impl Tls {
    /// Reads what files are named.
    ///
    /// # Errors
    /// A file cannot be read, or has nothing of use in it.
    pub fn new(verify: Verify<'_>, identity: Option<Identity<'_>>) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?;
        let builder = match verify {
            Verify::System => builder.with_root_certificates(system()?),
            Verify::File(path) => builder.with_root_certificates(authorities(path)?),
            Verify::Nothing => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        };
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .context(format_args!("TLS certificate {} with key {}", cert.display(), key.display()))?,
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// TLS over an open connection; `name` is the host name or address that the certificate must be for.
    ///
    /// # Errors
    /// Why the handshake failed, in words.
    pub async fn connect<S>(&self, name: &str, stream: S) -> Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Error::failed(format!("TLS: '{name}' is not a name that a certificate can have")))?;
        self.connector.connect(name, stream).await.map_err(|error| Error::failed(format!("TLS: {}", words(&error))))
    }

    /// The same without resumed sessions, in which the other end does not show its certificate.
    #[must_use]
    pub fn without_resumption(self) -> Self {
        self.with(|config| config.resumption = Resumption::disabled())
    }

    /// The same for one application protocol (ALPN).
    #[must_use]
    pub fn speaking(self, protocol: &[u8]) -> Self {
        self.with(|config| config.alpn_protocols = vec![protocol.to_vec()])
    }

    fn with(self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = ClientConfig::clone(self.connector.config());
        change(&mut config);
        Self { connector: TlsConnector::from(Arc::new(config)) }
    }
}

/// Why a handshake failed, in the words that people look for.
fn words(error: &std::io::Error) -> String {
    use rustls::{CertificateError as Bad, Error as Tls};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    match tls {
        Some(Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => "certificate expired".to_owned(),
        Some(Tls::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => {
            "certificate not valid yet".to_owned()
        }
        Some(Tls::InvalidCertificate(Bad::UnknownIssuer)) => "certificate of an unknown issuer".to_owned(),
        Some(Tls::InvalidCertificate(Bad::NotValidForNameContext { expected, .. })) => {
            format!("certificate is not for {}", expected.to_str())
        }
        Some(Tls::InvalidCertificate(Bad::NotValidForName)) => "certificate is for another name".to_owned(),
        Some(Tls::InvalidMessage(_)) => "the server does not speak TLS".to_owned(),
        Some(Tls::AlertReceived(alert)) => format!("the server refused: {alert:?}"),
        Some(other) => other.to_string(),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        None => error.to_string(),
    }
}

fn system() -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(Error::failed("TLS: this system has no certificates of authorities")
            .hint("install ca-certificates, or name a file: ca=/path/ca.pem"));
    }
    Ok(store)
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).context(format_args!("TLS authorities {}", path.display()))?;
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .context(format_args!("TLS certificates {}", path.display()))?;
    if found.is_empty() {
        return Err(Error::failed(format!("TLS certificates {}: there is none in it", path.display()))
            .hint("a PEM file has lines `-----BEGIN CERTIFICATE-----`"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        Error::failed(format!("TLS key {}: {error}", path.display()))
            .hint("a PEM file with `-----BEGIN PRIVATE KEY-----`, without a passphrase")
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(format_args!("TLS file {}", path.display()))
}

/// Accepts every certificate, but not a wrong signature.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(Tls::new(Verify::File(&path), None).err().unwrap().message.contains("ca.pem"));
        fs::write(&path, "no certificate").unwrap();
        assert!(Tls::new(Verify::File(&path), None).err().unwrap().message.contains("there is none in it"));
        let identity = Identity { cert: &path, key: &path };
        assert!(Tls::new(Verify::Nothing, Some(identity)).is_err());
        assert!(Tls::new(Verify::Nothing, None).is_ok());
    }
}
