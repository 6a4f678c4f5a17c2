//! What there is only so much of.

use super::*;
use crate::workers::{Threads, Workers};

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_fits_later() {
    let server = Running::start(Setup { connections: 1, ..Setup::default() }).await;
    let mut first = server.say(get("/ok", "")).await;
    until(&mut first, "\r\n\r\nok").await;
    let refused = server.ask("/ok").await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains(r#""code":"overloaded"}"#), "{refused}");
    drop(first);
    let fits = async { while !server.ask("/ok").await.ends_with("\r\n\r\nok") {} };
    soon(fits).await;
}

/// Descriptors are bounded for a whole process, so this test runs in one of its own.
#[test]
fn running_out_of_descriptors_passes() {
    const ALONE: &str = "FANFOLD_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(Box::pin(run_out_of_descriptors()));
    }
    let name = "server::tests::bounds::running_out_of_descriptors_passes";
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && told.contains("1 passed"), "{told}");
}

async fn run_out_of_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let threads = Threads::start(2, &tokio::runtime::Handle::current()).unwrap();
    for workers in [Workers::default(), threads.workers().clone()] {
        let server = Running::start(Setup { workers, ..Setup::default() }).await;
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(50), maximum }).unwrap();
        let mut clients = Vec::new();
        let error = loop {
            assert!(clients.len() < 100);
            match TcpStream::connect(server.address).await {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(24), "{error}");
        time::sleep(Duration::from_millis(20)).await;
        drop(clients);
        let served = async { while !server.ask("/ok").await.ends_with("ok") {} };
        soon(served).await;
    }
}

#[tokio::test]
async fn open_connections_are_counted() {
    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicI64);
    impl metrics::GaugeFn for Count {
        fn increment(&self, by: f64) {
            self.0.fetch_add(by as i64, Ordering::SeqCst);
        }
        fn decrement(&self, by: f64) {
            self.0.fetch_sub(by as i64, Ordering::SeqCst);
        }
        fn set(&self, _: f64) {}
    }
    let count = Arc::new(Count::default());
    let open = metrics::Gauge::from_arc(Arc::clone(&count));
    let server = Running::start(Setup { open, ..Setup::default() }).await;
    let mut clients = [server.say(get("/ok", "")).await, server.say(get("/ok", "")).await];
    for client in &mut clients {
        until(client, "\r\n\r\nok").await;
    }
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
    drop(clients);
    server.drain.advance(Stage::Refusing);
    server.ended().await;
    assert_eq!(count.0.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_head_too_large_is_431() {
    let server = Running::plain().await;
    let mut client = server.say(get("/ok", &format!("x-big: {}\r\n", "x".repeat(70_000)))).await;
    let answer = to_end(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.1 431 ") && answer.contains(r#""code":"headers_too_large""#),
        "{answer}"
    );
    let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let mut client = server.say(get("/ok", &many)).await;
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_taken_port_is_told_with_what_to_do() {
    let server = Running::plain().await;
    let options = super::super::listener::Options {
        workers: Workers::default(),
        setting: "listen",
        settings: super::super::settings::Settings::default(),
        tls: None,
        connections: 1,
        open: metrics::Gauge::noop(),
    };
    let taken = super::super::listener::Listener::bind(&server.address.to_string(), options).await;
    let message = taken.unwrap_err().to_string();
    assert!(message.contains("is in use") && message.contains("`listen`"), "{message}");
}
