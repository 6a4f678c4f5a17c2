//! Certificates for `localhost`, and clients that trust exactly one of them.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Certificate and key in files.
pub struct Certificate {
    folder: TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    /// A new one in a folder of its own.
    pub fn new() -> Self {
        Self::of("localhost", false)
    }

    /// One of this name; it may be over already.
    pub fn of(name: &str, expired: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let der = written(&folder, name, expired);
        Self { folder, der }
    }

    /// Replaces both files; clients trust the new one only.
    pub fn renew(&mut self) {
        self.der = written(&self.folder, "localhost", false);
    }

    /// The line of the configuration that names the files.
    pub fn setting(&self) -> String {
        let path = |name| self.folder.path().join(name).display().to_string();
        format!("tls: {{ cert: '{}', key: '{}' }}\n", path("cert.pem"), path("key.pem"))
    }

    /// The key's file.
    pub fn key_path(&self) -> String {
        self.folder.path().join("key.pem").display().to_string()
    }

    /// The certificate's file.
    pub fn path(&self) -> String {
        self.folder.path().join("cert.pem").display().to_string()
    }

    /// What a server shows it with, to clients that speak `alpn`.
    pub fn acceptor(&self, alpn: &str) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(self.key_path()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .expect("a certificate");
        config.alpn_protocols = vec![alpn.into()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Connects with TLS, trusting exactly this certificate.
    pub async fn connect(&self, stream: TcpStream, alpn: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").expect("a name");
        self.connector(alpn).connect(name, stream).await
    }

    /// What connects so.
    pub fn connector(&self, alpn: &str) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        TlsConnector::from(Arc::new(config))
    }
}

fn written(folder: &TempDir, name: &str, expired: bool) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    if expired {
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let made = parameters.self_signed(&key).expect("a certificate");
    std::fs::write(folder.path().join("cert.pem"), made.pem()).expect("written");
    std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).expect("written");
    made.der().clone()
}
