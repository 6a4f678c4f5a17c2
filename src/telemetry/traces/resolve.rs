//! What `traces:` amounts to: the file first, then the variables OpenTelemetry has for it, then its defaults.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;

use super::context::Sampling;
use super::settings::{Protocol, Settings};
use crate::trust;
use crate::units::{Secret, without_secrets_in_urls};

/// The path of a gRPC request.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The path of an HTTP request.
const TRACES: &str = "/v1/traces";
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where spans go, and which.
#[derive(Clone)]
pub struct Resolved {
    /// The whole URL of a request.
    pub url: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// More request headers.
    pub headers: HeaderMap,
    /// Whom it is believed to be.
    pub tls: ClientConfig,
    /// Which traces are recorded.
    pub sampling: Sampling,
    /// What is said of this process: `service.name` first.
    pub resource: Vec<(String, String)>,
    /// How long a request may take.
    pub timeout: Duration,
}

/// A setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The key below `traces`; empty for a variable.
    pub setting: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
}

fn wrong(setting: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Wrong {
    Wrong { setting, message: message.into(), fix: fix.into() }
}

/// `None`: the environment says that there are to be no traces. `open` opens secrets.
///
/// # Errors
/// Everything that is wrong, with the setting or variable it stands in.
pub fn resolve(
    settings: &Settings,
    env: Env<'_>,
    open: &dyn Fn(&Secret) -> Result<String, String>,
) -> Result<Option<Resolved>, Vec<Wrong>> {
    let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let is = |name: &str, value: &str| env(name).is_some_and(|set| set.trim().eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let mut mistakes = Vec::new();
    let mut note = |mistake: Wrong| mistakes.push(mistake);
    let protocol = protocol(settings, &env).map_err(&mut note).unwrap_or(Protocol::Http);
    let url = url(settings, protocol, &env).map_err(&mut note).unwrap_or_default();
    let headers = headers(settings, &env, open).map_err(&mut note).unwrap_or_default();
    let sampling = sampling(settings, &env).map_err(&mut note);
    let sampling = sampling.unwrap_or(Sampling { ratio: 0.0, heeds_client: true });
    let timeout = timeout(settings, &env).map_err(&mut note).unwrap_or(TIMEOUT);
    let fix = "name a PEM file with the certificate of the authority";
    let ca = settings.ca.as_deref().map(str::to_owned).or_else(|| of_traces("CERTIFICATE", &env));
    let tls = trust::tls(ca.as_deref()).map_err(|why| note(wrong("ca", why, fix)));
    let resource = resource(settings, &env);
    match tls {
        Ok(tls) if mistakes.is_empty() => {
            Ok(Some(Resolved { url, protocol, headers, tls, sampling, resource, timeout }))
        }
        Ok(_) | Err(()) => Err(mistakes),
    }
}

/// A variable of the exporter: the one for traces, else the one for everything.
fn of_traces(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    env(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| env(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

fn protocol(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Result<Protocol, Wrong> {
    if let Some(protocol) = settings.protocol {
        return Ok(protocol);
    }
    match of_traces("PROTOCOL", env).as_deref().map(str::trim) {
        None | Some("http/protobuf") => Ok(Protocol::Http),
        Some("grpc") => Ok(Protocol::Grpc),
        Some(other) => Err(wrong(
            "protocol",
            format!("OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`, which is not spoken here"),
            "set it to `grpc` or `http/protobuf`, or write `protocol: grpc` or `protocol: http`",
        )),
    }
}

/// A URL for traces alone is taken as it is; below any other, traces have a path of their own.
fn url(settings: &Settings, protocol: Protocol, env: &dyn Fn(&str) -> Option<String>) -> Result<Uri, Wrong> {
    let of_its_own = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").filter(|_| settings.endpoint.is_none());
    let whole = of_its_own.is_some();
    let default = || match protocol {
        Protocol::Grpc => "http://localhost:4317".to_owned(),
        Protocol::Http => "http://localhost:4318".to_owned(),
    };
    let text = settings.endpoint.clone().or(of_its_own).or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let text = text.unwrap_or_else(default);
    let mistake = |why: &str| {
        let message = format!("the collector's URL `{}` {why}", without_secrets_in_urls(&text));
        wrong(
            "endpoint",
            message,
            "write a URL such as http://localhost:4318, or http://localhost:4317 for gRPC",
        )
    };
    let url = url::Url::parse(text.trim()).map_err(|_| mistake("is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(mistake("does not begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(mistake("has a user or password in it; use `headers`"));
    }
    let base = url.path().trim_end_matches('/');
    let path = match protocol {
        Protocol::Grpc if !base.is_empty() => return Err(mistake("has a path, which gRPC has no use for")),
        Protocol::Grpc => EXPORT.to_owned(),
        Protocol::Http if whole => url.path().to_owned(),
        Protocol::Http if base.ends_with(TRACES) => base.to_owned(),
        Protocol::Http => format!("{base}{TRACES}"),
    };
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let whole = format!("{}{path}{query}", url.origin().ascii_serialization());
    whole.parse().map_err(|_| mistake("is no URL"))
}

fn headers(
    settings: &Settings,
    env: &dyn Fn(&str) -> Option<String>,
    open: &dyn Fn(&Secret) -> Result<String, String>,
) -> Result<HeaderMap, Wrong> {
    let mut headers = HeaderMap::new();
    let fix = "write NAME=VALUE,NAME=VALUE, values percent-encoded";
    let variable = |why: &str| wrong("headers", format!("OTEL_EXPORTER_OTLP_HEADERS {why}"), fix);
    for pair in of_traces("HEADERS", env).iter().flat_map(|all| all.split(',')) {
        if pair.trim().is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=').ok_or_else(|| variable("has a part without `=`"))?;
        let value = percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
        let name = HeaderName::try_from(name.trim()).map_err(|_| variable("has an illegal name"))?;
        headers.insert(name, secret(&value).ok_or_else(|| variable("has an illegal value"))?);
    }
    for (name, value) in &settings.headers {
        let of = |why: String| wrong("headers", why, "write `NAME: VALUE`, or `NAME: { env: VARIABLE }`");
        let value = open(value).map_err(of)?;
        let illegal = |what: &str| of(format!("`{name}` {what}"));
        let header = HeaderName::try_from(name).map_err(|_| illegal("is not a legal header name"))?;
        let value = secret(&value).ok_or_else(|| illegal("has characters that no header may have"))?;
        headers.insert(header, value);
    }
    Ok(headers)
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn sampling(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Result<Sampling, Wrong> {
    let heeding = |ratio| Sampling { ratio, heeds_client: true };
    let own = |ratio| Sampling { ratio, heeds_client: false };
    if let Some(ratio) = settings.sample {
        let message = format!("`sample` must be from 0 to 1, not {ratio}");
        let in_range = (0.0..=1.0).contains(&ratio);
        return if in_range {
            Ok(heeding(ratio))
        } else {
            Err(wrong("sample", message, "write 0.1 for a tenth"))
        };
    }
    let ratio = || -> Result<f64, Wrong> {
        let Some(text) = env("OTEL_TRACES_SAMPLER_ARG") else { return Ok(1.0) };
        let ratio = text.trim().parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let message = format!("OTEL_TRACES_SAMPLER_ARG must be from 0 to 1, not `{text}`");
        ratio.ok_or_else(|| wrong("sample", message, "write 0.1 for a tenth"))
    };
    match env("OTEL_TRACES_SAMPLER").as_deref().map(str::trim) {
        None | Some("parentbased_always_on") => Ok(heeding(1.0)),
        Some("parentbased_always_off") => Ok(heeding(0.0)),
        Some("parentbased_traceidratio") => Ok(heeding(ratio()?)),
        Some("always_on") => Ok(own(1.0)),
        Some("always_off") => Ok(own(0.0)),
        Some("traceidratio") => Ok(own(ratio()?)),
        Some(other) => Err(wrong(
            "sample",
            format!("OTEL_TRACES_SAMPLER is `{other}`, which is not known here"),
            "use always_on, always_off, traceidratio, or one of them with `parentbased_` before it; or write `sample:`",
        )),
    }
}

fn timeout(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Result<Duration, Wrong> {
    if let Some(timeout) = settings.timeout {
        return Ok(timeout.0);
    }
    let Some(text) = of_traces("TIMEOUT", env) else { return Ok(TIMEOUT) };
    let millis = text.trim().parse().ok().filter(|millis| *millis > 0);
    let message = format!("OTEL_EXPORTER_OTLP_TIMEOUT must be a number of milliseconds, not `{text}`");
    millis.map(Duration::from_millis).ok_or_else(|| wrong("timeout", message, "write 10000 for ten seconds"))
}

/// What is said of this process. A malformed list is left out: it describes, and decides nothing.
fn resource(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let text = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), percent_decode_str(value.trim()).decode_utf8_lossy().into_owned()))
    };
    let given: Vec<(String, String)> = text.split(',').filter_map(pair).collect();
    let of_list = |name: &str| given.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let service = settings.service.clone().or_else(|| env("OTEL_SERVICE_NAME"));
    let service = service.or_else(|| of_list("service.name")).unwrap_or_else(|| "fanfold".into());
    let mut all = vec![("service.name".to_owned(), service)];
    for (name, own) in [
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", uuid::Uuid::now_v7().to_string()),
    ] {
        all.push((name.to_owned(), of_list(name).unwrap_or(own)));
    }
    let known = |name: &str| all.iter().any(|(key, _)| key == name);
    let more: Vec<_> = given.iter().filter(|(name, _)| !name.is_empty() && !known(name)).cloned().collect();
    all.extend(more);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(settings: Settings, variables: &[(&str, &str)]) -> Result<Option<Resolved>, Vec<Wrong>> {
        let env =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(&settings, &env, &|secret| match secret {
            Secret::Text(text) => Ok(text.clone()),
            Secret::Env { .. } | Secret::File { .. } => Err("not here".into()),
        })
    }

    fn of(settings: Settings, variables: &[(&str, &str)]) -> Resolved {
        let resolved = resolved(settings, variables).map_err(|w| format!("{w:?}")).unwrap();
        resolved.expect("traces are on")
    }

    fn at(endpoint: &str, protocol: Protocol) -> Settings {
        Settings { endpoint: Some(endpoint.into()), protocol: Some(protocol), ..Settings::default() }
    }

    #[test]
    fn the_file_counts_first_then_the_variables_for_traces_then_those_for_all() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:1/base");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:2/as/it/is");
        let url = |settings, variables: &[_]| of(settings, variables).url.to_string();
        assert_eq!(url(Settings::default(), &[]), "http://localhost:4318/v1/traces");
        assert_eq!(url(Settings::default(), &[general]), "http://general:1/base/v1/traces");
        assert_eq!(url(Settings::default(), &[general, own]), "http://own:2/as/it/is");
        assert_eq!(url(at("https://file/", Protocol::Http), &[general, own]), "https://file/v1/traces");
        assert_eq!(url(at("https://file/v1/traces/", Protocol::Http), &[]), "https://file/v1/traces");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(url(Settings::default(), &[grpc]), format!("http://localhost:4317{EXPORT}"));
        assert_eq!(url(at("http://file:9", Protocol::Grpc), &[]), format!("http://file:9{EXPORT}"));
        let settings = Settings {
            headers: [("x-file".to_owned(), Secret::Text("f".into()))].into(),
            ..Settings::default()
        };
        let given = of(settings, &[("OTEL_EXPORTER_OTLP_HEADERS", "x-env=a%20b, x-file=lost")]);
        assert_eq!(
            (&given.headers["x-env"], &given.headers["x-file"]),
            (&"a b".parse().unwrap(), &"f".parse().unwrap())
        );
        assert!(given.headers.values().all(HeaderValue::is_sensitive));
        let given = of(Settings::default(), &[("OTEL_EXPORTER_OTLP_TIMEOUT", "250")]);
        assert_eq!(given.timeout, Duration::from_millis(250));
    }

    #[test]
    fn the_sampler_is_that_of_the_file_or_the_one_the_environment_names() {
        let of = |settings, variables: &[_]| of(settings, variables).sampling;
        let sampling = |ratio, heeds_client| Sampling { ratio, heeds_client };
        assert_eq!(of(Settings::default(), &[]), sampling(1.0, true));
        let ratio = ("OTEL_TRACES_SAMPLER_ARG", "0.25");
        for (name, expected) in [
            ("always_on", sampling(1.0, false)),
            ("always_off", sampling(0.0, false)),
            ("traceidratio", sampling(0.25, false)),
            ("parentbased_always_on", sampling(1.0, true)),
            ("parentbased_always_off", sampling(0.0, true)),
            ("parentbased_traceidratio", sampling(0.25, true)),
        ] {
            assert_eq!(of(Settings::default(), &[("OTEL_TRACES_SAMPLER", name), ratio]), expected, "{name}");
        }
        let half = Settings { sample: Some(0.5), ..Settings::default() };
        assert_eq!(of(half, &[("OTEL_TRACES_SAMPLER", "always_off")]), sampling(0.5, true));
    }

    #[test]
    fn the_process_is_named_as_people_name_it() {
        let of = |settings, variables: &[_]| {
            let all = of(settings, variables).resource;
            (all[0].1.clone(), all.last().cloned().unwrap())
        };
        let list = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed,deployment.environment.name=a%2Cb,,bad");
        assert_eq!(of(Settings::default(), &[]).0, "fanfold");
        let (name, last) = of(Settings::default(), &[list]);
        assert_eq!((name.as_str(), last), ("listed", ("deployment.environment.name".into(), "a,b".into())));
        assert_eq!(of(Settings::default(), &[list, ("OTEL_SERVICE_NAME", "set")]).0, "set");
        let written = Settings { service: Some("file".into()), ..Settings::default() };
        assert_eq!(of(written, &[("OTEL_SERVICE_NAME", "set")]).0, "file");
    }

    #[test]
    fn the_environment_can_switch_them_off() {
        for variable in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(resolved(at("no url", Protocol::Grpc), &[variable]).unwrap().is_none());
        }
        assert!(resolved(Settings::default(), &[("OTEL_SDK_DISABLED", "false")]).unwrap().is_some());
    }

    #[test]
    fn all_mistakes_are_told_and_none_shows_a_secret() {
        let settings = Settings {
            sample: Some(1.5),
            headers: [("bad name".to_owned(), Secret::Text("hush".into()))].into(),
            ca: Some("/nowhere.pem".into()),
            ..at("http://me:hush@host/", Protocol::Http)
        };
        let mistakes = resolved(settings, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]).err().unwrap();
        let named: Vec<&str> = mistakes.iter().map(|m| m.setting).collect();
        assert_eq!(named, ["endpoint", "headers", "sample", "timeout", "ca"]);
        assert!(!format!("{mistakes:?}").contains("hush"), "{mistakes:?}");
        for (settings, variables) in [
            (at("localhost:4318", Protocol::Http), vec![]),
            (at("ftp://host", Protocol::Http), vec![]),
            (at("http://host/path", Protocol::Grpc), vec![]),
            (Settings::default(), vec![("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]),
            (Settings::default(), vec![("OTEL_EXPORTER_OTLP_HEADERS", "novalue")]),
            (Settings::default(), vec![("OTEL_TRACES_SAMPLER", "jaeger_remote")]),
            (
                Settings::default(),
                vec![("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "7")],
            ),
        ] {
            let mistakes = resolved(settings.clone(), &variables).err();
            assert_eq!(mistakes.map(|all| all.len()), Some(1), "{settings:?} {variables:?}");
        }
    }
}
