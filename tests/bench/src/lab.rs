//! The processes of a measurement: upstream, relay, nginx, fanfold, each on a port of loopback that the lab keeps
//! for it. They end with the lab.

#[path = "../../support/ports.rs"]
mod ports;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use self::ports::Port;

/// What a client of team `blue` sends as `authorization`.
pub const BLUE: &str = "Bearer sk-bench-blue";
/// What a client of team `red` sends.
pub const RED: &str = "Bearer sk-bench-red";

/// Keys, quotas and a budget that are counted and never reached.
pub const TEAMS: &str = "
teams:
  blue:
    keys: [{ sha256: 07ca97def81612bf559daecffb8d8f71d0767a61cbe733afde396b6e608653b3 }]
    limits: { requests_per_minute: 1000000000, tokens_per_minute: 1000000000, tool_calls_per_minute: 1000000000 }
    budget: { tokens_per_day: 1000000000000 }
  red:
    keys: [{ sha256: d6fbf11d3a4a7ef29127c61ecade07f53025a2f3bd4baa5800c17fd88972a222 }]
";
/// Room for the most calls that are made at once.
pub const ROOM: &str = "limits: { calls_at_once_per_team: 4096, calls_at_once_in_process: 4096 }\n";

/// What is driven: its name, its port and its process.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    pub port: u16,
    /// Where fanfold's metrics are.
    pub admin: u16,
    pub pid: u32,
}

/// How a fanfold is set up.
#[derive(Default)]
pub struct Setup<'a> {
    /// So many tools of its own.
    pub tools: usize,
    /// Where its upstream is, if that is not the lab's.
    pub base_url: Option<String>,
    /// More settings of its upstream, as YAML in one line, each with a comma before it.
    pub upstream: &'a str,
    /// The port of an upstream of its own for the model `long`.
    pub long: Option<u16>,
    /// More settings of the file, as YAML. `ADMIN` in it is the address of its admin side, which it must set then.
    pub more: &'a str,
}

/// Everything that runs.
pub struct Lab {
    folder: Folder,
    children: Vec<Child>,
    ports: Vec<Port>,
    /// The port of the scripted upstream, which is the tool server too.
    pub upstream: u16,
}

impl Lab {
    /// With an upstream and nothing else yet.
    pub async fn start() -> Self {
        let mut lab = Self { folder: Folder::new(), children: Vec::new(), ports: Vec::new(), upstream: 0 };
        lab.upstream = lab.another_upstream().await;
        lab
    }

    pub async fn another_upstream(&mut self) -> u16 {
        let port = self.port();
        let child = side(&["upstream", &port.to_string()]);
        self.up("upstream", port, 0, child).await.port
    }

    pub async fn relay(&mut self) -> Target {
        let port = self.port();
        let child = side(&["relay", &port.to_string(), &self.upstream.to_string()]);
        self.up("relay", port, 0, child).await
    }

    pub async fn fanfold(&mut self, name: &'static str, setup: &Setup<'_>) -> Target {
        let (port, admin) = (self.port(), self.port());
        let config = self.folder.0.join(format!("{port}.yaml"));
        std::fs::write(&config, configuration(port, admin, self.upstream, setup)).expect("a configuration");
        let mut child = spawn(Command::new(binary()).args(["serve", "--config"]).arg(&config));
        tokio::time::sleep(Duration::from_millis(50)).await;
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            // It says why to whoever looks.
            let _ = Command::new(binary()).args(["check", "--config"]).arg(&config).status().await;
            panic!("fanfold does not start");
        }
        self.up(name, port, admin, child).await
    }

    /// A certificate for `localhost` that it signed itself, and its key: their files.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert, key) = (self.folder.0.join("cert.pem"), self.folder.0.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).expect("its file");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("its file");
        (cert, key)
    }

    /// The bare relay, fanfold without tools and with ten, and nginx.
    pub async fn side_by_side(&mut self) -> Vec<Target> {
        let more = format!("{ROOM}{TEAMS}");
        let mut targets = vec![
            self.relay().await,
            self.fanfold("fanfold", &Setup { more: &more, ..Setup::default() }).await,
            self.fanfold("fanfold, 10 tools", &Setup { tools: 10, more: &more, ..Setup::default() }).await,
        ];
        targets.push(self.nginx().await);
        targets
    }

    /// Ends one of them as an operator does who will not wait, and waits until it has ended.
    pub async fn ends(&mut self, target: &Target) {
        let child =
            self.children.iter_mut().find(|child| child.id() == Some(target.pid)).expect("its process");
        let pid = Pid::from_raw(i32::try_from(target.pid).expect("a process id"));
        for _ in 0..2 {
            kill(pid, Signal::SIGTERM).expect("it runs");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
        let status = ended.expect("it ends").expect("its status");
        assert!(status.success(), "{} ended with {status}", target.name);
    }

    async fn nginx(&mut self) -> Target {
        let port = self.port();
        let config = self.folder.0.join("nginx.conf");
        std::fs::write(&config, nginx(&self.folder.0, port, self.upstream)).expect("a configuration");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().expect("nginx is installed: tests/bench/run does that");
        self.up("nginx", port, 0, child).await
    }

    /// A port for one of them.
    fn port(&mut self) -> u16 {
        let port = Port::free();
        let number = port.number();
        self.ports.push(port);
        number
    }

    async fn up(&mut self, name: &'static str, port: u16, admin: u16, child: Child) -> Target {
        let pid = child.id().expect("it runs");
        self.children.push(child);
        listens(port).await;
        Target { name, port, admin, pid }
    }
}

/// A process of this program that plays a part (see `main`). It ends when the child is dropped.
pub fn side(arguments: &[&str]) -> Child {
    let me = std::env::current_exe().expect("this binary");
    let mut command = Command::new(me);
    command.arg("side").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("a process")
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("a process")
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The fanfold that is measured.
pub fn binary() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::env::var_os("FANFOLD_BIN").map_or_else(|| built.join("release/fanfold"), PathBuf::from)
}

/// Waits until something listens there.
async fn listens(port: u16) {
    for _ in 0..1000 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing listens on port {port}");
}

fn configuration(port: u16, admin: u16, upstream: u16, setup: &Setup<'_>) -> String {
    let admin = format!("127.0.0.1:{admin}");
    let base_url = setup.base_url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{upstream}/v1"));
    let mut text = format!(
        "listen: 127.0.0.1:{port}\nupstreams:\n  main: {{ base_url: \"{base_url}\"{} }}\n",
        setup.upstream
    );
    if let Some(long) = setup.long {
        text += &format!(
            "  long: {{ base_url: \"http://127.0.0.1:{long}/v1\" }}\nroutes: [{{ model: long, upstreams: [long] }}, {{ model: \"*\", upstreams: [main] }}]\n"
        );
    }
    if !setup.more.contains("ADMIN") {
        text += &format!("admin: {{ listen: \"{admin}\" }}\n");
    }
    for n in 0..setup.tools {
        if n == 0 {
            text += "tools:\n";
        }
        text += &format!(
            "  t{n}:\n    description: Tool number {n}, for the benchmark\n    parameters: {{ type: object, properties: {{ ms: {{ type: integer }}, n: {{ type: integer }} }}, required: [ms], additionalProperties: false }}\n    http: {{ url: \"http://127.0.0.1:{upstream}/tool?ms={{ms}}&n={{n}}\" }}\n    effect: read\n"
        );
    }
    let more = setup.more.replace("ADMIN", &admin).replace("UPSTREAM", &upstream.to_string());
    text + &more
}

/// One process without a master, which ends with the lab.
fn nginx(folder: &Path, port: u16, upstream: u16) -> String {
    let folder = folder.display();
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 16m; client_body_buffer_size 2m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
    }}
  }}
}}
"
    )
}

/// A folder that is gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fanfold-bench-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for configurations");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
