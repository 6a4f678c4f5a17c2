//! Clients that take their time.

use super::*;

#[tokio::test]
async fn a_head_that_does_not_come_is_cut_off() {
    let server = Running::with(|s| s.header_timeout = ms(100)).await;
    for start in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /ok HTTP/1.1\r\nhost: a\r\nx-slow: "] {
        let mut client = server.say(start).await;
        let got = to_end(&mut client).await;
        assert!(!got.contains("200 OK"), "{start:?}: {got}");
    }
    let mut client = server.say(get("/ok", "")).await;
    until(&mut client, "\r\n\r\nok").await;
    client.write_all(b"GET /ok HT").await.unwrap();
    assert_eq!(to_end(&mut client).await, "", "the second head, on an idle time of minutes");
}

#[tokio::test]
async fn a_dripping_head_is_cut_off_too() {
    let server = Running::with(|s| s.header_timeout = ms(200)).await;
    let mut client = server.say("GET /ok HTTP/1.1\r\nhost: a\r\n").await;
    let drip = async {
        while client.write_all(b"x-more: 1\r\n").await.is_ok() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(drip).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut server = Running::with(|s| s.idle_timeout = ms(100)).await;
    let mut busy = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    let mut idle = server.say(get("/ok", "")).await;
    assert!(to_end(&mut idle).await.ends_with("ok"));
    sender.send("still here").await.unwrap();
    until(&mut busy, "still here").await;
    sender.finish();
    to_end(&mut busy).await;
}

#[tokio::test]
async fn a_reader_of_nothing_holds_little_and_is_closed() {
    let mut server = Running::with(|s| s.stall_timeout = ms(300)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    client.write_all(get("/stream", "").as_bytes()).await.unwrap();
    let sender = server.sender().await;
    let piece = Bytes::from(vec![b'x'; 1024]);
    let mut held = 0;
    while soon(sender.send(piece.clone())).await.is_ok() {
        held += piece.len();
    }
    assert!((64 * 1024..=512 * 1024).contains(&held), "{held}");
    server.gone().await;
}

#[tokio::test]
async fn half_open_connections_do_not_keep_a_good_client_out() {
    let server = Running::plain().await;
    let mut bad = Vec::new();
    for n in 0..200 {
        bad.push(server.say(["", "G", "GET /ok HTTP/1.1\r\n", "PRI * HT"][n % 4]).await);
    }
    assert!(server.ask("/ok").await.ends_with("ok"));
}
