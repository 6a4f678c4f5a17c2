//! The client leaves.

use super::*;

#[tokio::test]
async fn is_seen_while_nothing_has_been_answered() {
    let mut server = Running::plain().await;
    let client = server.say(get("/hang", "")).await;
    server.hangs().await;
    server.quiet();
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn is_seen_behind_an_extra_byte() {
    let mut server = Running::plain().await;
    let client = server.say(get("/hang", "") + "G").await;
    server.hangs().await;
    drop(client);
    server.gone().await;
    let client = server.say(get("/hang", "") + &get("/ok", "")).await;
    server.hangs().await;
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn is_seen_when_the_connection_is_reset() {
    let mut server = Running::plain().await;
    let client = server.say(get("/hang", "") + "G").await;
    server.hangs().await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn is_seen_while_streaming() {
    let mut server = Running::plain().await;
    for extra in ["", "G"] {
        let mut client = server.say(get("/stream", "") + extra).await;
        let sender = server.sender().await;
        sender.send("begun").await.unwrap();
        until(&mut client, "begun").await;
        drop(client);
        server.gone().await;
        soon(sender.closed()).await;
        assert_eq!(sender.send("more").await, Err(Closed));
    }
}

#[tokio::test]
async fn is_seen_while_the_body_comes() {
    let mut server = Running::plain().await;
    let mut client = server.say(post(1000, "expect: 100-continue\r\n")).await;
    until(&mut client, "100 Continue").await;
    client.write_all(b"half").await.unwrap();
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn is_seen_through_tls() {
    let (certificates, trusted) = Certificates::new();
    let setup = Setup { tls: Some(certificates.settings()), ..Setup::default() };
    let mut server = Running::start(setup).await;
    for extra in ["", "G"] {
        let mut client = tls(server.address, &trusted, "http/1.1").await.unwrap();
        client.write_all((get("/hang", "") + extra).as_bytes()).await.unwrap();
        server.hangs().await;
        drop(client);
        server.gone().await;
    }
}

#[tokio::test]
async fn is_seen_on_http2_for_one_stream_and_for_all() {
    let mut server = Running::plain().await;
    let tasks = TaskTracker::new();
    let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
    let mut other = client.clone();
    {
        let mut one = Box::pin(client.send_request(request("/hang")));
        tokio::select! {
            answer = &mut one => panic!("{answer:?}"),
            () = server.hangs() => {}
        }
    }
    server.gone().await;
    let streaming = soon(other.send_request(request("/stream"))).await.unwrap();
    let sender = server.sender().await;
    assert!(!sender.is_closed(), "the other stream is still read");
    drop(streaming);
    server.gone().await;
    soon(sender.closed()).await;

    let mut hang = Box::pin(other.send_request(request("/hang")));
    tokio::select! {
        answer = &mut hang => panic!("{answer:?}"),
        () = server.hangs() => {}
    }
    drop((hang, client, other));
    server.gone().await;
}
