//! Bytes go through: paths that are no chat, and chats in which nothing has to be done.
//!
//! Both bodies stream; what is held is bounded by the connections' own buffers. A chat is a turn of one
//! round: its limits hold, its reply is looked at before any of it goes out ([`crate::upstream::Opened`]),
//! and until then it is asked again like any round.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt, Collected, Limited};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Open;
use super::body::Body;
use super::drive::until;
use super::headers::tell;
use super::watching::Passed;
use super::{render, summary};
use crate::policy::parallel::Decision;
use crate::policy::retry::Tries;
use crate::policy::settings::Limits;
use crate::team::account::Account;
use crate::team::money::Price;
use crate::telemetry::traces::{Trace, Tracer};
use crate::telemetry::{Telemetry, metrics};
use crate::upstream::{
    Answered, Asking, Chatted, Expect, Opened, Received, Sent, State, Target, retry_after,
};
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Fact, Failure, FailureKind};

/// Where one model is described.
const ONE_MODEL: &str = "/models/";
/// The largest error body that is read whole, in bytes.
const LARGEST_ERROR: usize = 1024 * 1024;
/// The first pause before a request is sent again; it doubles.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Whose request goes through, and what it is counted as.
#[derive(Debug)]
pub struct Passing {
    /// Where it goes, in the order in which they are asked.
    pub targets: Targets,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Whom it is charged to.
    pub account: Account,
    /// What tokens cost.
    pub price: Option<Price>,
    /// Finishes what has to be done when the answer has gone through.
    pub tasks: TaskTracker,
    /// The route's pattern, as a label.
    pub model: Arc<str>,
    /// When the request came.
    pub since: Instant,
    /// Headers of every response.
    pub headers: HeaderMap,
    /// Cancelled when the process ends.
    pub shutdown: CancellationToken,
    /// A chat is a turn too, if of one round.
    pub turn: Option<Turn>,
}

/// The upstreams a request may go to, and whose turn it is.
#[derive(Debug, Clone)]
pub struct Targets {
    /// In order; never empty.
    list: Vec<Target>,
    at: usize,
}

impl Targets {
    /// These, in this order; `None` if there are none.
    #[must_use]
    pub fn new(list: Vec<Target>) -> Option<Self> {
        (!list.is_empty()).then_some(Self { list, at: 0 })
    }

    /// The one whose turn it is.
    #[must_use]
    pub fn now(&self) -> &Target {
        &self.list[self.at]
    }

    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.list.len();
    }

    /// Begins with the first that is not left alone, where nothing can be sent twice.
    fn skip_those_left_alone(&mut self) {
        let open = |target: &Target| matches!(target.upstream.standing().state, State::Open(_));
        self.at = self.list.iter().position(|target| !open(target)).unwrap_or(self.at);
    }
}

/// A chat that goes through.
#[derive(Debug)]
pub struct Turn {
    /// The request's id.
    pub request_id: String,
    /// The model it asks.
    pub model: String,
    /// The decision about parallel calls.
    pub decision: Decision,
    /// Its run, if runs are remembered.
    pub run: Option<Box<Passed>>,
    /// The trace it belongs to.
    pub trace: Trace,
    /// What takes its spans, if there are traces.
    pub traces: Option<Arc<Tracer>>,
    /// What it may use.
    pub limits: Arc<Limits>,
    /// How long a stream may say nothing but comments before its client hears of it.
    pub hold: Duration,
    /// When its upstream was asked first.
    pub asked: Instant,
    /// The time until the first of its answer was there, if that is a stream.
    pub first: Option<Duration>,
}

/// What is sent.
pub enum Request<'a> {
    /// A body held whole, which is sent again when nothing could be sent the first time.
    Whole(Held<'a>),
    /// A body handed through.
    Streamed(Sent),
    /// A chat.
    Chat(Chat<'a>),
}

/// A body that is held whole.
pub struct Held<'a> {
    /// The body.
    pub body: Bytes,
    /// The model the request names, where it names one.
    pub model: Option<&'a str>,
}

/// A chat that goes through.
pub struct Chat<'a> {
    /// The model it asks.
    pub model: &'a str,
    /// Makes the body for one of the upstreams, by its place among them, when these turned out to be
    /// refused there; and gives the decision that is in it.
    pub body: &'a BodyFor<'a>,
}

/// Makes a body for one of the upstreams, and gives the decision that is in it.
type BodyFor<'a> = dyn Fn(usize, &[Fact]) -> (Bytes, Decision) + Sync + 'a;

impl Passing {
    /// Sends the request on and hands the answer back.
    pub async fn pass(
        self: Box<Self>,
        method: Method,
        path: &str,
        headers: HeaderMap,
        request: Request<'_>,
    ) -> Response<Body> {
        let mut open = Open(Some(self));
        let Some(passing) = &mut open.0 else { return Response::default() };
        let (shutdown, deadline) = (passing.shutdown.clone(), passing.deadline());
        let answered = tokio::select! {
            answered = passing.answered(&method, path, headers, request) => answered,
            () = until(deadline) => Err(passing.too_late()),
            () = shutdown.cancelled() => Err(ErrorReply::shutting_down()),
        };
        match answered {
            Ok(Answer::Through(response)) => open.through(response),
            Ok(Answer::Chat(Opened::Begun(start, response))) => open.begun(start, response),
            Ok(Answer::Chat(Opened::Whole(response, tokens))) => open.whole(response, tokens),
            Ok(Answer::Refusal(response)) => open.refusal(response),
            Err(error) => open.refused(&error),
        }
    }

    /// When a chat has to be over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let turn = self.turn.as_ref()?;
        self.since.checked_add(turn.limits.turn_timeout.0)
    }

    /// What is said when it is not.
    pub(super) fn too_late(&self) -> ErrorReply {
        self.limit_hit("turn_timeout");
        let limit = self.turn.as_ref().map(|turn| turn.limits.turn_timeout);
        limit.map_or_else(ErrorReply::shutting_down, ErrorReply::turn_timeout)
    }

    pub(super) fn limit_hit(&self, limit: &'static str) {
        self.telemetry.count(metrics::LIMIT_HITS, &[("limit", limit)], 1);
    }

    async fn answered(
        &mut self,
        method: &Method,
        path: &str,
        headers: HeaderMap,
        request: Request<'_>,
    ) -> Result<Answer, ErrorReply> {
        let body = match request {
            Request::Streamed(body) => return self.streamed(method, path, headers, body).await,
            Request::Whole(held) => Asked::Held(held),
            Request::Chat(chat) => Asked::Chat(chat, vec![Vec::new(); self.targets.list.len()]),
        };
        self.again(method, path, headers, body).await
    }

    /// A body that is handed through is sent once, and to one upstream.
    async fn streamed(
        &mut self,
        method: &Method,
        path: &str,
        headers: HeaderMap,
        body: Sent,
    ) -> Result<Answer, ErrorReply> {
        self.targets.skip_those_left_alone();
        let target = self.targets.now().clone();
        let asking = Asking { team: &self.account.team.name, model: target.model.as_deref(), again: false };
        let sent = target.upstream.forward(method.clone(), path, headers, body, asking).await;
        let judged = match sent {
            Ok(answered) => judged(answered, false, false, target.upstream.stall_timeout()).await,
            Err(failure) => Err((failure, HeaderMap::new())),
        };
        judged.map_err(|(failure, _)| {
            self.failed(&failure);
            failure.reply
        })
    }

    pub(super) fn run(&mut self) -> Option<&mut Passed> {
        self.turn.as_mut()?.run.as_deref_mut()
    }

    /// Sends a body that is held, again where nothing has been answered yet.
    async fn again(
        &mut self,
        method: &Method,
        path: &str,
        mut headers: HeaderMap,
        mut asked: Asked<'_>,
    ) -> Result<Answer, ErrorReply> {
        // The body may be another one than the client sent, and says its length itself.
        headers.remove(CONTENT_LENGTH);
        let (mut tries, upstreams) = (Tries::default(), self.targets.list.len());
        let chat = matches!(asked, Asked::Chat(..));
        loop {
            let target = self.targets.now().clone();
            let body = self.body(&asked, &target);
            let path: Cow<'_, str> = match &target.model {
                Some(model) if path.starts_with(ONE_MODEL) => format!("{ONE_MODEL}{}", segment(model)).into(),
                _ => path.into(),
            };
            let model = target.model.as_deref().or(asked.model());
            let asking = Asking { team: &self.account.team.name, model, again: tries.count() > 0 };
            let (upstream, headers) = (&target.upstream, headers.clone());
            let stall = upstream.stall_timeout();
            let judged = match &self.turn {
                Some(turn) if chat => {
                    match upstream.forward_chat(&path, headers, body, asking, turn.expect(), turn.hold).await
                    {
                        Ok(Chatted::Opened(opened)) => Ok(Answer::Chat(opened)),
                        Ok(Chatted::Refused(answered)) => judged(answered, true, upstreams > 1, stall).await,
                        Err(failure) => Err((failure, HeaderMap::new())),
                    }
                }
                _ => match upstream.forward_whole(method.clone(), &path, headers, body, asking).await {
                    Ok(answered) => judged(answered, false, upstreams > 1, stall).await,
                    Err(failure) => Err((failure, HeaderMap::new())),
                },
            };
            let (failure, limits) = match judged {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if let Some(fact) = failure.kind.fact()
                && asked.learn(self.targets.at, fact)
            {
                summary::learned(
                    &self.telemetry,
                    &target.upstream,
                    fact,
                    target.model(asked.model().unwrap_or_default()),
                );
                continue;
            }
            self.failed(&failure);
            // What is no chat may have had effects there, once it was sent.
            let reads =
                matches!(*method, Method::GET | Method::HEAD) && failure.kind != FailureKind::ServerError;
            let unsent = matches!(
                failure.kind,
                FailureKind::Unresolved
                    | FailureKind::Unreachable
                    | FailureKind::ConnectTimeout
                    | FailureKind::LeftAlone
                    | FailureKind::Busy
            );
            let harmless = chat || reads || unsent;
            let Some(next) = tries.after(&failure, upstreams).filter(|_| harmless) else {
                self.keep_limits(&limits);
                return Err(tries.last_word(&failure));
            };
            let pause = if next.at_once { Duration::ZERO } else { pause(&failure, tries.again()) };
            if self.deadline().is_some_and(|deadline| Instant::now() + pause >= deadline) {
                self.keep_limits(&limits);
                return Err(tries.last_word(&failure));
            }
            summary::asked_again(&self.telemetry, &target.upstream, failure.kind, next.moves_on);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if next.moves_on {
                self.targets.move_on();
            }
            tries = next.tries;
            if let Some(run) = self.run() {
                run.asked_again(failure.kind.label());
            }
        }
    }

    /// The body for one of the upstreams. What is decided in it is told in the headers.
    fn body(&mut self, asked: &Asked<'_>, target: &Target) -> Bytes {
        match asked {
            Asked::Held(held) => render::renamed(&held.body, target),
            Asked::Chat(chat, refused) => {
                let (body, decision) = (chat.body)(self.targets.at, &refused[self.targets.at]);
                if let Some(turn) = self.turn.as_mut().filter(|turn| turn.decision != decision) {
                    tell(&mut self.headers, decision);
                    turn.decision = decision;
                    if let Some(run) = &mut turn.run {
                        run.decided(decision);
                    }
                }
                body
            }
        }
    }

    /// The upstream's own limits go with its refusal; ours stand where there are some.
    fn keep_limits(&mut self, limits: &HeaderMap) {
        for (name, value) in limits {
            if !self.headers.contains_key(name) {
                self.headers.insert(name.clone(), value.clone());
            }
        }
    }

    fn failed(&self, failure: &Failure) {
        let upstream = &self.targets.now().upstream;
        tracing::debug!(upstream = %upstream.name, kind = failure.kind.label(), detail = %failure.detail, "relay failed");
        if failure.kind == FailureKind::Credentials {
            summary::credentials_refused(&self.telemetry, upstream);
        }
        if failure.kind == FailureKind::TooLarge {
            self.limit_hit("reply");
        }
    }
}

/// What an upstream answered.
enum Answer {
    /// Its bytes go through.
    Through(Response<Received>),
    /// The reply to a chat.
    Chat(Opened),
    /// It was read to see what it says, and goes on as it came.
    Refusal(Response<Bytes>),
}

impl Turn {
    /// What its reply is expected to be.
    fn expect(&self) -> Expect {
        let (reply, event) = (self.limits.reply.0, self.limits.event.0);
        // Whatever a client asks for is its own affair here, `functions` too.
        Expect { stream: false, legacy: true, reply, event }
    }
}

/// How long to wait before asking again: what the upstream wishes, else twice as long each time, with
/// jitter.
fn pause(failure: &Failure, again: u8) -> Duration {
    let pause = BACK_OFF * (1 << again);
    failure.wait.unwrap_or_else(|| pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
}

/// Tells an answer that goes through from a failure. What a chat is refused with is read whole: it may
/// be worth another try. So it is with what another upstream, or another key, may do better. A failure
/// comes with the limits the upstream told.
async fn judged(
    answered: Answered,
    chat: bool,
    others: bool,
    stall: Duration,
) -> Result<Answer, (Box<Failure>, HeaderMap)> {
    let Answered { response, other_key } = answered;
    let status = response.status();
    let fails = match status.as_u16() {
        401 | 403 | 500 | 502 | 504 => true,
        400 | 422 => chat,
        429 | 503 | 529 => chat || others || other_key,
        _ => status.is_informational(),
    };
    if !fails {
        return Ok(Answer::Through(response));
    }
    let (parts, body) = response.into_parts();
    let read = tokio::time::timeout(stall, Limited::new(body, LARGEST_ERROR).collect()).await;
    let Ok(read) = read else {
        let late = Failure::new(FailureKind::Timeout, "the body of an error did not come in time");
        return Err((Box::new(late), HeaderMap::new()));
    };
    // The status says enough when its body breaks off.
    let body = read.map(Collected::to_bytes).unwrap_or_default();
    let mut failure = Failure::of_status(status.as_u16().max(400), body.clone(), retry_after(&parts.headers));
    failure.other_key = other_key;
    if failure.kind == FailureKind::Refused {
        return Ok(Answer::Refusal(Response::from_parts(parts, body)));
    }
    let limits = parts.headers.into_iter().filter_map(|(name, value)| {
        let name = name.filter(|name| name.as_str().starts_with("x-ratelimit-"))?;
        Some((name, value))
    });
    let limits = if failure.kind == FailureKind::Busy { limits.collect() } else { HeaderMap::new() };
    Err((Box::new(failure), limits))
}

/// What is asked, and what turned out to be refused, by upstream.
enum Asked<'a> {
    Held(Held<'a>),
    Chat(Chat<'a>, Vec<Vec<Fact>>),
}

impl<'a> Asked<'a> {
    const fn model(&self) -> Option<&'a str> {
        match self {
            Self::Held(held) => held.model,
            Self::Chat(chat, _) => Some(chat.model),
        }
    }

    /// Remembers what is refused; whether that was news.
    fn learn(&mut self, at: usize, fact: Fact) -> bool {
        match self {
            Self::Chat(_, refused) if !refused[at].contains(&fact) => {
                refused[at].push(fact);
                true
            }
            Self::Chat(..) | Self::Held(_) => false,
        }
    }
}

/// A name as one segment of a path.
fn segment(name: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC)
}
