//! The store: an address that can be one, and settings that fit it.

use secrecy::ExposeSecret;
use url::Url;

use super::Check;
use crate::config::secret;
use crate::store::settings::{Settings, Shared};
use crate::units::Secret;

impl Check<'_> {
    pub(super) fn store(&mut self) {
        let file = self.file;
        let Settings::Shared(shared) = &file.store else { return };
        if self.shape.damaged(&["store", "redis"]) {
            return;
        }
        // A secret that is not there is reported with the others.
        let Ok(url) = secret::open(&shared.redis, self.env) else { return };
        self.redis_url(shared, url.expose_secret());
        if let Some(ca) = &shared.ca {
            self.readable(&["store", "ca"], ca);
        }
    }

    /// What is wrong with the URL, without a word of it: it may hold a password.
    fn redis_url(&mut self, shared: &Shared, text: &str) {
        let at = match &shared.redis {
            Secret::Text(_) => &["store", "redis"][..],
            Secret::Env { .. } => &["store", "redis", "env"],
            Secret::File { .. } => &["store", "redis", "file"],
        };
        let example = "write it as redis://HOST:6379, or rediss://HOST:6380 with TLS";
        let Some(url) = Url::parse(text).ok().filter(|url| url.has_host()) else {
            return self.wrong(at, "this is not the URL of a Redis", example);
        };
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return self.wrong(at, "the URL of a Redis begins with redis:// or rediss://", example),
        };
        let database = url.path().trim_matches('/');
        if !database.is_empty() && database.parse::<u32>().is_err() {
            let message = "what follows the port in the URL of a Redis is the number of a database";
            return self.wrong(at, message, example);
        }
        if url.fragment().is_some() {
            let fix = "leave out what begins with `#`, and name the certificate authority with `ca`";
            return self.wrong(at, "certificates are always checked", fix);
        }
        if shared.ca.is_some() && !tls {
            let fix = "begin the URL with rediss://, or leave `ca` out";
            self.wrong(&["store", "ca"], "`ca` is of use with TLS only", fix);
        }
        if shared.password.is_some() && url.password().is_some() {
            let fix = "keep one of the two";
            self.wrong(&["store", "password"], "the URL has a password already", fix);
        }
    }
}
