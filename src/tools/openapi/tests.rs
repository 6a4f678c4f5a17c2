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
    operations(&document, &base()).unwrap()
}

fn only(found: &Operations) -> &Settings {
    assert_eq!(found.mapped.len(), 1, "{:?}", found.unmapped);
    found.mapped.values().next().unwrap()
}

fn reasons(found: &Operations) -> Vec<String> {
    found.unmapped.iter().map(|u| format!("{}: {}", u.operation, u.why)).collect()
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
    let tool = &found.mapped["pay_now"];
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
            "/b": { "get": { "operationId": "cookie", "parameters": [{ "name": "c", "in": "cookie", "required": true, "schema": text }] } },
            "/c/{id}": { "get": { "operationId": "undescribed" } },
            "/d": { "post": { "operationId": "list", "requestBody": { "required": true, "content": { "application/json": { "schema": { "type": "array" } } } } } },
            "/e": { "get": { "operationId": "elsewhere", "parameters": [{ "name": "x", "in": "query", "required": true, "schema": { "$ref": "other.yaml#/X" } }] } },
            "/f": { "get": { "operationId": "deep", "parameters": [{ "name": "x", "in": "query", "required": true, "style": "deepObject", "schema": { "type": "object" } }] } },
            "/g": { "get": { "operationId": "partly", "parameters": [{ "name": "x", "in": "cookie", "schema": text }] }, "options": {} },
            "/h": { "get": { "operationId": "partly" } },
        }),
    );
    assert_eq!(found.mapped.keys().collect::<Vec<_>>(), ["partly"]);
    assert_eq!(
        reasons(&found),
        [
            "upload: the body is multipart/form-data, not JSON",
            "cookie: `c` is a cookie",
            "undescribed: the path has a place `{id}` that no parameter describes",
            "list: the body is not an object with named members",
            "elsewhere: `other.yaml#/X` is in another document",
            "deep: `x` has the style `deepObject`",
            "partly: `x` is a cookie",
            "OPTIONS /g: tools do not use this method",
            "partly: another operation has the name `partly` already",
        ]
    );
    assert!(found.unmapped[6].partly && !found.unmapped[0].partly);
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
    let refused = |document: Value| operations(&document, &base()).unwrap_err();
    assert!(refused(json!({ "swagger": "2.0" })).contains("Swagger 2.0"));
    assert!(refused(json!({ "openapi": "4.0.0", "paths": {} })).contains("4.0.0"));
    assert!(refused(json!({})).contains("not an OpenAPI document"));
    assert!(refused(json!({ "openapi": "3.1.0" })).contains("paths"));
}
