//! Requests and their answers.

use super::*;

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let server = Running::plain().await;
    let mut client = server.say(get("/peer", "")).await;
    let first = until(&mut client, "tls=false v=HTTP/1.1").await;
    assert!(first.starts_with("HTTP/1.1 200 OK"), "{first}");
    client.write_all(get("/ok", "").as_bytes()).await.unwrap();
    until(&mut client, "\r\n\r\nok").await;
}

#[tokio::test]
async fn two_hosts_none_connect_and_trace_are_refused() {
    let server = Running::plain().await;
    for (request, status) in [
        ("GET /ok HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "400"),
        ("GET /ok HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "405"),
        ("TRACE /ok HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
        ("GET http://a/ok HTTP/1.1\r\nhost: a\r\n\r\n", "200"),
    ] {
        let mut client = server.say(request).await;
        let answer = until(&mut client, if status == "200" { "ok" } else { "}}" }).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert_eq!(answer.contains(r#"{"error":{"message":""#), status != "200", "{answer}");
        assert_eq!(answer.contains("allow: GET"), status == "405", "{answer}");
    }
}

#[tokio::test]
async fn a_panic_costs_one_request_only() {
    let server = Running::plain().await;
    let mut client = server.say(get("/panic", "")).await;
    let answer = until(&mut client, "}}").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("internal_error"), "{answer}");
    client.write_all(get("/ok", "").as_bytes()).await.unwrap();
    until(&mut client, "\r\n\r\nok").await;
}

#[tokio::test]
async fn an_answer_that_went_out_whole_leaves_nobody_gone() {
    let mut server = Running::plain().await;
    let mut client = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    sender.send("all").await.unwrap();
    sender.finish();
    until(&mut client, "0\r\n\r\n").await;
    client.write_all(get("/ok", "").as_bytes()).await.unwrap();
    until(&mut client, "\r\n\r\nok").await;
    server.quiet();
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_end_cleanly() {
    let mut server = Running::plain().await;
    let mut client = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    sender.send("half").await.unwrap();
    until(&mut client, "half").await;
    sender.abort();
    let rest = to_end(&mut client).await;
    assert!(!rest.contains("0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn pieces_that_are_written_together_leave_in_one_chunk() {
    let mut server = Running::plain().await;
    let mut client = server.say(get("/stream", "")).await;
    let sender = server.sender().await;
    for piece in ["one", "two", "three"] {
        sender.push(piece).unwrap();
    }
    until(&mut client, "B\r\nonetwothree\r\n").await;
}
