//! The stages of stopping.

use super::*;

#[tokio::test]
async fn not_ready_still_serves() {
    let server = Running::plain().await;
    server.drain.advance(Stage::NotReady);
    assert!(server.ask("/ok").await.ends_with("ok"));
}

#[tokio::test]
async fn refusing_closes_the_door_and_lets_what_is_in_flight_finish() {
    let mut server = Running::plain().await;
    let mut idle = server.say(get("/ok", "")).await;
    until(&mut idle, "\r\n\r\nok").await;
    let mut untouched = server.say("").await;
    let mut busy = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    sender.send("first").await.unwrap();
    until(&mut busy, "first").await;

    server.drain.advance(Stage::Refusing);
    assert_eq!(to_end(&mut idle).await, "", "an idle connection is closed");
    assert!(TcpStream::connect(server.address).await.is_err());
    sender.send("last").await.unwrap();
    sender.finish();
    assert!(to_end(&mut busy).await.contains("last\r\n0\r\n\r\n"));
    drop(untouched.shutdown().await);
    server.ended().await;
    server.quiet();
}

#[tokio::test]
async fn http2_finishes_what_is_in_flight_too() {
    let mut server = Running::plain().await;
    let tasks = TaskTracker::new();
    let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
    let answer = soon(client.send_request(request("/stream"))).await.unwrap();
    let sender = server.sender().await;
    server.drain.advance(Stage::Refusing);
    sender.send("last").await.unwrap();
    sender.finish();
    assert_eq!(text(answer).await, "last");
    server.ended().await;
}

#[tokio::test]
async fn now_gives_a_moment_for_last_words_and_then_cuts() {
    let mut server = Running::plain().await;
    let _hung = server.say(get("/hang", "")).await;
    server.hangs().await;
    let mut busy = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    server.drain.advance(Stage::Now);
    sender.send("an error event").await.unwrap();
    sender.finish();
    assert!(to_end(&mut busy).await.contains("an error event\r\n0\r\n\r\n"));
    server.ended().await;
    server.gone().await;
}

#[tokio::test]
async fn who_has_not_said_what_it_speaks_does_not_hold_the_process() {
    let (files, _) = Certificates::new();
    for (tls, said) in
        [(None, &b""[..]), (None, b"PRI * HT"), (Some(&files), b""), (Some(&files), b"\x16\x03\x01")]
    {
        let mut setup = Setup { tls: tls.map(Certificates::settings), ..Setup::default() };
        // It is not this that ends them.
        setup.settings.header_timeout = ms(600_000);
        let server = Running::start(setup).await;
        let _silent = server.say(said).await;
        server.drain.advance(Stage::Now);
        server.ended().await;
    }
}

#[tokio::test]
async fn a_connection_hears_of_every_stage_and_of_its_clients_leaving() {
    let mut server = Running::plain().await;
    let busy = server.say(get("/hang", "")).await;
    server.hangs().await;
    server.drain.advance(Stage::Refusing);
    drop(busy);
    server.gone().await;
    server.drain.advance(Stage::Now);
    server.ended().await;
}

#[tokio::test]
async fn a_silent_http2_client_does_not_hold_the_process() {
    let server = Running::plain().await;
    let _silent = server.say(PREFACE).await;
    server.drain.advance(Stage::Now);
    server.ended().await;
}
