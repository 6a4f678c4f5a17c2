//! Health, metrics and the inspector, on a listener of their own.
//!
//! `/livez` says the process answers, `/readyz` whether it should get traffic, `/metrics` what it
//! counted. Nothing here asks a model, a tool or a store: readiness is what others
//! [report](Readiness::set). A page in somebody's browser reaches a loopback listener too, under a name it
//! made up, so a foreign `Host` or `Origin` is refused.
//!
//! The listener outlives the proxy's: give its `serve` a drain of its own, and the proxy's drain
//! to [`Admin`], so that readiness is told until the end.

use std::fmt;
use std::sync::Arc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::body::Incoming;

use crate::relay::body::Body;
use crate::server::drain::{Drain, Stage};
use crate::server::visitors::Visitors;
use crate::server::{Handler, Peer};

pub mod inspector;
pub mod readiness;

use inspector::Inspector;
use readiness::Readiness;

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const PATHS: &str = "/ (the inspector), /metrics, /livez and /readyz";

/// Renders the metrics, in Prometheus' text format.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Answers on the admin listener.
pub struct Admin {
    metrics: Metrics,
    readiness: Readiness,
    drain: Drain,
    visitors: Visitors,
    inspector: Inspector,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl Admin {
    /// `drain` is the proxy's, whose first stage ends readiness.
    #[must_use]
    pub fn new(
        metrics: Metrics,
        readiness: Readiness,
        drain: Drain,
        visitors: Visitors,
        inspector: Inspector,
    ) -> Self {
        Self { metrics, readiness, drain, visitors, inspector }
    }

    fn answer(&self, head: &request::Parts) -> Response<Body> {
        if let Err(foreign) = self.visitors.check(&head.uri, &head.headers) {
            return text(StatusCode::FORBIDDEN, foreign.to_string());
        }
        let page = match head.uri.path() {
            "/metrics" => Page::Metrics,
            "/livez" => Page::Live,
            "/readyz" => Page::Ready,
            path => match inspector::Page::of(path) {
                Some(page) => Page::Inspector(page),
                None => return text(StatusCode::NOT_FOUND, format!("nothing at {path}: there is {PATHS}\n")),
            },
        };
        if !matches!(head.method, Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".into());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match page {
            Page::Metrics => {
                let mut answer = text(StatusCode::OK, (self.metrics)());
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EXPOSITION));
                answer
            }
            Page::Live => text(StatusCode::OK, "ok\n".into()),
            Page::Inspector(page) => self.inspector.answer(page),
            Page::Ready => self.ready(wants_verbose(head.uri.query())),
        }
    }

    fn ready(&self, verbose: bool) -> Response<Body> {
        let mut report = self.readiness.report();
        match self.drain.stage() {
            Stage::Serving => {}
            Stage::NotReady | Stage::Refusing | Stage::Now => {
                report.add("drain", Err("shutting down".into()));
            }
        }
        let status = if report.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, report.text(verbose))
    }
}

enum Page<'a> {
    Metrics,
    Live,
    Ready,
    Inspector(inspector::Page<'a>),
}

/// `?verbose`, alone or among others.
fn wants_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|q| q.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")))
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

impl Handler for Admin {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        self.answer(&request.into_parts().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::Workers;
    use std::time::Duration;

    use arc_swap::ArcSwap;
    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio_util::task::TaskTracker;

    use crate::admin::inspector::InUse;
    use crate::runs::Runs;
    use crate::runs::tests::begin;
    use crate::server::listener::{Listener, Options};
    use crate::server::settings::Settings;
    use crate::server::testing::{get, soon, to_end};
    use crate::tools::{Catalog, Defaults};

    async fn asked(
        admin: &Admin,
        method: &str,
        target: &str,
        host: &str,
    ) -> (StatusCode, http::HeaderMap, String) {
        let request = Request::builder().method(method).uri(target).header("host", host);
        let (head, body) = admin.answer(&request.body(()).unwrap().into_parts().0).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    fn inspector(runs: Option<Arc<Runs>>) -> Inspector {
        let config = serde_json::value::to_raw_value(&serde_json::json!({ "settings": [] })).unwrap();
        let defaults = Defaults { call_timeout: Duration::from_secs(1), tool_result: 1 };
        let tools = Arc::new(Catalog::build(&std::collections::BTreeMap::new(), &defaults).unwrap());
        Inspector {
            runs,
            in_use: Arc::new(move || InUse { tools: tools.clone(), content: false }),
            standings: Arc::new(Vec::new),
            config: Arc::new(ArcSwap::from_pointee(config)),
            base_url: "http://127.0.0.1:4100/v1".into(),
            tasks: TaskTracker::new(),
        }
    }

    fn admin() -> (Admin, Readiness, Drain) {
        admin_of(Runs::new(&crate::runs::settings::Settings::default()))
    }

    fn admin_of(runs: Option<Arc<Runs>>) -> (Admin, Readiness, Drain) {
        let (readiness, drain) = (Readiness::new(), Drain::new());
        let visitors = Visitors::new("127.0.0.1:4101".parse().unwrap(), &[]);
        let metrics: Metrics = Arc::new(|| "fanfold_build_info 1\n".into());
        let admin = Admin::new(metrics, readiness.clone(), drain.clone(), visitors, inspector(runs));
        (admin, readiness, drain)
    }

    #[tokio::test]
    async fn it_is_served_on_a_listener_of_its_own_until_its_own_drain() {
        let (admin, _, proxy) = admin();
        let options = Options {
            setting: "admin.listen",
            settings: Settings::default(),
            tls: None,
            connections: 10,
            open: metrics::Gauge::noop(),
            workers: Workers::default(),
        };
        let listener = Listener::bind("127.0.0.1:0", options).await.unwrap();
        let (address, drain, tasks) = (listener.local_addr(), Drain::new(), TaskTracker::new());
        tasks.spawn(listener.serve(Arc::new(admin), drain.clone()));
        proxy.advance(Stage::Now);
        for (path, status) in
            [("/livez", "200"), ("/readyz", "503"), ("/metrics", "200"), ("/", "200"), ("/x", "404")]
        {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(get(path, "connection: close\r\n").as_bytes()).await.unwrap();
            let answer = to_end(&mut client).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        }
        drain.advance(Stage::Refusing);
        tasks.close();
        soon(tasks.wait()).await;
    }

    #[tokio::test]
    async fn metrics_come_in_the_format_prometheus_asks_for() {
        let (admin, ..) = admin();
        let (status, headers, body) = asked(&admin, "GET", "/metrics", "localhost:4101").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "fanfold_build_info 1\n"));
        assert_eq!(headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    }

    #[tokio::test]
    async fn readiness_follows_its_checks() {
        let (admin, readiness, _) = admin();
        let ask = async || {
            let (status, _, body) = asked(&admin, "GET", "/readyz", "localhost").await;
            (status.as_u16(), body)
        };
        assert_eq!(ask().await, (200, "ok\n".into()));
        readiness.set("upstreams", Err("main has not been resolved".into()));
        readiness.set("tools", Ok(()));
        let (status, body) = ask().await;
        assert_eq!(status, 503);
        assert!(body.contains("upstreams") && body.contains("main has not been resolved"), "{body}");
        assert!(!body.contains("tools"), "only what is wrong: {body}");
        let (_, _, verbose) = asked(&admin, "GET", "/readyz?x&verbose", "localhost").await;
        assert!(verbose.contains("[+] tools ok") && verbose.contains("[-] upstreams"), "{verbose}");
        readiness.set("upstreams", Ok(()));
        assert_eq!(ask().await.0, 200);
    }

    #[tokio::test]
    async fn a_drain_ends_readiness_at_once_and_not_liveness() {
        let (admin, _, drain) = admin();
        for stage in [Stage::NotReady, Stage::Refusing, Stage::Now] {
            drain.advance(stage);
            let (status, _, body) = asked(&admin, "GET", "/readyz", "localhost").await;
            assert_eq!(status, 503);
            assert!(body.contains("shutting down"), "{body}");
            assert_eq!(asked(&admin, "GET", "/livez", "localhost").await.0, 200);
        }
    }

    #[tokio::test]
    async fn other_methods_paths_and_hosts_are_refused() {
        let (admin, ..) = admin();
        let (status, headers, _) = asked(&admin, "POST", "/livez", "localhost").await;
        assert_eq!((status.as_u16(), &headers[ALLOW]), (405, &HeaderValue::from_static("GET, HEAD")));
        let (status, _, body) = asked(&admin, "GET", "/health", "localhost").await;
        assert_eq!(status, 404);
        assert!(body.contains("/metrics") && body.contains("/livez") && body.contains("/readyz"), "{body}");
        for path in [
            "/metrics",
            "/livez",
            "/readyz",
            "/x",
            "/",
            "/inspector.js",
            "/api/runs",
            "/api/runs/1",
            "/api/events",
            "/api/config",
            "/api/tools",
        ] {
            assert_eq!(asked(&admin, "GET", path, "evil.example").await.0, 403, "{path}");
        }
        assert_eq!(asked(&admin, "HEAD", "/livez", "localhost").await.0, 200);
    }

    #[tokio::test]
    async fn runs_are_listed_and_shown_by_either_id() {
        let runs = Runs::new(&crate::runs::settings::Settings::default()).unwrap();
        let (admin, ..) = admin_of(Some(runs.clone()));
        let _running = begin(&runs, "r1");
        let ask = async |path: &str| {
            let (status, headers, body) = asked(&admin, "GET", path, "localhost").await;
            assert_eq!(headers[CONTENT_TYPE], "application/json");
            (status.as_u16(), serde_json::from_str::<serde_json::Value>(&body).unwrap())
        };
        let (_, list) = ask("/api/runs").await;
        assert_eq!((&list["runs"][0]["id"], &list["remembers"]), (&"r1".into(), &true.into()));
        for id in ["r1", "of-r1", "of%2Dr1"] {
            let (status, found) = ask(&format!("/api/runs/{id}")).await;
            assert_eq!((status, &found["run"]["model"]), (200, &"<b>m</b>".into()), "{id}");
        }
        assert_eq!(ask("/api/runs/other").await.0, 404);
        assert_eq!(ask("/api/tools").await.1["tools"], serde_json::json!([]));
        assert_eq!(ask("/api/config").await.1["settings"], serde_json::json!([]));
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_elsewhere_and_is_held_by_nobody() {
        let (admin, ..) = admin();
        for (path, kind) in
            [("/", "text/html"), ("/inspector.js", "text/javascript"), ("/inspector.css", "text/css")]
        {
            let (status, headers, body) = asked(&admin, "GET", path, "localhost").await;
            assert_eq!(status, 200);
            assert!(headers[CONTENT_TYPE].to_str().unwrap().starts_with(kind), "{path}");
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
            assert!(!policy.contains("unsafe"), "{policy}");
            // What models and tools say is text, never markup.
            for markup in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "http://",
                "https://",
            ] {
                assert!(!body.contains(markup), "{path} has {markup}");
            }
        }
    }

    #[tokio::test]
    async fn events_tell_of_runs_as_they_change_and_end_with_their_reader() {
        let runs = Runs::new(&crate::runs::settings::Settings { watchers: 1, ..Default::default() }).unwrap();
        let (admin, ..) = admin_of(Some(runs.clone()));
        let request = Request::builder().uri("/api/events").header("host", "localhost").body(()).unwrap();
        let head = request.into_parts().0;
        let mut body = admin.answer(&head).into_body();
        let mut next = async || {
            let frame = soon(body.frame()).await.unwrap().unwrap();
            String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
        };
        assert!(next().await.contains("event: hello"));
        let _running = begin(&runs, "r1");
        let event = next().await;
        assert!(event.starts_with("event: run\ndata: {\"id\":\"r1\""), "{event}");
        assert_eq!(admin.answer(&head).status(), 503, "as many watch as may");
        drop(body);
        admin.inspector.tasks.close();
        soon(admin.inspector.tasks.wait()).await;
        assert_eq!(admin.answer(&head).status(), 200);
        let (admin, ..) = admin_of(None);
        assert_eq!(admin.answer(&head).status(), 404, "nothing is remembered");
    }
}
