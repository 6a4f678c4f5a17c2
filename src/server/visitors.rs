//! Who may look at a listener that asks for no keys: those who call it by its own name.
//!
//! A web page can send its visitor's browser to a loopback address under a name of its own
//! (DNS rebinding) or across origins. The name is then in `Host`, the page in `Origin`. The admin
//! side is looked at by its own pages only; the proxy is also used by programs that bring an origin
//! of their own, and by pages that are developed on the same machine.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri};

/// The names a listener goes by.
#[derive(Debug, Clone)]
pub struct Visitors {
    listen: SocketAddr,
    hosts: Vec<String>,
}

/// Why somebody may not look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A name this listener does not go by.
    Host,
    /// A page from elsewhere asks.
    Origin,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => {
                "this Host is not served here: use a loopback name, or add the name to `admin.hosts`\n"
            }
            Self::Origin => "requests from pages of another origin are refused\n",
        })
    }
}

impl std::error::Error for Foreign {}

impl Visitors {
    /// Loopback names, the address that is listened on, and `hosts`.
    #[must_use]
    pub fn new(listen: SocketAddr, hosts: &[String]) -> Self {
        Self { listen, hosts: hosts.to_vec() }
    }

    /// Judges a request's `Host` and `Origin`: only the listener's own pages may ask.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        let names = self.names(uri, headers)?;
        if names.is_empty() {
            return Err(Foreign::Host);
        }
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let same = page_of(origin).is_some_and(|o| names.iter().all(|n| n.as_str().eq_ignore_ascii_case(o)));
        if same { Ok(()) } else { Err(Foreign::Origin) }
    }

    /// Judges a request to an API: pages of other sites may not ask; pages of this machine and
    /// programs whose origin is no web site (`app://…`, `vscode-webview://…`) may.
    pub fn check_api(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        self.names(uri, headers)?;
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let Some(page) = page_of(origin) else {
            // `null` is what a page says that was told to hide where it comes from.
            let of_a_program = origin.to_str().is_ok_and(|o| o.contains("://"));
            return if of_a_program { Ok(()) } else { Err(Foreign::Origin) };
        };
        let ours = page.parse::<Authority>().is_ok_and(|page| self.ours(page.host()));
        if ours { Ok(()) } else { Err(Foreign::Origin) }
    }

    /// The names a request calls us by, if they are all ours: one that is does not make up for one
    /// that is not.
    fn names(&self, uri: &Uri, headers: &HeaderMap) -> Result<Vec<Authority>, Foreign> {
        let named = uri.authority().cloned().map(Ok);
        let host = headers.get(HOST).map(|h| Authority::try_from(h.as_bytes()));
        let names =
            named.into_iter().chain(host).collect::<Result<Vec<_>, _>>().map_err(|_| Foreign::Host)?;
        if names.iter().all(|name| self.ours(name.host())) { Ok(names) } else { Err(Foreign::Host) }
    }

    fn ours(&self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address.map(|a| a.to_canonical()) {
            // An address cannot be rebound; on all interfaces, each of the machine's is ours.
            Ok(address) => {
                address.is_loopback()
                    || address == self.listen.ip().to_canonical()
                    || self.listen.ip().is_unspecified()
                    || self.named(host)
            }
            Err(_) => host.eq_ignore_ascii_case("localhost") || self.named(host),
        }
    }

    fn named(&self, host: &str) -> bool {
        self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
    }
}

/// The host and port of a page of the web.
fn page_of(origin: &HeaderValue) -> Option<&str> {
    let origin = origin.to_str().ok()?;
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(listen: &str, host: &str, origin: Option<&str>) -> Result<(), Foreign> {
        let mut request = http::Request::get("/metrics").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let visitors = Visitors::new(listen.parse().unwrap(), &["fanfold.internal".into()]);
        let request = request.body(()).unwrap();
        visitors.check(request.uri(), request.headers())
    }

    #[test]
    fn its_own_names_are_served_and_no_others() {
        let local = "127.0.0.1:4101";
        for host in [
            "localhost",
            "LOCALHOST:4101",
            "127.0.0.1:4101",
            "[::1]:4101",
            "127.9.9.9",
            "Fanfold.internal:80",
        ] {
            assert_eq!(judged(local, host, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.7:4101",
            "127.0.0.1.evil.example",
            "evil.localhost.",
            "",
        ] {
            assert_eq!(judged(local, host, None), Err(Foreign::Host), "{host}");
        }
    }

    #[test]
    fn a_listener_on_all_interfaces_is_called_by_any_address() {
        assert_eq!(judged("0.0.0.0:4101", "10.0.0.7:4101", None), Ok(()));
        assert_eq!(judged("[::]:4101", "10.0.0.7:4101", None), Ok(()));
        assert_eq!(judged("10.0.0.7:4101", "10.0.0.7:4101", None), Ok(()));
        assert_eq!(judged("10.0.0.7:4101", "10.0.0.8:4101", None), Err(Foreign::Host));
        assert_eq!(judged("0.0.0.0:4101", "evil.example", None), Err(Foreign::Host));
    }

    #[test]
    fn only_its_own_pages_may_ask() {
        let ask = |origin| judged("127.0.0.1:4101", "localhost:4101", Some(origin));
        assert_eq!(ask("http://localhost:4101"), Ok(()));
        for foreign in ["http://localhost:3000", "https://evil.example", "null", "http://127.0.0.1:4101", ""]
        {
            assert_eq!(ask(foreign), Err(Foreign::Origin), "{foreign}");
        }
    }

    #[test]
    fn an_api_is_also_used_by_programs_and_pages_of_this_machine() {
        let ask = |host: &str, origin: &str| {
            let request = http::Request::get("/v1/models").header(HOST, host).header(ORIGIN, origin);
            let request = request.body(()).unwrap();
            let visitors = Visitors::new("127.0.0.1:4100".parse().unwrap(), &[]);
            visitors.check_api(request.uri(), request.headers())
        };
        for origin in
            ["http://localhost:5173", "https://127.0.0.1", "app://obsidian.md", "vscode-webview://x"]
        {
            assert_eq!(ask("localhost:4100", origin), Ok(()), "{origin}");
        }
        for origin in ["https://evil.example", "http://localhost.evil.example", "null", "", "http://"] {
            assert_eq!(ask("localhost:4100", origin), Err(Foreign::Origin), "{origin}");
        }
        assert_eq!(ask("evil.example", "http://evil.example"), Err(Foreign::Host));
    }
}
