use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// Every way `inet_aton` reads an IPv4 address: one to four parts, each decimal, octal or hexadecimal.
fn spellings(address: Ipv4Addr) -> BTreeSet<String> {
    let bits = u32::from(address);
    let bases: [fn(u32) -> String; 4] =
        [|n| n.to_string(), |n| format!("0{n:o}"), |n| format!("0x{n:x}"), |n| format!("0X{n:08X}")];
    let mut all = BTreeSet::new();
    for parts in 1_u32..=4 {
        let mut numbers: Vec<u32> = (0..parts - 1).map(|at| (bits >> (24 - 8 * at)) & 0xff).collect();
        numbers.push(if parts == 1 { bits } else { bits & (u32::MAX >> (8 * (parts - 1))) });
        for choice in 0..bases.len().pow(parts) {
            let written: Vec<String> = numbers
                .iter()
                .enumerate()
                .map(|(at, number)| {
                    bases[choice / bases.len().pow(u32::try_from(at).unwrap()) % bases.len()](*number)
                })
                .collect();
            all.insert(written.join("."));
        }
    }
    all
}

const V6: &[&str] = &[
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::0001]",
    "[0::1]",
    "[0:0::0:1]",
    "[::]",
    "[0::0]",
    "[::0.0.0.1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[0::7f00:0001]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "[0000:0000:0000:0000:0000:ffff:7f00:0001]",
    "[::ffff:127.1.2.3]",
    "[::ffff:0.0.0.0]",
    "[::ffff:0:0]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:7f00:0001::1]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[fc00::1]",
    "[fd00::1]",
    "[100::1]",
    "[2001:db8::1]",
    "[2001::1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::169.254.169.254]",
    "[2002:a9fe:a9fe::]",
];

/// Counts who reaches it, on IPv4 and, where there is one, on IPv6 loopback.
struct Canary {
    port: u16,
    reached: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Canary {
    async fn start() -> Self {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        let reached = Arc::new(AtomicUsize::new(0));
        for listener in [Some(first), TcpListener::bind(("::1", port)).await.ok()].into_iter().flatten() {
            let reached = Arc::clone(&reached);
            tasks.spawn(async move {
                while listener.accept().await.is_ok() {
                    reached.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { port, reached, _tasks: tasks }
    }

    fn uri(&self, host: &str) -> Uri {
        format!("http://{host}:{}/", self.port).parse().unwrap_or_else(|error| panic!("{host}: {error}"))
    }
}

fn hosts() -> Vec<String> {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]
        .into_iter()
        .flat_map(spellings)
        .chain(V6.iter().map(|host| (*host).to_owned()))
        .chain(["localhost".into()])
        .collect()
}

#[tokio::test]
async fn no_spelling_of_a_refused_address_reaches_it() {
    let canary = Canary::start().await;
    let hosts = hosts();
    assert!(hosts.len() > 400, "{}", hosts.len());
    for host in hosts {
        let opened = open(&Reach::default(), &canary.uri(&host)).await;
        // What the resolver does not take for an address at all is refused as a name.
        assert!(matches!(opened, Err(ConnectError::Blocked | ConnectError::Lookup)), "{host}: {opened:?}");
    }
    assert_eq!(canary.reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_same_spellings_reach_it_once_the_network_is_opened() {
    let canary = Canary::start().await;
    let reach = Reach::with(vec!["127.0.0.0/8".parse().unwrap(), "0.0.0.0/32".parse().unwrap()]);
    let mut reached = 0;
    for host in hosts().into_iter().filter(|host| !host.starts_with('[') || host.contains("ffff")) {
        reached += usize::from(open(&reach, &canary.uri(&host)).await.is_ok());
    }
    assert!(reached > 400, "{reached}");
}

#[tokio::test]
async fn a_name_that_is_none_is_not_found() {
    let canary = Canary::start().await;
    // A label over 63 bytes cannot be asked for.
    let opened = open(&Reach::default(), &canary.uri(&"a".repeat(70))).await;
    assert!(matches!(opened, Err(ConnectError::Lookup)), "{opened:?}");
}

#[test]
fn a_file_of_authorities_must_hold_some() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let load = |path: &std::path::Path| tls(path.to_str(), &SystemRoots::default(), true).map(|_| ());
    assert!(load(&path).unwrap_err().contains("cannot be read"));
    std::fs::write(&path, "nothing here").unwrap();
    assert!(load(&path).unwrap_err().contains("holds no certificate"));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&path, made.cert.pem()).unwrap();
    assert_eq!(load(&path), Ok(()));
    assert!(tls(None, &SystemRoots::default(), true).is_ok());
}
