//! Threads that serve connections, each with a runtime of its own.
//!
//! ```text
//!            ┌─ accepts ─ worker ─┐                                  ┌─▶ worker: clients ⇄ requests ⇄ upstreams, tools
//!  listener ─┼─ accepts ─ worker ─┼─ keeps it, or gives it to one ───┼─▶ worker: clients ⇄ requests ⇄ upstreams, tools
//!            └─          …       ─┘  that has far fewer connections  └─▶ worker: …
//!  everything else: the runtime of the process
//! ```
//!
//! What the requests of a connection do, they do on the thread of that connection: whoever is woken runs there
//! already, and no thread wakes another one for it. One runtime over all threads moves such work to and fro; that
//! was a fifth of the processor time of a chat, and more of a request that only goes through. What it would be
//! better at is a few connections of which only some are busy: then a worker may be busy while others are not.
//!
//! What keeps its thread busy, or belongs to all of them, is not a worker's: it runs on the
//! runtime of the process.

use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// So many workers accept connections: a new one wakes all that do.
const ENTRANCES: usize = 4;
/// A worker may have more connections than another one by this part of them: to hand one over wakes a thread, and the
/// first request waits for it.
const UNEVEN: usize = 4;

/// Where connections are served. The default has no threads of its own: whoever accepts a connection serves it.
#[derive(Debug, Clone, Default)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Connections it serves.
    open: AtomicUsize,
}

/// The threads. They end when this is dropped, and what still runs on them is cut.
#[derive(Debug)]
pub struct Threads {
    workers: Workers,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

thread_local! {
    /// On the thread of a worker: the runtime of everything else.
    static BACKGROUND: OnceCell<Handle> = const { OnceCell::new() };
}

/// Where to run what would keep a worker from its connections, or what all workers use: the runtime of the process,
/// or that of the caller, if it is no worker.
pub(crate) fn background() -> Handle {
    BACKGROUND.with(|background| background.get().cloned()).unwrap_or_else(Handle::current)
}

impl Threads {
    /// Starts so many, at least one; `background` is the runtime of everything else. Fails where the system has no
    /// thread or no descriptor left.
    pub fn start(count: usize, background: &Handle) -> io::Result<Self> {
        let mut workers = Vec::new();
        // Those that started end with it if the next one does not.
        let mut all =
            Self { workers: Workers::default(), stop: CancellationToken::new(), threads: Vec::new() };
        for n in 0..count.max(1) {
            let (tell, told) = mpsc::channel();
            let (stopped, background) = (all.stop.clone().cancelled_owned(), background.clone());
            let serve = move || match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    BACKGROUND.with(|here| _ = here.set(background));
                    let _ = tell.send(Ok(runtime.handle().clone()));
                    runtime.block_on(stopped);
                    // A look-up of a name that hangs keeps nobody from ending.
                    runtime.shutdown_background();
                }
                Err(error) => _ = tell.send(Err(error)),
            };
            all.threads.push(std::thread::Builder::new().name(format!("worker-{n}")).spawn(serve)?);
            let runtime = told.recv().map_err(io::Error::other)??;
            workers.push(Worker { runtime, open: AtomicUsize::new(0) });
        }
        all.workers = Workers(workers.into());
        Ok(all)
    }

    /// One for each processor this process may use.
    pub fn for_this_machine(background: &Handle) -> io::Result<Self> {
        Self::start(std::thread::available_parallelism().map_or(1, usize::from), background)
    }

    /// What they are to those who accept connections.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // It does not panic; tasks that do are caught by their runtime.
            let _ = thread.join();
        }
    }
}

impl Workers {
    /// The ways in to a listener: one on each worker, up to [`ENTRANCES`], or one on the runtime of the caller if
    /// there is no worker. Fails where the system has no descriptor left.
    pub(crate) fn entrances(&self, socket: TcpListener) -> io::Result<Vec<Entrance>> {
        if self.0.is_empty() {
            return Ok(vec![Entrance { socket, workers: self.clone(), at: None }]);
        }
        let socket = socket.into_std()?;
        let entrance = |(at, worker): (usize, &Worker)| {
            let _its_own = worker.runtime.enter();
            let socket = TcpListener::from_std(socket.try_clone()?)?;
            Ok(Entrance { socket, workers: self.clone(), at: Some(at) })
        };
        self.0.iter().take(ENTRANCES).enumerate().map(entrance).collect()
    }

    /// Who serves a connection accepted `here`: the one with the fewest, where `here` has more than a quarter more.
    fn fittest(&self, here: usize) -> usize {
        let open = |at: usize| self.0[at].open.load(Ordering::Relaxed);
        let fewest = (0..self.0.len()).min_by_key(|at| open(*at)).unwrap_or(here);
        if open(here) > open(fewest) + open(fewest) / UNEVEN { fewest } else { here }
    }

    /// Tasks that have not ended, of all of them.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.0.iter().map(|worker| worker.runtime.metrics().num_alive_tasks()).sum()
    }
}

/// A listener on a worker, or on the runtime of the caller. All of them have the same socket; whoever comes first has
/// the connection.
#[derive(Debug)]
pub(crate) struct Entrance {
    socket: TcpListener,
    workers: Workers,
    /// Whose it is.
    at: Option<usize>,
}

impl Entrance {
    /// Does the accepting where this entrance is, as one of `all`.
    pub(crate) fn attend<F>(self, all: &mut JoinSet<()>, accept: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = self.at.map_or_else(Handle::current, |at| self.workers.0[at].runtime.clone());
        all.spawn_on(accept(self), &runtime);
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.socket.accept().await
    }

    /// Serves a connection that was accepted here: on this thread, unless another one has far fewer.
    pub(crate) fn serve<F>(
        &self,
        stream: TcpStream,
        tasks: &TaskTracker,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(here) = self.at else {
            tasks.spawn(serve(stream));
            return;
        };
        let at = self.workers.fittest(here);
        let place = Place::new(self.workers.clone(), at);
        if at == here {
            let served = serve(stream);
            tasks.spawn(async move {
                let _place = place;
                served.await;
            });
            return;
        }
        // A socket belongs to the runtime that hears of it.
        let moved = stream.into_std();
        let task = async move {
            let _place = place;
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(error) => debug!(%error, "a connection was lost on its way to a worker"),
            }
        };
        tasks.spawn_on(task, &self.workers.0[at].runtime);
    }
}

/// One connection a worker has.
struct Place {
    workers: Workers,
    at: usize,
}

impl Place {
    fn new(workers: Workers, at: usize) -> Self {
        workers.0[at].open.fetch_add(1, Ordering::Relaxed);
        Self { workers, at }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.workers.0[self.at].open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A way in, and connections through it that answer with the name of the thread that serves them and end when
    /// their client does.
    struct Hall {
        tasks: TaskTracker,
        address: SocketAddr,
        accepting: JoinSet<()>,
    }

    impl Hall {
        /// With some of the entrances of these workers.
        async fn of(workers: &Workers, which: std::ops::Range<usize>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (tasks, address) = (TaskTracker::new(), listener.local_addr().unwrap());
            let mut accepting = JoinSet::new();
            for entrance in workers.entrances(listener).unwrap().drain(which) {
                let tasks = tasks.clone();
                entrance.attend(&mut accepting, |entrance| async move {
                    while let Ok((stream, _)) = entrance.accept().await {
                        entrance.serve(stream, &tasks, |mut stream| async move {
                            let name = std::thread::current().name().unwrap_or_default().to_owned();
                            stream.write_all(format!("{name}\n").as_bytes()).await.unwrap();
                            let _ = stream.read(&mut [0]).await;
                        });
                    }
                });
            }
            Self { tasks, address, accepting }
        }

        async fn enter(&self) -> (TcpStream, String) {
            let mut client = TcpStream::connect(self.address).await.unwrap();
            let mut name = String::new();
            while !name.ends_with('\n') {
                name.push(char::from(client.read_u8().await.unwrap()));
            }
            (client, name.trim_end().to_owned())
        }
    }

    async fn ended(workers: &Workers, left: usize) {
        for _ in 0..1000 {
            if workers.tasks() == left {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} tasks, not {left}", workers.tasks());
    }

    #[tokio::test]
    async fn each_connection_goes_to_the_worker_that_has_the_fewest() {
        for entrances in [1, 3] {
            let threads = Threads::start(3, &Handle::current()).unwrap();
            let workers = threads.workers();
            let mut hall = Hall::of(workers, 0..entrances).await;
            let mut clients: BTreeMap<String, Vec<TcpStream>> = BTreeMap::new();
            for _ in 0..9 {
                let (client, name) = hall.enter().await;
                clients.entry(name).or_default().push(client);
            }
            let each: Vec<_> = clients.iter().map(|(name, clients)| (name.as_str(), clients.len())).collect();
            assert_eq!(each, [("worker-0", 3), ("worker-1", 3), ("worker-2", 3)]);
            // Two of one worker leave: the next two take their places.
            clients.get_mut("worker-1").unwrap().truncate(1);
            ended(workers, 7 + entrances).await;
            for _ in 0..2 {
                let (client, name) = hall.enter().await;
                assert_eq!(name, "worker-1");
                clients.get_mut("worker-1").unwrap().push(client);
            }
            drop(clients);
            ended(workers, entrances).await;
            hall.accepting.shutdown().await;
            ended(workers, 0).await;
            TcpStream::connect(hall.address).await.unwrap_err();
            hall.tasks.close();
            hall.tasks.wait().await;
        }
    }

    #[tokio::test]
    async fn of_many_connections_a_worker_keeps_a_quarter_more() {
        let threads = Threads::start(2, &Handle::current()).unwrap();
        let hall = Hall::of(threads.workers(), 0..1).await;
        let (mut clients, mut names) = (Vec::new(), Vec::new());
        for _ in 0..18 {
            let (client, name) = hall.enter().await;
            clients.push(client);
            names.push(name);
        }
        let of = |worker| names.iter().filter(|name| *name == worker).count();
        assert_eq!((of("worker-0"), of("worker-1")), (10, 8));
    }

    #[tokio::test]
    async fn a_connection_stays_where_it_was_accepted_if_no_other_worker_has_fewer() {
        let threads = Threads::start(3, &Handle::current()).unwrap();
        let hall = Hall::of(threads.workers(), 1..2).await;
        for _ in 0..20 {
            let (client, name) = hall.enter().await;
            assert_eq!(name, "worker-1");
            drop(client);
            ended(threads.workers(), 1).await;
        }
    }

    #[tokio::test]
    async fn what_is_not_a_workers_runs_in_the_background() {
        let (here, tasks) = (Handle::current().id(), TaskTracker::new());
        assert_eq!(background().id(), here);
        let threads = Threads::start(1, &Handle::current()).unwrap();
        let at_work = async { (Handle::current().id(), background().id()) };
        let (worker, behind) = tasks.spawn_on(at_work, &threads.workers().0[0].runtime).await.unwrap();
        assert_ne!(worker, here);
        assert_eq!(behind, here);
    }

    #[tokio::test]
    async fn without_threads_a_connection_is_served_where_it_was_accepted() {
        let hall = Hall::of(&Workers::default(), 0..1).await;
        let (_client, name) = hall.enter().await;
        assert_eq!(Some(name.as_str()), std::thread::current().name());
        assert_eq!(Workers::default().tasks(), 0);
    }

    #[tokio::test]
    async fn the_end_of_the_threads_is_the_end_of_what_runs_on_them() {
        let threads = Threads::start(0, &Handle::current()).unwrap();
        let hall = Hall::of(threads.workers(), 0..1).await;
        let (mut client, name) = hall.enter().await;
        assert_eq!(name, "worker-0");
        drop(threads);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(hall.tasks.is_empty());
    }
}
