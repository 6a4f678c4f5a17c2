//! A call that is out: cancelled at the server when nobody waits for its answer any more, woken when the server tells
//! of its progress.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, CallToolResult, ClientRequest, ProgressToken,
    ServerResult,
};
use rmcp::service::{PeerRequestOptions, RequestHandle, ServiceError};
use rmcp::{Peer, RoleClient};
use tokio::sync::Notify;

use crate::wire::tool::Effect;

/// The calls that are out and want to know of their progress. Clones are the same; it has at most as many as calls run.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched(Arc<Mutex<HashMap<ProgressToken, Arc<Notify>>>>);

impl Watched {
    /// A server tells that the call of this token goes on. A token of no call means nothing.
    pub(super) fn heard(&self, token: &ProgressToken) {
        if let Some(call) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(token) {
            call.notify_one();
        }
    }

    fn add(&self, token: ProgressToken, call: Arc<Notify>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(token, call);
    }

    fn remove(&self, token: &ProgressToken) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
    }
}

/// A call whose answer is waited for. Dropped before it came, the server is told.
struct Asked {
    handle: Option<RequestHandle<RoleClient>>,
    token: ProgressToken,
    watched: Watched,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.watched.remove(&self.token);
        if let Some(handle) = self.handle.take() {
            // The first step puts the message into the queue, if there is room; nobody waits for more.
            let _ = handle.cancel(Some("nobody waits for it any more".into())).now_or_never();
        }
    }
}

/// Marks a message that may reach the server twice. It is for the transport and is never sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Harmless;

/// Sends a call and waits for its answer; `effect` is what it does there. `progress` is woken whenever the server tells that it goes on.
#[expect(clippy::wildcard_enum_match_arm, reason = "the answers to all other questions are none to this one")]
pub(super) async fn call(
    peer: &Peer<RoleClient>,
    watched: &Watched,
    params: CallToolRequestParams,
    effect: Effect,
    progress: Arc<Notify>,
) -> Result<CallToolResponse, ServiceError> {
    let mut request = CallToolRequest::new(params);
    if effect != Effect::Write {
        request.extensions.insert(Harmless);
    }
    let request = ClientRequest::CallToolRequest(request);
    let handle = peer.send_cancellable_request(request, PeerRequestOptions::no_options()).await?;
    let token = handle.progress_token.clone();
    watched.add(token.clone(), progress);
    let mut asked = Asked { handle: Some(handle), token, watched: watched.clone() };
    let Some(handle) = asked.handle.as_mut() else { return Err(ServiceError::TransportClosed) };
    let answer = (&mut handle.rx).await;
    asked.handle = None;
    match answer.map_err(|_| ServiceError::TransportClosed)?? {
        ServerResult::CallToolResult(result) => Ok(CallToolResponse::Complete(result)),
        // Nothing was said, and nothing went wrong.
        ServerResult::EmptyResult(_) => Ok(CallToolResponse::Complete(CallToolResult::default())),
        ServerResult::InputRequiredResult(result) => Ok(CallToolResponse::InputRequired(result)),
        ServerResult::CreateTaskResult(result) => Ok(CallToolResponse::Task(result)),
        _ => Err(ServiceError::UnexpectedResponse),
    }
}
