//! What is printed loads again, as the same.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::config::{Flags, read_text};
use crate::units::Span;

fn env(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("example.org".into()),
        "DOLLAR" => Some("$".into()),
        "PLACE" => Some("${NOWHERE} and $${HOST".into()),
        "NUMBER" => Some("5".into()),
        "API_KEY" | "OPENAI_API_KEY" => Some("sk-0123456789".into()),
        "LAB_URL" => Some("http://127.0.0.1:4200".into()),
        "FANFOLD_LISTEN" | "FANFOLD_ADMIN_LISTEN" => Some("127.0.0.1:0".into()),
        _ => None,
    }
}

fn loaded(text: &str) -> Loaded {
    let reading = read_text("a file", text, &env, &Flags::default());
    reading.finish().unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// Prints and loads again. What the file says must be the same, and so must the defaults it leaves.
fn comes_back(first: &Loaded) {
    for detail in [Detail::Everything, Detail::Written] {
        let printed = first.print(detail).expect("YAML");
        let again = loaded(&printed);
        assert_eq!(again.print(detail).expect("YAML"), printed);
        let all = |loaded: &Loaded| all_of(&loaded.file).expect("JSON");
        assert_eq!(all(&again), all(first), "{detail:?}:\n{printed}");
        if detail == Detail::Written && !printed.contains(DOTS) {
            assert_eq!(again.file, first.file, "{printed}");
        }
    }
}

/// A file whose strings, keys and numbers are these, as JSON with every character escaped that YAML has no
/// place for: it is plain where each of them ends.
fn holding(text: &str, key: &str, number: &Value) -> String {
    let text = text.replace("${", "$${");
    let json = json!({
        "upstreams": { "main": { "base_url": "https://a.example/v1" } },
        "tools": { "t": {
            "description": format!("x{text}"),
            "parameters": {
                "type": "object",
                "properties": { format!("x{key}"): { "description": text, "const": number, "enum": [text, number] } },
                key: { text.clone(): [[], {}, null, true, text] }
            },
            "command": { "argv": ["/bin/x", format!("x{text}").replace(['{', '}', '\0'], "")] }
        } }
    });
    let mut escaped = String::new();
    for c in json.to_string().chars() {
        match u32::from(c) {
            code @ (0x7f..=0x9f | 0x2028 | 0x2029 | 0xfeff | 0xfffe | 0xffff) => {
                escaped.push_str(&format!("\\u{code:04x}"))
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

#[test]
fn a_plain_dollar_and_brace_is_printed_so_that_it_stays_plain() {
    for (written, meant) in [
        ("$${HOST}", "${HOST}"),
        ("$${HOST", "${HOST"),
        ("$$${HOST}", "$${HOST}"),
        ("$${a}$${b}${DOLLAR}${DOLLAR}{", "${a}${b}$${"),
        ("${PLACE}", "${NOWHERE} and $${HOST"),
        ("$", "$"),
        ("$$ $a {} $", "$$ $a {} $"),
    ] {
        let text = format!(
            "upstreams: {{ a: {{ base_url: 'https://x.example/v1' }} }}\ntools: {{ t: {{ description: '{written}', command: {{ argv: [/bin/x] }} }} }}\n"
        );
        let first = loaded(&text);
        assert_eq!(first.file.tools["t"].description.as_deref(), Some(meant));
        comes_back(&first);
    }
}

#[test]
fn keys_are_printed_as_they_are_because_nothing_is_filled_into_them() {
    let first = loaded(&holding("text", "${HOST}", &json!(1)));
    assert!(first.print(Detail::Written).expect("YAML").contains("x${HOST}"));
    comes_back(&first);
}

#[test]
fn texts_that_look_like_something_else_come_back_as_texts() {
    let mut texts: Vec<String> = [
        "",
        " ",
        "\n",
        "\n\n",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\n\n",
        " a\n  b\n",
        "a\n b\n\n\nc\n\n",
        "\ta",
        "a\tb\n",
        "\r",
        "a\r\nb",
        "\u{85}",
        "a\u{2028}b",
        "\u{feff}a",
        "a\u{feff}",
        "\0",
        "\u{1b}[1m",
        "\u{7f}",
        "\u{fffe}",
        "\u{10ffff}",
        "é\u{301}",
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "true",
        "True",
        "FALSE",
        "null",
        "Null",
        "~",
        "NaN",
        ".nan",
        "-.inf",
        ".INF",
        "inf",
        "1",
        "-1",
        "+1",
        "01",
        "0x1F",
        "0o17",
        "0b1",
        "1e3",
        "1E+3",
        "1.",
        ".5",
        "1_000",
        "1:30",
        "2026-01-01",
        "12:30:45",
        "-",
        "+",
        ".",
        "- a",
        "-a",
        "? b",
        "?",
        ": c",
        ":",
        "a: b",
        "a:",
        "a:b",
        "# d",
        "a #b",
        "a#b",
        "---",
        "--- a",
        "...",
        "%YAML 1.2",
        "<<",
        "=",
        "!t",
        "!!str a",
        "&a",
        "*a",
        "&",
        "*",
        "|",
        ">",
        "|-\n a",
        "> a",
        "@a",
        "`a`",
        "'a'",
        "\"a\"",
        "'",
        "\"",
        "''",
        "a'b",
        "a\"b\\",
        "\\n",
        "[a]",
        "{a}",
        "[",
        "]",
        "{",
        "}",
        ",",
        "a,b",
        "a, b]",
        "{a: b}",
        "#",
        "\\",
        "\\u0041",
        "a\\",
        "${",
        "$${",
        "$$${A}",
        "${A",
        "}${",
        "$\n{",
        "$",
        "{$}",
    ]
    .map(str::to_owned)
    .into();
    texts.push("long words and ".repeat(40));
    texts.push(format!("{}\n", "long words and ".repeat(40)));
    texts.push("a".repeat(400));
    texts.push(format!("{}\n  {}\n", "a b ".repeat(60), "c d ".repeat(60)));
    for text in &texts {
        comes_back(&loaded(&holding(text, text, &json!(text.replace("${", "$${")))));
    }
}

#[test]
fn numbers_keep_their_value_and_their_kind() {
    for number in [
        "0",
        "-1",
        "1.0",
        "-0.0",
        "0.1",
        "1e300",
        "1.5e-300",
        "5e-324",
        "1.7976931348623157e308",
        "1e15",
        "1e16",
        "1e17",
        "123456789012345680.0",
        "9007199254740993",
        "18446744073709551615",
        "-9223372036854775808",
        "0.000001",
        "0.30000000000000004",
    ] {
        let number: Value = serde_json::from_str(number).expect("JSON");
        comes_back(&loaded(&holding("text", "key", &number)));
    }
}

#[test]
fn a_length_of_time_comes_back_to_the_nanosecond() {
    for span in [
        "0.4ms",
        "1.5ms",
        "1.0005s",
        "0.1s",
        "90s",
        "1.5h",
        "0.3m",
        "100000.000001s",
        "0.000001ms",
        "1d",
        "36h",
    ] {
        let text = format!(
            "upstreams: {{ a: {{ base_url: 'https://x.example/v1' }} }}\nlimits: {{ call_timeout: {span} }}\n"
        );
        let first = loaded(&text);
        let again = loaded(&first.print(Detail::Written).expect("YAML"));
        assert_eq!(again.file.limits.call_timeout, first.file.limits.call_timeout, "{span}");
        comes_back(&first);
    }
}

#[test]
fn the_configurations_that_are_shown_to_people_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path().display().to_string();
    let key = folder.path().join("key");
    std::fs::write(&key, "sk-0123456789").expect("written");
    let systemd = include_str!("../../../deploy/systemd/fanfold.yaml");
    let systemd = systemd.replace("${CREDENTIALS_DIRECTORY}/openai-key", &key.display().to_string());
    // Dots stand for the URL of a Redis and for the values in a query: what has lost those is no URL any more.
    let compose = include_str!("../../../deploy/compose/fanfold.yaml");
    let compose = compose.replace("store: { redis: redis://redis:6379/0 }", "store: memory");
    assert!(compose.contains("store: memory"));
    for text in [
        EXAMPLE,
        &compose,
        &systemd,
        &include_str!("../../../tests/browser/fanfold.yaml").replace("?status=503", ""),
        &include_str!("../../../tests/clients/fanfold.yaml").replace("?status=422", ""),
        include_str!("../../../tests/fuzz/corpus/config/yaml"),
    ] {
        comes_back(&loaded(&text.replace("/var/log/fanfold", &here)));
    }
}

fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "$", "{", "}", "$${", "${A}", "'", "\"", "\\", "\n", "\r", "\t", " ", "  ", ":", ": ", " #", "-",
        "- ", "?", "|", ">", "&", "*", "!", "%", "@", "`", "[", "]", ",", "~", "<<", "0", "1", "e", ".", "x",
        "é", "\u{85}", "\u{2028}", "\u{feff}", "\0", "\u{7f}", "a",
    ]);
    prop_oneof![
        4 => prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
        1 => "[ -~\n]{60,200}",
    ]
}

fn numbers() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON", |n| n.is_finite()).prop_map(Value::from),
    ]
}

proptest! {
    // Each case reads four files.
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_file_says_comes_back(text in hostile(), key in hostile(), number in numbers()) {
        prop_assume!(!text.contains("://") && !key.contains("://"));
        comes_back(&loaded(&holding(&text, &key, &number)));
    }

    #[test]
    fn every_length_of_time_is_written_as_it_was_read(whole in 0_u64..100_000_000, part in 0_u32..1_000_000, unit in 0..5_usize) {
        let text = format!("{whole}.{part:06}{}", ["ms", "s", "m", "h", "d"][unit]);
        let span = Span::parse(&text).expect("a span");
        prop_assert_eq!(Span::parse(&span.to_string()), Ok(span), "{}", text);
    }

    #[test]
    fn nothing_but_what_a_variable_would_be_filled_into_is_changed(text in any::<String>()) {
        prop_assume!(!text.contains("${"));
        let mut value = Value::Object(Map::from_iter([("k".to_owned(), Value::String(text.clone()))]));
        plain(&mut value);
        prop_assert_eq!(&value["k"], &Value::String(text));
    }
}
