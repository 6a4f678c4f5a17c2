//! The listener's certificate, read again when its files change.

use std::fmt;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use tokio::time;
use tracing::{info, warn};

use super::settings::Tls;

/// How often the files are looked at. Content is compared, because mounts that are swapped as a
/// whole tell no watcher.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a certificate cannot be used.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read.
    File {
        /// Its path.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A file is no PEM, or has nothing that is wanted.
    Pem {
        /// Its path.
        path: String,
        /// What is missing.
        wanted: &'static str,
    },
    /// The certificate and the key do not fit together, or the library refuses one.
    Pair(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(f, "cannot read {path}: {error}"),
            Self::Pem { path, wanted } => write!(f, "{path} has no {wanted} in PEM form"),
            Self::Pair(error) => write!(f, "the certificate and its key cannot be used: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct Certificate {
    files: Tls,
    current: ArcSwap<CertifiedKey>,
}

/// What the files held, as a digest: the key's text is not kept.
type Seen = [u8; 32];

impl Certificate {
    /// Reads the files for the first time; the configuration resolves to whatever was read last.
    pub(crate) fn load(files: Tls) -> Result<(Arc<Self>, Arc<ServerConfig>, Seen), TlsError> {
        let (cert, key) = read(&files)?;
        let current = ArcSwap::from_pointee(pair(&files, &cert, &key)?);
        let certificate = Arc::new(Self { files, current });
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((certificate, Arc::new(config), digest(&cert, &key)))
    }

    /// Follows the files for ever. A pair that cannot be used keeps the old one, and is told once.
    pub(crate) async fn follow(self: Arc<Self>, mut seen: Seen) {
        loop {
            time::sleep(LOOK_EVERY).await;
            let me = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || me.look(seen)).await {
                Ok(now) => seen = now,
                Err(error) => warn!(%error, "the certificate could not be looked at"),
            }
        }
    }

    /// Takes over what the files hold, if that is new and sound.
    fn look(&self, seen: Seen) -> Seen {
        let (cert, key) = match read(&self.files) {
            Ok(files) => files,
            // In the middle of a swap, or worse; the old pair serves on.
            Err(error) => {
                let now = digest(error.to_string().as_bytes(), b"");
                if now != seen {
                    warn!(%error, "the certificate was not reloaded; the old one is kept");
                }
                return now;
            }
        };
        let now = digest(&cert, &key);
        if now == seen {
            return seen;
        }
        match pair(&self.files, &cert, &key) {
            Ok(pair) => {
                self.current.store(Arc::new(pair));
                info!(cert = self.files.cert, "the certificate was reloaded");
            }
            Err(error) => warn!(%error, "the certificate was not reloaded; the old one is kept"),
        }
        now
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn read(files: &Tls) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let read = |path: &String| fs::read(path).map_err(|error| TlsError::File { path: path.clone(), error });
    Ok((read(&files.cert)?, read(&files.key)?))
}

fn pair(files: &Tls, cert: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let no_cert = || TlsError::Pem { path: files.cert.clone(), wanted: "certificate" };
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().map_err(|_| no_cert())?;
    if chain.is_empty() {
        return Err(no_cert());
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| TlsError::Pem { path: files.key.clone(), wanted: "private key" })?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(TlsError::Pair)
}

fn digest(cert: &[u8], key: &[u8]) -> Seen {
    let mut digest = Sha256::new();
    digest.update((cert.len() as u64).to_be_bytes());
    digest.update(cert);
    digest.update(key);
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn written(folder: &tempfile::TempDir, cert: &str, key: &str) -> Tls {
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let files = Tls { cert: path("a.pem"), key: path("b.pem") };
        fs::write(&files.cert, cert).unwrap();
        fs::write(&files.key, key).unwrap();
        files
    }

    #[test]
    fn a_new_pair_is_taken_over_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let ((cert, key), (cert2, key2)) = (fresh(), fresh());
        let files = written(&folder, &cert, &key);
        let (certificate, _, seen) = Certificate::load(files.clone()).unwrap();
        let first = certificate.current.load_full();
        let same = || Arc::ptr_eq(&first, &certificate.current.load());

        assert_eq!(certificate.look(seen), seen);
        assert!(same(), "nothing changed");
        fs::write(&files.cert, &cert2).unwrap();
        let half = certificate.look(seen);
        assert!(same(), "the new certificate does not fit the old key");
        assert_ne!(half, seen);
        fs::remove_file(&files.key).unwrap();
        let missing = certificate.look(half);
        assert!(same(), "a file is missing");
        fs::write(&files.key, key2).unwrap();
        certificate.look(missing);
        assert!(!same(), "now they fit");
    }

    #[test]
    fn the_error_names_the_file_and_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let ((cert, key), (_, other)) = (fresh(), fresh());
        let told = |cert: &str, key: &str| {
            Certificate::load(written(&folder, cert, key)).map(drop).unwrap_err().to_string()
        };
        assert!(told("nonsense", &key).ends_with("a.pem has no certificate in PEM form"));
        assert!(told(&cert, &cert).ends_with("b.pem has no private key in PEM form"));
        assert!(told(&cert, &other).starts_with("the certificate and its key cannot be used"));
        let nowhere = Tls { cert: "/nowhere/a.pem".into(), key: "/nowhere/b.pem".into() };
        assert!(Certificate::load(nowhere).map(drop).unwrap_err().to_string().contains("/nowhere/a.pem"));
    }
}
