//! Whether traces would reach a collector as they are meant to.

use url::Url;

use super::Check;
use super::upstreams::is_far;
use crate::telemetry::traces::resolve;
use crate::telemetry::traces::settings::Protocol;

/// The port a collector listens on for gRPC, and for HTTP.
const PORTS: [(u16, Protocol); 2] = [(4317, Protocol::Grpc), (4318, Protocol::Http)];

impl Check<'_> {
    pub(super) fn traces(&mut self) {
        let Some(settings) = &self.file.traces else { return };
        // That secrets are there is looked at elsewhere.
        match resolve(settings, self.env, &|_| Ok("secret".into())) {
            Ok(None) => {
                let message = "the environment switches traces off";
                self.warn(
                    &["traces"],
                    message,
                    "unset OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER, or leave `traces` out",
                );
            }
            Ok(Some(resolved)) => {
                let other = PORTS.iter().find(|(port, protocol)| {
                    resolved.url.port_u16() == Some(*port) && *protocol != resolved.protocol
                });
                if let Some((port, _)) = other {
                    let (other, own) = match resolved.protocol {
                        Protocol::Http => ("gRPC", "http"),
                        Protocol::Grpc => ("HTTP", "grpc"),
                    };
                    let message =
                        format!("collectors listen on port {port} for {other}, and the protocol is `{own}`");
                    self.warn(&["traces", "endpoint"], message, "change `protocol`, or the port");
                }
                let plain = resolved.url.scheme_str() == Some("http") && !resolved.headers.is_empty();
                let far = Url::parse(&resolved.url.to_string()).is_ok_and(|url| is_far(&url));
                if plain && far {
                    let message = "the headers travel unencrypted to this collector";
                    self.warn(&["traces", "endpoint"], message, "use https://");
                }
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    self.wrong(&["traces", mistake.setting], mistake.message, mistake.fix);
                }
            }
        }
    }
}
