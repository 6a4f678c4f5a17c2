//! HTTP/2.

use super::*;

#[tokio::test]
async fn is_spoken_on_a_plain_listener_and_on_tls_by_alpn() {
    let tasks = TaskTracker::new();
    let plain = Running::plain().await;
    let mut client = h2(TcpStream::connect(plain.address).await.unwrap(), &tasks).await;
    let answer = soon(client.send_request(request("/peer"))).await.unwrap();
    assert_eq!(text(answer).await, "tls=false v=HTTP/2.0");

    let (certificates, trusted) = Certificates::new();
    let setup = Setup { tls: Some(certificates.settings()), ..Setup::default() };
    let secure = Running::start(setup).await;
    let stream = tls(secure.address, &trusted, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = h2(stream, &tasks).await;
    let answer = soon(client.send_request(request("/peer"))).await.unwrap();
    assert_eq!(text(answer).await, "tls=true v=HTTP/2.0");
    let mut client = tls(secure.address, &trusted, "http/1.1").await.unwrap();
    client.write_all(get("/peer", "connection: close\r\n").as_bytes()).await.unwrap();
    assert!(to_end(&mut client).await.ends_with("tls=true v=HTTP/1.1"));
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
    let mut server = Running::with(|s| s.stall_timeout = ms(200)).await;
    let tasks = TaskTracker::new();
    let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
    let stalled = soon(client.send_request(request("/stream"))).await.unwrap();
    let sender = server.sender().await;
    let piece = Bytes::from(vec![b'x'; 16 * 1024]);
    while soon(sender.send(piece.clone())).await.is_ok() {}
    server.gone().await;
    let answer = soon(client.send_request(request("/ok"))).await.unwrap();
    assert_eq!(text(answer).await, "ok");
    assert!(soon(stalled.into_body().collect()).await.is_err());
}

/// Sends pings until the connection ends; gives the bytes that were taken.
async fn pings(client: &mut TcpStream) -> usize {
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(100);
    client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let ((mut read, mut write), mut taken) = (client.split(), 0);
    let flood = async {
        while let Ok(written @ 1..) = write.write(&ping).await {
            taken += written;
        }
    };
    let drink = async { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} };
    tokio::join!(flood, drink);
    taken
}

#[tokio::test]
async fn a_flood_of_pings_meets_silence_and_then_the_connections_end() {
    let server = Running::plain().await;
    let (mut client, began) = (server.say(PREFACE).await, tokio::time::Instant::now());
    let taken = soon(pings(&mut client)).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "who floods could begin anew at once");
    // What the kernels hold of it is never read.
    assert!((17_000..16 << 20).contains(&taken), "{taken}");
    assert!(server.ask("/ok").await.ends_with("ok"));
}

#[tokio::test]
async fn an_idle_connection_is_told_goodbye() {
    let server = Running::with(|s| s.idle_timeout = ms(100)).await;
    let tasks = TaskTracker::new();
    let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
    let answer = soon(client.send_request(request("/ok"))).await.unwrap();
    assert_eq!(text(answer).await, "ok");
    tasks.close();
    soon(tasks.wait()).await;
    assert!(client.is_closed());
}

#[tokio::test]
async fn a_flood_of_requests_that_are_reset_ends_the_connection() {
    let server = Running::plain().await;
    let mut client = server.say(PREFACE).await;
    client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let (mut read, mut write) = client.split();
    let mut sent = 0;
    let flood = async {
        for stream in (1u32..).step_by(2) {
            let [a, b, c, d] = stream.to_be_bytes();
            // GET http://a/, whole, and RST_STREAM with CANCEL.
            let head = [0, 0, 6, 1, 5, a, b, c, d, 0x82, 0x84, 0x86, 0x41, 1, b'a'];
            let reset = [0, 0, 4, 3, 0, a, b, c, d, 0, 0, 0, 8];
            if write.write_all(&[&head[..], &reset].concat()).await.is_err() {
                break;
            }
            sent += 1;
        }
    };
    let refused = async { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} };
    soon(Box::pin(async {
        tokio::select! {
            () = flood => {}
            () = refused => {}
        }
    }))
    .await;
    // Of 28 bytes each. What the kernels hold of them is never read.
    assert!((100..600_000).contains(&sent), "{sent}");
    assert!(server.ask("/ok").await.ends_with("ok"));
}
