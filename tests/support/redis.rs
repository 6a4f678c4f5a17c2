//! A real Redis, in a process and a folder of its own, on a port that it keeps.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fanfold::config::{Flags, read_text};
use fanfold::store::{Capacity, Store};
use fanfold::telemetry::Telemetry;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::gateway::soon;
use super::ports::Port;
use super::proxy::with;
use super::tls::Certificate;

/// A Redis without persistence: what is in it ends with the process. It is ended when it is dropped.
pub struct Redis {
    child: Option<Child>,
    folder: TempDir,
    port: Port,
    more: Vec<String>,
    tls: bool,
}

impl Redis {
    /// Starts it.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// The same, with a password.
    pub async fn with_password(password: &str) -> Self {
        Self::with(&["--requirepass", password]).await
    }

    /// The same, speaking nothing but TLS, for the name `localhost`.
    pub async fn with_tls(certificate: &Certificate) -> Self {
        let mut redis = Self::stopped();
        let (cert, key) = (certificate.path(), certificate.key_path());
        redis.tls = true;
        let more = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
        redis.more = more.iter().map(ToString::to_string).collect();
        redis.more.extend(["--tls-auth-clients".to_owned(), "no".to_owned()]);
        redis.run().await;
        redis
    }

    /// A running one that writes everything down, and has it again when it is run again.
    pub async fn lasting() -> Self {
        Self::with(&["--appendonly", "yes"]).await
    }

    async fn with(more: &[&str]) -> Self {
        let mut redis = Self::stopped();
        redis.more = more.iter().map(ToString::to_string).collect();
        redis.run().await;
        redis
    }

    /// One that does not run yet: its port refuses connections.
    pub fn stopped() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { child: None, folder, port: Port::free(), more: Vec::new(), tls: false }
    }

    /// Runs it, on the same port as before, and empty unless it is a lasting one.
    pub async fn run(&mut self) {
        let port = self.port.number().to_string();
        let ports = if self.tls {
            ["--port", "0", "--tls-port", &port]
        } else {
            ["--port", &port, "--tls-port", "0"]
        };
        let mut command = Command::new("redis-server");
        command
            .args(ports)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(&self.more);
        command
            .arg("--dir")
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn();
        self.child =
            Some(child.expect("redis-server runs: install Debian's redis-server, or use tests/run replicas"));
        let up = async {
            while TcpStream::connect(self.port.address()).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(up).await;
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Makes it silent: connections stay, nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        kill_process(id.and_then(Pid::from_raw).expect("it runs"), signal).expect("it runs");
    }

    /// `redis://127.0.0.1:PORT`, or `rediss://localhost:PORT`.
    pub fn url(&self) -> String {
        if self.tls {
            format!("rediss://localhost:{}", self.port.number())
        } else {
            format!("redis://{}", self.port.address())
        }
    }

    /// What `store:` has to say, with more members. A machine that is busy does not make it slow.
    pub fn setting(&self, more: Value) -> Value {
        with(json!({ "redis": self.url(), "timeout": "5s" }), more)
    }

    /// A store of these settings, connected.
    pub async fn store(&self, capacity: Capacity, more: Value) -> Store {
        let config = json!({ "upstreams": { "main": { "base_url": "http://localhost/v1" } }, "store": self.setting(more) });
        let reading = read_text("test", &config.to_string(), &|_| None, &Flags::default());
        let settings = reading.finish().unwrap_or_else(|problems| panic!("{problems}")).file.store;
        let open = |secret: &fanfold::units::Secret| -> Result<SecretString, String> {
            fanfold::config::secret::open(secret, &|_| None)
        };
        let store =
            Store::new(&settings, open, capacity, Telemetry::new().expect("metrics")).expect("settings");
        store.connect().await;
        store
    }

    /// Asks it something directly.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let client = redis::Client::open(self.url()).expect("a client");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        command.query_async(&mut connection).await.expect("an answer")
    }

    /// All keys there are.
    pub async fn keys(&self) -> Vec<String> {
        self.ask(redis::cmd("KEYS").arg("*")).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
