//! `--tool NAME=https://host/path?q={city}`, `--tool "NAME=POST https://…"` and `--tool "NAME=/usr/bin/wc -w"`: a tool
//! without a file.
//!
//! Pure. Each `{place}` is an argument, a text the model has to give. A command without a place reads its
//! argument `text` from its standard input. What needs more than that is written into a file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::tools::settings::{Command, Http, Method, Settings};
use crate::wire::tool::Effect;

/// Adds the tool a flag means to the tools of the file. The error is for the person who wrote it.
pub(super) fn add(flag: &str, tools: &mut BTreeMap<String, Settings>) -> Result<(), String> {
    let wrong = |why: &str| format!("`--tool {flag}` {why}");
    let form = "has to be NAME=https://host/path?q={argument}, or NAME=/path/of/program {argument}";
    let (name, rest) = flag.split_once('=').ok_or_else(|| wrong(form))?;
    if tools.contains_key(name) {
        return Err(wrong(&format!("needs another name: there is a tool `{name}` already")));
    }
    let words: Vec<&str> = rest.split_whitespace().collect();
    let places = places(rest);
    let settings = match words.as_slice() {
        [] => return Err(wrong(form)),
        [url] if url.contains("://") => of_url("GET", url).map_err(|why| wrong(&why))?,
        [method, url] if url.contains("://") => of_url(method, url).map_err(|why| wrong(&why))?,
        [program, ..] if program.starts_with('/') => {
            of_command(&words, places.is_empty()).map_err(|why| wrong(&why))?
        }
        [_, ..] => return Err(wrong("names no URL and no absolute path of a program")),
    };
    let arguments = if places.is_empty() && settings.command.is_some() { vec!["text"] } else { places };
    let properties: Map<String, Value> =
        arguments.iter().map(|name| ((*name).to_owned(), json!({ "type": "string" }))).collect();
    let parameters = json!({
        "type": "object", "properties": properties, "required": arguments, "additionalProperties": false
    });
    tools.insert(name.to_owned(), Settings { parameters: Some(parameters), ..settings });
    Ok(())
}

fn of_url(method: &str, url: &str) -> Result<Settings, String> {
    let method: Method = serde_json::from_value(json!(method.to_ascii_uppercase())).map_err(|_| {
        format!("has `{method}` for a method: GET, HEAD, POST, PUT, PATCH and DELETE are there")
    })?;
    let http: Http =
        serde_json::from_value(json!({ "method": method, "url": url })).map_err(|e| e.to_string())?;
    let effect = http.method.reads_only().then_some(Effect::Read);
    Ok(Settings { http: Some(http), effect, ..Settings::default() })
}

fn of_command(words: &[&str], reads: bool) -> Result<Settings, String> {
    let stdin = reads.then_some("{text}");
    let command: Command =
        serde_json::from_value(json!({ "argv": words, "stdin": stdin })).map_err(|e| e.to_string())?;
    Ok(Settings { command: Some(command), ..Settings::default() })
}

/// The names between braces, each once, in order.
fn places(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for part in text.split('{').skip(1) {
        if let Some((name, _)) = part.split_once('}')
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(flag: &str) -> Result<Settings, String> {
        let mut tools = [("taken".to_owned(), Settings::default())].into();
        add(flag, &mut tools)?;
        Ok(tools.remove("t").unwrap())
    }

    #[test]
    fn a_flag_is_a_url_or_a_program_whose_places_are_its_arguments() {
        let tool = one("t=https://w.example/now?city={city}&unit={unit}&again={city}").unwrap();
        assert_eq!(tool.parameters.as_ref().unwrap()["required"], json!(["city", "unit"]));
        assert_eq!(tool.effect, Some(Effect::Read));
        assert_eq!(tool.http.unwrap().url, "https://w.example/now?city={city}&unit={unit}&again={city}");
        let tool = one("t=post https://w.example/{id}").unwrap();
        assert_eq!((tool.effect, tool.http.unwrap().method), (None, Method::Post));
        let tool = one("t=/usr/bin/wc -w").unwrap();
        assert_eq!(tool.parameters.as_ref().unwrap()["properties"], json!({ "text": { "type": "string" } }));
        let command = tool.command.unwrap();
        assert_eq!(
            (command.argv, command.stdin),
            (vec!["/usr/bin/wc".into(), "-w".into()], Some("{text}".into()))
        );
        let tool = one("t=/usr/bin/date -d {when}").unwrap();
        assert_eq!(
            (tool.parameters.unwrap()["required"].clone(), tool.command.unwrap().stdin),
            (json!(["when"]), None)
        );
    }

    #[test]
    fn what_is_none_of_them_is_told_what_to_write() {
        for (flag, says) in [
            ("t", "NAME=https://"),
            ("t=", "NAME=https://"),
            ("t=date", "absolute path"),
            ("t=FETCH https://x", "`FETCH` for a method"),
            ("taken=/bin/date", "another name"),
        ] {
            let error = one(flag).unwrap_err();
            assert!(error.contains(says) && error.starts_with("`--tool "), "{error}");
        }
    }
}
