//! What this host can do: asked once, when a configuration is read.

use std::cell::OnceCell;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::launch;

/// Where bubblewrap is looked for.
const BWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];
/// About how long a trial may take.
const TRIAL: Duration = Duration::from_secs(5);
/// How often it is looked after.
const LOOK: Duration = Duration::from_millis(2);
/// The most bytes of a reason.
const REASON: u64 = 300;

/// What this host can do. Nothing is asked before somebody wants to know.
#[derive(Debug, Default)]
pub struct Host {
    files: OnceCell<Result<(), String>>,
    tcp: OnceCell<Result<(), String>>,
    bwrap: OnceCell<Result<PathBuf, String>>,
}

impl Host {
    /// Whether Landlock can fence files, and TCP as well unless the network is open.
    pub fn landlock(&self, network: bool) -> Result<(), String> {
        self.files.get_or_init(|| launch::possible(true)).clone()?;
        if network { Ok(()) } else { self.tcp.get_or_init(|| launch::possible(false)).clone() }
    }

    /// Where bubblewrap is, if it can make namespaces here.
    pub fn bwrap(&self) -> Result<&Path, String> {
        self.bwrap.get_or_init(try_bwrap).as_deref().map_err(Clone::clone)
    }

    /// A host that can do nothing, for this reason.
    #[cfg(test)]
    pub(in crate::tools) fn without(why: &str) -> Self {
        let host = Self::default();
        let _ = host.files.set(Err(why.into()));
        let _ = host.bwrap.set(Err(why.into()));
        host
    }
}

fn try_bwrap() -> Result<PathBuf, String> {
    let found = BWRAP.into_iter().map(PathBuf::from).find(|path| path.is_file());
    let bwrap = found.ok_or("bubblewrap is not installed (/usr/bin/bwrap)")?;
    let mut trial = Command::new(&bwrap);
    trial.args(["--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"]);
    trial.args(["--proc", "/proc", "--dev", "/dev"]).arg("--").arg(&bwrap).arg("--version");
    run(trial).map(|()| bwrap)
}

/// Runs a trial to its end; the error is what it said.
fn run(mut trial: Command) -> Result<(), String> {
    let failed = |what: &dyn std::fmt::Display| format!("bubblewrap fails: {what}");
    trial.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = trial.spawn().map_err(|why| failed(&why))?;
    let mut looks = TRIAL.as_millis() / LOOK.as_millis();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if looks > 0 => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(&"it does not end"));
            }
        }
        looks -= 1;
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        let _ = pipe.take(REASON).read_to_end(&mut said);
    }
    Err(failed(&String::from_utf8_lossy(&said).trim()))
}
