//! Connections of an HTTP tool: the name is resolved, every address is judged, and exactly a judged address is
//! connected to. IP literals take the same way. No proxy is ever taken from the environment.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::tools::address::Reach;

/// The longest a connection may take to be made, TLS included.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Why there is no connection. Nothing of a request was sent then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tools) enum ConnectError {
    /// The name stands only for addresses the tool may not reach.
    Blocked,
    /// The name stands for no address.
    Lookup,
    /// No address took the connection.
    Refused,
    /// The TLS handshake failed.
    Tls,
    /// It took too long.
    TooLong,
}

impl ConnectError {
    /// For the model: no address, no name.
    pub(in crate::tools) fn message(self) -> &'static str {
        match self {
            Self::Blocked => "blocked by policy",
            Self::Lookup => "its name was not found",
            Self::Refused => "the connection was refused",
            Self::Tls => "TLS failed",
            Self::TooLong => "connecting took too long",
        }
    }
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for ConnectError {}

type Opening<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

/// Makes TCP connections to judged addresses.
#[derive(Debug, Clone)]
pub(in crate::tools) struct Judged {
    reach: Arc<Reach>,
}

impl Service<Uri> for Judged {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Opening<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let reach = Arc::clone(&self.reach);
        Box::pin(async move { open(&reach, &uri).await.map(TokioIo::new) })
    }
}

/// Makes the connections of one tool, with TLS where the URL says so.
#[derive(Debug, Clone)]
pub(in crate::tools) struct Connector {
    inner: HttpsConnector<Judged>,
}

impl Connector {
    pub(in crate::tools) fn new(reach: Reach, tls: ClientConfig) -> Self {
        Self { inner: HttpsConnector::from((Judged { reach: Arc::new(reach) }, tls)) }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = Opening<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let opening = self.inner.call(uri);
        Box::pin(async move {
            match tokio::time::timeout(WITHIN, opening).await {
                Err(_) => Err(ConnectError::TooLong),
                Ok(Ok(stream)) => Ok(stream),
                // Whatever is not ours came from the handshake.
                Ok(Err(error)) => {
                    Err(error.downcast::<ConnectError>().map_or(ConnectError::Tls, |ours| *ours))
                }
            }
        })
    }
}

async fn open(reach: &Reach, uri: &Uri) -> Result<TcpStream, ConnectError> {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let default = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(default);
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| {
        tracing::debug!(host, %error, "a tool's host was not found");
        ConnectError::Lookup
    })?;
    let (allowed, refused): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.take(MAX_ADDRESSES).partition(|address| reach.allows(address.ip()));
    if allowed.is_empty() && !refused.is_empty() {
        tracing::warn!(host, addresses = ?refused, "a tool's target was refused: allow_cidrs does not open it");
        return Err(ConnectError::Blocked);
    }
    let each = WITHIN / u32::try_from(allowed.len().max(1)).unwrap_or(1);
    for address in allowed {
        match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small requests wait for the peer; a socket that refuses still works.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => tracing::debug!(host, %address, %error, "a tool's host refused the connection"),
            Err(_) => tracing::debug!(host, %address, "a tool's host did not answer"),
        }
    }
    Err(ConnectError::Refused)
}

/// The certificates trusted when a tool names none; read once per catalog.
#[derive(Debug, Default)]
pub(crate) struct SystemRoots(std::cell::OnceCell<RootCertStore>);

impl SystemRoots {
    fn store(&self) -> RootCertStore {
        let read = || {
            let mut store = RootCertStore::empty();
            let (taken, _) = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if taken == 0 {
                store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
            store
        };
        self.0.get_or_init(read).clone()
    }
}

/// How TLS is spoken: the authorities of this PEM file, or the system's.
pub(in crate::tools) fn tls(
    ca: Option<&str>,
    system: &SystemRoots,
    secure: bool,
) -> Result<ClientConfig, String> {
    let roots = match ca {
        Some(path) => authorities(path)?,
        None if secure => system.store(),
        None => RootCertStore::empty(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS is not available: {error}"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn authorities(path: &str) -> Result<RootCertStore, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the file {path} cannot be read: {error}");
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        store.add(certificate).map_err(|error| wrong(&error))?;
    }
    if store.is_empty() {
        return Err(format!("the file {path} holds no certificate"));
    }
    Ok(store)
}

#[cfg(test)]
mod tests;
