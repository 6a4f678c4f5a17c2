//! Where the requests of an HTTP tool go: a scheme, a host and a port that no argument can change.
//!
//! Pure.

use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

use crate::tools::address::Reach;
use crate::tools::load::Mistakes;

/// Where every request of a tool goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tools) struct Origin {
    /// `https`, not `http`.
    pub(in crate::tools) secure: bool,
    /// Host and port as written.
    pub(in crate::tools) authority: Authority,
}

impl Origin {
    /// Stands for an origin that could not be read.
    pub(super) fn nowhere() -> Self {
        Self { secure: true, authority: Authority::from_static("nowhere.invalid") }
    }

    /// Its URI, without a path.
    pub(in crate::tools) fn uri(&self) -> Uri {
        self.with(PathAndQuery::from_static("/"))
    }

    /// The URI of something there.
    pub(super) fn with(&self, target: PathAndQuery) -> Uri {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(if self.secure { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).expect("all three parts are there")
    }

    /// What `host` says to it: without the port, where that is the scheme's own.
    pub(in crate::tools) fn host(&self) -> HeaderValue {
        let usual = if self.secure { 443 } else { 80 };
        let text = match self.authority.port_u16() {
            Some(port) if port != usual => self.authority.as_str(),
            Some(_) | None => self.authority.host(),
        };
        HeaderValue::from_str(text).expect("an authority is visible ASCII")
    }
}

/// Splits the `url` below a key of the settings into its origin and the rest, which begins with `/`, `?` or nothing.
pub(in crate::tools) fn split<'a>(
    key: &str,
    url: &'a str,
    mistakes: &mut Mistakes,
) -> Option<(Origin, &'a str)> {
    let at = [key, "url"];
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        // Inside of a place other characters are fine, but then the place is no query name or path either.
        let outside: String = strip_places(url);
        if !outside.bytes().all(|byte| byte.is_ascii_graphic()) {
            mistakes.add(&at, "a URL consists of visible ASCII characters; write the others percent-encoded");
            return None;
        }
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        mistakes.add_with_fix(&at, "the URL has no scheme and host", "write https://host/path");
        return None;
    };
    let secure = match scheme {
        "https" => true,
        "http" => false,
        _ if scheme.contains(['{', '}']) => {
            mistakes.add(&at, "a place may stand in the path or the query, not in the scheme");
            return None;
        }
        _ => {
            mistakes.add(&at, format!("the scheme `{scheme}` is neither http nor https"));
            return None;
        }
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    let wrong = if authority.contains(['{', '}']) {
        Some("a place may stand in the path or the query, not in the host, the port or the user")
    } else if authority.contains('@') {
        Some("a URL may not hold a user or a password: send a header")
    } else if target.contains('#') {
        Some("a URL may not have a fragment")
    } else if target.contains('\\') {
        Some("a URL may not have a backslash")
    } else {
        None
    };
    if let Some(message) = wrong {
        mistakes.add(&at, message);
        return None;
    }
    let Some(authority) = authority.parse::<Authority>().ok().filter(|a| !a.host().is_empty()) else {
        mistakes.add(&at, "the URL's host or port is not valid");
        return None;
    };
    if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0)
    {
        mistakes.add(&at, "the URL's port is not valid");
        return None;
    }
    if strip_places(url).replace('}', "x").parse::<Uri>().is_err() {
        mistakes.add(&at, "this is not a valid URL; write unusual characters percent-encoded");
        return None;
    }
    Some((Origin { secure, authority }, target))
}

fn strip_places(url: &str) -> String {
    let mut inside = false;
    url.chars()
        .filter(|c| {
            match c {
                '{' => inside = true,
                '}' => inside = false,
                _ => {}
            }
            !inside
        })
        .collect()
}

/// An address or `localhost` in the URL opens itself; any other spelling of an address is refused, because two
/// readers could read it differently.
pub(in crate::tools) fn name_host(key: &str, origin: &Origin, reach: &mut Reach, mistakes: &mut Mistakes) {
    let at = [key, "url"];
    let host = origin.authority.host();
    if host.eq_ignore_ascii_case("localhost") {
        return reach.name_localhost();
    }
    let address = match url::Host::parse(host) {
        Ok(url::Host::Domain(_)) => return,
        Ok(url::Host::Ipv4(address)) if host == address.to_string() => address.into(),
        Ok(url::Host::Ipv4(address)) => {
            let fix = format!("write {address}");
            return mistakes.add_with_fix(&at, format!("`{host}` is an unusual spelling of an address"), fix);
        }
        Ok(url::Host::Ipv6(address)) => std::net::IpAddr::V6(address),
        Err(_) => return mistakes.add(&at, format!("`{host}` is not a host")),
    };
    reach.name_literal(address);
    if !reach.allows(address) {
        let net = ipnet::IpNet::from(address);
        mistakes.add_with_fix(
            &at,
            format!("`{host}` is not an address a tool may reach"),
            format!("open it with allow_cidrs: [\"{net}\"]"),
        );
    }
}

/// The target of a redirect that stays on scheme, host and port.
pub(super) fn own_origin(from: &Uri, target: &str) -> Option<Uri> {
    let from = url::Url::parse(&from.to_string()).ok()?;
    let mut to = from.join(target).ok()?;
    let bare = to.username().is_empty() && to.password().is_none();
    if !bare || to.origin() != from.origin() {
        return None;
    }
    to.set_fragment(None);
    to.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_told_has_a_port_only_where_it_is_not_the_usual_one() {
        for (url, expected) in [
            ("http://h.example/a", "h.example"),
            ("http://h.example:80/a", "h.example"),
            ("http://h.example:443/a", "h.example:443"),
            ("https://h.example:443", "h.example"),
            ("https://H.example:8443?q", "H.example:8443"),
            ("http://[fc00::1]:8080/", "[fc00::1]:8080"),
            ("http://[fc00::1]/", "[fc00::1]"),
        ] {
            let (origin, _) = split("http", url, &mut Mistakes::of("t")).unwrap();
            assert_eq!(origin.host(), expected, "{url}");
        }
    }

    #[test]
    fn only_the_same_scheme_host_and_port_is_the_own_origin() {
        let from: Uri = "https://h.example:8443/a/b".parse().unwrap();
        for (to, expected) in [
            ("/c", Some("https://h.example:8443/c")),
            ("c?d", Some("https://h.example:8443/a/c?d")),
            ("https://h.example:8443/x", Some("https://h.example:8443/x")),
            ("http://h.example:8443/x", None),
            ("https://h.example/x", None),
            ("https://h.example:8444/x", None),
            ("//evil.example/x", None),
            ("\\\\evil.example\\x", None),
            ("https://u@h.example:8443/x", None),
            ("https://h.example:8443@evil.example/", None),
            ("file:///etc/passwd", None),
            ("javascript:1", None),
        ] {
            assert_eq!(own_origin(&from, to).map(|uri| uri.to_string()).as_deref(), expected, "{to}");
        }
    }
}
