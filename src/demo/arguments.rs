//! Fills in the arguments of a call from a tool's JSON Schema and what the person asked. Pure.

use serde_json::{Map, Value, json};

use super::cities::{self, City};

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// The person's words.
    pub(super) question: &'a str,
    /// The city of this call.
    pub(super) city: Option<&'a City>,
}

const PLACES: [&str; 5] = ["city", "location", "place", "town", "name"];
const ZONES: [&str; 3] = ["timezone", "time_zone", "tz"];

/// Whether a call of a tool with these parameters is about one city.
#[must_use]
pub(super) fn takes_a_city(parameters: &Value) -> bool {
    properties(parameters).any(|(name, _)| PLACES.contains(&name) || ZONES.contains(&name))
}

/// Arguments that fit `parameters`: known names get what the question says, other required ones
/// the first value that fits their schema, the rest stays out.
#[must_use]
pub(super) fn fill(parameters: &Value, subject: Subject<'_>) -> Value {
    let required: Vec<&str> =
        parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let filled: Map<String, Value> = properties(parameters)
        .filter_map(|(name, schema)| {
            let known = known(name, subject).filter(|value| fits(schema, value));
            let value =
                known.or_else(|| required.contains(&name).then(|| any(parameters, schema, subject, 0)));
            value.map(|value| (name.to_owned(), value))
        })
        .collect();
    Value::Object(filled)
}

fn properties(parameters: &Value) -> impl Iterator<Item = (&str, &Value)> {
    parameters["properties"].as_object().into_iter().flatten().map(|(name, schema)| (name.as_str(), schema))
}

/// What the question says about a property of this name.
fn known(name: &str, subject: Subject<'_>) -> Option<Value> {
    let Subject { question, city } = subject;
    match name {
        "city" | "location" | "place" | "town" | "name" => city.map(|city| json!(city.name)),
        "timezone" | "time_zone" | "tz" => city.map(|city| json!(city.zone)),
        "amount" | "value" => amount(question),
        "from" | "from_currency" | "base" => currencies(question).first().map(|c| json!(c)),
        "to" | "to_currency" | "target" => currencies(question).get(1).map(|c| json!(c)),
        "text" | "input" | "string" | "content" => Some(json!(quoted(question))),
        "query" | "question" | "q" => Some(json!(question)),
        _ => None,
    }
}

/// Whether a value known by a property's name also has the type its schema asks for.
fn fits(schema: &Value, value: &Value) -> bool {
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let types = types(schema);
    let typed = types.is_empty()
        || types.iter().any(|kind| match *kind {
            "string" => value.is_string(),
            "number" => value.is_number(),
            "integer" => value.is_i64() || value.is_u64(),
            _ => false,
        });
    listed && typed
}

fn types(schema: &Value) -> Vec<&str> {
    match schema["type"].as_array() {
        Some(several) => several.iter().filter_map(Value::as_str).collect(),
        None => schema["type"].as_str().into_iter().collect(),
    }
}

/// The plainest value that a schema allows.
fn any(root: &Value, schema: &Value, subject: Subject<'_>, depth: usize) -> Value {
    if let Some(value) = [&schema["const"], &schema["default"], &schema["enum"][0], &schema["examples"][0]]
        .into_iter()
        .find(|v| !v.is_null())
    {
        return value.clone();
    }
    let target = schema["$ref"].as_str().and_then(|to| root.pointer(to.strip_prefix('#')?));
    if let Some(schema) = target.or_else(|| schema["anyOf"].get(0)).or_else(|| schema["oneOf"].get(0)) {
        return if depth < 16 { any(root, schema, subject, depth + 1) } else { Value::Null };
    }
    let types = types(schema);
    if types.contains(&"null") {
        return Value::Null;
    }
    match types.first().copied() {
        Some("object") if depth < 16 => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required
                .map(|name| (name.to_owned(), any(root, &schema["properties"][name], subject, depth + 1)))
                .collect::<Map<_, _>>()
                .into()
        }
        Some("object") => json!({}),
        Some("array") => json!([]),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(false),
        Some(_) | None => json!(subject.city.map_or("UTC", |city| city.name)),
    }
}

/// The first number of a text, whole if it is whole.
fn amount(text: &str) -> Option<Value> {
    let word = text
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .map(|word| word.trim_matches('.'))
        .find(|word| !word.is_empty())?;
    match word.parse::<u64>() {
        Ok(whole) => Some(json!(whole)),
        Err(_) => word.parse::<f64>().ok().map(|number| json!(number)),
    }
}

/// Three-letter codes, or the names of a few currencies, in the order of the text.
fn currencies(text: &str) -> Vec<&'static str> {
    const NAMES: [(&str, &str); 12] = [
        ("usd", "USD"),
        ("dollar", "USD"),
        ("eur", "EUR"),
        ("euro", "EUR"),
        ("jpy", "JPY"),
        ("yen", "JPY"),
        ("gbp", "GBP"),
        ("pound", "GBP"),
        ("pen", "PEN"),
        ("chf", "CHF"),
        ("franc", "CHF"),
        ("inr", "INR"),
    ];
    text.to_lowercase()
        .split(|c: char| !c.is_alphabetic())
        .filter_map(|word| {
            let word = word.strip_suffix('s').unwrap_or(word);
            NAMES.iter().find(|(name, _)| *name == word).map(|(_, code)| *code)
        })
        .collect()
}

/// The part of a text in double quotes, else what follows its first colon, else all of it.
fn quoted(text: &str) -> &str {
    let between = text.split('"').nth(1).filter(|_| text.matches('"').count() >= 2);
    between.or_else(|| text.split_once(':').map(|(_, after)| after)).unwrap_or(text).trim()
}

/// A city to speak of when nobody named one.
#[must_use]
pub(super) fn some_city() -> &'static City {
    &cities::ALL[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(question: &'a str, city: Option<&'a City>) -> Subject<'a> {
        Subject { question, city }
    }

    #[test]
    fn known_names_take_what_the_question_says() {
        let schema = json!({ "type": "object", "required": ["amount", "from", "to"], "properties": {
            "amount": { "type": "number" }, "from": { "type": "string" }, "to": { "type": "string" },
        } });
        assert_eq!(
            fill(&schema, ask("Convert 12.5 euros to JPY", None)),
            json!({ "amount": 12.5, "from": "EUR", "to": "JPY" })
        );
    }

    #[test]
    fn required_members_get_a_fitting_value_and_optional_ones_stay_out() {
        let schema = json!({ "type": "object", "required": ["city", "unit", "days", "at"], "properties": {
            "city": { "type": "string" }, "unit": { "enum": ["celsius", "kelvin"] },
            "days": { "type": "integer", "minimum": 2 }, "at": { "type": ["string", "null"] },
            "deep": { "type": "object" },
        } });
        assert_eq!(
            fill(&schema, ask("", Some(&cities::ALL[1]))),
            json!({ "city": "Tokyo", "unit": "celsius", "days": 2, "at": null })
        );
    }

    #[test]
    fn a_schema_that_refers_to_itself_comes_to_an_end() {
        let schema = json!({ "type": "object", "required": ["node"],
            "properties": { "node": { "$ref": "#/$defs/node" } },
            "$defs": { "node": { "type": "object", "required": ["next"],
                "properties": { "next": { "$ref": "#/$defs/node" } } } } });
        assert!(fill(&schema, ask("", None))["node"]["next"].is_object());
    }

    #[test]
    fn the_text_of_a_question_is_what_stands_in_quotes_or_after_a_colon() {
        assert_eq!(quoted(r#"Count the words in "one two three" please"#), "one two three");
        assert_eq!(quoted("How many words: a b"), "a b");
        assert_eq!(quoted("plain"), "plain");
    }
}
