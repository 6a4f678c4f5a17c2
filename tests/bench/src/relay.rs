//! The bare relay everything is compared with: hyper in, hyper out, no parsing, bodies streamed.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Relays everything from `port` to `upstream` until the process ends.
pub async fn run(port: u16, upstream: u16) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let client = Arc::new(client);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the relay's port is free");
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let client = client.clone();
        connections.spawn(async move {
            let service = service_fn(move |mut request: Request<Incoming>| {
                let client = client.clone();
                let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
                let uri: Uri = format!("http://127.0.0.1:{upstream}{path}").parse().expect("a URI");
                *request.uri_mut() = uri;
                async move {
                    let response: Response<Incoming> =
                        client.request(request).await.expect("the upstream answers");
                    Ok::<_, Infallible>(response)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
