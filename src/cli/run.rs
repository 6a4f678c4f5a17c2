//! `fanfold run ID`: one run of a running fanfold, as text or JSON.

use std::path::Path;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::client::{Client, Whom};
use super::waterfall::{Paint, draw, headline, tame};
use super::{Exit, answer_of, out};

/// The longest argument or result that is shown, in characters.
const SHOWN: usize = 100;

/// What `run` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The run's id, the id of its request (`x-request-id`), or `last`.
    id: String,
    /// Everything that is known of it, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    whom: Whom,
}

/// 1 when there is no such run, or nobody to ask.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let admin = arguments.whom.admin(path);
    match answer_of(find(&admin, &arguments.id)) {
        Ok(found) if arguments.json => out::answer(&format!("{found:#}\n")),
        Ok(found) => out::answer(&text(&found, Paint(out::coloured_answer()))),
        Err(exit) => return exit,
    }
    Exit::Fine
}

async fn find(admin: &str, id: &str) -> Result<Value, String> {
    let client = Client::new()?;
    let id = if id == "last" {
        let list = client.json(&format!("{admin}/api/runs"), None).await?;
        list["runs"][0]["id"].as_str().map(str::to_owned).ok_or("there is no run yet")?
    } else {
        id.to_owned()
    };
    client.json(&format!("{admin}/api/runs/{}", utf8_percent_encode(&id, NON_ALPHANUMERIC)), None).await
}

fn text(found: &Value, paint: Paint) -> String {
    let run = &found["run"];
    let mut text = headline(run, paint);
    let now = run["rounds"].as_array().and_then(|all| all.last()).and_then(|last| last["asked"].as_f64());
    text.push_str(&draw(run, now.unwrap_or(0.0) + 1.0, paint));
    let parallel = run["parallel"].as_str().unwrap_or_default().split(';').next().unwrap_or_default();
    text.push_str(&format!("parallel calls {parallel}: {}\n", run["because"].as_str().unwrap_or_default()));
    let limits: Vec<&str> =
        run["limits"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !limits.is_empty() {
        text.push_str(&format!("limits reached: {}\n", limits.join(", ")));
    }
    if let Some(error) = run["end"]["error"].as_str() {
        text.push_str(&paint.bad(&format!("error: {} {error}\n", run["end"]["status"])));
    }
    let calls = run["calls"].as_array().into_iter().flatten();
    for (call, said) in calls.zip(found["content"]["calls"].as_array().into_iter().flatten()) {
        let of = |name: &str| shown(said[name]["text"].as_str().unwrap_or_default());
        text.push_str(&format!(
            "{} {} {} {}\n",
            tame(call["tool"].as_str().unwrap_or_default()),
            of("arguments"),
            paint.dim("→"),
            of("result")
        ));
    }
    text
}

/// The beginning of a text, on one line.
fn shown(text: &str) -> String {
    let tamed = tame(text);
    let mut short: String = tamed.chars().take(SHOWN).collect();
    if short.len() < tamed.len() {
        short.push('…');
    }
    short
}
