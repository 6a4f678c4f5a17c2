//! A document of the configuration: read, chosen from, and made into tools that share their connections.
//!
//! What is wrong with the settings or with the document as a whole is a mistake. An operation that cannot be a tool is
//! a [`Remark`], unless the settings name it outright.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Operations, Unmapped, file, first_server, fits, operations};
use crate::tools::arguments::Schema;
use crate::tools::http::{Clients, Http, SystemRoots};
use crate::tools::load::{LoadError, Mistakes};
use crate::tools::mcp::{offered, public};
use crate::tools::settings::{self, OpenApi, Settings};
use crate::tools::{Defaults, Kind, Origin, Tool, definition, on_disconnect, servers};
use crate::wire::tool::OwnedTool;

/// An operation of a document that is not offered, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The entry under `tools:`.
    pub entry: Arc<str>,
    /// What and why.
    pub unmapped: Unmapped,
}

/// What came of a document.
pub(in crate::tools) struct Document {
    pub(in crate::tools) tools: Vec<Tool>,
    pub(in crate::tools) remarks: Vec<Remark>,
}

/// Reads an entry of `tools:` that has `openapi`.
pub(in crate::tools) fn load(
    name: &str,
    settings: &Settings,
    defaults: &Defaults,
    roots: &SystemRoots,
    mistakes: &mut Mistakes,
) -> Option<Document> {
    let openapi = settings.openapi.as_ref()?;
    only_what_a_document_has(settings, mistakes);
    let prefix = servers::prefix(name, settings, mistakes);
    let entry = Entry { name: name.into(), prefix, settings, openapi, defaults };
    let document = match file::read(Path::new(&openapi.spec)) {
        Ok(document) => document,
        Err(why) => {
            mistakes.add(&["openapi", "spec"], format!("{} cannot be read: {why}", openapi.spec));
            // The other mistakes are told all the same.
            entry.clients(&entry.base("https://nowhere.invalid".into()), roots, mistakes);
            return None;
        }
    };
    if let Err(unfit) = fits(&document) {
        mistakes.add(&["openapi", "spec"], format!("{}: {unfit}", openapi.spec));
        return None;
    }
    let Some(url) = openapi.base_url.clone().or_else(|| first_server(&document)) else {
        let fix = "add `base_url: https://…`";
        let message = format!("{} does not say where the API is (#/servers/0/url)", openapi.spec);
        mistakes.add_with_fix(&["openapi"], message, fix);
        return None;
    };
    let base = entry.base(url);
    let clients = entry.clients(&base, roots, mistakes);
    let found = match operations(&document, &base, |id| entry.wants(id)) {
        Ok(found) => found,
        Err(unfit) => {
            mistakes.add(&["openapi", "spec"], format!("{}: {unfit}", openapi.spec));
            return None;
        }
    };
    entry.tools(found, &clients?, mistakes)
}

/// An entry of `tools:`, while it is read.
struct Entry<'a> {
    name: Arc<str>,
    prefix: String,
    settings: &'a Settings,
    openapi: &'a OpenApi,
    defaults: &'a Defaults,
}

impl Entry<'_> {
    fn wants(&self, id: &str) -> bool {
        offered(id, self.settings.only.as_deref(), self.settings.except.as_deref().unwrap_or_default())
    }

    /// What is the same for every operation.
    fn base(&self, url: String) -> settings::Http {
        let OpenApi { headers, auth, allow_cidrs, follow_own_origin, ca, .. } = self.openapi;
        settings::Http {
            method: settings::Method::Get,
            url,
            headers: headers.clone(),
            auth: auth.clone(),
            styles: std::collections::BTreeMap::new(),
            body: settings::Body::Json,
            body_argument: None,
            files: std::collections::BTreeMap::new(),
            allow_cidrs: allow_cidrs.clone(),
            follow_own_origin: *follow_own_origin,
            ca: ca.clone(),
        }
    }

    /// The connections of the document's tools. Mistakes are told where the settings have them.
    fn clients(
        &self,
        base: &settings::Http,
        roots: &SystemRoots,
        mistakes: &mut Mistakes,
    ) -> Option<Clients> {
        let schema = Schema::compile(&json!({ "type": "object", "properties": {} })).ok()?;
        let mut own = Mistakes::of(&self.name);
        if base.url.contains(['?', '{', '}']) {
            own.add(&["http", "url"], "a base URL has neither a query nor places");
        }
        let clients = Clients::load(base, &schema, roots, &mut own);
        for LoadError { mut path, message, fix, .. } in own.into_inner() {
            if let Some(first) = path.first_mut() {
                *first = "openapi".into();
            }
            if let Some(second) = path.get_mut(1).filter(|key| *key == "url") {
                *second = "base_url".into();
            }
            match fix {
                Some(fix) => mistakes.add_with_fix(&path, message, fix),
                None => mistakes.add(&path, message),
            }
        }
        clients
    }

    fn tools(&self, found: Operations, clients: &Clients, mistakes: &mut Mistakes) -> Option<Document> {
        let mut unmapped = found.unmapped;
        let mut tools = Vec::with_capacity(found.mapped.len());
        for (id, tool) in found.mapped {
            match self.tool(&id, tool, clients) {
                Ok(tool) => tools.push(tool),
                Err(why) => {
                    // What was left out of a tool that is none is no news.
                    unmapped.retain(|known| known.operation != id);
                    unmapped.push(Unmapped { operation: id, at: "/paths".into(), why, partly: false });
                }
            }
        }
        self.named_ones_are_there(&found.known, &tools, &unmapped, mistakes);
        if tools.is_empty() && mistakes.is_empty() {
            let first = unmapped.first().map(|unmapped| format!("; {unmapped}")).unwrap_or_default();
            mistakes
                .add(&["openapi", "spec"], format!("no operation of {} is a tool{first}", self.openapi.spec));
        }
        let remarks = unmapped.into_iter().map(|unmapped| Remark { entry: Arc::clone(&self.name), unmapped });
        mistakes.is_empty().then(|| Document { tools, remarks: remarks.collect() })
    }

    fn tool(&self, id: &str, tool: Settings, clients: &Clients) -> Result<Tool, String> {
        let own = self.openapi.operations.get(id).cloned().unwrap_or_default();
        let parameters = tool.parameters.clone().unwrap_or_default();
        let schema = Schema::compile(&parameters)
            .map_err(|broken| format!("its schema, /{}: {}", broken.path.join("/"), broken.message))?;
        let effect = own.effect.or(self.settings.effect).or(tool.effect).unwrap_or_default();
        let name = public(&self.prefix, id);
        let mut mistakes = Mistakes::of(&name);
        let http =
            tool.http.as_ref().and_then(|http| Http::share(http, effect, &schema, clients, &mut mistakes));
        let http = http.ok_or_else(|| {
            let first = mistakes.into_inner().into_iter().next();
            first.map_or_else(|| "it cannot be told as a request".into(), |mistake| mistake.message)
        })?;
        let told = Settings { description: own.description.or(tool.description), ..Settings::default() };
        let span = own.timeout.or(self.settings.timeout);
        let timeout = span.map_or(self.defaults.call_timeout, |span| span.0);
        let size = own.result.or(self.settings.result);
        Ok(Tool {
            spec: Arc::new(OwnedTool {
                definition: definition(&name, &told, parameters).into(),
                name: name.into(),
                strict: false,
                effect,
                on_disconnect: own
                    .on_disconnect
                    .or(self.settings.on_disconnect)
                    .unwrap_or_else(|| on_disconnect(effect)),
                timeout,
                max_timeout: timeout,
            }),
            schema: Arc::new(schema),
            at_once: own.at_once.or(self.settings.at_once),
            result: size.map_or(self.defaults.tool_result, |size| size.0),
            kind: Kind::Http(Box::new(http)),
            origin: Some(Origin { entry: Arc::clone(&self.name), operation: id.into() }),
        })
    }

    /// Whoever names an operation outright means it to be there.
    fn named_ones_are_there(
        &self,
        known: &[String],
        tools: &[Tool],
        unmapped: &[Unmapped],
        mistakes: &mut Mistakes,
    ) {
        let ids: Vec<&str> =
            tools.iter().filter_map(|tool| Some(&*tool.origin.as_ref()?.operation)).collect();
        let only = self.settings.only.iter().flatten().enumerate();
        let only = only.map(|(at, id)| (vec!["only".to_owned(), at.to_string()], id));
        let own = self.openapi.operations.keys();
        let own = own.map(|id| (vec!["openapi".to_owned(), "operations".to_owned(), id.clone()], id));
        for (path, id) in only.chain(own).filter(|(_, id)| !id.contains('*') && !ids.contains(&id.as_str())) {
            if let Some(why) = unmapped.iter().find(|unmapped| unmapped.operation == **id) {
                mistakes.add(&path, format!("`{id}` cannot be a tool: {}: {}", self.openapi.spec, why));
                continue;
            }
            if known.contains(id) {
                mistakes.add(&path, format!("`{id}` is not offered: `only` or `except` leaves it out"));
                continue;
            }
            let near = known.iter().map(|known| (strsim::damerau_levenshtein(known, id), known));
            let message = format!("{} has no operation `{id}`", self.openapi.spec);
            match near.min().filter(|(distance, _)| *distance <= id.len() / 3) {
                Some((_, meant)) => mistakes.add_with_fix(&path, message, format!("did you mean `{meant}`?")),
                None => mistakes.add_with_fix(&path, message, "name one by its `operationId`"),
            }
        }
    }
}

fn only_what_a_document_has(settings: &Settings, mistakes: &mut Mistakes) {
    let others = [
        ("http", settings.http.is_some()),
        ("command", settings.command.is_some()),
        ("mcp", settings.mcp.is_some()),
    ];
    for (key, _) in others.into_iter().filter(|(_, given)| *given) {
        let message = format!("a tool has either `{key}` or `openapi`");
        mistakes.add_with_fix(&["openapi"], message, "remove one of them");
    }
    let said_by_it = [
        ("description", settings.description.is_some()),
        ("parameters", settings.parameters.is_some()),
        ("strict", settings.strict),
    ];
    for (key, _) in said_by_it.into_iter().filter(|(_, given)| *given) {
        mistakes.add(&[key], format!("a document says the `{key}` of its tools itself"));
    }
    let of_servers = [
        ("max_timeout", settings.max_timeout.is_some()),
        ("required", settings.required),
        ("trust_annotations", settings.trust_annotations),
    ];
    for (key, _) in of_servers.into_iter().filter(|(_, given)| *given) {
        mistakes.add(&[key], format!("`{key}` belongs to a server: a tool with `mcp`"));
    }
    let never = |at_once: Option<u32>| at_once == Some(0);
    if never(settings.at_once) {
        mistakes.add(&["at_once"], "with 0 its tools could never run");
    }
    for (id, own) in settings.openapi.iter().flat_map(|openapi| &openapi.operations) {
        if never(own.at_once) {
            mistakes.add(&["openapi", "operations", id, "at_once"], "with 0 it could never run");
        }
    }
}
