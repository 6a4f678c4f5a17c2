//! The real proxy inside the test's own process, on free loopback ports.

use std::net::SocketAddr;
use std::time::Duration;

use fanfold::app::App;
use fanfold::config::{Flags, Loaded, read_text};
use fanfold::tools::Catalog;
use fanfold::workers::Threads;
use tokio::time;

use super::lab::Lab;
use super::ports::Port;

/// What must happen happens within this time, or the test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for what must happen.
pub async fn soon<F: Future>(event: F) -> F::Output {
    time::timeout(SOON, event).await.expect("it should have happened by now")
}

/// A running proxy.
pub struct Gateway {
    pub app: App,
    threads: Threads,
}

impl Gateway {
    /// Starts it. The configuration lacks its listeners; `LAB` in it stands for the lab's URL.
    pub async fn start(lab: &Lab, yaml: &str) -> Self {
        Self::exactly(&without_listeners(lab, yaml)).await
    }

    /// Starts it with this configuration.
    pub async fn exactly(yaml: &str) -> Self {
        let (loaded, catalog) = read(yaml);
        let threads = Threads::start(2, &tokio::runtime::Handle::current()).expect("two threads");
        let app = App::start(&loaded, catalog, threads.workers()).await.expect("it starts");
        Self { app, threads }
    }

    /// Reads another configuration, written as for [`Gateway::start`].
    pub fn reload(&self, lab: &Lab, yaml: &str) {
        let (loaded, catalog) = read(&without_listeners(lab, yaml));
        self.app.reload(&loaded, catalog).expect("it reloads");
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.app.proxy_address)
    }

    /// What an OpenAI SDK would be given.
    pub fn base_url(&self) -> String {
        format!("{}/v1", self.url())
    }

    /// Tasks that have not ended, of the test's runtime and of those who serve.
    pub fn tasks(&self) -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks() + self.threads.workers().tasks()
    }

    /// The value of a metric, given with its labels; 0 while it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.app.metrics(), name)
    }

    /// Waits until a metric has a value.
    pub async fn metric_becomes(&self, name: &str, wanted: f64) {
        let reached = async {
            while (self.metric(name) - wanted).abs() > 0.01 {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        if time::timeout(SOON, reached).await.is_err() {
            panic!("{name} is {}, not {wanted}", self.metric(name));
        }
    }

    /// Nothing is in flight any more; then it stops.
    pub async fn ends_idle(self) {
        for gauge in ["fanfold_turns_in_flight", "fanfold_tool_calls_in_flight", "fanfold_connections"] {
            self.metric_becomes(gauge, 0.0).await;
        }
        soon(self.app.stop()).await;
    }

    /// The same, and nothing of it is left at the lab.
    pub async fn ends_at_baseline(self, lab: &Lab) {
        self.ends_idle().await;
        soon(lab.wait_until(|seen| seen.connections_open == 0 && seen.all_tools.running == 0)).await;
    }
}

fn without_listeners(lab: &Lab, yaml: &str) -> String {
    format!("listen: 127.0.0.1:0\nadmin: {{ listen: 127.0.0.1:0 }}\n{yaml}").replace("LAB", &lab.url())
}

fn read(yaml: &str) -> (Loaded, Catalog) {
    let reading = read_text("test.yaml", yaml, &|_| None, &Flags::default());
    match reading.finish_with_tools() {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{problems}"),
    }
}

/// The value of a metric in Prometheus's text; 0 while it is not there.
pub fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
}

/// An address that refuses connections until something listens there, which nobody else does while the port is held.
pub fn closed_port() -> (SocketAddr, Port) {
    let port = Port::free();
    (port.address(), port)
}
