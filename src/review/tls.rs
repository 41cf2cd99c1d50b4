//! TLS of the review server: certificate and key from PEM files, read again when the files change.
//!
//! Thread: the files are read off the server's thread; handshakes take the newest pair that was good.
//!
//! Invariants:
//! 1. A pair that cannot be used never replaces one that could: while files are being renewed, the old pair serves. Test:
//!    `a_renewed_certificate_is_taken` in tests/review_accounts.rs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::error::{Context, Error, Result};

/// How often the files are looked at.
pub const LOOK: Duration = Duration::from_secs(2);

/// Where certificate and key are, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and the authority.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    fn read(&self) -> Result<CertifiedKey> {
        let hint = "give PEM files: --tls-cert with the certificate and those that signed it, --tls-key with its key";
        let cannot = |what: &str, path: &Path| format!("cannot read the {what} \"{}\"", path.display());
        let certs = CertificateDer::pem_file_iter(&self.cert)
            .and_then(|certs| certs.collect::<std::result::Result<Vec<_>, _>>())
            .usage(|| cannot("certificate", &self.cert))
            .map_err(|e| e.hint(hint))?;
        if certs.is_empty() {
            return Err(Error::usage(format!("there is no certificate in \"{}\"", self.cert.display())).hint(hint));
        }
        let key =
            PrivateKeyDer::from_pem_file(&self.key).usage(|| cannot("key", &self.key)).map_err(|e| e.hint(hint))?;
        let key = default_provider()
            .key_provider
            .load_private_key(key)
            .usage(|| cannot("key", &self.key))
            .map_err(|e| e.hint(hint))?;
        let pair = CertifiedKey::new(certs, key);
        pair.keys_match()
            .usage(|| format!("\"{}\" is not the key of \"{}\"", self.key.display(), self.cert.display()))
            .map_err(|e| e.hint(hint))?;
        Ok(pair)
    }

    /// Changes with the files.
    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
    }
}

/// The newest good pair.
#[derive(Debug)]
struct Newest(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Speaks TLS with a pair of files.
pub struct Tls {
    files: TlsFiles,
    newest: Arc<Newest>,
    seen: [Option<(SystemTime, u64)>; 2],
}

impl Tls {
    /// Reads the files, or says what is wrong with them.
    pub fn open(files: TlsFiles) -> Result<Tls> {
        let seen = files.stamp();
        let newest = Arc::new(Newest(RwLock::new(Arc::new(files.read()?))));
        Ok(Tls { files, newest, seen })
    }

    /// What makes a connection encrypted.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .failed(|| "TLS cannot be set up")?
            .with_no_client_auth()
            .with_cert_resolver(self.newest.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads the files again if they have changed. Blocks.
    pub fn look(&mut self) {
        let stamp = self.files.stamp();
        if stamp == self.seen {
            return;
        }
        self.seen = stamp;
        match self.files.read() {
            Ok(pair) => {
                *self.newest.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
            }
            Err(e) => tracing::warn!(error = %e, "the changed certificate is not used, the one before it is"),
        }
    }
}
