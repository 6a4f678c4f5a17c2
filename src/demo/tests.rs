//! The demo's servers, asked over real connections.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::*;
use crate::config::file::File;

async fn send(method: Method, url: &str, body: Option<Value>) -> (StatusCode, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let body = Full::from(body.map(|body| body.to_string()).unwrap_or_default());
    let request = Request::builder().method(method).uri(url).body(body).unwrap();
    let response = client.request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(demo: &Demo, path: &str, body: Value) -> (StatusCode, String) {
    send(Method::POST, &format!("{}{path}", demo.addresses.model_base_url), Some(body)).await
}

fn asking(question: &str) -> Value {
    json!({ "model": "demo", "messages": [{ "role": "user", "content": question }] })
}

/// The `data:` texts of a streamed body.
fn events(body: &str) -> Vec<&str> {
    body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
}

#[tokio::test]
async fn a_streamed_answer_joins_to_the_whole_one() {
    let demo = start().await.unwrap();
    let whole: Value = serde_json::from_str(&post(&demo, "/chat/completions", asking("hi")).await.1).unwrap();
    let mut request = asking("hi");
    request["stream"] = json!(true);
    let (status, body) = post(&demo, "/chat/completions", request).await;
    assert_eq!(status, 200);
    let events = events(&body);
    assert_eq!(events.last(), Some(&"[DONE]"));
    assert!(events.len() > 5, "a text comes in several chunks");
    let joined: String = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], joined);
    demo.stop().await;
}

#[tokio::test]
async fn refusals_have_openais_shape() {
    let demo = start().await.unwrap();
    let mut request = asking("hi");
    request["parallel_tool_calls"] = json!(true);
    let (status, body) = post(&demo, "/chat/completions", request).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!("parallel_tool_calls")));
    let mut request = asking("hi");
    request["model"] = json!("nope");
    let (status, body) = post(&demo, "/chat/completions", request).await;
    assert!(status == 404 && body.contains("model_not_found"), "{body}");
    let (status, body) = post(&demo, "/nowhere", json!({})).await;
    assert!(status == 404 && body.contains("Invalid URL (POST /v1/nowhere)"), "{body}");
}

#[tokio::test]
async fn models_and_embeddings_are_there_and_the_same_each_time() {
    let demo = start().await.unwrap();
    let (_, models) = send(Method::GET, &format!("{}/models", demo.addresses.model_base_url), None).await;
    assert!(models.contains(r#""id":"demo""#));
    let request = |format: &str| json!({ "model": "m", "input": ["a", "b", "a"], "encoding_format": format });
    let (_, body) = post(&demo, "/embeddings", request("float")).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    let vectors: Vec<&Value> = body["data"].as_array().unwrap().iter().map(|d| &d["embedding"]).collect();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    assert_eq!(vectors[0].as_array().unwrap().len(), 8);
    let (_, body) = post(&demo, "/embeddings", request("base64")).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["data"][0]["embedding"].as_str().unwrap().len(), 44, "32 bytes in base64");
}

#[tokio::test]
async fn the_tools_answer_over_http() {
    let demo = start().await.unwrap();
    let tools = &demo.addresses.tools_base_url;
    let (status, body) = send(Method::GET, &format!("{tools}/weather?city=New%20York"), None).await;
    assert!(status == 200 && body.contains("New York: 15 °C, clear"), "{body}");
    let (status, _) = send(Method::GET, &format!("{tools}/clock?city=UTC"), None).await;
    assert_eq!(status, 200);
    let (status, body) =
        send(Method::GET, &format!("{tools}/currency?amount=10&from=USD&to=JPY"), None).await;
    assert!(status == 200 && body.contains("1500"), "{body}");
}

#[tokio::test]
async fn nothing_listens_after_it_was_stopped() {
    let demo = start().await.unwrap();
    let address = demo.addresses.tools_base_url.trim_start_matches("http://").to_owned();
    demo.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[test]
fn its_configuration_is_one_the_proxy_reads() {
    let addresses = Addresses {
        model_base_url: "http://127.0.0.1:5001/v1".into(),
        tools_base_url: "http://127.0.0.1:5002".into(),
    };
    let file: File = serde_saphyr::from_str(&config_yaml(&addresses)).unwrap();
    assert_eq!(file.upstreams["demo"].base_url, "http://127.0.0.1:5001/v1");
    assert!(file.server.drain_accept.0.is_zero(), "Ctrl-C does not wait for a load balancer");
    assert_eq!(
        file.tools["get_weather"].http.as_ref().unwrap().url,
        "http://127.0.0.1:5002/weather?city={city}"
    );
    assert_eq!(file.tools["count_words"].command.as_ref().unwrap().argv, ["/usr/bin/wc", "-w"]);
    assert!(file.tools.values().all(|tool| tool.parameters.is_some() && tool.description.is_some()));
}
