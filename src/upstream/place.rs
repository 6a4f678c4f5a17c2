//! Where an upstream's paths are.
//!
//! | `base_url` | `api_version` | a chat goes to |
//! |---|---|---|
//! | `https://a.example/v1` | none | `https://a.example/v1/chat/completions` |
//! | `https://NAME.openai.azure.com` | `2024-10-21` | `…/openai/deployments/MODEL/chat/completions?api-version=2024-10-21` |
//! | `https://NAME.openai.azure.com/openai/v1` | none, or `preview` | `…/openai/v1/chat/completions`, with `?api-version=preview` |

use http::uri::{InvalidUri, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The path of chats.
const CHAT: &str = "/chat/completions";
/// The paths that Azure has below a deployment; the others are beside the deployments.
const OF_A_DEPLOYMENT: [&str; 8] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/audio/transcriptions",
    "/audio/translations",
    "/audio/speech",
    "/images/generations",
    "/images/edits",
];
/// What a segment of a path may hold as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where one upstream is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Scheme, host and port.
    origin: Uri,
    /// What `Host` says.
    host: HeaderValue,
    base: String,
    version: Option<String>,
    deployments: bool,
    /// Where chats go, if they go to one place whatever is asked.
    chat: Option<Uri>,
}

impl Place {
    /// What `base_url` and `api_version` say; the error is a sentence about `base_url`.
    pub(super) fn new(base_url: &str, api_version: Option<&str>) -> Result<Self, String> {
        let uri: Uri = base_url.parse().map_err(|e| format!("not a URL: {e}"))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err("a URL such as https://api.openai.com/v1 is needed".into());
        };
        let path = parts.path_and_query.map(|p| p.path().trim_end_matches('/').to_owned());
        let mut base = path.unwrap_or_default();
        let deployments = api_version.is_some() && !base.ends_with("/openai/v1");
        if deployments && !base.ends_with("/openai") {
            base.push_str("/openai");
        }
        let version = api_version.map(|v| utf8_percent_encode(v, PLAIN).to_string());
        let usual = if scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = match authority.port_u16().filter(|port| *port != usual) {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        };
        let host = HeaderValue::try_from(host).map_err(|e| format!("its host cannot be asked: {e}"))?;
        let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        let origin = origin.map_err(|e| format!("not a URL: {e}"))?;
        let mut place = Self { origin, host, base, version, deployments, chat: None };
        place.chat = if deployments { None } else { place.path(CHAT, None).ok() };
        Ok(place)
    }

    /// Scheme, host and port, which a connection is made to.
    pub(super) const fn origin(&self) -> &Uri {
        &self.origin
    }

    /// What `Host` says.
    pub(super) const fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Whether paths name the model.
    pub(super) const fn names_models(&self) -> bool {
        self.deployments
    }

    /// Host and port.
    pub(super) fn server(&self) -> (&str, u16) {
        let usual = if self.origin.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
        (self.origin.host().unwrap_or_default(), self.origin.port_u16().unwrap_or(usual))
    }

    /// The target there of a path below `/v1`, which may have a query, for this model.
    pub(super) fn path(&self, path: &str, model: Option<&str>) -> Result<Uri, InvalidUri> {
        if let (CHAT, Some(chat)) = (path, &self.chat) {
            return Ok(chat.clone());
        }
        let (route, query) = path.split_once('?').unwrap_or((path, ""));
        let mut full = self.base.clone();
        if let (true, Some(model), true) = (self.deployments, model, OF_A_DEPLOYMENT.contains(&route)) {
            full.push_str("/deployments/");
            full.extend(utf8_percent_encode(model, PLAIN));
        }
        full.push_str(route);
        // The version is the operator's, where there is one.
        let version = self.version.as_ref().map(|version| format!("api-version={version}"));
        let others = query
            .split('&')
            .filter(|pair| !pair.is_empty() && (version.is_none() || !pair.starts_with("api-version=")));
        for (i, pair) in others.chain(version.as_deref()).enumerate() {
            full.push(if i == 0 { '?' } else { '&' });
            full.push_str(pair);
        }
        PathAndQuery::from_maybe_shared(full).map(Uri::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(base: &str, version: Option<&str>, path: &str, model: Option<&str>) -> String {
        let place = Place::new(base, version).unwrap();
        let origin = place.origin().to_string();
        format!("{}{}", origin.trim_end_matches('/'), place.path(path, model).unwrap())
    }

    #[test]
    fn plain_upstreams_have_every_path_below_their_base() {
        assert_eq!(url("http://a/v1/", None, "/chat/completions", Some("m")), "http://a/v1/chat/completions");
        assert_eq!(url("http://a", None, "/files?x=1", None), "http://a/files?x=1");
        assert!(!Place::new("http://a/v1", None).unwrap().names_models());
    }

    #[test]
    fn azures_deployments_are_named_by_the_model() {
        for base in ["https://n.openai.azure.com", "https://n.openai.azure.com/openai/"] {
            let url = |path, model| url(base, Some("2024-10-21"), path, model);
            let start = "https://n.openai.azure.com/openai";
            assert_eq!(
                url("/chat/completions", Some("gpt 4/o")),
                format!("{start}/deployments/gpt%204%2Fo/chat/completions?api-version=2024-10-21")
            );
            assert_eq!(
                url("/embeddings?api-version=theirs&a=1", Some("e")),
                format!("{start}/deployments/e/embeddings?a=1&api-version=2024-10-21")
            );
            assert_eq!(url("/models", Some("m")), format!("{start}/models?api-version=2024-10-21"));
            assert_eq!(
                url("/files/f/content", None),
                format!("{start}/files/f/content?api-version=2024-10-21")
            );
        }
    }

    #[test]
    fn azures_newer_paths_are_like_openais() {
        let base = "https://n.openai.azure.com/openai/v1";
        assert_eq!(url(base, None, "/chat/completions", Some("m")), format!("{base}/chat/completions"));
        assert_eq!(
            url(base, Some("preview"), "/responses", Some("m")),
            format!("{base}/responses?api-version=preview")
        );
    }

    #[test]
    fn what_is_no_url_says_so() {
        assert!(Place::new("a.example/v1", None).is_err());
        assert!(Place::new("http:// a", None).is_err());
    }
}
