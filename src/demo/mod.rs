//! A model server and a few tools inside the binary, so that the proxy can be tried without a key
//! and without a network.
//!
//! Both are real HTTP servers on free loopback ports; the proxy talks to them as it would to any.
//! The model is a script (`model`), judges requests by OpenAI's rules (`rules`) and writes replies
//! as OpenAI does (`reply`). What is said is the same every time; only the clock tool tells the time.
//!
//! Nothing here knows anything of the proxy.

mod arguments;
pub mod cities;
mod listen;
pub mod model;
pub mod reply;
pub mod rules;
mod server;
pub mod tools;

use std::io;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Where the demo's servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The model server's URL as an OpenAI SDK would be given it, with its `/v1`.
    pub model_base_url: String,
    /// The tool server's URL, without a path.
    pub tools_base_url: String,
}

/// The running demo. It ends when this is dropped.
#[derive(Debug)]
pub struct Demo {
    /// Where its servers are.
    pub addresses: Addresses,
    tasks: TaskTracker,
    stop: DropGuard,
}

/// Starts the model server and the tool server, each on a free loopback port.
pub async fn start() -> io::Result<Demo> {
    let (tasks, token) = (TaskTracker::new(), CancellationToken::new());
    let stop = token.clone().drop_guard();
    let model = listen::serve(&tasks, token.clone(), server::answer).await?;
    let tools = listen::serve(&tasks, token, tools::answer).await?;
    let addresses =
        Addresses { model_base_url: format!("http://{model}/v1"), tools_base_url: format!("http://{tools}") };
    Ok(Demo { addresses, tasks, stop })
}

impl Demo {
    /// Ends it and waits until every connection is closed.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The text of a `fanfold.yaml` that uses the demo's model and tools. Listeners are left out, so
/// they are the usual ones. Ctrl-C ends it without the pause a load balancer would need.
/// Nothing secret is said in a demo, so the inspector shows what is.
#[must_use]
pub fn config_yaml(addresses: &Addresses) -> String {
    let Addresses { model_base_url, tools_base_url } = addresses;
    format!(
        r#"server: {{ drain_accept: 0s }}
runs: {{ content: true }}
upstreams:
  demo:
    base_url: {model_base_url}
tools:
  get_weather:
    description: Current weather of a city
    parameters:
      type: object
      properties: {{ city: {{ type: string, description: A city's English name }} }}
      required: [city]
      additionalProperties: false
    http: {{ method: GET, url: "{tools_base_url}/weather?city={{city}}" }}
    effect: read
    timeout: 10s
  clock:
    description: The time of day in a city, or in UTC
    parameters:
      type: object
      properties: {{ city: {{ type: string, description: A city's English name or UTC }} }}
      required: [city]
      additionalProperties: false
    http: {{ method: GET, url: "{tools_base_url}/clock?city={{city}}" }}
    effect: read
    timeout: 10s
  convert_currency:
    description: Converts an amount of money from one currency to another
    parameters:
      type: object
      properties:
        amount: {{ type: number }}
        from: {{ type: string, description: Three letters such as USD }}
        to: {{ type: string, description: Three letters such as EUR }}
      required: [amount, from, to]
      additionalProperties: false
    http: {{ method: GET, url: "{tools_base_url}/currency?amount={{amount}}&from={{from}}&to={{to}}" }}
    effect: read
    timeout: 10s
  count_words:
    description: Counts the words of a text
    parameters:
      type: object
      properties: {{ text: {{ type: string }} }}
      required: [text]
      additionalProperties: false
    command: {{ argv: [/usr/bin/wc, -w], stdin: "{{text}}" }}
    effect: read
    timeout: 10s
"#
    )
}

#[cfg(test)]
mod tests;
