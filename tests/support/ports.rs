//! Ports for programs that have to be told one, or that listen again and again.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A port of 127.0.0.1 that the system gives to nobody else while this lives. Connections to it are refused until the
/// program it is for listens there: as every server it takes a port that a socket has which does not listen.
pub struct Port(TcpSocket);

impl Port {
    /// One that was free.
    pub fn free() -> Self {
        Self(sharing(SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.address().port()
    }

    /// With the address.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }
}

/// A socket with this address, which others may have as well; one of them may listen.
pub fn sharing(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).expect("a free address");
    socket
}
