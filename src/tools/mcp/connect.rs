//! One conversation with a server, from its start to its first list of tools.
//!
//! ```text
//!  start ─▶ "what do you speak?" ─▶ an answer ─────────────────────────▶ list tools ─▶ in conversation
//!              │                      └─ an error: initialize, same pipe ─▶ │
//!              └─ silence, nonsense: start anew, initialize ───────────────▶┘
//! ```
//!
//! The current revision of the protocol opens with a question that older servers may not answer at all; so that is
//! waited for only a while, and a server that needed the older way is asked that way the next time. A server that
//! asks fanfold for something (a model's answer, directories, a person's input) is told that it is not supported.

#![expect(deprecated, reason = "servers of older revisions ask for roots and send log messages")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::client::ClientHandler;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ErrorCode, ErrorData, Implementation, ListRootsResult,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProtocolVersion, SubscriptionFilter,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt as _, NotificationContext, RequestContext,
    RunningService,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{Peer, RoleClient};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::asked::Watched;
use super::child::Process;
use super::http::{Requests, ours};
use super::listing::{Listed, Schemas, list};
use super::plan::{Plan, Way};
use super::stdio::{MAX_MESSAGE, Pipes};
use crate::tools::text::tame;

/// The revision that is spoken where the current one is not.
const OLDER: ProtocolVersion = ProtocolVersion::V_2025_11_25;
/// How long the question of the current revision is waited for the first time; twice as long each time after.
const FIRST_QUESTION: Duration = Duration::from_secs(5);
/// Requests that may be on their way to one server. The bounds of calls are elsewhere.
const AT_ONCE: usize = 256;

/// How a server wants to be spoken to, as far as that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Habit {
    /// It is opened with `initialize`.
    older: bool,
    /// How often both ways failed since one worked.
    failures: u32,
}

/// A conversation that goes on.
pub(super) struct Conversation {
    pub(super) running: RunningService<RoleClient, Ours>,
    pub(super) process: Option<Process>,
    pub(super) schemas: Schemas,
    pub(super) watched: Watched,
    pub(super) tools: Vec<Listed>,
}

/// What fanfold says of itself, and hears.
pub(super) struct Ours {
    server: Arc<str>,
    changed: Arc<Notify>,
    watched: Watched,
}

impl ClientHandler for Ours {
    fn get_info(&self) -> ClientConfig {
        let ours = Implementation::new("fanfold", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), ours).with_protocol_version(OLDER)
    }

    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "roots are not supported", None))
    }

    async fn create_elicitation(
        &self,
        _: rmcp::model::ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<rmcp::model::ElicitResult, ErrorData> {
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "elicitation is not supported", None))
    }

    async fn on_progress(&self, news: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.watched.heard(&news.progress_token);
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }

    async fn on_logging_message(
        &self,
        said: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        tracing::debug!(server = %self.server, "says: {}", tame(&said.data.to_string(), 500));
    }
}

/// Opens a conversation and lists the tools. The error is for the operator.
pub(super) async fn open(
    plan: &Plan,
    habit: &mut Habit,
    changed: &Arc<Notify>,
) -> Result<Conversation, String> {
    let deadline = Instant::now() + plan.start_timeout;
    let too_slow = || format!("it did not start within {:?}", plan.start_timeout);
    if !habit.older {
        let patience = FIRST_QUESTION * 2_u32.saturating_pow(habit.failures.min(6));
        let until = deadline.min(Instant::now() + patience);
        let way = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(OLDER),
        };
        match timeout_at(until, converse(plan, way, changed)).await {
            Ok(Ok(conversation)) => {
                let info = conversation.running.peer().peer_info();
                let older = info.is_none_or(|info| info.protocol_version.has_initialize());
                *habit = Habit { older, failures: 0 };
                return Ok(conversation);
            }
            Ok(Err(error)) => {
                tracing::debug!(server = %plan.name, "the current revision is not spoken: {error}");
            }
            Err(_) => {
                tracing::debug!(server = %plan.name, "the question of the current revision is not answered")
            }
        }
    }
    match timeout_at(deadline, converse(plan, ClientLifecycleMode::Initialize, changed)).await {
        Ok(Ok(conversation)) => {
            *habit = Habit { older: true, failures: 0 };
            Ok(conversation)
        }
        failed => {
            *habit = Habit { older: false, failures: habit.failures.saturating_add(1) };
            failed.unwrap_or_else(|_| Err(too_slow()))
        }
    }
}

/// Starts a server, says hello in this way, and lists its tools. Dropped, it leaves nothing behind.
async fn converse(
    plan: &Plan,
    way: ClientLifecycleMode,
    changed: &Arc<Notify>,
) -> Result<Conversation, String> {
    let schemas = Schemas::default();
    let watched = Watched::default();
    let ours =
        Ours { server: Arc::clone(&plan.name), changed: Arc::clone(changed), watched: watched.clone() };
    let (running, process) = match &plan.way {
        Way::Program(program) => {
            let started = Process::start(&plan.name, program);
            let (process, stdin, stdout) =
                started.map_err(|error| format!("it cannot be started: {error}"))?;
            let pipes = Pipes::new(Arc::clone(&plan.name), stdout, stdin, schemas.clone());
            match ours.serve_with_lifecycle(pipes, way).await {
                Ok(running) => (running, Some(process)),
                Err(error) => return Err(with_exit(&error, process).await),
            }
        }
        Way::Url(address) => {
            let requests = Requests::new(address, schemas.clone());
            let config = StreamableHttpClientTransportConfig::with_uri(Arc::clone(&address.url))
                .max_concurrent_requests(AT_ONCE)
                .max_sse_event_size(MAX_MESSAGE)
                .max_json_response_size(MAX_MESSAGE)
                // What was sent is never sent again; a lost session ends the conversation instead.
                .reinit_on_expired_session(false)
                .custom_headers(HashMap::new());
            let transport = StreamableHttpClientTransport::with_client(requests, config);
            let running = ours.serve_with_lifecycle(transport, way).await;
            (running.map_err(|error| in_words(&error))?, None)
        }
    };
    let tools = list(&plan.name, running.peer(), &schemas).await?;
    Ok(Conversation { running, process, schemas, watched, tools })
}

/// The innermost reason: those around it tell of types.
fn in_words(error: &ClientInitializeError) -> String {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    if let ClientInitializeError::TransportError { error, .. } = error {
        innermost = error.error.as_ref();
        if let Some(ours) = ours(innermost) {
            return ours.to_string();
        }
    }
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    tame(&innermost.to_string(), 300)
}

/// A server that cannot even say hello often ends at once; how it ended says more.
async fn with_exit(error: &ClientInitializeError, mut process: Process) -> String {
    let ended = timeout(Duration::from_millis(300), process.exited()).await.is_ok();
    match process.end().await {
        Some(status) if ended => format!("it ended at once: {status}"),
        Some(_) | None => in_words(error),
    }
}

/// Listens for changes of the tools, where the server has to be asked for them. Never returns.
pub(super) async fn subscribe(peer: &Peer<RoleClient>, changed: &Notify) {
    let tells = peer.peer_info().is_some_and(|info| {
        !info.protocol_version.has_initialize()
            && info.capabilities.tools.as_ref().is_some_and(|tools| tools.list_changed == Some(true))
    });
    if tells {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        if let Ok(mut subscription) = peer.listen(filter).await {
            while let Ok(Some(_)) = subscription.next().await {
                changed.notify_one();
            }
            // Whatever was missed.
            changed.notify_one();
        }
    }
    std::future::pending().await
}
