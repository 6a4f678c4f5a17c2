//! That every secret is there. Those of tools are opened when the tools are built.

use super::Check;
use crate::config::secret;
use crate::units::Secret;

impl Check<'_> {
    pub(super) fn secrets(&mut self) {
        for path in &self.shape.secret_paths {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            if let ["tools", name, ..] = path.as_slice()
                && self.file.tools.contains_key(*name)
            {
                continue;
            }
            let node = path.iter().try_fold(self.tree, |node, key| node.child(key));
            let Some(secret) = node.and_then(|n| serde_json::from_value::<Secret>(n.to_json()).ok()) else {
                continue;
            };
            let Err(message) = secret::open(&secret, self.env) else { continue };
            let (inner, fix) = match &secret {
                Secret::Text(_) => continue,
                Secret::Env { env } => ("env", format!("set {env} before the start")),
                Secret::File { .. } => ("file", "check the path and the permissions".to_owned()),
            };
            let place = [path.as_slice(), &[inner]].concat();
            let fix = match path.last() {
                Some(&"api_key") => format!("{fix}, or leave `api_key` out if this upstream needs none"),
                Some(_) | None => fix,
            };
            self.wrong(&place, message, fix);
        }
    }
}
