//! Where an upstream lives that can be reached for a while and then cannot: a connection that goes through to the
//! lab, or none, and then a fault of the connection itself.

use std::net::{SocketAddr, TcpStream as Blocking};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, future, stream};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gateway::soon;
use super::ports::{Port, sharing};

/// What becomes of the connections after the good ones.
#[derive(Clone)]
pub enum Then {
    /// Nobody listens any more.
    Refuses,
    /// Connecting takes for ever.
    Swallows,
    /// It listens as before: what is wrong is somewhere else.
    Stays,
    /// It says something that is no TLS.
    Garbage,
    /// It shows another certificate.
    Shows(TlsAcceptor),
    /// This answer comes before the body was read, and then a reset.
    Answers(&'static str),
}

/// A door. It is gone when it is dropped.
pub struct Door {
    pub address: SocketAddr,
    /// Connections that were accepted.
    accepted: Arc<AtomicUsize>,
    /// The good connection is there, and behind it the fault.
    shut: Arc<Notify>,
    /// It may go through.
    through: Arc<Semaphore>,
    _tasks: JoinSet<()>,
}

/// A listener on a free port, which stays ours once nobody listens.
fn held(backlog: u32) -> (TcpListener, Port) {
    let port = Port::free();
    (sharing(port.address()).listen(backlog).expect("a listener"), port)
}

/// A way to the lab that is open until it is shut. From then on connections are refused.
pub struct Gate {
    pub address: SocketAddr,
    holding: Port,
    through: JoinSet<()>,
}

impl Gate {
    /// Opens it.
    pub fn open(lab: SocketAddr) -> Self {
        let (listener, holding) = held(128);
        let address = listener.local_addr().expect("bound");
        let mut through = JoinSet::new();
        through.spawn(async move {
            let forward = async |mut stream: TcpStream| {
                let mut to = TcpStream::connect(lab).await.expect("the lab");
                // Either side may end it.
                let _ended = copy_bidirectional(&mut stream, &mut to).await;
            };
            let accept = async || listener.accept().await.expect("a connection").0;
            stream::repeat_with(accept).then(|accepted| accepted).for_each_concurrent(None, forward).await;
        });
        Self { address, holding, through }
    }

    /// Shuts it, also for those who went through. As long as the port is held nobody else gets it.
    pub async fn shut(mut self) -> Port {
        self.through.shutdown().await;
        self.holding
    }
}

struct Keeper {
    lab: SocketAddr,
    good: bool,
    tls: Option<TlsAcceptor>,
    then: Then,
    accepted: Arc<AtomicUsize>,
    shut: Arc<Notify>,
    through: Arc<Semaphore>,
}

impl Door {
    /// Opens it. With `good` the first connection goes through, once that is allowed.
    pub fn open(lab: SocketAddr, good: bool, tls: Option<TlsAcceptor>, then: Then) -> Self {
        let (listener, holding) = held(if matches!(then, Then::Swallows) { 0 } else { 128 });
        let address = listener.local_addr().expect("bound");
        let (accepted, shut, through) = (Arc::default(), Arc::default(), Arc::new(Semaphore::new(0)));
        let keeper = Keeper {
            lab,
            good,
            tls,
            then,
            accepted: Arc::clone(&accepted),
            shut: Arc::clone(&shut),
            through: Arc::clone(&through),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            keeper.keep(listener).await;
            future::pending::<()>().await;
            drop(holding);
        });
        Self { address, accepted, shut, through, _tasks: tasks }
    }

    /// Connections it accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until whoever comes now meets the fault.
    pub async fn shut(&self) {
        soon(self.shut.notified()).await;
    }

    /// Lets the good connection through.
    pub fn let_through(&self) {
        self.through.add_permits(1);
    }
}

impl Keeper {
    async fn keep(self, listener: TcpListener) {
        if !self.good {
            return self.fail(listener).await;
        }
        let first = self.accept(&listener).await;
        let answered = async {
            self.through.acquire().await.expect("open").forget();
            match &self.tls {
                Some(tls) => self.forward(tls.accept(first).await.expect("a handshake")).await,
                None => self.forward(first).await,
            }
        };
        tokio::join!(answered, self.fail(listener));
    }

    async fn accept(&self, listener: &TcpListener) -> TcpStream {
        let stream = listener.accept().await.expect("a connection").0;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        stream
    }

    /// Serves one request of a connection by asking the lab, and closes it.
    async fn forward(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Incoming>();
        let lab = self.lab;
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let path = request.uri().path();
            *request.uri_mut() = format!("http://{lab}{path}").parse().expect("a URI");
            client.request(request)
        });
        let served = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        served.await.expect("one request");
    }

    async fn fail(&self, listener: TcpListener) {
        let address = listener.local_addr().expect("bound");
        match &self.then {
            Then::Refuses => drop(listener),
            Then::Swallows => {
                let patience = Duration::from_millis(200);
                let connect = move || Blocking::connect_timeout(&address, patience).ok();
                let fill = move || std::iter::from_fn(connect).take(64).collect::<Vec<Blocking>>();
                let queue = tokio::task::spawn_blocking(fill).await.expect("a full queue");
                self.shut.notify_one();
                return future::pending().map(|()| drop((listener, queue))).await;
            }
            Then::Stays | Then::Garbage | Then::Shows(_) | Then::Answers(_) => {
                self.shut.notify_one();
                return stream::repeat_with(|| self.accept(&listener))
                    .then(|accepted| accepted)
                    .for_each_concurrent(None, |stream| self.spoil(stream))
                    .await;
            }
        }
        self.shut.notify_one();
    }

    async fn spoil(&self, mut stream: TcpStream) {
        match &self.then {
            Then::Garbage => _ = stream.write_all(b"this is not TLS\r\n").await,
            Then::Shows(tls) => _ = tls.accept(stream).await,
            Then::Answers(answer) => {
                // Of the request no more than its beginning.
                let _begun = stream.read(&mut [0; 64]).await;
                let _told = stream.write_all(answer.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Then::Refuses | Then::Swallows | Then::Stays => {}
        }
    }
}
