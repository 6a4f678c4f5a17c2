//! A name that leads elsewhere each time it is asked for, against a tool whose server has that name.
//!
//! The test runs itself again behind bubblewrap, in a network of its own with a name server that cannot be trusted.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfold::config::{Flags, read_text};
use fanfold::tools::{Call, Catalog, Progress};
use fanfold::wire::tool::OutcomeKind;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const INSIDE: &str = "FANFOLD_REBINDING_INSIDE";
/// An address of the public network; nothing leads there from inside.
const PUBLIC: [u8; 4] = [93, 184, 216, 34];
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
const CALLS: usize = 60;

/// Answers each question for an address with the next of: public, loopback, both, loopback.
fn name_server() -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[12..length];
            let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
            let ipv4 = question[end - 4..end] == [0, 1, 0, 1];
            let answers: &[[u8; 4]] = match ipv4.then(|| count.fetch_add(1, Ordering::SeqCst) % 4) {
                None => &[],
                Some(0) => &[PUBLIC],
                Some(2) => &[LOOPBACK, PUBLIC],
                Some(_) => &[LOOPBACK],
            };
            let mut reply =
                [&packet[..2], &[0x81, 0x80, 0, 1, 0, u8::try_from(answers.len()).unwrap(), 0, 0, 0, 0]]
                    .concat();
            reply.extend(&question[..end]);
            for answer in answers {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(answer);
            }
            socket.send_to(&reply, from).unwrap();
        }
    });
    asked
}

fn load(port: u16, more: &str) -> Catalog {
    let text = format!(
        "upstreams: {{ main: {{ base_url: 'http://127.0.0.1:1/v1' }} }}
tools: {{ t: {{ http: {{ url: 'http://rebind.example:{port}/'{more} }}, effect: read }} }}"
    );
    let read = read_text("fanfold.yaml", &text, &|_| None, &Flags::default()).finish_with_tools();
    read.unwrap_or_else(|problems| panic!("{}", problems.render(false))).1
}

async fn run(catalog: &Catalog) -> OutcomeKind {
    let tool = catalog.tool("t").unwrap();
    let call = Call {
        arguments: "{}".into(),
        idempotency_key: "key".into(),
        request_id: "request".into(),
        trace: None,
        result_limit: 1024,
        deadline: Instant::now() + Duration::from_millis(700),
        progress: Progress::new(tool.spec().patience(None), Arc::default()),
        tries: fanfold::tools::Tries::default(),
    };
    tool.run(&call, &CancellationToken::new()).await.kind
}

async fn inside() {
    let asked = name_server();
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = canary.local_addr().unwrap().port();
    let reached = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reached);
    let accepting = async move {
        while canary.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    };
    let calls = async {
        let catalog = load(port, "");
        for _ in 0..CALLS {
            assert_ne!(run(&catalog).await, OutcomeKind::Ok);
        }
        assert_eq!(reached.load(Ordering::SeqCst), 0, "the canary was reached");
        assert!(asked.load(Ordering::SeqCst) >= CALLS, "{asked:?} questions");
        // The way there is open, as soon as the settings open it.
        let open = load(port, ", allow_cidrs: ['127.0.0.0/8']");
        for _ in 0..4 {
            run(&open).await;
        }
        assert!(reached.load(Ordering::SeqCst) > 0, "the canary can be reached");
    };
    tokio::select! {
        () = accepting => panic!("the canary broke"),
        () = calls => {}
    }
}

#[test]
fn a_name_that_changes_its_address_never_leads_inside() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(inside());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let mut fenced = Command::new("bwrap");
    fenced.args(["--unshare-user", "--unshare-net", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]);
    fenced.args(["--die-with-parent", "--dev-bind", "/", "/", "--ro-bind"]);
    fenced
        .arg(file("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"))
        .arg("/etc/resolv.conf");
    fenced.arg("--ro-bind").arg(file("nsswitch.conf", "hosts: files dns\n")).arg("/etc/nsswitch.conf");
    fenced.arg("--").arg(std::env::current_exe().unwrap());
    fenced.args(["--exact", "a_name_that_changes_its_address_never_leads_inside", "--nocapture"]);
    let output = fenced.env(INSIDE, "1").output().expect("bubblewrap is installed");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
