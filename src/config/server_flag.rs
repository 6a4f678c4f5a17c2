//! `--mcp "uvx mcp-server-time"`, `--mcp https://…` and `--mcp NAME=…`: a tool server without a file.
//!
//! Pure. Words are separated by white space; what needs more than that is written into a file.

use std::collections::BTreeMap;

use crate::tools::settings::{Mcp, Settings};

/// Programs that only fetch and start another one.
const STARTERS: [&str; 7] = ["uvx", "npx", "uv", "bunx", "pipx", "python3", "node"];

/// Adds the server a flag means to the tools of the file. The error is for the person who wrote it.
pub(super) fn add(flag: &str, tools: &mut BTreeMap<String, Settings>) -> Result<(), String> {
    let (name, place) = match flag.split_once('=') {
        Some((name, place)) if legal(name) => (Some(name.to_owned()), place),
        Some(_) | None => (None, flag),
    };
    let words: Vec<String> = place.split_whitespace().map(str::to_owned).collect();
    let mcp = match words.as_slice() {
        [] => return Err(format!("`--mcp {flag}` names no program and no URL")),
        [url] if url.contains("://") => Mcp { url: Some(url.clone()), ..Mcp::default() },
        _ => Mcp { command: Some(words.clone()), ..Mcp::default() },
    };
    let name = match name {
        Some(name) if tools.contains_key(&name) => {
            return Err(format!(
                "there is a tool `{name}` already: give the server of `--mcp {flag}` another name"
            ));
        }
        Some(name) => name,
        None => free(&short(&words), tools),
    };
    tools.insert(name, Settings { mcp: Some(mcp), ..Settings::default() });
    Ok(())
}

/// A name that says what it is: `time` of `uvx mcp-server-time`, `mcp` of `https://mcp.example/mcp`.
fn short(words: &[String]) -> String {
    let is_name =
        |word: &&String| !word.starts_with('-') && !STARTERS.contains(&word.as_str()) && *word != "run";
    let word = words.iter().find(is_name).or(words.first()).map(String::as_str).unwrap_or_default();
    let word = match word.split_once("://") {
        Some((_, rest)) => rest.split(['.', '/', ':']).next().unwrap_or_default(),
        None => word.rsplit('/').next().unwrap_or_default(),
    };
    let word =
        word.rsplit_once('@').map_or(word, |(before, _)| if before.is_empty() { word } else { before });
    let word = word.rsplit_once('.').map_or(word, |(before, _)| before);
    let word = ["mcp-server-", "server-", "mcp-"]
        .iter()
        .fold(word, |word, start| word.strip_prefix(start).unwrap_or(word));
    let word = ["-mcp-server", "-mcp", "-server"]
        .iter()
        .fold(word, |word, end| word.strip_suffix(end).unwrap_or(word));
    let legal: String =
        word.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').take(32).collect();
    if legal.is_empty() { "server".into() } else { legal }
}

fn free(name: &str, tools: &BTreeMap<String, Settings>) -> String {
    let mut candidates = std::iter::once(name.to_owned()).chain((2_u32..).map(|n| format!("{name}{n}")));
    candidates.find(|name| !tools.contains_key(name)).unwrap_or_default()
}

fn legal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(flags: &[&str]) -> Vec<(String, Mcp)> {
        let mut tools = BTreeMap::new();
        for flag in flags {
            add(flag, &mut tools).unwrap();
        }
        tools.into_iter().map(|(name, tool)| (name, tool.mcp.unwrap())).collect()
    }

    #[test]
    fn a_flag_is_a_program_or_a_url_under_a_name_that_says_something() {
        for (flag, name) in [
            ("uvx mcp-server-time", "time"),
            ("uvx mcp-server-time --local-timezone=Europe/Prague", "time"),
            ("npx -y @modelcontextprotocol/server-everything stdio", "everything"),
            ("npx -y @modelcontextprotocol/server-filesystem@1.2.3 /tmp", "filesystem"),
            ("/usr/local/bin/my-mcp-server", "my"),
            ("python3 tools/weather.py", "weather"),
            ("https://tickets.example/mcp", "tickets"),
            ("http://127.0.0.1:8000/mcp", "127"),
            ("clock=uvx mcp-server-time", "clock"),
            ("t=https://h.example/mcp?a=b", "t"),
            ("https://h.example/mcp?a=b", "h"),
        ] {
            let all = named(&[flag]);
            assert_eq!(all[0].0, name, "{flag}");
            assert_eq!(all[0].1.url.is_some(), flag.contains("://"), "{flag}");
        }
        let all = named(&["uvx mcp-server-git --repository /r"]);
        assert_eq!(all[0].1.command.as_deref().unwrap(), ["uvx", "mcp-server-git", "--repository", "/r"]);
    }

    #[test]
    fn two_of_a_name_get_numbers_but_a_name_that_was_given_is_not_changed() {
        let names: Vec<String> =
            named(&["uvx mcp-server-time", "uvx mcp-server-time", "a=x"]).into_iter().map(|n| n.0).collect();
        assert_eq!(names, ["a", "time", "time2"]);
        let mut tools = [("a".to_owned(), Settings::default())].into();
        assert!(add("a=x", &mut tools).unwrap_err().contains("`a`"));
        assert!(add("  ", &mut tools).is_err() && add("a2=", &mut tools).is_err());
    }
}
