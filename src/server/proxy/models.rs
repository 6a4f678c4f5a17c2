//! `/v1/models`: what the key may use, of all upstreams together.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body_util::{BodyExt, Collected, Limited};
use tokio::task::JoinSet;

use super::Asked;
use crate::relay::body::Body;
use crate::relay::error_response;
use crate::relay::headers::to_upstream;
use crate::upstream::{Asking, Upstream};
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::Raw;

/// The largest list one upstream may answer with, in bytes.
const LARGEST_LIST: usize = 4 * 1024 * 1024;
/// The most models one upstream may list.
const MOST_MODELS: usize = 10_000;

/// How long an upstream may take that others do not wait for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks every upstream and merges what they list, as far as a route leads there and the team may
/// use it; names that only routes know are there, too. Upstreams that do not answer soon are left
/// out; if there is nothing at all, that is an error.
pub(super) async fn list(asked: &Asked) -> Response<Body> {
    let mut asks = JoinSet::new();
    for upstream in asked.snapshot.routes.upstreams() {
        let (upstream, team) = (upstream.clone(), asked.team.name.clone());
        let headers = to_upstream(&HeaderMap::new(), &asked.id, true);
        asks.spawn(async move {
            let listed = match tokio::time::timeout(PATIENCE, listed(&upstream, &team, headers)).await {
                Ok(listed) => listed,
                Err(_) => Err(Box::new(Failure::new(FailureKind::Timeout, "no list in time"))),
            };
            (upstream, listed)
        });
    }
    let routes = &asked.snapshot.routes;
    let (mut found, mut failed) = (Vec::new(), None);
    for (upstream, listed) in asks.join_all().await {
        match listed {
            Ok(models) => {
                let leads_here = |id: &str| routes.of(id).is_some_and(|route| route.leads_to(&upstream.name));
                found.extend(models.into_iter().filter(|(id, _)| leads_here(id)));
            }
            Err(failure) => {
                tracing::debug!(upstream = %upstream.name, kind = failure.kind.label(), detail = %failure.detail, "no list of models");
                failed = Some(failure);
            }
        }
    }
    // After what upstreams say themselves: of two with one name the first is kept.
    let aliases = routes.iter().filter(|route| route.is_alias());
    found.extend(aliases.map(|route| (route.model.to_string(), alias(&route.model))));
    found.retain(|(id, _)| asked.team.may_use_model(id));
    let mut response = match failed {
        Some(failure) if found.is_empty() => error_response(&failure.reply),
        Some(_) | None => Response::new(Body::Full(merged(found))),
    };
    response.headers_mut().extend(asked.headers.clone());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn listed(
    upstream: &Upstream,
    team: &str,
    headers: HeaderMap,
) -> Result<Vec<(String, Raw)>, Box<Failure>> {
    let asking = Asking { team, model: None, again: false };
    let answered = upstream.forward_whole(Method::GET, "/models", headers, Bytes::new(), asking).await?;
    let (status, body) = (answered.response.status(), answered.response.into_body());
    if !status.is_success() {
        return Err(Box::new(Failure::of_status(status.as_u16().max(400), Bytes::new(), None)));
    }
    let body = Limited::new(body, LARGEST_LIST).collect().await;
    Ok(models(&body.map(Collected::to_bytes).unwrap_or_default())?)
}

/// A model that only a route knows by this name.
fn alias(name: &str) -> Raw {
    let text =
        format!(r#"{{"id":{},"object":"model","created":0,"owned_by":"fanfold"}}"#, Raw::string(name).text());
    Raw::parse(text).unwrap_or(Raw::NULL)
}

/// The models of a list, by id, as they came.
fn models(body: &Bytes) -> Result<Vec<(String, Raw)>, Failure> {
    let read = || {
        let list = Raw::parse(body.clone()).ok()?.members().ok()?;
        let id = |model: &Raw| Some(model.members().ok()?.find("id")?.as_string()?.into_owned());
        let models = list.find("data")?.elements(MOST_MODELS).ok()?;
        Some(models.into_iter().filter_map(|model| Some((id(&model)?, model))).collect())
    };
    read().ok_or_else(|| Failure::new(FailureKind::InvalidReply, "no list of models"))
}

fn merged(mut models: Vec<(String, Raw)>) -> Bytes {
    models.sort_by(|a, b| a.0.cmp(&b.0));
    models.dedup_by(|a, b| a.0 == b.0);
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    for (i, (_, model)) in models.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(model.bytes());
    }
    out.extend_from_slice(b"]}");
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_merged_and_models_stay_as_they_came() {
        let one = models(&Bytes::from_static(br#"{"data":[{"id":"b","n":1.10},{"no":"id"}]}"#)).unwrap();
        let two = models(&Bytes::from_static(br#"{"data":[{"id":"a"},{"id":"b"}]}"#)).unwrap();
        let both = merged(one.into_iter().chain(two).collect());
        assert_eq!(both, r#"{"object":"list","data":[{"id":"a"},{"id":"b","n":1.10}]}"#);
        assert!(models(&Bytes::from_static(b"<html>")).is_err());
    }
}
