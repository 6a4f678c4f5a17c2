//! The demo as people start it: the real binary, in a process of its own, on free ports.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A running demo. It ends when this is dropped.
pub struct Demo {
    child: Child,
    /// `http://HOST:PORT` of the proxy.
    pub proxy: String,
    /// `http://HOST:PORT` of the admin side.
    pub admin: String,
    /// What it said to begin with.
    pub banner: String,
}

impl Demo {
    /// Starts this binary's demo and waits until it said where it is.
    pub fn start(binary: &str) -> Self {
        let mut child = Command::new(binary)
            .args(["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut banner = String::new();
        for line in out.lines() {
            let line = line.expect("UTF-8");
            banner.push_str(&line);
            banner.push('\n');
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        let after = |word: &str| {
            let line = banner.lines().find(|line| line.trim_start().starts_with(word));
            let url = line.and_then(|line| line.split_whitespace().find(|part| part.starts_with("http://")));
            url.unwrap_or_else(|| panic!("no {word} in the banner:\n{banner}")).to_owned()
        };
        let proxy = after("base URL").trim_end_matches("/v1").to_owned();
        let admin = after("metrics").trim_end_matches("/metrics").to_owned();
        Self { child, proxy, admin, banner }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
