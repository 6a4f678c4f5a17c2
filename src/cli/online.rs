//! `fanfold check --online`: is every upstream there, and does it take the key? Asks for the list
//! of models, which costs nothing. Does every tool server start, and what does it have?

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::servers::Running;
use super::{Exit, out, runtime};
use crate::config::{Loaded, process_env, secret};
use crate::tools::{Catalog, Condition};
use crate::units::Secret;
use crate::upstream::settings::Settings;

/// How long one upstream may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest list of models that is read.
const LONGEST: usize = 8 * 1024 * 1024;

/// 0 when every upstream answers and takes its key, and every tool server is up.
pub(super) fn run(loaded: &Loaded, catalog: &Catalog) -> Exit {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let (mut rows, mut offered) = (Vec::new(), Vec::new());
    let mut exit = Exit::Fine;
    for (name, upstream) in &loaded.file.upstreams {
        let asked = runtime.block_on(async { timeout(PATIENCE, ask(upstream)).await });
        let (row, fine) = match asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
            Ok(said) => (said, true),
            Err(said) => (format!("FAILED: {said}"), false),
        };
        if !fine {
            exit = Exit::Failure;
        }
        rows.push(vec![name.clone(), row]);
    }
    if catalog.servers() > 0 {
        // Each team's own servers are asked with what the team has of its own.
        let mut teams: Vec<Arc<str>> = loaded.file.teams.keys().map(|team| team.as_str().into()).collect();
        if teams.is_empty() {
            teams.push("default".into());
        }
        let running = runtime.block_on(async {
            let running = Running::start(catalog, &teams).await;
            running.stop().await;
            running
        });
        for standing in &running.standings {
            let said = match &standing.condition {
                Condition::Up { tools, revision } => {
                    let owner = standing.team.as_deref().unwrap_or_default();
                    let offered = running.catalog.iter_of(owner).filter_map(|tool| tool.server());
                    let offered = offered.filter(|(server, _)| *server == &*standing.server).count();
                    format!("answers, {tools} tools, {offered} of them offered, revision {revision}")
                }
                Condition::Idle | Condition::Starting => "FAILED: it did not start".into(),
                Condition::Down(why) => format!("FAILED: {why}"),
            };
            if !matches!(standing.condition, Condition::Up { .. }) {
                exit = Exit::Failure;
            }
            let name = match &standing.team {
                Some(team) => format!("{} of {team}", standing.server),
                None => standing.server.to_string(),
            };
            rows.push(vec![name, said]);
        }
        offered.extend(running.catalog.every().filter_map(|tool| {
            let (server, _) = tool.server()?;
            Some(vec![tool.spec().name.to_string(), server.to_owned()])
        }));
        offered.sort();
        offered.dedup();
        for tool in running.catalog.not_offered() {
            out::report(&format!("warning: {tool}\n"));
        }
    }
    out::answer(&format!("\nonline\n{}", loaded.hide(&out::table(&rows))));
    if !offered.is_empty() {
        out::answer(&format!("\noffered by tool servers\n{}", out::table(&offered)));
    }
    exit
}

/// What an upstream says to a question for its models.
async fn ask(upstream: &Settings) -> Result<String, String> {
    let tls = tls(upstream.ca.as_deref())?;
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let sent = client.request(request(upstream)?).await;
    let answer = sent.map_err(|why| format!("{}: is `base_url` right, and does it run?", chain(&why)))?;
    let status = answer.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!("it refuses the key ({status})")),
        StatusCode::OK => {
            let body =
                Limited::new(answer.into_body(), LONGEST).collect().await.map_err(|why| why.to_string())?;
            let list: Option<serde_json::Value> = serde_json::from_slice(&body.to_bytes()).ok();
            match list.as_ref().and_then(|list| list["data"].as_array()) {
                Some(models) => Ok(format!("answers, {} models", models.len())),
                None => {
                    Err("it answers 200 to /models, but not with a list of models: is `base_url` right?"
                        .into())
                }
            }
        }
        StatusCode::NOT_FOUND => Ok("answers, but knows no /models (404): is `base_url` right?".into()),
        other => Err(format!("it answers {other} to /models")),
    }
}

fn request(upstream: &Settings) -> Result<Request<Empty<Bytes>>, String> {
    let url = format!("{}/models", upstream.base_url.trim_end_matches('/'));
    let mut request = Request::get(url).body(Empty::new()).map_err(|why| why.to_string())?;
    let headers = request.headers_mut();
    headers.insert(
        hyper::header::USER_AGENT,
        HeaderValue::from_static(concat!("fanfold/", env!("CARGO_PKG_VERSION"))),
    );
    if let Some(key) = &upstream.api_key {
        headers.insert(AUTHORIZATION, value(key, "Bearer ")?);
    }
    for (name, secret) in &upstream.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|why| why.to_string())?;
        headers.insert(name, value(secret, "")?);
    }
    Ok(request)
}

fn value(secret: &Secret, before: &str) -> Result<HeaderValue, String> {
    let text = secret::open(secret, &process_env)?;
    let mut value = HeaderValue::from_str(&format!("{before}{}", text.expose_secret()))
        .map_err(|_| "a header has a character that cannot stand there".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The authorities of a PEM file, or the system's, or those built in.
pub(super) fn tls(ca: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let all = all.map_err(|why| format!("`{path}` has no certificates: {why}"))?;
            roots.add_parsable_certificates(all);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|why| why.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// An error with everything it was caused by.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
