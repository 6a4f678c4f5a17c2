//! Model servers and the routes to them.

use http::{HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use url::{Host, Url};

use super::Check;
use crate::config::secret;
use crate::config::suggest::{did_you_mean, listed};
use crate::units::Secret;
use crate::upstream::MOST_TARGETS;
use crate::upstream::settings::{Kind, Route, Settings, Target};

impl Check<'_> {
    pub(super) fn upstreams(&mut self) {
        for (name, upstream) in &self.file.upstreams {
            let at = ["upstreams", name.as_str()];
            if name.trim().is_empty() {
                self.wrong(&at, "an upstream needs a name", "write a name before the colon");
            }
            self.base_url(name, upstream);
            self.headers(name, upstream);
            self.keys(name, upstream);
            self.azure(name, upstream);
            if let Some(ca) = &upstream.ca {
                self.readable(&["upstreams", name, "ca"], ca);
            }
        }
    }

    fn base_url(&mut self, name: &str, upstream: &Settings) {
        let at = ["upstreams", name, "base_url"];
        let example = "write it as for an OpenAI SDK, such as https://api.openai.com/v1";
        let url = match Url::parse(&upstream.base_url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => url,
            Ok(_) => return self.wrong(&at, "`base_url` must begin with http:// or https://", example),
            Err(why) => return self.wrong(&at, format!("`base_url` is not a URL: {why}"), example),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return self.wrong(
                &at,
                "`base_url` must not contain a user or a password",
                "use `api_key` or `headers`",
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return self.wrong(&at, "`base_url` must not have a `?` or `#` part", example);
        }
        let path = url.path().trim_end_matches('/');
        for ending in ["/chat/completions", "/completions", "/responses", "/models"] {
            if let Some(base) = path.strip_suffix(ending) {
                let fix = format!("write {}{base}", url.origin().ascii_serialization());
                return self.wrong(
                    &at,
                    format!("`base_url` goes too far: `{ending}` is added by fanfold"),
                    fix,
                );
            }
        }
        if path.is_empty() && upstream.api_version.is_none() {
            let fix = format!("most servers want {}/v1", url.origin().ascii_serialization());
            self.warn(&at, "`base_url` has no path", fix);
        }
        if url.scheme() == "http" && upstream.keys().next().is_some() && is_far(&url) {
            self.warn(&at, "the API key travels unencrypted to this upstream", "use https://");
        }
    }

    fn headers(&mut self, name: &str, upstream: &Settings) {
        for (header, value) in &upstream.headers {
            let at = ["upstreams", name, "headers", header];
            match HeaderName::from_bytes(header.as_bytes()) {
                Err(_) => self.wrong(
                    &at,
                    format!("`{header}` is not a legal header name"),
                    "use letters, digits and hyphens",
                ),
                Ok(known) if is_ours(&known) => self.wrong(
                    &at,
                    format!("the header `{header}` is written by fanfold itself"),
                    "leave it out",
                ),
                Ok(http::header::AUTHORIZATION) if upstream.keys().next().is_some() => self.wrong(
                    &at,
                    "both `api_key` and `headers` would send `authorization`",
                    "keep one of the two",
                ),
                Ok(_) => self.header_value(&at, value, ""),
            }
        }
    }

    fn keys(&mut self, name: &str, upstream: &Settings) {
        if let Some(key) = &upstream.api_key {
            self.upstream_key(&["upstreams", name, "api_key"], key);
        }
        for (i, key) in upstream.api_keys.iter().enumerate() {
            self.upstream_key(&["upstreams", name, "api_keys", &i.to_string()], key);
            if upstream.api_keys[..i].contains(key) {
                let at = ["upstreams", name, "api_keys", &i.to_string()].map(str::to_owned);
                let at: Vec<&str> = at.iter().map(String::as_str).collect();
                self.wrong(&at, "this key stands here twice", "leave one out");
            }
        }
        if upstream.api_key.is_some() && !upstream.api_keys.is_empty() {
            let message = "`api_key` and `api_keys` exclude each other";
            self.wrong(&["upstreams", name, "api_keys"], message, "write all keys in `api_keys`");
        }
    }

    /// A key that goes to an upstream.
    pub(super) fn upstream_key(&mut self, at: &[&str], key: &Secret) {
        self.header_value(at, key, "Bearer ");
        if secret::open(key, self.env).is_ok_and(|text| text.expose_secret().is_empty()) {
            let last = at.iter().rev().find(|part| part.parse::<usize>().is_err()).unwrap_or(&"api_key");
            let fix = format!("set it, or leave `{last}` out if this upstream needs none");
            self.wrong(at, format!("`{last}` is empty"), fix);
        }
    }

    fn azure(&mut self, name: &str, upstream: &Settings) {
        let at = ["upstreams", name, "api_version"];
        match &upstream.api_version {
            Some(_) if upstream.kind != Kind::Azure => self.wrong(
                &at,
                "`api_version` belongs to Azure's paths",
                "write `kind: azure` beside it, or leave it out",
            ),
            Some(version) if version.trim().is_empty() => {
                self.wrong(&at, "`api_version` is empty", "write it as Azure names it, such as 2024-10-21");
            }
            None if upstream.kind == Kind::Azure && is_bare(&upstream.base_url) => self.wrong(
                &["upstreams", name, "base_url"],
                "Azure has no chats right below its host",
                "add `api_version:` for the paths with deployments, or /openai/v1 to the URL",
            ),
            Some(_) | None => {}
        }
    }

    fn header_value(&mut self, at: &[&str], secret: &Secret, before: &str) {
        let Ok(text) = secret::open(secret, self.env) else { return };
        if HeaderValue::from_str(&format!("{before}{}", text.expose_secret())).is_err() {
            self.wrong(
                at,
                "this value has a character that cannot stand in a header (a line end?)",
                "write visible ASCII on one line",
            );
        }
    }

    pub(super) fn routes(&mut self) {
        let file = self.file;
        if file.routes.is_empty() && self.upstreams.len() > 1 && !self.shape.damaged(&["routes"]) {
            let message = "there are several upstreams, but no `routes:` that say which model goes where";
            self.wrong(&["upstreams"], message, "add `routes: [{ model: \"gpt-*\", upstreams: [NAME] }, …]`");
        }
        for (i, route) in file.routes.iter().enumerate() {
            let index = i.to_string();
            if route.model.trim().is_empty() {
                self.wrong(
                    &["routes", &index, "model"],
                    "`model` is empty",
                    "write a model name, or \"*\" for all",
                );
            }
            self.targets(&index, route);
            let before = &file.routes[..i];
            if before.iter().any(|earlier| earlier.model == "*" || earlier.model == route.model) {
                let message =
                    format!("no model reaches this route: an earlier one takes every `{}`", route.model);
                self.warn(&["routes", &index, "model"], message, "the first match counts: put it further up");
            }
        }
        self.idle_upstreams();
    }

    fn targets(&mut self, index: &str, route: &Route) {
        for (j, target) in route.upstreams.iter().enumerate() {
            let (name, place) = (target.name(), j.to_string());
            let mut at = vec!["routes", index, "upstreams", &place];
            if matches!(target, Target::Full(_)) {
                at.push("name");
            }
            if !self.upstreams.iter().any(|known| known == name) {
                self.unknown_upstream(&at, name);
            } else if route.upstreams[..j]
                .iter()
                .any(|before| before.name() == name && before.model() == target.model())
            {
                self.wrong(&at, format!("`{name}` stands twice in this route"), "leave one out");
            }
            if target.model().is_some_and(|model| model.trim().is_empty()) {
                let at = ["routes", index, "upstreams", &place, "model"];
                self.wrong(&at, "`model` is empty", "write the model's name there, or leave it out");
            }
        }
        if route.upstream_model.as_ref().is_some_and(|model| model.trim().is_empty()) {
            let at = ["routes", index, "upstream_model"];
            self.wrong(&at, "`upstream_model` is empty", "write the model's name there, or leave it out");
        }
        if route.upstreams.len() > MOST_TARGETS {
            let message = format!("a route has at most {MOST_TARGETS} upstreams");
            self.wrong(&["routes", index, "upstreams"], message, "leave some out");
        }
        let weighted = |target: &Target| target.weight().is_some();
        let alone = |j: usize| {
            let neighbours = [j.checked_sub(1), Some(j + 1)];
            !neighbours.into_iter().flatten().any(|n| route.upstreams.get(n).is_some_and(weighted))
        };
        for j in (0..route.upstreams.len()).filter(|j| weighted(&route.upstreams[*j]) && alone(*j)) {
            let at = ["routes", index, "upstreams", &j.to_string(), "weight"].map(str::to_owned);
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            self.warn(
                &at,
                "a weight without a neighbour that has one says nothing",
                "give the next one a weight, too",
            );
        }
    }

    pub(super) fn unknown_upstream(&mut self, at: &[&str], name: &str) {
        let known = self.upstreams;
        let problem = self.here(at, format!("there is no upstream `{name}`"));
        let problem = match did_you_mean(name, known.iter().map(String::as_str)) {
            Some(question) => problem.label(question),
            None => problem.fix(format!("`upstreams:` has {}", listed(known, "and"))),
        };
        self.problems.push(problem);
    }

    fn idle_upstreams(&mut self) {
        if self.file.routes.is_empty() || self.shape.damaged(&["routes"]) {
            return;
        }
        for name in self.file.upstreams.keys() {
            if !self
                .file
                .routes
                .iter()
                .any(|route| route.upstreams.iter().any(|target| target.name() == name))
            {
                self.warn(
                    &["upstreams", name],
                    format!("no route leads to `{name}`"),
                    "add a route, or remove it",
                );
            }
        }
    }
}

/// Headers that belong to the connection or to the message as fanfold writes it.
fn is_ours(name: &HeaderName) -> bool {
    ["host", "content-length", "content-type", "transfer-encoding", "connection", "upgrade", "te", "trailer"]
        .contains(&name.as_str())
}

/// Whether a URL has a host and nothing behind it.
fn is_bare(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.path().trim_end_matches('/').is_empty())
}

/// Whether a host lies beyond the own machine and network, as far as its name tells.
pub(super) fn is_far(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => !ip.is_loopback() && !ip.is_private() && !ip.is_link_local(),
        Some(Host::Ipv6(ip)) => !ip.is_loopback() && !ip.is_unique_local() && !ip.is_unicast_link_local(),
        Some(Host::Domain(name)) => {
            let near = [".local", ".internal", ".svc", ".localhost", ".lan", ".home.arpa"];
            name.contains('.') && !near.iter().any(|end| name.ends_with(end))
        }
        None => false,
    }
}
