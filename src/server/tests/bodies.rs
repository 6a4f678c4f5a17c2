//! Bodies of requests.

use super::*;

async fn bounded(limit: usize, deadline: Duration) -> Running {
    let bounds = Bounds { limit, deadline, rate: 0 };
    Running::start(Setup { bounds, ..Setup::default() }).await
}

#[tokio::test]
async fn a_body_within_its_bounds_is_read_whole() {
    let server = bounded(100_000, SOON).await;
    let mut client = server.say(post(90_000, "connection: close\r\n")).await;
    client.write_all(&[b'x'; 90_000]).await.unwrap();
    assert!(to_end(&mut client).await.ends_with("read 90000"));
    let chunked = "POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert!(to_end(&mut server.say(chunked).await).await.ends_with("read 5"));
}

#[tokio::test]
async fn a_body_too_large_is_refused_before_it_is_sent() {
    let server = bounded(1000, SOON).await;
    let mut client = server.say(post(1001, "expect: 100-continue\r\n")).await;
    let answer = to_end(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "no 100 first: {answer}");
    let mut client = server.say(post(1000, "expect: 100-continue\r\n")).await;
    until(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    client.write_all(&[b'x'; 1000]).await.unwrap();
    until(&mut client, "read 1000").await;
}

#[tokio::test]
async fn a_client_that_sends_it_all_still_reads_the_413() {
    let server = bounded(1000, SOON).await;
    let mut client = server.say(post(8 << 20, "")).await;
    soon(client.write_all(&vec![b'x'; 8 << 20])).await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
    let head = "POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut client = server.say(head).await;
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    soon(client.write_all(chunk.repeat(100).as_bytes())).await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let server = bounded(1000, Duration::from_millis(100)).await;
    let mut client = server.say(post(10, "")).await;
    client.write_all(b"half").await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 408 "));
}
