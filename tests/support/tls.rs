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
        let folder = tempfile::tempdir().expect("a folder");
        let der = written(&folder);
        Self { folder, der }
    }

    /// Replaces both files; clients trust the new one only.
    pub fn renew(&mut self) {
        self.der = written(&self.folder);
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
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn written(folder: &TempDir) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    made.cert.der().clone()
}
