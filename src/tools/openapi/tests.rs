//! Documents and the tools they become.

use super::*;

fn base() -> Http {
    let settings: Settings = serde_json::from_value(json!({
        "http": { "url": "https://billing.example/api/", "headers": { "x-team": "blue" } }
    }))
    .unwrap();
    settings.http.unwrap()
}

fn read(version: &str, paths: Value) -> Operations {
    let document = json!({
        "openapi": version,
        "paths": paths,
        "components": {
            "parameters": { "Page": { "name": "page", "in": "query", "schema": { "type": "integer" } } },
            "schemas": {
                "Tree": { "type": "object", "properties": { "name": { "type": "string" }, "children": { "type": "array", "items": { "$ref": "#/components/schemas/Tree" } } } },
                "Money": { "type": "object", "properties": { "amount": { "type": "number", "minimum": 0, "exclusiveMinimum": true }, "note": { "type": "string", "nullable": true } }, "required": ["amount"] },
                "Base": { "type": "object", "properties": { "id": { "type": "string", "readOnly": true }, "kind": { "type": "string" } }, "required": ["id", "kind"] },
            }
        }
    });
    operations(&document, &base(), |_| true).unwrap()
}

fn only(found: &Operations) -> &Settings {
    assert_eq!(found.mapped.len(), 1, "{:?}", found.unmapped);
    found.mapped.values().next().unwrap()
}

fn reasons(found: &Operations) -> Vec<String> {
    found.unmapped.iter().map(|u| format!("{}: {}", u.operation, u.why)).collect()
}

#[test]
fn what_refers_to_nothing_is_left_out_by_name() {
    let mut found = read(
        "3.1.0",
        json!({
            "/d": { "$ref": "other.yaml#/d" },
            "/g": { "$ref": "#/components/pathItems/Missing" },
            "/b": { "post": { "operationId": "b", "requestBody": { "$ref": "other.yaml#/x" } } },
            "/p": { "get": { "operationId": "p", "parameters": [{ "$ref": "#/components/parameters/None" }] } },
        }),
    );
    found.unmapped.sort_by(|a, b| a.operation.cmp(&b.operation));
    assert_eq!(
        reasons(&found),
        [
            "/d: `other.yaml#/d` is in another document",
            "/g: `#/components/pathItems/Missing` is not in the document",
            "b: its body `other.yaml#/x` is in another document",
            "p: its parameter `#/components/parameters/None` is not in the document",
        ]
    );
    assert!(found.mapped.is_empty());
}

#[test]
fn a_get_becomes_a_reading_tool() {
    let found = read(
        "3.1.0",
        json!({ "/invoices/{id}": {
            "parameters": [{ "name": "id", "in": "path", "schema": { "type": "string" }, "description": "Its number" }],
            "get": {
                "operationId": "getInvoice", "summary": "One invoice", "description": "With its lines.",
                "parameters": [{ "$ref": "#/components/parameters/Page" }, { "name": "X-Trace", "in": "header", "schema": { "type": "string" } }]
            }
        } }),
    );
    assert!(found.mapped.contains_key("getInvoice"));
    let tool = only(&found);
    let http = tool.http.as_ref().unwrap();
    assert_eq!(http.url, "https://billing.example/api/invoices/{id}");
    assert_eq!(http.headers["X-Trace"], Secret::Text("{X-Trace}".into()));
    assert_eq!(http.headers["x-team"], Secret::Text("blue".into()));
    assert_eq!(tool.effect, Some(Effect::Read));
    assert_eq!(tool.description.as_deref(), Some("One invoice\n\nWith its lines."));
    let parameters = tool.parameters.as_ref().unwrap();
    assert_eq!(parameters["required"], json!(["id"]));
    assert_eq!(parameters["properties"]["id"], json!({ "type": "string", "description": "Its number" }));
}

#[test]
fn the_members_of_a_body_become_arguments_and_old_words_modern_ones() {
    let body = json!({ "required": true, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Money" } } } });
    let found = read(
        "3.0.3",
        json!({ "/pay": { "post": {
        "operationId": "pay.now", "requestBody": body,
        "parameters": [{ "name": "dry", "in": "query", "schema": { "type": "boolean" } }]
    } } }),
    );
    let tool = &found.mapped["pay.now"];
    assert_eq!(tool.http.as_ref().unwrap().url, "https://billing.example/api/pay?dry={dry}");
    assert_eq!(tool.effect, Some(Effect::Write));
    let parameters = tool.parameters.as_ref().unwrap();
    assert_eq!(parameters["properties"]["amount"], json!({ "type": "number", "exclusiveMinimum": 0 }));
    assert_eq!(parameters["properties"]["note"], json!({ "type": ["string", "null"] }));
    assert_eq!(parameters["required"], json!(["amount"]));
}

#[test]
fn parts_are_put_together_and_what_only_replies_have_is_left_out() {
    let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Base" }, { "type": "object", "properties": { "size": { "type": "integer" } } }] });
    let found = read(
        "3.1.0",
        json!({ "/x": { "put": {
        "operationId": "put", "requestBody": { "required": true, "content": { "application/json": { "schema": schema } } }
    } } }),
    );
    let tool = only(&found);
    assert_eq!(tool.effect, Some(Effect::Idempotent));
    let parameters = tool.parameters.as_ref().unwrap();
    let names: Vec<&str> = parameters["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((names, &parameters["required"]), (vec!["kind", "size"], &json!(["kind"])));
}

#[test]
fn a_schema_that_refers_to_itself_keeps_its_reference_and_is_a_schema() {
    let schema =
        json!({ "type": "object", "properties": { "tree": { "$ref": "#/components/schemas/Tree" } } });
    let found = read(
        "3.1.0",
        json!({ "/t": { "post": {
        "operationId": "plant", "requestBody": { "content": { "application/json": { "schema": schema } } }
    } } }),
    );
    let parameters = only(&found).parameters.clone().unwrap();
    assert_eq!(
        parameters.pointer("/$defs/Tree/properties/children/items"),
        Some(&json!({ "$ref": "#/$defs/Tree" }))
    );
    let validator = jsonschema::validator_for(&parameters).unwrap();
    assert!(validator.is_valid(&json!({ "tree": { "name": "a", "children": [{ "name": "b" }] } })));
    assert!(!validator.is_valid(&json!({ "tree": { "children": [{ "name": 7 }] } })));
}

#[test]
fn what_cannot_be_told_is_listed_with_its_reason() {
    let text = json!({ "type": "string" });
    let found = read(
        "3.1.0",
        json!({
            "/a": { "post": { "operationId": "upload", "requestBody": { "required": true, "content": { "multipart/form-data": {} } } } },
            "/b": { "get": { "operationId": "cookie", "parameters": [{ "name": "c d", "in": "cookie", "required": true, "schema": text }] } },
            "/c/{id}": { "get": { "operationId": "undescribed" } },
            "/d": { "post": { "operationId": "list", "requestBody": { "required": true, "content": { "application/json": { "schema": { "type": "array" } } } } } },
            "/e": { "get": { "operationId": "elsewhere", "parameters": [{ "name": "x", "in": "query", "required": true, "schema": { "$ref": "other.yaml#/X" } }] } },
            "/f": { "get": { "operationId": "deep", "parameters": [{ "name": "x", "in": "query", "required": true, "style": "deepObject", "schema": { "type": "object" } }] } },
            "/g": { "get": { "operationId": "partly", "parameters": [{ "name": "x", "in": "cookie", "schema": { "type": "array" } }] }, "options": {} },
            "/h": { "get": { "operationId": "partly" } },
            "/i": { "post": { "operationId": "picture", "requestBody": { "required": true, "content": { "image/*": {} } } } },
            "/j": { "post": { "operationId": "related", "requestBody": { "required": true, "content": { "multipart/related": {} } } } },
        }),
    );
    assert_eq!(found.mapped.keys().collect::<Vec<_>>(), ["deep", "list", "partly"]);
    assert_eq!(
        reasons(&found),
        [
            "upload: the body is a form without named members of its own",
            "cookie: `c d` is not a name that can stand in a URL",
            "undescribed: the path has a place `{id}` that no parameter describes",
            "elsewhere: `other.yaml#/X` is in another document",
            "partly: `x` has the style `form`, which is not known in the cookie",
            "OPTIONS /g: tools do not use this method",
            "partly: another operation has the name `partly` already",
            "picture: the body is image/*: no type that can be sent",
            "related: the body is multipart/related: no type that can be sent",
        ]
    );
    assert!(found.unmapped[4].partly && !found.unmapped[0].partly);
}

#[test]
fn an_operation_without_an_id_is_named_after_its_method_and_path() {
    let found = read(
        "3.1.0",
        json!({ "/users/{user-id}/keys": { "delete": {
        "parameters": [{ "name": "user-id", "in": "path", "schema": { "type": "string" } }]
    } } }),
    );
    assert_eq!(found.mapped.keys().collect::<Vec<_>>(), ["delete_users_user-id_keys"]);
}

#[test]
fn other_documents_are_refused_with_the_reason() {
    let refused = |document: Value| operations(&document, &base(), |_| true).unwrap_err().to_string();
    assert!(refused(json!({ "swagger": "2.0" })).contains("Swagger 2.0"));
    assert!(refused(json!({ "openapi": "4.0.0", "paths": {} })).contains("4.0.0"));
    assert!(refused(json!({})).contains("not an OpenAPI document"));
    assert!(refused(json!({ "openapi": "3.1.0" })).contains("paths"));
}

#[test]
fn two_schemas_of_one_last_name_stay_two_and_words_beside_a_reference_are_kept() {
    let found = operations(
        &json!({
            "openapi": "3.1.0",
            "paths": { "/a": { "post": { "operationId": "a", "requestBody": { "required": true, "content": { "application/json": { "schema": {
                "type": "object", "properties": {
                    "x": { "$ref": "#/components/schemas/Node" },
                    "y": { "$ref": "#/components/x%2Dother/Node", "description": "the other" },
                    "z": { "$ref": "#/components/schemas/Short", "maxLength": 3 },
                    "w": { "$ref": "#/components/schemas/Short", "description": "a word" },
                } } } } } } } },
            "components": {
                "schemas": { "Node": { "type": "object", "properties": { "next": { "$ref": "#/components/schemas/Node" } } }, "Short": { "type": "string" } },
                "x-other": { "Node": { "type": "array", "items": { "$ref": "#/components/x-other/Node" } } },
            },
        }),
        &base(),
        |_| true,
    )
    .unwrap();
    let parameters = only(&found).parameters.clone().unwrap();
    let properties = &parameters["properties"];
    assert_eq!(properties["x"]["properties"]["next"], json!({ "$ref": "#/$defs/Node" }));
    assert_eq!(
        properties["y"],
        json!({ "type": "array", "items": { "$ref": "#/$defs/Node_2" }, "description": "the other" })
    );
    assert_eq!(properties["z"], json!({ "maxLength": 3, "allOf": [{ "type": "string" }] }));
    assert_eq!(properties["w"], json!({ "type": "string", "description": "a word" }));
    assert_eq!(parameters["$defs"]["Node"]["type"], "object");
    assert_eq!(parameters["$defs"]["Node_2"]["type"], "array");
}

#[test]
fn a_schema_that_would_become_too_large_keeps_its_references() {
    let mut schemas = serde_json::Map::new();
    for n in 0..40 {
        let inner = format!("#/components/schemas/S{}", n + 1);
        schemas.insert(
            format!("S{n}"),
            json!({ "type": "object", "properties": { "a": { "$ref": inner }, "b": { "$ref": inner } } }),
        );
    }
    schemas.insert("S40".into(), json!({ "type": "string" }));
    let body = json!({ "required": true, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/S0" } } } });
    let document = json!({ "openapi": "3.1.0", "paths": { "/a": { "post": { "operationId": "a", "requestBody": body } } }, "components": { "schemas": schemas } });
    let found = operations(&document, &base(), |_| true).unwrap();
    let parameters = only(&found).parameters.clone().unwrap();
    assert_eq!(parameters["properties"]["a"], json!({ "$ref": "#/$defs/S1" }));
    assert_eq!(parameters["$defs"].as_object().unwrap().len(), 40);
    assert!(crate::tools::arguments::Schema::compile(&parameters).is_ok());
}

#[test]
fn a_body_that_is_no_object_of_named_members_is_one_argument() {
    let of = |schema: Value, required: bool| {
        let parameters = json!([{ "name": "id", "in": "query", "schema": { "type": "string" } }]);
        let body = json!({ "required": required, "content": { "application/json": { "schema": schema } } });
        let found = read(
            "3.1.0",
            json!({ "/a": { "post": { "operationId": "a", "requestBody": body, "parameters": parameters } } }),
        );
        let tool = only(&found);
        let names = tool.parameters.as_ref().unwrap()["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>();
        (names.join(" "), tool.http.as_ref().unwrap().body_argument.clone())
    };
    let whole = || ("id body".to_owned(), Some("body".to_owned()));
    let named = json!({ "type": "object", "properties": { "name": {} }, "required": ["name"] });
    assert_eq!(of(named.clone(), true), ("id name".into(), None));
    // Given or not given as a whole.
    assert_eq!(of(named, false), whole());
    assert_eq!(of(json!({ "type": "array" }), true), whole());
    assert_eq!(
        of(json!({ "type": "object", "properties": { "a": {} }, "additionalProperties": true }), true),
        whole()
    );
    assert_eq!(of(json!({ "oneOf": [{ "type": "object" }] }), true), whole());
    // A parameter has that name.
    assert_eq!(of(json!({ "type": "object", "properties": { "id": {} } }), true), whole());
}

#[test]
fn cookies_are_arguments_of_one_header() {
    let read_with = |headers: Value| {
        let mut base = base();
        base.headers = serde_json::from_value(headers).unwrap();
        let text = json!({ "type": "string" });
        let cookie = |name: &str, required: bool| json!({ "name": name, "in": "cookie", "required": required, "schema": text });
        let document = json!({ "openapi": "3.1.0", "paths": { "/a": { "get": {
            "operationId": "op", "parameters": [cookie("sid", true), cookie("theme", false)],
        } } } });
        operations(&document, &base, |_| true).unwrap()
    };
    let found = read_with(json!({}));
    let tool = only(&found);
    assert_eq!(
        tool.http.as_ref().unwrap().headers["cookie"],
        Secret::Text("sid={sid}; theme={theme}".into())
    );
    assert_eq!(tool.parameters.as_ref().unwrap()["required"], json!(["sid"]));
    // Whoever configures the header says all of it.
    let found = read_with(json!({ "Cookie": "sid=1" }));
    let tool = only(&found);
    assert_eq!(tool.http.as_ref().unwrap().headers.len(), 1);
    assert_eq!(tool.parameters.as_ref().unwrap()["properties"], json!({}));
}

#[test]
fn files_are_told_by_their_text_or_their_bytes() {
    let file = json!({ "type": "string", "format": "binary", "description": "The picture" });
    let body = |kind: &str, media: Value| json!({ "required": true, "content": { kind: media } });
    let found = read(
        "3.0.3",
        json!({
            "/photos": { "post": { "operationId": "photo", "requestBody": body("multipart/form-data", json!({
                "schema": { "type": "object", "required": ["photo"], "properties": {
                    "photo": file, "more": { "type": "array", "items": file }, "caption": { "type": "string" },
                    "rows": { "type": "string" }, "meta": { "type": "object" }, "key": { "type": "string", "format": "byte" },
                } },
                "encoding": { "photo": { "contentType": "image/png" }, "more": { "contentType": "image/png, image/jpeg" },
                    "rows": { "contentType": "text/csv" }, "meta": { "contentType": "application/json" } },
            })) } },
            "/raw": { "put": { "operationId": "raw", "requestBody": body("application/pdf", json!({})) } },
            "/note": { "put": { "operationId": "note", "requestBody": body("text/markdown", json!({ "schema": { "type": "string", "maxLength": 9 } })) } },
            "/patch": { "patch": { "operationId": "patch", "requestBody": body("application/merge-patch+json", json!({ "schema": { "type": "object", "properties": { "a": {} } } })) } },
        }),
    );
    assert!(found.unmapped.is_empty(), "{:?}", found.unmapped);
    let of = |name: &str| {
        let tool = &found.mapped[name];
        let http = tool.http.as_ref().unwrap();
        (
            http.body,
            http.files.clone(),
            http.headers.get("content-type").cloned(),
            tool.parameters.clone().unwrap(),
        )
    };
    let (kind, files, content_type, parameters) = of("photo");
    let types = [("more", "application/octet-stream"), ("photo", "image/png"), ("rows", "text/csv")];
    assert_eq!((kind, content_type), (Body::Multipart, None));
    assert_eq!(files, types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).into());
    let photo = &parameters["properties"]["photo"];
    assert_eq!(photo["description"], "The picture: either its `text` or its `base64`");
    assert_eq!(parameters["properties"]["more"]["items"], *photo);
    assert_eq!(parameters["properties"]["caption"], json!({ "type": "string" }));
    let text = |kind: &str| Some(Secret::Text(kind.into()));
    let (kind, files, content_type, parameters) = of("raw");
    assert_eq!((kind, content_type), (Body::Raw, text("application/pdf")));
    assert_eq!(files, [("body".to_owned(), "application/pdf".to_owned())].into());
    assert!(
        parameters["properties"]["body"]["properties"].get("filename").is_none(),
        "there is no place for it"
    );
    let (kind, files, content_type, parameters) = of("note");
    assert_eq!((kind, files.len(), content_type), (Body::Raw, 0, text("text/markdown")));
    assert_eq!(parameters["properties"]["body"]["maxLength"], 9);
    let (kind, _, content_type, _) = of("patch");
    assert_eq!((kind, content_type), (Body::Json, text("application/merge-patch+json")));
}
