//! The scripted model server: chat completions streamed or whole, models, embeddings.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::listen::{Body, json, json_body, respond};
use super::model;
use super::reply::Reply;
use super::rules::Refusal;

/// From one chunk of a stream to the next: slow enough to be watched.
const BETWEEN_CHUNKS: Duration = Duration::from_millis(30);
/// The most numbers of an embedding.
const DIMENSIONS: u64 = 1024;

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, "/v1/chat/completions") => match json_body(request).await {
            Some(body) => chat(&body).await,
            None => refuse(&not_json()),
        },
        (&Method::POST, "/v1/embeddings") => match json_body(request).await {
            Some(body) => embeddings(&body),
            None => refuse(&not_json()),
        },
        (&Method::GET, "/v1/models") => {
            let all: Vec<Value> = model::MODELS.iter().map(|name| model_object(name)).collect();
            json(200, &json!({ "object": "list", "data": all }))
        }
        (&Method::GET, path) if path.starts_with("/v1/models/") => {
            let name = path.trim_start_matches("/v1/models/");
            match model::MODELS.iter().find(|known| **known == name) {
                Some(known) => json(200, &model_object(known)),
                None => refuse(&Refusal::no_such_model(name)),
            }
        }
        (method, path) => refuse(&Refusal {
            status: 404,
            message: format!("Invalid URL ({method} {path})"),
            param: None,
            code: None,
        }),
    }
}

async fn chat(request: &Value) -> Response<Body> {
    let reply = match model::answer(request) {
        Ok(reply) => reply,
        Err(refusal) => return refuse(&refusal),
    };
    if request["stream"] == true {
        return stream(&reply, request["stream_options"]["include_usage"] == true);
    }
    // A whole reply takes as long as its stream would.
    let chunks = u32::try_from(reply.chunks(false).len()).unwrap_or(u32::MAX);
    tokio::time::sleep(BETWEEN_CHUNKS.saturating_mul(chunks)).await;
    json(200, &reply.whole())
}

fn stream(reply: &Reply, usage: bool) -> Response<Body> {
    let chunks = stream::unfold(reply.chunks(usage).into_iter(), |mut chunks| async {
        let chunk = chunks.next()?;
        if chunk != "[DONE]" {
            tokio::time::sleep(BETWEEN_CHUNKS).await;
        }
        let event = Bytes::from(format!("data: {chunk}\n\n"));
        Some((Ok::<_, Infallible>(Frame::data(event)), chunks))
    });
    respond(200, "text/event-stream; charset=utf-8", StreamBody::new(chunks).boxed_unsync())
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    json(refusal.status, &refusal.body())
}

fn not_json() -> Refusal {
    Refusal {
        status: 400,
        message: "We could not parse the JSON body of your request.".into(),
        param: None,
        code: None,
    }
}

fn model_object(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": model::CREATED, "owned_by": "fanfold-demo" })
}

/// One short vector per input: the same text has the same vector, always.
fn embeddings(request: &Value) -> Response<Body> {
    let dimensions = request["dimensions"].as_u64().unwrap_or(8).clamp(1, DIMENSIONS);
    let base64 = request["encoding_format"] == "base64";
    let inputs: Vec<String> = match request["input"].as_array() {
        // A list of numbers is one input that is already cut into tokens.
        Some(list) if !list.iter().any(Value::is_number) => list.iter().map(Value::to_string).collect(),
        Some(_) | None => vec![request["input"].to_string()],
    };
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(input, dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let tokens: usize = inputs.iter().map(|input| input.len().div_ceil(4)).sum();
    json(
        200,
        &json!({
            "object": "list", "data": data, "model": request["model"],
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        }),
    )
}

/// Numbers of length one in all, from the text's bytes.
fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let raw: Vec<f32> = (0..dimensions).map(|_| random.f32() - 0.5).collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::EPSILON);
    raw.into_iter().map(|x| x / length).collect()
}
