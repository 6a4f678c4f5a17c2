//! The real binary as a process, and what the system knows of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gateway::soon;

/// A running binary. It is killed when it is dropped.
pub struct Process {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    pub folder: TempDir,
    child: Child,
    log: Arc<Mutex<String>>,
    grown: watch::Receiver<usize>,
    unread: CancellationToken,
    _reading: TaskTracker,
}

/// fanfold itself; the lab, which is no test, has none.
const BINARY: Option<&str> = option_env!("CARGO_BIN_EXE_fanfold");

/// What `fanfold serve` left behind.
pub struct Ended {
    pub code: Option<i32>,
    pub log: String,
}

/// The command, in a folder and an environment of its own.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(BINARY.unwrap_or_default());
    command.current_dir(folder).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command to its end: exit code, standard output, standard error.
pub async fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = soon(command(folder).args(arguments).output()).await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

/// A folder with a configuration on free ports. `FOLDER` in it stands for the folder.
pub fn folder_with(yaml: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), yaml);
    folder
}

/// Writes the configuration, in one step.
pub fn write_config(folder: &Path, yaml: &str) {
    let yaml = yaml.replace("FOLDER", &folder.display().to_string());
    let text = format!("listen: 127.0.0.1:0\nadmin: {{ listen: 127.0.0.1:0 }}\n{yaml}");
    let (new, path) = (folder.join("new.yaml"), folder.join("fanfold.yaml"));
    fs::write(&new, text).expect("written");
    fs::rename(new, path).expect("renamed");
}

impl Process {
    /// Starts `fanfold serve` and waits until it serves.
    pub async fn start(yaml: &str) -> Self {
        Self::in_folder(folder_with(yaml)).await
    }

    /// The same, in a folder that has its configuration already.
    pub async fn in_folder(folder: TempDir) -> Self {
        let command = command(folder.path());
        Self::of(command, folder).await
    }

    /// The same, with a name service that knows only what the file `hosts` of the folder says at the moment.
    pub async fn with_hosts(folder: TempDir) -> Self {
        fs::write(folder.path().join("nsswitch.conf"), "hosts: files\n").expect("written");
        let mounts =
            "mount --bind hosts /etc/hosts && mount --bind nsswitch.conf /etc/nsswitch.conf && exec \"$@\"";
        let mut command = Command::new("/usr/bin/unshare");
        command.args([
            "--map-root-user",
            "--mount",
            "/bin/sh",
            "-c",
            mounts,
            "sh",
            BINARY.unwrap_or_default(),
        ]);
        command.current_dir(folder.path()).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        Self::of(command, folder).await
    }

    async fn of(mut command: Command, folder: TempDir) -> Self {
        let mut child = command.arg("serve").stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (growing, grown) = watch::channel(0);
        let reading = TaskTracker::new();
        let (into, unread) = (log.clone(), CancellationToken::new());
        let end = unread.clone();
        reading.spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line,
                    // The pipe stays open, as that of a reader that hangs.
                    () = end.cancelled() => std::future::pending().await,
                };
                let Ok(Some(line)) = line else { return };
                let mut log = into.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
                growing.send_replace(log.len());
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut me =
            Self { proxy: nowhere, admin: nowhere, folder, child, log, grown, unread, _reading: reading };
        me.logged("fanfold serves").await;
        let log = me.log();
        let line = log.lines().find(|line| line.contains("fanfold serves")).expect("the line");
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let address = |name: &str| {
            let url: url::Url = line[name].as_str().expect("an address").parse().expect("a URL");
            SocketAddr::from(([127, 0, 0, 1], url.port().expect("a port")))
        };
        (me.proxy, me.admin) = (address("base_url"), address("admin"));
        me
    }

    /// Everything it wrote to its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many bytes it wrote to its log so far.
    pub fn log_length(&self) -> usize {
        *self.grown.borrow()
    }

    /// What it wrote to its log after the first so many bytes.
    pub fn log_after(&self, bytes: usize) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.get(bytes..).unwrap_or_default().to_owned()
    }

    /// Reads its log no more.
    pub fn leave_unread(&self) {
        self.unread.cancel();
    }

    /// Waits until the log contains a text.
    pub async fn logged(&mut self, text: &str) {
        let waiting = async {
            while !self.log().contains(text) {
                if self.grown.changed().await.is_err() {
                    break;
                }
            }
        };
        let late = tokio::time::timeout(super::gateway::SOON, waiting).await.is_err();
        let log = self.log();
        assert!(!late && log.contains(text), "no {text:?} in:\n{log}");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid().as_raw_pid()
    }

    fn pid(&self) -> Pid {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
        Pid::from_raw(pid).expect("a process id")
    }

    /// Kills it at once; what is left is its folder.
    pub async fn killed(mut self) -> TempDir {
        soon(self.child.kill()).await.expect("it ran");
        self.folder
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let status = soon(self.child.wait()).await.expect("a status");
        // What it wrote last may still be in the pipe.
        while self.grown.changed().await.is_ok() {}
        Ended { code: status.code(), log: self.log() }
    }

    /// `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.proxy)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("fanfold.yaml")
    }

    /// The most memory it ever had, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.memory("VmHWM:")
    }

    /// The memory it has now, in bytes.
    pub fn resident_memory(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid().as_raw_pid());
        fs::read_dir(path).expect("its descriptors").count()
    }

    /// The ids of its children, those included that have ended and were not asked how.
    pub fn children(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).expect("its threads");
        let mut children: Vec<i32> = tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
            .flat_map(|text| text.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<i32>>())
            .collect();
        children.sort_unstable();
        children
    }

    fn memory(&self, name: &str) -> usize {
        let path = format!("/proc/{}/status", self.pid().as_raw_pid());
        let status = fs::read_to_string(path).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.admin);
        soon(super::client::send(http::Method::GET, &url, &[], None)).await.expect("an answer").body
    }

    /// Waits until a metric has a value.
    pub async fn metric_becomes(&self, name: &str, wanted: f64) {
        let reached = async {
            while (super::gateway::metric(&self.metrics().await, name) - wanted).abs() > 0.01 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(reached).await;
    }
}
