//! Messages through the pipes of a server's process: one line of JSON each.
//!
//! Promises: a line longer than [`MAX_MESSAGE`] is never held; if it was an answer whose id can be told, that one call
//! fails and no other. A line that is no message is dropped. Who sends more lines than [`RATE`] allows, or does not
//! read for [`STUCK`], loses the connection. At most [`MAX_SENDS`] messages wait for a server that does not read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ErrorData, NumberOrString, RequestId, ServerJsonRpcMessage};
use rmcp::service::TxJsonRpcMessage;
use rmcp::transport::Transport;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::listing::Schemas;

/// The most bytes of one message.
pub(super) const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// The most bytes of a line that is dropped before the server is taken for broken.
const MAX_DROPPED: u64 = 256 * 1024 * 1024;
/// Lines a server may send that nobody asked for: so many each second, and so many at once. Each message that is sent
/// to it allows one more, so who answers fast does not flood.
const RATE: u32 = 1000;
const BURST: u32 = 10_000;
/// The most messages that wait until the server reads.
const MAX_SENDS: usize = 256;
/// How long one message may take to be written.
const STUCK: Duration = Duration::from_secs(10);
/// Bytes at either end of a dropped line that are searched for its id.
const ENDS: usize = 256;

/// Both pipes of a server.
pub(super) struct Pipes<R, W> {
    server: Arc<str>,
    read: BufReader<R>,
    line: Vec<u8>,
    dropping: Option<Dropped>,
    allowance: Allowance,
    write: Arc<Mutex<Option<W>>>,
    sends: Arc<Semaphore>,
    broken: CancellationToken,
    schemas: Schemas,
}

/// What is kept of a line that is too long.
struct Dropped {
    head: Vec<u8>,
    tail: Vec<u8>,
    seen: u64,
}

/// What was read.
enum Read {
    Line,
    Dropped(Option<i64>),
    End(&'static str),
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send + 'static> Pipes<R, W> {
    pub(super) fn new(server: Arc<str>, read: R, write: W, schemas: Schemas) -> Self {
        Self {
            server,
            read: BufReader::with_capacity(64 * 1024, read),
            line: Vec::new(),
            dropping: None,
            allowance: Allowance::new(),
            write: Arc::new(Mutex::new(Some(write))),
            sends: Arc::new(Semaphore::new(MAX_SENDS)),
            broken: CancellationToken::new(),
            schemas,
        }
    }

    /// Reads to the end of a line. May be dropped and called again: what was read stays.
    async fn read_line(&mut self) -> Read {
        loop {
            let bytes = match self.read.fill_buf().await {
                Ok([]) => return Read::End("it closed its standard output"),
                Ok(bytes) => bytes,
                Err(_) => return Read::End("its standard output cannot be read"),
            };
            let end = memchr::memchr(b'\n', bytes);
            let taken = end.map_or(bytes.len(), |at| at + 1);
            let part = bytes.get(..taken).unwrap_or_default();
            match &mut self.dropping {
                Some(dropped) => dropped.add(part),
                None if self.line.len() + taken > MAX_MESSAGE => {
                    let mut dropped = Dropped { head: Vec::new(), tail: Vec::new(), seen: 0 };
                    dropped.add(&self.line);
                    dropped.add(part);
                    self.line = Vec::new();
                    self.dropping = Some(dropped);
                }
                None => self.line.extend_from_slice(part),
            }
            self.read.consume(taken);
            if self.dropping.as_ref().is_some_and(|dropped| dropped.seen > MAX_DROPPED) {
                return Read::End("it sent a line without an end");
            }
            if end.is_some() {
                return match self.dropping.take() {
                    Some(dropped) => Read::Dropped(dropped.id()),
                    None => Read::Line,
                };
            }
        }
    }

    /// The next message, or why there is none any more.
    async fn next(&mut self) -> Result<ServerJsonRpcMessage, &'static str> {
        loop {
            let read = self.read_line().await;
            if !self.allowance.take() {
                return Err("it floods");
            }
            match read {
                Read::End(why) => return Err(why),
                Read::Dropped(id) => {
                    tracing::warn!(server = %self.server, ?id, "a message of more than {} MiB is dropped", MAX_MESSAGE >> 20);
                    if let Some(id) = id {
                        return Ok(too_large(NumberOrString::Number(id)));
                    }
                }
                Read::Line => {
                    let message = self.parse();
                    self.line.clear();
                    if self.line.capacity() > 64 * 1024 {
                        self.line = Vec::new();
                    }
                    if let Some(message) = message {
                        return Ok(message);
                    }
                }
            }
        }
    }

    fn parse(&self) -> Option<ServerJsonRpcMessage> {
        let line = self.line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        match serde_json::from_slice(line) {
            Ok(message) => {
                self.schemas.note(line);
                Some(message)
            }
            Err(error) => {
                tracing::debug!(server = %self.server, bytes = line.len(), error = %error.classify_in_words(), "a line is no message and dropped");
                None
            }
        }
    }
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send + 'static> Transport<RoleClient>
    for Pipes<R, W>
{
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let (write, broken) = (Arc::clone(&self.write), self.broken.clone());
        let permit = Arc::clone(&self.sends).try_acquire_owned();
        self.allowance.give();
        async move {
            let Ok(_permit) = permit else { return Err(io::Error::other("too many messages wait for it")) };
            let mut line = serde_json::to_vec(&message)?;
            line.push(b'\n');
            let mut pipe = write.lock().await;
            let Some(open) = pipe.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
            // A message that was half written cannot be taken back: the connection is over then.
            let whole = BreakUnlessDone(&broken, false);
            let written = timeout(STUCK, async {
                open.write_all(&line).await?;
                open.flush().await
            });
            let written = written.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            match &written {
                Ok(()) => whole.done(),
                Err(_) => *pipe = None,
            }
            written
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        let broken = self.broken.clone();
        let next = tokio::select! {
            next = self.next() => next,
            () = broken.cancelled() => Err("it does not read"),
        };
        next.inspect_err(|why| tracing::debug!(server = %self.server, "the connection is over: {why}")).ok()
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        self.broken.cancel();
        // Whoever is still writing gives up by then.
        if let Ok(mut pipe) = timeout(Duration::from_millis(100), self.write.lock()).await {
            *pipe = None;
        }
        Ok(())
    }
}

/// Cancels unless told that all is well.
struct BreakUnlessDone<'a>(&'a CancellationToken, bool);

impl BreakUnlessDone<'_> {
    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for BreakUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancel();
        }
    }
}

/// What is said of a call whose answer is over [`MAX_MESSAGE`].
const TOO_LARGE: &str = "the server's answer is larger than 8 MiB";

/// The answer that stands for one that was too large.
pub(super) fn too_large(id: RequestId) -> ServerJsonRpcMessage {
    ServerJsonRpcMessage::error(ErrorData::internal_error(TOO_LARGE, None), Some(id))
}

/// Whether an error stands for an answer that was too large. The server refused nothing then.
pub(super) fn is_too_large(error: &ErrorData) -> bool {
    error.message == TOO_LARGE
}

/// What is wrong with a line, without the line.
trait InWords {
    fn classify_in_words(&self) -> &'static str;
}

impl InWords for serde_json::Error {
    fn classify_in_words(&self) -> &'static str {
        use serde_json::error::Category;
        match self.classify() {
            Category::Syntax | Category::Eof => "not JSON",
            Category::Data => "not a message of the protocol",
            Category::Io => "unreadable",
        }
    }
}

impl Dropped {
    fn add(&mut self, part: &[u8]) {
        self.seen += part.len() as u64;
        let room = ENDS.saturating_sub(self.head.len()).min(part.len());
        self.head.extend_from_slice(part.get(..room).unwrap_or_default());
        self.tail.extend_from_slice(part.get(part.len().saturating_sub(ENDS)..).unwrap_or_default());
        self.tail.drain(..self.tail.len().saturating_sub(ENDS));
    }

    /// The id of an answer: before its result, or after it at the very end.
    fn id(&self) -> Option<i64> {
        let squeezed = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_ascii_whitespace()).collect::<String>()
        };
        let (head, tail) = (squeezed(&self.head), squeezed(&self.tail));
        let before = head.find(r#""result":"#).and_then(|at| head.get(..at)).and_then(|start| {
            let (_, id) = start.rsplit_once(r#""id":"#)?;
            id.strip_suffix(',')?.split(',').next()
        });
        let after = || {
            let end = tail.strip_suffix('}')?;
            let end = end.strip_suffix(r#","jsonrpc":"2.0""#).unwrap_or(end);
            Some(end.rsplit_once(r#","id":"#)?.1)
        };
        before.or_else(after)?.parse().ok()
    }
}

/// How many lines may come now.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: BURST, since: Instant::now() }
    }

    fn give(&mut self) {
        self.left = self.left.saturating_add(1).min(BURST);
    }

    fn take(&mut self) -> bool {
        let seconds = self.since.elapsed().as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(RATE);
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = Instant::now();
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn pipes(read: DuplexStream) -> Pipes<DuplexStream, DuplexStream> {
        let (write, _other) = tokio::io::duplex(64);
        Pipes::new("s".into(), read, write, Schemas::default())
    }

    /// Everything the pipes hear when a server says this and closes.
    async fn heard(said: Vec<Vec<u8>>) -> Vec<String> {
        let (read, mut server) = tokio::io::duplex(64 * 1024);
        let mut pipes = pipes(read);
        let say = async move {
            for part in said {
                if server.write_all(&part).await.is_err() {
                    return;
                }
            }
        };
        let hear = async {
            let mut heard = Vec::new();
            while let Some(message) = pipes.receive().await {
                heard.push(serde_json::to_string(&message).unwrap());
            }
            heard
        };
        tokio::join!(say, hear).1
    }

    const FINE: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n";

    #[tokio::test]
    async fn garbage_between_messages_is_dropped_and_nothing_else() {
        let said = [
            &b"\n  \r\nhello\n{\"a\":\n[1,2]\n\"x\"\n{\"id\":true}\n\xff\xfe\n"[..],
            FINE,
            b"{\"half",
            b"\n",
            FINE,
            b"{}",
        ];
        let heard = heard(said.map(<[u8]>::to_vec).to_vec()).await;
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard.iter().all(|message| message.contains("\"id\":7")), "{heard:?}");
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_not_held_and_fails_only_its_own_call() {
        let long = "x".repeat(MAX_MESSAGE);
        for (before, after) in [
            (r#"{"jsonrpc":"2.0","id":5,"result":{"content":[{"type":"text","text":""#, "\"}]}}\n"),
            (r#"{"result":{"content":[{"type":"text","text":""#, "\"}]},\"jsonrpc\":\"2.0\",\"id\":5}\n"),
            (
                r#"{ "jsonrpc": "2.0", "result": {"content": [{"type": "text", "text": ""#,
                "\"}] }, \"id\": 5 }\n",
            ),
        ] {
            let heard =
                heard(vec![FINE.to_vec(), before.into(), long.clone().into(), after.into(), FINE.to_vec()])
                    .await;
            assert_eq!(heard.len(), 3, "{before}");
            assert!(heard[1].contains("\"id\":5") && heard[1].contains("larger than 8 MiB"), "{}", heard[1]);
        }
        let heard = heard(vec![long.into(), b"\n".to_vec(), FINE.to_vec()]).await;
        assert_eq!(heard.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_the_connection() {
        let lines = vec![b"noise\n".repeat(1000); 20];
        assert!(heard([lines, vec![FINE.to_vec()]].concat()).await.is_empty());
        let few = vec![b"noise\n".repeat(1000); 5];
        assert_eq!(heard([few, vec![FINE.to_vec()]].concat()).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_answers_does_not_flood() {
        let (read, mut server) = tokio::io::duplex(64 * 1024);
        let (write, mut asked) = tokio::io::duplex(64 * 1024);
        let mut pipes = Pipes::new("s".into(), read, write, Schemas::default());
        let ping = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
        let mut heard = vec![0; 4096];
        for n in 0..3 * BURST {
            let message = serde_json::from_str::<TxJsonRpcMessage<RoleClient>>(ping).unwrap();
            pipes.send(message).await.unwrap();
            let read = asked.read(&mut heard).await.unwrap();
            assert!(read > 0);
            server.write_all(FINE).await.unwrap();
            assert!(pipes.receive().await.is_some(), "after {n} answers");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_read_loses_the_connection() {
        let (read, _silent) = tokio::io::duplex(64);
        let (write, _unread) = tokio::io::duplex(16);
        let mut pipes = Pipes::new("s".into(), read, write, Schemas::default());
        let message = || {
            let text = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
            serde_json::from_str::<TxJsonRpcMessage<RoleClient>>(text).unwrap()
        };
        assert_eq!(pipes.send(message()).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(pipes.receive().await.is_none());
        assert!(pipes.send(message()).await.is_err());
        let mut waiting = Vec::new();
        for _ in 0..MAX_SENDS {
            waiting.push(Transport::send(&mut pipes, message()));
        }
        assert!(pipes.send(message()).await.unwrap_err().to_string().contains("too many"));
        drop(waiting);
    }
}
