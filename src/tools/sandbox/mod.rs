//! Fences around a process that fanfold starts.
//!
//! ```text
//!  settings ─▶ Sandbox::load (can this host do it?) ─▶ Sandbox::fenced ─▶ a command line
//!
//!  fanfold ─▶ /proc/self/exe __sandbox ─▶ limits, Landlock ─▶ exec the program           (landlock)
//!                                      └▶ limits ─▶ exec bwrap ─▶ namespaces ─▶ program  (bwrap)
//! ```
//!
//! Promises: what a process may read, write and reach is what the system needs (`SYSTEM`), its own directory, and
//! what the settings name; nothing runs without the fence, because the fence is up before the program is. With
//! bubblewrap a process has process ids and a network of its own, and nothing of it outlives it. Landlock fences
//! files, TCP and signals; it knows neither UDP nor the end of grandchildren.
//!
//! Not here: starting, feeding and ending the process.

mod host;
pub(crate) mod launch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use self::launch::Launch;
use super::load::Mistakes;
use super::settings::{self, Rlimits};

pub use self::host::Host;

/// What every fenced process may read: programs, libraries and what libraries look up. Nothing of anybody's own.
const SYSTEM: [&str; 24] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/timezone",
];
/// What a process is started through: fanfold itself, also when its file was replaced meanwhile.
const LAUNCHER: &str = "/proc/self/exe";

/// The fence of one tool.
#[derive(Debug, Clone)]
pub(in crate::tools) struct Sandbox {
    kind: Kind,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    network: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Landlock,
    /// Bubblewrap, and where it is.
    Bwrap(PathBuf),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tools) struct Line {
    pub(in crate::tools) program: PathBuf,
    pub(in crate::tools) elements: Vec<OsString>,
}

impl Sandbox {
    /// Reads `sandbox` and `may` below `key`. `None` without a fence, and when something is wrong; what this host
    /// cannot do is wrong, too.
    pub(in crate::tools) fn load(
        key: &str,
        wanted: settings::Sandbox,
        may: &settings::May,
        host: &Host,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let mut paths = |which: &str, written: &[String]| -> Vec<PathBuf> {
            let paths = written.iter().enumerate();
            paths
                .map(|(at, text)| {
                    let path = PathBuf::from(text);
                    if !path.is_absolute() || !path.exists() {
                        let message = format!("`{text}` is not the absolute path of something that is there");
                        mistakes.add(&[key, "may", which, &at.to_string()], message);
                    }
                    path
                })
                .collect()
        };
        let (read, write) = (paths("read", &may.read), paths("write", &may.write));
        let kind = match wanted {
            settings::Sandbox::None => {
                if *may != settings::May::default() {
                    let message = "without a sandbox a command may do anything its user may";
                    mistakes.add_with_fix(&[key, "may"], message, "add `sandbox: bwrap` or `landlock`");
                }
                return None;
            }
            settings::Sandbox::Landlock => host.landlock(may.network).map(|()| Kind::Landlock),
            settings::Sandbox::Bwrap => host.bwrap().map(|path| Kind::Bwrap(path.to_owned())),
        };
        let kind = kind.map_err(|why| {
            mistakes.add(&[key, "sandbox"], format!("this host cannot do it: {why}"));
        });
        Some(Self { kind: kind.ok()?, read, write, network: may.network })
    }

    /// The command line that runs a program behind the fence, in `dir`, with a directory of its own to write into.
    /// `limits` hold from the program's first instruction on.
    pub(in crate::tools) fn fenced(
        &self,
        line: &Line,
        dir: &Path,
        own: &Path,
        limits: Option<&Rlimits>,
    ) -> Line {
        let also = [line.program.as_path(), dir];
        let readable = || {
            let system = SYSTEM.iter().map(Path::new);
            system.chain(also).chain(self.read.iter().map(PathBuf::as_path)).map(Path::to_owned)
        };
        let writable: Vec<PathBuf> =
            std::iter::once(own.to_owned()).chain(self.write.iter().cloned()).collect();
        let (launch, inner) = match &self.kind {
            Kind::Landlock => {
                let rules =
                    launch::Rules { read: readable().collect(), write: writable, network: self.network };
                (Launch { rules: Some(rules), limits: limits.cloned() }, line.clone())
            }
            Kind::Bwrap(bwrap) => {
                let elements = self.bwrap(readable(), &writable, dir, line);
                let line = Line { program: bwrap.clone(), elements };
                (Launch { rules: None, limits: limits.cloned() }, line)
            }
        };
        launch.line(LAUNCHER.into(), inner)
    }

    fn bwrap(
        &self,
        readable: impl Iterator<Item = PathBuf>,
        writable: &[PathBuf],
        dir: &Path,
        line: &Line,
    ) -> Vec<OsString> {
        let mut all: Vec<OsString> =
            ["--unshare-all", "--die-with-parent", "--new-session"].map(Into::into).into();
        if self.network {
            all.push("--share-net".into());
        }
        all.extend(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"].map(Into::into));
        let mut bind = |how: &str, path: &Path| {
            all.extend([how.into(), path.into(), path.into()]);
        };
        readable.for_each(|path| bind("--ro-bind-try", &path));
        writable.iter().for_each(|path| bind("--bind", path));
        all.extend(["--chdir".into(), dir.into(), "--".into(), line.program.clone().into()]);
        all.extend(line.elements.iter().cloned());
        all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::LoadError;

    fn load(
        wanted: settings::Sandbox,
        may: serde_json::Value,
        host: &Host,
    ) -> Result<Option<Sandbox>, Vec<LoadError>> {
        let mut mistakes = Mistakes::of("t");
        let may = serde_json::from_value(may).unwrap();
        let sandbox = Sandbox::load("command", wanted, &may, host, &mut mistakes);
        if mistakes.is_empty() { Ok(sandbox) } else { Err(mistakes.into_inner()) }
    }

    fn words(line: &Line) -> Vec<&str> {
        line.elements.iter().map(|element| element.to_str().unwrap()).collect()
    }

    fn line() -> Line {
        Line { program: "/opt/tool".into(), elements: vec!["--x".into(), "y z".into()] }
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_a_mistake_with_the_reason() {
        let host = Host::without("the kernel is too old");
        for wanted in [settings::Sandbox::Landlock, settings::Sandbox::Bwrap] {
            let refused = load(wanted, json!({}), &host).unwrap_err();
            assert_eq!(refused[0].path, ["command", "sandbox"]);
            assert_eq!(refused[0].message, "this host cannot do it: the kernel is too old");
        }
        assert!(load(settings::Sandbox::None, json!({}), &host).unwrap().is_none());
        let refused = load(settings::Sandbox::None, json!({ "network": true }), &host).unwrap_err();
        assert_eq!(refused[0].path, ["command", "may"]);
        let refused =
            load(settings::Sandbox::None, json!({ "read": ["x"], "write": ["/nonexistent"] }), &host);
        assert_eq!(refused.unwrap_err().len(), 3);
    }

    #[test]
    fn bubblewrap_gets_its_own_ids_no_network_and_no_more_paths_than_it_may() {
        let of = |network, read: &[&str]| {
            let read = read.iter().map(PathBuf::from).collect();
            let sandbox =
                Sandbox { kind: Kind::Bwrap("/usr/bin/bwrap".into()), read, write: Vec::new(), network };
            sandbox.fenced(&line(), Path::new("/srv/x"), Path::new("/tmp/own"), None)
        };
        let fenced = of(false, &["/srv/data"]);
        assert_eq!(fenced.program, Path::new(LAUNCHER));
        let text = words(&fenced).join(" ");
        for said in [
            "__sandbox ",
            " /usr/bin/bwrap --unshare-all --die-with-parent --new-session --proc ",
            "--ro-bind-try /srv/data /srv/data",
            "--ro-bind-try /opt/tool /opt/tool",
            "--bind /tmp/own /tmp/own --chdir /srv/x -- /opt/tool --x y z",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!text.contains("--share-net") && of(true, &[]).elements.contains(&"--share-net".into()));
        for hidden in ["/ /", "/root", "/home", "/var", "/run", "/etc /etc"] {
            assert!(
                !text.contains(&format!("bind-try {hidden}")) && !text.contains(&format!("bind {hidden}"))
            );
        }
    }

    #[test]
    fn landlock_gets_its_rules_through_the_launcher() {
        let sandbox = Sandbox {
            kind: Kind::Landlock,
            read: vec!["/srv/data".into()],
            write: Vec::new(),
            network: false,
        };
        let fenced =
            sandbox.fenced(&line(), Path::new("/srv/x"), Path::new("/tmp/own"), Some(&Rlimits::default()));
        let words = words(&fenced);
        assert_eq!((words[0], &words[2..]), ("__sandbox", &["/opt/tool", "--x", "y z"][..]));
        let launch: Launch = serde_json::from_str(words[1]).unwrap();
        let rules = launch.rules.unwrap();
        assert!(rules.read.contains(&"/srv/data".into()) && !rules.network);
        assert_eq!((rules.write, launch.limits), (vec!["/tmp/own".into()], Some(Rlimits::default())));
    }
}
