//! Documents that a configuration names, and the calls of their tools as a server sees them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::tools::testing::{HOSTILE, Seen, Server, build, response, run};
use crate::tools::{Catalog, LoadError};
use crate::wire::tool::{Effect, OnDisconnect, OutcomeKind};

/// A document of every kind of parameter and body there is.
fn document() -> Value {
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let range = json!({ "type": "object", "properties": { "from": { "type": "integer" }, "to": { "type": "integer" } } });
    let query = |name: &str, schema: &Value, more: Value| {
        let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
        parameter.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parameter
    };
    let body =
        |kind: &str, schema: Value| json!({ "required": true, "content": { kind: { "schema": schema } } });
    let item = json!({ "type": "object", "required": ["name"], "properties": { "name": { "type": "string" }, "size": { "type": "number" } } });
    json!({
        "openapi": "3.0.3",
        "info": { "title": "Shop", "version": "1" },
        "servers": [{ "url": "https://{region}.shop.example/v1", "variables": { "region": { "default": "eu" } } }],
        "paths": {
            "/items/{ids}": { "get": { "operationId": "findItems", "summary": "Find items", "parameters": [
                { "name": "ids", "in": "path", "required": true, "schema": texts },
                query("tags", &texts, json!({})),
                query("in", &texts, json!({ "explode": false })),
                query("pipe", &texts, json!({ "style": "pipeDelimited", "explode": false })),
                query("price", &range, json!({ "style": "deepObject" })),
                query("size", &range, json!({})),
                query("q", &text, json!({})),
                { "name": "X-Fields", "in": "header", "schema": texts },
                { "name": "sid", "in": "cookie", "schema": text },
                { "name": "recent", "in": "cookie", "explode": false, "schema": texts },
                { "name": "X-Key", "in": "header", "required": true, "schema": text },
                { "name": "Idempotency-Key", "in": "header", "required": true, "schema": text },
            ] } },
            "/items": {
                "post": { "operationId": "addItem", "requestBody": body("application/json", item.clone()),
                          "parameters": [query("dry", &json!({ "type": "boolean" }), json!({}))] },
                "put": { "operationId": "setItems", "requestBody": body("application/json", json!({ "type": "array", "items": item })) },
                "delete": { "operationId": "dropItems", "parameters": [query("all", &json!({ "type": "boolean" }), json!({}))] },
            },
            "/orders": { "post": { "operationId": "order", "requestBody": { "required": true, "content": { "application/x-www-form-urlencoded": {
                "schema": { "type": "object", "required": ["sku"], "properties": { "sku": { "type": "string" }, "notes": texts, "address": { "type": "object" } } },
                "encoding": { "address": { "style": "deepObject" } },
            } } } } },
            "/photos": { "post": { "operationId": "photo", "requestBody": { "required": true, "content": { "multipart/form-data": { "schema": {
                "type": "object", "required": ["photo"], "properties": { "photo": { "type": "string", "format": "binary" }, "caption": { "type": "string" }, "tags": texts },
            } } } } } },
            "/raw": { "put": { "operationId": "raw", "requestBody": body("application/octet-stream", json!({})) } },
            "/note": { "put": { "operationId": "note", "requestBody": body("text/plain", text.clone()) } },
            "/ping": { "post": { "operationId": "ping" } },
            "/upload": { "post": { "operationId": "upload", "requestBody": body("multipart/form-data", json!({ "type": "object" })) } },
            "/away": { "get": { "operationId": "away", "servers": [{ "url": "https://other.example" }] } },
        }
    })
}

struct Spec {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Spec {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.yaml");
        std::fs::write(&path, text).unwrap();
        Self { path, _folder: folder }
    }

    fn entry(&self, openapi: Value, more: Value) -> Value {
        let mut entry = json!({ "openapi": { "spec": self.path } });
        entry["openapi"].as_object_mut().unwrap().extend(openapi.as_object().unwrap().clone());
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "shop": entry })
    }

    fn load(&self, openapi: Value, more: Value) -> Result<Catalog, Vec<LoadError>> {
        build(self.entry(openapi, more))
    }

    /// What is wrong, with its place.
    fn refused(&self, openapi: Value, more: Value) -> Vec<String> {
        let told = |error: LoadError| {
            let text = format!(
                "{}: {}{}",
                error.path.join("."),
                error.message,
                error.fix.map(|fix| format!(" ({fix})")).unwrap_or_default()
            );
            text.replace(self.path.to_str().unwrap(), "SPEC")
        };
        self.load(openapi, more).unwrap_err().into_iter().map(told).collect()
    }
}

fn shop() -> Spec {
    Spec::new(&document().to_string())
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog.iter().map(|tool| &*tool.spec().name).collect()
}

#[test]
fn the_operations_of_a_document_are_tools_and_what_is_left_out_is_said() {
    let spec = shop();
    let catalog = spec.load(json!({}), json!({ "timeout": "7s", "at_once": 3 })).unwrap();
    let all = [
        "shop__addItem",
        "shop__dropItems",
        "shop__findItems",
        "shop__note",
        "shop__order",
        "shop__photo",
        "shop__ping",
        "shop__raw",
        "shop__setItems",
    ];
    assert_eq!(names(&catalog), all);
    let effect = |name: &str| catalog.tool(&format!("shop__{name}")).unwrap().spec().effect;
    assert_eq!((effect("findItems"), effect("setItems")), (Effect::Read, Effect::Idempotent));
    assert_eq!((effect("dropItems"), effect("addItem")), (Effect::Idempotent, Effect::Write));
    let find = catalog.tool("shop__findItems").unwrap();
    assert_eq!((find.kind_name(), find.document()), ("openapi", Some(("shop", "findItems"))));
    assert_eq!((find.spec().timeout.as_secs(), find.at_once()), (7, Some(3)));
    assert!(find.spec().definition.contains("\"description\":\"Find items\""));
    let left_out: Vec<String> = catalog.remarks().iter().map(|remark| remark.unmapped.to_string()).collect();
    assert_eq!(
        left_out,
        [
            "upload (#/paths/~1upload/post): not a tool: the body is a form without named members of its own",
            "away (#/paths/~1away/get): not a tool: it is on a server of its own (`servers`)",
        ]
    );
}

#[test]
fn operations_are_chosen_renamed_and_set_one_by_one() {
    let spec = shop();
    let own = json!({ "operations": { "addItem": { "effect": "idempotent", "timeout": "2s", "description": "Adds it", "on_disconnect": "stop", "at_once": 1, "result": "1KiB" } } });
    let more = json!({ "only": ["*Item", "find*", "up*"], "except": ["findItems"], "prefix": "s_", "effect": "read" });
    let catalog = spec.load(own, more).unwrap();
    assert_eq!(names(&catalog), ["s_addItem"]);
    assert_eq!(catalog.remarks().len(), 1, "of the chosen ones only");
    let tool = catalog.tool("s_addItem").unwrap();
    let spec_of = tool.spec();
    assert_eq!((spec_of.effect, spec_of.on_disconnect), (Effect::Idempotent, OnDisconnect::Stop));
    assert_eq!((spec_of.timeout.as_secs(), tool.at_once(), tool.result_limit()), (2, Some(1), 1024));
    assert!(spec_of.definition.contains("Adds it"));
    let bare = spec.load(json!({}), json!({ "only": ["ping"], "prefix": "" })).unwrap();
    assert_eq!(names(&bare), ["ping"]);
}

/// The parts of a request's body, as a server finds them: what names each, and what is in it.
fn parts(seen: &Seen) -> Vec<(String, String)> {
    let kind = seen.headers["content-type"].to_str().unwrap();
    let mark = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let all = seen.body.strip_prefix(&format!("--{mark}\r\n")).unwrap();
    let all = all.strip_suffix(&format!("\r\n--{mark}--\r\n")).unwrap();
    let part = |part: &str| {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        let head = head.split("\r\n").next().unwrap();
        (head.strip_prefix("content-disposition: form-data; ").unwrap().to_owned(), body.to_owned())
    };
    all.split(&format!("\r\n--{mark}\r\n")).map(part).collect()
}

#[tokio::test]
async fn a_server_gets_what_the_document_says() {
    let server = Server::start(|_, _| response(200, "ok")).await;
    let spec = shop();
    let credentials = json!({
        "base_url": server.url("/v1/"),
        "headers": { "x-team": "blue" },
        "auth": { "header": { "name": "x-key", "value": "{s3cret}" } },
    });
    let catalog = spec.load(credentials, json!({})).unwrap();
    let calls = [
        (
            "findItems",
            json!({ "ids": ["a,b", "c"], "tags": ["x", "y"], "in": ["1", "2,3"], "pipe": ["p", "q"], "price": { "from": 1, "to": 2 }, "size": { "from": 3 }, "q": "a&b", "X-Fields": ["n", "m"], "sid": "a; b=\"c\"", "recent": ["1", "2,3"] }),
        ),
        ("addItem", json!({ "name": "pen", "size": 1.5, "dry": true })),
        ("setItems", json!({ "body": [{ "name": "pen" }] })),
        ("dropItems", json!({ "all": false })),
        (
            "order",
            json!({ "sku": "a b", "notes": ["x", "y&z"], "address": { "city": "Lima", "lines": ["1"] } }),
        ),
        ("ping", json!({})),
        ("raw", json!({ "body": { "base64": "aGk=" } })),
        ("note", json!({ "body": "a\nb" })),
        (
            "photo",
            json!({ "photo": { "text": "p", "filename": "a.txt" }, "caption": "c", "tags": ["x", "y"] }),
        ),
    ];
    for (name, arguments) in calls {
        let outcome = run(catalog.tool(&format!("shop__{name}")).unwrap(), arguments).await;
        assert_eq!(outcome.kind, OutcomeKind::Ok, "{name}: {outcome:?}");
    }
    let seen = server.seen();
    let told: Vec<String> =
        seen.iter().map(|seen| format!("{} {} {}", seen.method, seen.target, seen.body)).collect();
    assert_eq!(
        told[..told.len() - 1],
        [
            "GET /v1/items/a%2Cb,c?tags=x&tags=y&in=1,2%2C3&pipe=p%7Cq&price%5Bfrom%5D=1&price%5Bto%5D=2&from=3&q=a%26b ",
            "POST /v1/items?dry=true {\"name\":\"pen\",\"size\":1.5}",
            "PUT /v1/items [{\"name\":\"pen\"}]",
            "DELETE /v1/items?all=false ",
            "POST /v1/orders sku=a%20b&notes=x&notes=y%26z&address%5Bcity%5D=Lima&address%5Blines%5D%5B0%5D=1",
            "POST /v1/ping ",
            "PUT /v1/raw hi",
            "PUT /v1/note a\nb",
        ]
    );
    assert_eq!(seen[0].headers["cookie"], "sid=a%3B%20b%3D%22c%22; recent=1,2%2C3");
    assert_eq!(seen[6].headers["content-type"], "application/octet-stream");
    assert_eq!(seen[7].headers["content-type"], "text/plain");
    assert_eq!(
        parts(&seen[8]),
        [
            ("name=\"photo\"; filename=\"a.txt\"".to_owned(), "p".to_owned()),
            ("name=\"caption\"".into(), "c".into()),
            ("name=\"tags\"".into(), "x".into()),
            ("name=\"tags\"".into(), "y".into()),
        ]
    );
    for request in &seen {
        // A brace in a secret is no place.
        assert_eq!(request.headers["x-key"], "{s3cret}");
        assert_eq!(request.headers["x-team"], "blue");
    }
    assert_eq!(seen[0].headers["x-fields"], "n,m");
    assert_eq!(seen[4].headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(seen[5].headers.get("content-type"), None);
}

#[tokio::test]
async fn no_hostile_value_or_name_becomes_more_than_a_value() {
    let server = Server::start(|_, _| response(200, "ok")).await;
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = canary.local_addr().unwrap();
    let spec = shop();
    let settings = json!({ "base_url": server.url("/v1"), "headers": { "x-key": "k" } });
    let catalog = spec.load(settings, json!({})).unwrap();
    let towards =
        [format!("http://{at}/"), format!("//{at}/"), format!("@{at}"), format!("x\r\nHost: {at}\r\n")];
    let (mut sent, mut refused) = (0, 0);
    for value in HOSTILE.iter().map(|value| (*value).to_owned()).chain(towards) {
        for (name, arguments) in [
            ("findItems", json!({ "ids": [value, "b"] })),
            (
                "findItems",
                json!({ "ids": ["a"], "tags": [value], "in": [value, value], "pipe": [value], "q": value }),
            ),
            ("findItems", json!({ "ids": ["a"], "price": { &value: 1 } })),
            ("findItems", json!({ "ids": ["a"], "size": { &value: 1 } })),
            ("findItems", json!({ "ids": ["a"], "X-Fields": [value] })),
            ("order", json!({ "sku": value, "notes": [value], "address": { &value: value } })),
            ("findItems", json!({ "ids": ["a"], "sid": value, "recent": [value, value] })),
            ("photo", json!({ "photo": { "text": value }, "caption": value, "tags": [value] })),
            ("photo", json!({ "photo": { "text": "", "filename": value } })),
            ("note", json!({ "body": value })),
            ("raw", json!({ "body": { "text": value } })),
        ] {
            let outcome = run(catalog.tool(&format!("shop__{name}")).unwrap(), arguments.clone()).await;
            let seen = server.taken();
            if outcome.kind != OutcomeKind::Ok {
                assert_eq!((outcome.kind, seen.len()), (OutcomeKind::InvalidArguments, 0), "{arguments}");
                refused += 1;
                continue;
            }
            sent += 1;
            assert_eq!(seen.len(), 1, "{arguments}");
            let seen = seen.last().unwrap();
            assert_eq!(seen.headers["x-key"], "k");
            let ours = 11 + usize::from(seen.headers.contains_key("connection"));
            assert!(seen.headers.len() <= ours && !seen.headers.contains_key("x-evil"), "{:?}", seen.headers);
            if let Some(cookies) = seen.headers.get("cookie") {
                let all =
                    cookies.to_str().unwrap().split("; ").map(|cookie| cookie.split_once('=').unwrap().0);
                assert_eq!(all.collect::<Vec<_>>(), ["sid", "recent"], "{arguments}");
            }
            match name {
                "photo" => {
                    let parts = parts(seen);
                    let named = |(name, _): &(String, String)| name.split("; ").next().unwrap().to_owned();
                    let names: Vec<String> = parts.iter().map(named).collect();
                    let wanted = ["name=\"photo\"", "name=\"caption\"", "name=\"tags\""];
                    assert_eq!(names, wanted[..names.len()], "{arguments}");
                    assert!(parts.iter().all(|(_, body)| body.is_empty() || *body == value), "{parts:?}");
                    continue;
                }
                "note" | "raw" => {
                    assert_eq!(seen.body, value);
                    continue;
                }
                _ => {}
            }
            let url = url::Url::parse(&format!("http://h{}", seen.target)).unwrap();
            let segments = url.path_segments().unwrap().count();
            assert_eq!(segments, if name == "order" { 2 } else { 3 }, "{arguments}: {}", seen.target);
            let text =
                if name == "order" { seen.body.clone() } else { url.query().unwrap_or_default().to_owned() };
            let known = |name: &str| ["tags", "in", "pipe", "q", "sku", "notes"].contains(&name);
            let mut names = url::form_urlencoded::parse(text.as_bytes()).map(|(name, _)| name.into_owned());
            let inside = |name: &str| ["price", "address"].iter().any(|of| *name == format!("{of}[{value}]"));
            let spread = arguments.get("size").is_some();
            assert!(
                names.all(|name| known(&name) || inside(&name) || (spread && name == value)),
                "{arguments}: {text}"
            );
        }
    }
    assert!(sent > 700 && refused > 100, "{sent} {refused}");
    let reached = tokio::time::timeout(std::time::Duration::from_millis(50), canary.accept()).await;
    assert!(reached.is_err(), "the canary was reached");
}

#[tokio::test]
async fn each_way_to_prove_oneself_is_sent_and_none_can_be_overwritten() {
    let server = Server::start(|_, _| response(200, "ok")).await;
    let spec = shop();
    for (auth, header, value, query) in [
        (json!({ "bearer": "t" }), "authorization", "Bearer t", ""),
        (json!({ "basic": { "user": "u", "password": "p" } }), "authorization", "Basic dTpw", ""),
        (json!({ "header": { "name": "X-Api", "value": "k" } }), "x-api", "k", ""),
        (json!({ "query": { "name": "q", "value": "k&x=1" } }), "x-request-id", "request-1", "?q=k%26x%3D1"),
    ] {
        let only = json!({ "base_url": server.url(""), "auth": auth, "headers": { "x-key": "1" } });
        let catalog = spec.load(only, json!({ "only": ["findItems"] })).unwrap();
        let find = catalog.tool("shop__findItems").unwrap();
        assert_eq!(run(find, json!({ "ids": ["a"] })).await.kind, OutcomeKind::Ok);
        let seen = server.seen().pop().unwrap();
        assert_eq!(seen.headers[header], value, "{auth}");
        assert_eq!(seen.target, format!("/items/a{query}"));
        if !query.is_empty() {
            // Neither as an argument of that name nor as a member of one that is spread over the query.
            for arguments in [json!({ "ids": ["a"], "q": "x" }), json!({ "ids": ["a"], "size": { "q": 1 } })]
            {
                assert_eq!(run(find, arguments).await.kind, OutcomeKind::InvalidArguments);
            }
        }
        assert!(!format!("{catalog:?}").contains("k&x"), "a secret in debug output");
    }
}

#[test]
fn mistakes_name_the_file_and_the_place_in_it() {
    let spec = shop();
    let cases = [
        (json!({}), json!({ "only": ["findItem", "ping"] }), "only.0: SPEC has no operation `findItem`"),
        (
            json!({}),
            json!({ "only": ["upload"] }),
            "only.0: `upload` cannot be a tool: SPEC: upload (#/paths/~1upload/post): not a tool: ",
        ),
        (
            json!({ "operations": { "pong": {} } }),
            json!({}),
            "openapi.operations.pong: SPEC has no operation `pong` (did you mean `ping`?)",
        ),
        (
            json!({ "operations": { "ping": {} } }),
            json!({ "except": ["ping"] }),
            "openapi.operations.ping: `ping` is not offered: ",
        ),
        (
            json!({ "operations": { "ping": { "at_once": 0 } } }),
            json!({}),
            "openapi.operations.ping.at_once: ",
        ),
        (json!({ "auth": {} }), json!({}), "openapi.auth: nothing says how"),
        (
            json!({ "auth": { "bearer": "x", "query": { "name": "k", "value": "v" } } }),
            json!({}),
            "openapi.auth.query: `bearer` and `query` exclude",
        ),
        (
            json!({ "auth": { "bearer": { "env": "FANFOLD_TEST_NO_SUCH" } } }),
            json!({}),
            "openapi.auth.bearer: the environment variable",
        ),
        (
            json!({ "auth": { "header": { "name": "host", "value": "x" } } }),
            json!({}),
            "openapi.auth: `host` is set already",
        ),
        (
            json!({ "base_url": "https://10.0.0.1?x=1" }),
            json!({}),
            "openapi.base_url: a base URL has neither",
        ),
        (json!({ "base_url": "ftp://x" }), json!({}), "openapi.base_url: the scheme `ftp`"),
        (json!({ "headers": { "host": "x" } }), json!({}), "openapi.headers.host: `host` is set by fanfold"),
        (json!({ "allow_cidrs": ["x"] }), json!({}), "openapi.allow_cidrs.0: `x` is not a network"),
        (json!({}), json!({ "description": "x" }), "description: a document says"),
        (json!({}), json!({ "required": true }), "required: `required` belongs to a server"),
        (json!({}), json!({ "at_once": 0 }), "at_once: with 0"),
        (json!({}), json!({ "prefix": "a b" }), "prefix: names of tools cannot begin with"),
        (
            json!({}),
            json!({ "mcp": { "url": "https://x" } }),
            "openapi: a tool has either `mcp` or `openapi`",
        ),
        (
            json!({ "spec": "/nonexistent.yaml" }),
            json!({}),
            "openapi.spec: /nonexistent.yaml cannot be read: ",
        ),
    ];
    for (openapi, more, wanted) in cases {
        let refused = spec.refused(openapi, more);
        assert!(refused.iter().any(|message| message.starts_with(wanted)), "{wanted}\n{refused:#?}");
    }
    for (text, wanted) in [
        ("openapi: 3.0.0\npaths: [\n", "openapi.spec: SPEC cannot be read: "),
        ("swagger: '2.0'", "openapi.spec: SPEC: #/openapi: this is a Swagger 2.0 document"),
        ("{\"openapi\": \"3.1.0\"]", "line 1 column"),
        ("openapi: 3.1.0", "openapi: SPEC does not say where the API is (#/servers/0/url)"),
        (
            "{openapi: 3.1.0, servers: [{url: 'https://x.example'}]}",
            "openapi.spec: SPEC: #/paths: the document has no `paths`",
        ),
        (
            "{openapi: 3.1.0, servers: [{url: 'https://x.example'}], paths: {}}",
            "openapi.spec: no operation of SPEC is a tool",
        ),
    ] {
        let refused = Spec::new(text).refused(json!({}), json!({}));
        assert!(refused.iter().any(|message| message.contains(wanted)), "{wanted}\n{refused:#?}");
    }
}

#[test]
fn a_name_somebody_else_has_is_refused_with_both_owners() {
    let spec = shop();
    let mut tools = spec.entry(json!({}), json!({ "only": ["ping"], "prefix": "" }));
    let other = spec.entry(json!({}), json!({ "only": ["ping"], "prefix": "" }));
    tools["again"] = other["shop"].clone();
    let refused = build(tools.clone()).unwrap_err();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(
        (refused[0].tool.as_str(), refused[0].message.as_str()),
        (
            "shop",
            "the name `ping` belongs to `ping` of the document `again`; `ping` of the document `shop` cannot have it, too"
        )
    );
    tools.as_object_mut().unwrap().remove("again");
    tools["ping"] = json!({ "http": { "url": "https://x.example" } });
    let refused = build(tools).unwrap_err();
    assert!(
        refused[0].message.starts_with("the name `ping` belongs to the tool of the configuration; "),
        "{refused:?}"
    );
}
