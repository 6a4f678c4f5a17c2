//! Why fanfold does not start.

use std::fmt;

use crate::server::listener::BindError;

/// Why fanfold does not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Bind(BindError),
    /// An upstream cannot be used as configured.
    Upstream {
        /// Its name.
        name: String,
        /// The setting below it.
        setting: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The store cannot be used as configured.
    Store {
        /// The setting below `store`.
        setting: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A required tool server does not come up.
    ToolServer {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// Tools of tool servers have a name that somebody else has: both owners, and what to do.
    Clash(String),
    /// The audit log cannot be written.
    Audit(String),
    /// What is to be redacted cannot be looked for.
    Redact(String),
    /// Traces cannot be sent as configured.
    Traces(String),
    /// The system refuses something.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Upstream { name, setting, message } => write!(f, "upstreams.{name}.{setting}: {message}"),
            Self::Store { setting, message } => write!(f, "store.{setting}: {message}"),
            Self::ToolServer { name, why } => {
                write!(f, "the tool server `{name}` is required, but is not up: {why}")
            }
            Self::Clash(message)
            | Self::Audit(message)
            | Self::Redact(message)
            | Self::Traces(message)
            | Self::System(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for StartError {}
