//! `fanfold healthcheck`: asks a running fanfold whether it is ready, without TLS and within two
//! seconds.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::Empty;
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Exit, out, reading, runtime};
use crate::config::Flags;
use crate::server::settings::Admin;

/// How long the whole question may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `healthcheck` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Instead of `/readyz` on the configured admin address: an `http://` URL.
    #[arg(long)]
    url: Option<Uri>,
}

/// 0 when it says 200, 1 in every other case.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let uri = match &arguments.url {
        Some(uri) => Ok(uri.clone()),
        None => configured(path),
    };
    let answer = uri.and_then(|uri| {
        let runtime = runtime().map_err(|_| "no runtime".to_owned())?;
        let asked = runtime.block_on(async { timeout(PATIENCE, ask(&uri)).await });
        asked.unwrap_or_else(|_| Err(format!("{uri} did not answer within {PATIENCE:?}")))
    });
    match answer {
        Ok(StatusCode::OK) => Exit::Fine,
        Ok(status) => {
            out::report(&format!("not ready: {status}\n"));
            Exit::Failure
        }
        Err(why) => {
            out::report(&format!("not ready: {why}\n"));
            Exit::Failure
        }
    }
}

/// `/readyz` at the configured address; a mistake elsewhere in the configuration is none here.
fn configured(path: Option<&Path>) -> Result<Uri, String> {
    let listen = match reading(path, &Flags::default()) {
        Ok(reading) => {
            reading.file().map_or_else(|| Admin::default().listen, |file| file.admin.listen.clone())
        }
        Err(_) => return Err("the configuration cannot be read".into()),
    };
    let mut address: SocketAddr = listen.parse().map_err(|_| format!("`{listen}` is not an address"))?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}/readyz").parse().map_err(|why| format!("`{listen}` is not an address: {why}"))
}

async fn ask(uri: &Uri) -> Result<StatusCode, String> {
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(|| format!("`{uri}` is not an http:// URL"))?;
    let host = authority.host().trim_matches(['[', ']']);
    let said = |why: &dyn std::fmt::Display| format!("{uri}: {why}");
    let stream =
        TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.map_err(|why| said(&why))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|why| said(&why))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request =
        Request::get(path).header(hyper::header::HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(|why| said(&why))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // A server that closes after its answer ends the connection at the same moment.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ended = connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(|why| said(&why))
}
