//! Where a server is and how it is spoken to, as the settings say: read once, while a catalog is built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret as _;

use super::child::Program;
use crate::tools::address::Reach;
use crate::tools::http::connect::{Connector, tls};
use crate::tools::http::origin::{self, Origin};
use crate::tools::http::{SystemRoots, networks};
use crate::tools::keeper::Keeper;
use crate::tools::load::Mistakes;
use crate::tools::sandbox::{Host, Line, Sandbox};
use crate::tools::{secret, settings};

/// How long a server may take to start, when the settings do not say.
const START: Duration = Duration::from_secs(30);
/// What a program without `/` is looked for in when fanfold itself has no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Headers that belong to the connection, to the framing, to the protocol or to fanfold.
const RESERVED: [&str; 17] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept",
    "accept-encoding",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "last-event-id",
];

/// A server, ready to be started.
#[derive(Debug)]
pub(in crate::tools) struct Plan {
    /// Its name in the settings.
    pub(in crate::tools) name: Arc<str>,
    /// How it is reached.
    pub(super) way: Way,
    /// How long it may take to start and to list its tools.
    pub(in crate::tools) start_timeout: Duration,
    /// What the settings said, to see whether they still do.
    settings: settings::Mcp,
}

/// How a server is reached.
#[derive(Debug)]
pub(super) enum Way {
    /// Through the pipes of a process.
    Program(Program),
    /// Through requests.
    Url(Box<Address>),
}

/// Where requests go.
pub(super) struct Address {
    pub(super) url: Arc<str>,
    pub(super) origin: Origin,
    pub(super) headers: HeaderMap,
    pub(super) connector: Connector,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A header may hold a secret.
        f.debug_struct("Address").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Plan {
    /// Reads the settings; looks for the program, opens secrets.
    pub(in crate::tools) fn load(
        name: &str,
        settings: &settings::Mcp,
        roots: &SystemRoots,
        host: &Host,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let way = match (&settings.command, &settings.url) {
            (Some(argv), None) => {
                only_with("url", !settings.headers.is_empty(), "headers", mistakes);
                only_with("url", !settings.allow_cidrs.is_empty(), "allow_cidrs", mistakes);
                only_with("url", settings.ca.is_some(), "ca", mistakes);
                Way::Program(program(argv, settings, host, mistakes)?)
            }
            (None, Some(url)) => {
                only_with("command", !settings.env.is_empty(), "env", mistakes);
                only_with("command", settings.dir.is_some(), "dir", mistakes);
                only_with("command", settings.sandbox != settings::Sandbox::None, "sandbox", mistakes);
                only_with("command", settings.may != settings::May::default(), "may", mistakes);
                Way::Url(Box::new(address(url, settings, roots, mistakes)?))
            }
            (None, None) => {
                let fix = "add `command: [uvx, mcp-server-time]` or `url: https://…`";
                mistakes.add_with_fix(&["mcp"], "nothing says where the server is", fix);
                return None;
            }
            (Some(_), Some(_)) => {
                mistakes.add_with_fix(
                    &["mcp", "url"],
                    "a server has either `command` or `url`",
                    "remove one of them",
                );
                return None;
            }
        };
        Some(Self {
            name: name.into(),
            way,
            start_timeout: settings.start_timeout.map_or(START, |span| span.0),
            settings: settings.clone(),
        })
    }

    /// The same, of one team.
    pub(in crate::tools) fn of_team(self, team: &str) -> Self {
        let name = format!("{} of {team}", self.name).into();
        Self { name, ..self }
    }

    /// Whether the server need not be started anew for this other plan: the settings and the secrets are the same.
    pub(in crate::tools) fn same(&self, other: &Self) -> bool {
        let secrets = match (&self.way, &other.way) {
            (Way::Program(one), Way::Program(two)) => {
                one.env.len() == two.env.len()
                    && one
                        .env
                        .iter()
                        .zip(&two.env)
                        .all(|((a, x), (b, y))| a == b && x.expose_secret() == y.expose_secret())
            }
            (Way::Url(one), Way::Url(two)) => one.headers == two.headers,
            (Way::Program(_), Way::Url(_)) | (Way::Url(_), Way::Program(_)) => false,
        };
        self.name == other.name && self.settings == other.settings && secrets
    }

    /// Where it is, in a few words: without its arguments, which may hold secrets.
    pub(in crate::tools) fn place(&self) -> String {
        match &self.way {
            Way::Program(program) => {
                let name = program.line.program.file_name();
                name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Way::Url(address) => address.url.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}

fn only_with(key: &str, given: bool, what: &str, mistakes: &mut Mistakes) {
    if given {
        mistakes.add(&["mcp", what], format!("`{what}` belongs to a server with `{key}`"));
    }
}

fn program(
    argv: &[String],
    settings: &settings::Mcp,
    host: &Host,
    mistakes: &mut Mistakes,
) -> Option<Program> {
    let Some((name, rest)) = argv.split_first().filter(|(name, _)| !name.is_empty()) else {
        mistakes.add(&["mcp", "command"], "the program is missing");
        return None;
    };
    for (at, _) in argv.iter().enumerate().filter(|(_, element)| element.contains('\0')) {
        mistakes.add(&["mcp", "command", &at.to_string()], "a NUL character cannot be handed to a process");
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    let found = find(name, &path);
    if found.is_none() {
        let fix = "install it, or write its absolute path";
        mistakes.add_with_fix(
            &["mcp", "command", "0"],
            format!("there is no program `{name}` that can be run"),
            fix,
        );
    }
    let dir = settings.dir.as_ref().map(PathBuf::from);
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute() || !dir.is_dir()) {
        mistakes.add(&["mcp", "dir"], format!("`{}` is not the absolute path of a directory", dir.display()));
    }
    let mut env: Vec<(OsString, secrecy::SecretString)> = Vec::new();
    for name in ["PATH", "HOME"].into_iter().filter(|name| !settings.env.contains_key(*name)) {
        // What is not UTF-8 cannot be a secret of ours; such a HOME is left out.
        if let Some(value) = std::env::var_os(name).and_then(|value| value.into_string().ok()) {
            env.push((name.into(), value.into()));
        }
    }
    if !settings.env.contains_key("LANG") {
        env.push(("LANG".into(), "C.UTF-8".into()));
    }
    for (name, value) in &settings.env {
        let at = ["mcp", "env", name];
        if name.is_empty() || name.contains(['=', '\0']) {
            mistakes.add(&at, "this is not the name of an environment variable");
            continue;
        }
        match secret::open(value) {
            Ok(value) if value.expose_secret().contains('\0') => {
                mistakes.add(&at, "a NUL character cannot be handed to a process");
            }
            Ok(value) => env.push((name.into(), value)),
            Err(message) => mistakes.add(&at, message),
        }
    }
    let sandbox = Sandbox::load("mcp", settings.sandbox, &settings.may, host, mistakes);
    let line = Line { program: found?, elements: rest.iter().map(OsString::from).collect() };
    mistakes.is_empty().then_some(Program { line, env, dir, sandbox, keeper: Keeper::current() })
}

/// The file a program's name means.
fn find(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|path| runs(path));
    }
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|path| path.is_absolute() && runs(path))
}

fn address(
    url: &str,
    settings: &settings::Mcp,
    roots: &SystemRoots,
    mistakes: &mut Mistakes,
) -> Option<Address> {
    let mut reach: Reach = networks("mcp", &settings.allow_cidrs, mistakes);
    let origin = origin::split("mcp", url, mistakes).map(|(origin, _)| origin);
    if url.contains(['{', '}']) {
        mistakes.add(&["mcp", "url"], "the URL of a server has no places");
    }
    if let Some(origin) = &origin {
        origin::name_host("mcp", origin, &mut reach, mistakes);
    }
    let tls = tls(settings.ca.as_deref(), roots, origin.as_ref().is_some_and(|origin| origin.secure));
    let tls = tls.map_err(|message| mistakes.add(&["mcp", "ca"], message)).ok();
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let at = ["mcp", "headers", name];
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            mistakes.add(&at, "this is not a header name");
            continue;
        };
        if RESERVED.contains(&header.as_str()) {
            mistakes.add(&at, format!("`{header}` is set by fanfold and cannot be configured"));
            continue;
        }
        match secret::open(value).map(|value| HeaderValue::from_str(value.expose_secret())) {
            Ok(Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(header, value);
            }
            Ok(Err(_)) => {
                mistakes.add(&at, "this value has a character that cannot stand in a header (a line end?)");
            }
            Err(message) => mistakes.add(&at, message),
        }
    }
    let (origin, tls) = (origin?, tls?);
    let connector = Connector::new(reach, tls);
    mistakes.is_empty().then(|| Address { url: url.into(), origin, headers, connector })
}
