//! A bound address, and the loops that accept from it until the drain.
//!
//! Trouble with one connection, and with accepting itself, never ends a loop. Connections beyond
//! the bound get a short 503 (plain) or a close (TLS).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use metrics::Gauge;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Handler;
use super::connection::{self, Bounds, Shared};
use super::drain::{Drain, Stage};
use super::gate;
use super::io::Socket;
use super::settings::{Settings, Tls};
use super::tls::Certificate;
pub use super::tls::TlsError;
use crate::workers::{Entrance, Workers};

/// Connections the kernel holds for us.
const BACKLOG: u32 = 1024;
/// After [`Stage::Now`]: the time to say so to clients before everything is cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections beyond the bound that are being told so.
const REFUSING: usize = 64;
const REFUSAL: Duration = Duration::from_millis(500);
/// Silence after which the system asks whether the other end still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How a listener listens.
#[derive(Debug)]
pub struct Options {
    /// The setting that holds the address, for messages: `listen`, `admin.listen`.
    pub setting: &'static str,
    /// What a connection may take.
    pub settings: Settings,
    /// Serves HTTPS.
    pub tls: Option<Tls>,
    /// Open connections at most.
    pub connections: usize,
    /// Follows the number of open connections.
    pub open: Gauge,
    /// Who serves them.
    pub workers: Workers,
}

/// Why an address cannot be listened on. Each message says what to do.
#[derive(Debug)]
pub enum BindError {
    /// Not an address and a port, or a name that is not found.
    Address {
        /// The setting.
        setting: &'static str,
        /// What it holds.
        text: String,
    },
    /// Somebody else listens there.
    Taken {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The system does not let us.
    Denied {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Anything else the system says.
    System {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What it says.
        error: io::Error,
    },
    /// The certificate cannot be used.
    Tls(TlsError),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { setting, text } => write!(
                f,
                "`{setting}: {text}` is not an address to listen on: write an address and a port, such as 127.0.0.1:4100"
            ),
            Self::Taken { setting, address } => write!(
                f,
                "{address} is in use: stop the program that listens there, or set `{setting}` to another port"
            ),
            Self::Denied { setting, address } => write!(
                f,
                "not allowed to listen on {address}: set `{setting}` to a port of 1024 or above, or grant CAP_NET_BIND_SERVICE"
            ),
            Self::System { setting, address, error } => {
                write!(f, "cannot listen on {address}: {error}; see `{setting}`")
            }
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BindError {}

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    entrances: Vec<Entrance>,
    address: SocketAddr,
    options: Options,
    tls: Option<Arc<ServerConfig>>,
    certificate: Option<(Arc<Certificate>, [u8; 32])>,
}

impl Listener {
    /// Binds `address`, a host and a port. Port 0 takes a free one.
    pub async fn bind(address: &str, options: Options) -> Result<Self, BindError> {
        let setting = options.setting;
        let (certificate, tls) = match options.tls.clone().map(Certificate::load).transpose() {
            Ok(None) => (None, None),
            Ok(Some((certificate, config, seen))) => (Some((certificate, seen)), Some(config)),
            Err(error) => return Err(BindError::Tls(error)),
        };
        let wrong = || BindError::Address { setting, text: address.to_owned() };
        let found = lookup_host(address).await.map_err(|_| wrong())?.next().ok_or_else(wrong)?;
        let bound = open(found, &options.settings)
            .and_then(|socket| Ok((socket.local_addr()?, options.workers.entrances(socket)?)));
        let (address, entrances) = bound.map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                BindError::Taken { setting, address: found }
            } else if error.kind() == io::ErrorKind::PermissionDenied {
                BindError::Denied { setting, address: found }
            } else {
                BindError::System { setting, address: found, error }
            }
        })?;
        Ok(Self { entrances, address, options, tls, certificate })
    }

    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and serves until the drain.
    ///
    /// At [`Stage::Refusing`] the address is given up and each connection ends after what it has in
    /// flight. Returns when the last one ended, at the latest a second after [`Stage::Now`], when
    /// the rest is cut. Dropping the future cuts everything at once, and the address is given up soon.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, drain: Drain) {
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let _cut_all = cut.clone().drop_guard();
        if let Some((certificate, seen)) = self.certificate {
            let following = certificate.follow(seen);
            let drain = drain.clone();
            let cut = cut.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = following => {}
                    () = drain.reached(Stage::Refusing) => {}
                    () = cut.cancelled() => {}
                }
            });
        }
        let door = Arc::new(Door {
            room: Arc::new(Semaphore::new(self.options.connections.min(Semaphore::MAX_PERMITS))),
            refusing: Arc::new(Semaphore::new(REFUSING)),
            open: self.options.open,
            cut: cut.clone(),
            trouble: Mutex::default(),
            shared: Arc::new(Shared {
                handler,
                bounds: Bounds::new(&self.options.settings),
                tls: self.tls,
                drain: drain.clone(),
                tasks: tasks.clone(),
            }),
        });
        let mut accepting = JoinSet::new();
        for entrance in self.entrances {
            entrance.attend(&mut accepting, |entrance| Arc::clone(&door).accept(entrance));
        }
        drain.reached(Stage::Refusing).await;
        let mut over = std::pin::pin!(async {
            // With the last of them the address is given up.
            accepting.shutdown().await;
            tasks.close();
            tasks.wait().await;
        });
        tokio::select! {
            () = &mut over => return,
            () = async { drain.reached(Stage::Now).await; time::sleep(LAST_WORDS).await } => {}
        }
        debug!(connections = tasks.len(), "the drain ran out; what is left is cut");
        cut.cancel();
        over.await;
    }
}

fn open(address: SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit them.
    socket.set_send_buffer_size(u32::try_from(connection::quarter(settings)).unwrap_or(u32::MAX))?;
    // Neither is worth not listening for.
    let _ = socket.set_nodelay(true);
    let _ = SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Lets connections in, as many as there is room for.
struct Door<H> {
    room: Arc<Semaphore>,
    refusing: Arc<Semaphore>,
    open: Gauge,
    cut: CancellationToken,
    /// Of all who accept: what one lacks, all do.
    trouble: Mutex<Trouble>,
    shared: Arc<Shared<H>>,
}

impl<H: Handler> Door<H> {
    async fn accept(self: Arc<Self>, entrance: Entrance) {
        let mut troubled = false;
        loop {
            match entrance.accept().await {
                Ok((stream, address)) => {
                    if std::mem::take(&mut troubled) {
                        *self.trouble() = Trouble::default();
                    }
                    match Arc::clone(&self.room).try_acquire_owned() {
                        Ok(place) => self.serve(&entrance, stream, address, place),
                        Err(_) => self.refuse(stream, address),
                    }
                }
                Err(error) => {
                    let Some(pause) = self.trouble().after(&error) else { continue };
                    troubled = true;
                    warn!(%error, "cannot accept connections; trying again in {pause:?}");
                    time::sleep(pause).await;
                }
            }
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(
        &self,
        entrance: &Entrance,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) {
        // A token of its own: all that wait at one token share its lock.
        let (shared, cut) = (Arc::clone(&self.shared), self.cut.child_token());
        let open = Open::new(self.open.clone());
        entrance.serve(stream, &self.shared.tasks, move |stream| async move {
            let _held = (place, open);
            connection::run(shared, stream, address, cut).await;
        });
    }

    /// Says that there is no room, if saying so costs little.
    fn refuse(&self, stream: TcpStream, address: SocketAddr) {
        debug!(peer = %address, "a connection beyond the bound is refused");
        let Ok(place) = Arc::clone(&self.refusing).try_acquire_owned() else { return };
        if self.shared.tls.is_some() {
            return;
        }
        let cut = self.cut.clone();
        self.shared.tasks.spawn(async move {
            let _held = place;
            let mut socket = Socket::new(stream, REFUSAL);
            let farewell = async {
                socket.write_all(full_house().as_bytes()).await?;
                socket.shutdown().await
            };
            let _ = cut.run_until_cancelled_owned(time::timeout(REFUSAL, farewell)).await;
        });
    }
}

fn full_house() -> String {
    let message = "the proxy has as many connections as it may: try again shortly";
    let answer = gate::error(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
    let body = String::from_utf8_lossy(answer.body());
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Counts one open connection for as long as it lives.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What to do when accepting failed.
#[derive(Debug, Default)]
struct Trouble {
    last: Option<Duration>,
}

impl Trouble {
    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(1);

    /// A connection that died in the queue costs nothing. Otherwise (no descriptors, no memory)
    /// the same error comes at once again: pause, longer each time.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
            return None;
        }
        let pause = self.last.map_or(Self::FIRST, |last| (last * 2).min(Self::MOST));
        self.last = Some(pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_pauses_longer_and_longer_without_descriptors_and_not_for_a_dead_client() {
        let mut trouble = Trouble::default();
        let none_left = io::Error::from_raw_os_error(24);
        let pauses: Vec<_> =
            (0..7).filter_map(|_| trouble.after(&none_left)).map(|p| p.as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(trouble.after(&io::ErrorKind::ConnectionAborted.into()), None);
    }

    #[test]
    fn messages_say_what_to_do() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4100));
        let taken = BindError::Taken { setting: "listen", address }.to_string();
        assert!(taken.contains("127.0.0.1:4100 is in use") && taken.contains("`listen`"), "{taken}");
    }
}
