//! Whose certificates are believed when fanfold is the client.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// TLS towards a server: the authorities of a PEM file, or the system's.
///
/// # Errors
/// The file cannot be read or holds no certificate that can be used; a sentence.
pub fn tls(ca: Option<&str>) -> Result<ClientConfig, String> {
    let roots = match ca {
        Some(path) => roots_of(path)?,
        None => system_roots(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn roots_of(path: &str) -> Result<RootCertStore, String> {
    let read = || format!("the certificate file {path} cannot be read");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| format!("{}: {e}", read()))? {
        let certificate = certificate.map_err(|e| format!("{}: {e}", read()))?;
        roots.add(certificate).map_err(|e| format!("a certificate in {path} cannot be used: {e}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{path} holds no certificate; it has to be a PEM file"));
    }
    Ok(roots)
}

/// The system's authorities; where there are none, Mozilla's.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}
