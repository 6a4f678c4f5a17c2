//! Who may look at the admin side: those who call it by its own name.
//!
//! A web page can send its visitor's browser to a loopback address under a name of its own
//! (DNS rebinding) or across origins. The name is then in `Host`, the page in `Origin`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::request;
use http::uri::Authority;

/// The names the admin side goes by.
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

    /// Judges a request's `Host` and `Origin`.
    pub fn check(&self, head: &request::Parts) -> Result<(), Foreign> {
        let named = head.uri.authority().cloned();
        let host = head.headers.get(HOST).and_then(|h| Authority::try_from(h.as_bytes()).ok());
        // Both where both are given: one that is ours does not make up for one that is not.
        let names: Vec<Authority> = named.into_iter().chain(host).collect();
        if names.is_empty() || !names.iter().all(|name| self.ours(name.host())) {
            return Err(Foreign::Host);
        }
        let Some(origin) = head.headers.get(ORIGIN) else { return Ok(()) };
        let same = origin
            .to_str()
            .ok()
            .and_then(|o| o.strip_prefix("http://").or_else(|| o.strip_prefix("https://")))
            .is_some_and(|o| names.iter().all(|name| name.as_str().eq_ignore_ascii_case(o)));
        if same { Ok(()) } else { Err(Foreign::Origin) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(listen: &str, host: &str, origin: Option<&str>) -> Result<(), Foreign> {
        let mut request = http::Request::get("/metrics").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let visitors = Visitors::new(listen.parse().unwrap(), &["fanfold.internal".into()]);
        visitors.check(&request.body(()).unwrap().into_parts().0)
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
}
