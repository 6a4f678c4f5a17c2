//! Reads what people wrote: one YAML file, strictly, with all mistakes in one report.
//!
//! ```text
//!  text ─▶ tree ─▶ expand ─▶ shape ─▶ File ─▶ check ─▶ Loaded
//!          (places)  (${VAR})  (schema)        (names, limits, secrets)
//!            └────────────┴────────┴──────────────┴────▶ Problems
//! ```
//!
//! [`load`] does all of it, and builds the tools, whose mistakes join the same report. Whoever can
//! find further ones uses [`read`], adds them with [`Reading::add`], and then asks for the result
//! with [`Reading::finish`], so that people see everything at once.

mod check;
pub mod effective;
mod expand;
pub mod file;
pub mod print;
mod problem;
pub mod secret;
mod server_flag;
mod shape;
mod suggest;
mod tool_flag;
mod tree;
pub mod watch;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use self::effective::Written;
use self::file::File;
pub use self::problem::{Problem, Problems, Source};
use self::problem::{Severity, render, sorted};
use self::shape::Shape;
pub(crate) use self::suggest::did_you_mean;
use self::tree::{Kind, Node, Origin};
use crate::tools::{self, Catalog};
use crate::units::{secrets_in_urls, without_secrets_in_urls};

/// Where the file is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "fanfold.yaml";

/// The largest file that is read.
pub const LARGEST: u64 = 1024 * 1024;

/// So many keys that stand twice are looked into.
const MOST_DOUBLED: usize = 16;

/// Stands for the file when there is none but the environment says enough.
const FROM_ENVIRONMENT: &str = "\
upstreams:
  main:
    base_url: ${OPENAI_BASE_URL:-https://api.openai.com/v1}
";
const KEY_FROM_ENVIRONMENT: &str = "    api_key: { env: OPENAI_API_KEY }\n";

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process. A variable that is not UTF-8 counts as not set.
#[must_use]
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What the command line lays over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// Instead of `listen`.
    pub listen: Option<String>,
    /// Instead of `admin.listen`.
    pub admin_listen: Option<String>,
    /// Serve on a public address although there are no keys.
    pub insecure_no_auth: bool,
    /// Tool servers beside those of the file: a command line, or a URL.
    pub mcp: Vec<String>,
    /// Tools beside those of the file: a name with a URL or a command line.
    pub tools: Vec<String>,
    /// Nobody will ask a model: where tools come from the command line, the environment need not name a server.
    pub only_tools: bool,
}

/// A configuration without a mistake.
#[derive(Clone)]
pub struct Loaded {
    /// What it says, with the command line's flags laid over.
    pub file: File,
    /// Where it came from.
    pub source: Arc<Source>,
    /// What is legal but probably not meant.
    warnings: Vec<Problem>,
    /// What was written, filled in, for [`mod@print`].
    written: Value,
    /// Values never to be printed.
    hidden: Vec<String>,
    /// What was written where.
    places: Written,
    /// The paths the command line laid something over.
    flags: Vec<String>,
    /// It was given as a text of its own, not made from the environment.
    named: bool,
}

impl Loaded {
    /// How people call where it came from: the path of the file, or that it is the environment.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// A text with dots in place of every value that came from a secret variable, and where URLs may hold secrets.
    #[must_use]
    pub fn hide(&self, text: &str) -> String {
        without_secrets_in_urls(&print::hidden(text, &self.hidden)).into_owned()
    }

    /// Every warning, as sentences.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(Problem::message)
    }

    /// The warnings with their places, for people; empty when there are none.
    #[must_use]
    pub fn render_warnings(&self, coloured: bool) -> String {
        render(&self.source, &self.warnings, Severity::Warning, coloured)
    }

    /// The files whose change should lead to a reload: the configuration, the files of its secrets,
    /// OpenAPI documents, and what was accepted of tool servers.
    #[must_use]
    pub fn watched(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.source.path.iter().cloned().collect();
        secret_files(&self.written, &mut paths);
        let documents = self.file.tools.values().filter_map(|tool| tool.openapi.as_ref());
        paths.extend(documents.map(|openapi| PathBuf::from(&openapi.spec)));
        let pinned = self.file.tools.values().filter(|tool| tool.pin);
        paths.extend(pinned.map(|tool| tool.pins.as_deref().unwrap_or(tools::pins::FILE).into()));
        paths
    }
}

/// Paths of `{ file: … }` anywhere but in a tool's `parameters` and in `audit`, which is written.
fn secret_files(value: &Value, paths: &mut Vec<PathBuf>) {
    match value {
        Value::Object(map) => match (map.len(), map.get("file").and_then(Value::as_str)) {
            (1, Some(path)) => paths.push(path.into()),
            _ => map
                .iter()
                .filter(|(key, _)| !matches!(key.as_str(), "parameters" | "audit"))
                .for_each(|(_, v)| secret_files(v, paths)),
        },
        Value::Array(list) => list.iter().for_each(|v| secret_files(v, paths)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Reads and checks a configuration, and builds its tools; see [`read`].
pub fn load(path: Option<&Path>, env: Env<'_>, flags: &Flags) -> Result<(Loaded, Catalog), Problems> {
    read(path, env, flags)?.finish_with_tools()
}

/// A configuration that was read, and what is known to be wrong with it.
pub struct Reading {
    source: Source,
    tree: Node,
    shape: Shape,
    file: Option<File>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    hidden: Vec<String>,
    places: Written,
    flags: Vec<String>,
    named: bool,
}

/// Reads the file at `path`, or `fanfold.yaml`, or what the environment alone says, and checks it.
///
/// The error is a file that cannot be read at all. Mistakes inside the file are in the reading.
/// Files are read on the calling thread: inside a runtime this belongs into `spawn_blocking`.
pub fn read(path: Option<&Path>, env: Env<'_>, flags: &Flags) -> Result<Reading, Problems> {
    let (path, text) = find(path, env, flags).map_err(Problems::without_source)?;
    let name = match &path {
        Some(path) => path.display().to_string(),
        None => "the environment".into(),
    };
    let named = path.is_some();
    let reading = Reading::new(Source { path, name, shown: text.clone() }, &text, env, flags);
    Ok(Reading { named, ..reading })
}

/// Reads a configuration that is given as text; `name` is what people call it.
#[must_use]
pub fn read_text(name: &str, text: &str, env: Env<'_>, flags: &Flags) -> Reading {
    Reading::new(Source { path: None, name: name.into(), shown: text.into() }, text, env, flags)
}

/// Whether there is anything to read: a file, or enough in the environment.
#[must_use]
pub fn is_there(path: Option<&Path>, env: Env<'_>) -> bool {
    path.is_some() || Path::new(DEFAULT_PATH).symlink_metadata().is_ok() || enough(env) != (false, false)
}

/// Whether the environment names a base URL, and whether it has a key.
fn enough(env: Env<'_>) -> (bool, bool) {
    let set = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    (set("OPENAI_BASE_URL"), set("OPENAI_API_KEY"))
}

/// The file and its text.
fn find(path: Option<&Path>, env: Env<'_>, flags: &Flags) -> Result<(Option<PathBuf>, String), Problem> {
    if let Some(path) = path {
        return Ok((Some(path.into()), text_of(path)?));
    }
    let default = Path::new(DEFAULT_PATH);
    if default.symlink_metadata().is_ok() {
        return Ok((Some(default.into()), text_of(default)?));
    }
    let tools = flags.only_tools && !(flags.mcp.is_empty() && flags.tools.is_empty());
    match enough(env) {
        (false, false) if !tools => Err(Problem::new(format!("there is no configuration: no {DEFAULT_PATH} here, and neither OPENAI_API_KEY nor OPENAI_BASE_URL is set"))
            .fix("set OPENAI_API_KEY (and OPENAI_BASE_URL for another server than OpenAI's), write a file with `fanfold config init`, or name one with --config")),
        (_, true) => Ok((None, [FROM_ENVIRONMENT, KEY_FROM_ENVIRONMENT].concat())),
        (_, false) => Ok((None, FROM_ENVIRONMENT.into())),
    }
}

fn text_of(path: &Path) -> Result<String, Problem> {
    let cannot = |why: String| Problem::new(format!("{} cannot be read: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|why| {
        cannot(why.to_string())
            .fix("check the path and the permissions, or write a file with `fanfold config init`")
    })?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|why| cannot(why.to_string()))?;
    if bytes.len() as u64 > LARGEST {
        return Err(
            cannot("it is larger than 1MiB".into()).fix("a configuration is small: is this the right file?")
        );
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(why) => {
            let line =
                why.as_bytes()[..why.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            Err(cannot(format!("line {line} is not UTF-8")).fix("save it as UTF-8"))
        }
    }
}

impl Reading {
    fn new(mut source: Source, text: &str, env: Env<'_>, flags: &Flags) -> Self {
        secrets_in_urls(text).into_iter().for_each(|place| source.mask(place));
        let mut tree = match Node::parse(text) {
            Ok(tree) => tree,
            Err(problem) => {
                mask_by_name(&mut source, text);
                let tree = Node { kind: Kind::Null, place: 0..0, home: 0..0, origin: Origin::Written };
                return Self::failed(source, tree, vec![problem]);
            }
        };
        if matches!(tree.kind, Kind::Null) {
            let problem = Problem::new(format!("{} says nothing", source.name));
            let fix = "add `upstreams:`, or remove the file and run `fanfold config init`";
            return Self::failed(source, tree, vec![problem.fix(fix)]);
        }
        let (mut problems, mut hidden) = (Vec::new(), Vec::new());
        let mut doubled = tree.single_keys(&mut problems);
        for (_, entry) in &mut doubled {
            shape::texts(&entry.value).into_iter().for_each(|place| source.mask(place));
            entry.value.single_keys(&mut problems);
        }
        // What was written second is looked at in place of the first, so that its mistakes are told as well.
        for (path, entry) in doubled.iter().take(MOST_DOUBLED) {
            let part = entry.value.extent();
            let Some(tree) = tree.with(path, &entry.value) else { continue };
            let mut other = Self::of_tree(source.clone(), tree, text, env, flags);
            // For its mistakes only.
            let _ = other.build_tools();
            hidden.append(&mut other.hidden);
            problems.extend(other.problems.into_iter().filter(|problem| problem.is_within(&part)));
        }
        let mut reading = Self::of_tree(source, tree, text, env, flags);
        reading.problems.append(&mut problems);
        reading.hidden.append(&mut hidden);
        reading
    }

    fn of_tree(mut source: Source, mut tree: Node, text: &str, env: Env<'_>, flags: &Flags) -> Self {
        let names = |key: &str| tree.child(key).map_or(&[][..], Node::entries).iter().map(|e| e.key.clone());
        let (upstreams, tools) = (names("upstreams").collect::<Vec<_>>(), names("tools").collect::<Vec<_>>());
        let mut expander = expand::Expander::new(env, text);
        expander.expand(&mut tree);
        let mut problems = expander.problems;
        let mut shape = shape::fit(&mut tree, &schema());
        shape.secrets.drain(..).for_each(|place| source.mask(place));
        problems.append(&mut shape.problems);
        let places = Written::of(&tree, text);
        let mut reading = Self { hidden: expander.hidden, places, ..Self::failed(source, tree, problems) };
        reading.shape = shape;
        reading.decode(flags);
        reading.check(env, flags, &upstreams, &tools);
        reading
    }

    fn failed(source: Source, tree: Node, problems: Vec<Problem>) -> Self {
        Self {
            source,
            tree,
            shape: Shape::default(),
            file: None,
            problems,
            warnings: Vec::new(),
            hidden: Vec::new(),
            places: Written::default(),
            flags: Vec::new(),
            named: true,
        }
    }

    /// Decodes what fits. With mistakes in it, the file serves only to look for more.
    fn decode(&mut self, flags: &Flags) {
        let mut value = self.tree.to_json();
        if let Value::Object(map) = &mut value {
            map.entry("upstreams").or_insert_with(|| json!({}));
        }
        match serde_path_to_error::deserialize::<_, File>(value) {
            Ok(mut file) => {
                if let Some(listen) = &flags.listen {
                    file.listen.clone_from(listen);
                    self.flags.push("listen".into());
                }
                if let Some(listen) = &flags.admin_listen {
                    file.admin.listen.clone_from(listen);
                    self.flags.push("admin.listen".into());
                }
                for flag in &flags.mcp {
                    if let Err(message) = server_flag::add(flag, &mut file.tools) {
                        self.problems.push(Problem::new(message));
                    }
                }
                for flag in &flags.tools {
                    if let Err(message) = tool_flag::add(flag, &mut file.tools) {
                        self.problems.push(Problem::new(message));
                    }
                }
                self.file = Some(file);
            }
            Err(error) if self.problems.is_empty() => {
                let path = error.path().to_string();
                let path: Vec<&str> = path.split(['.', '[', ']']).filter(|s| !s.is_empty()).collect();
                let place = self.tree.place_of(&path);
                self.problems.push(Problem::maybe_at(error.into_inner().to_string(), place));
            }
            Err(_) => {}
        }
    }

    fn check(&mut self, env: Env<'_>, flags: &Flags, upstreams: &[String], tools: &[String]) {
        let Some(file) = &self.file else { return };
        let (problems, warnings) = (Vec::new(), Vec::new());
        let (tree, shape) = (&self.tree, &self.shape);
        let mut check = check::Check { file, tree, upstreams, tools, shape, env, flags, problems, warnings };
        check.all();
        let check::Check { problems, warnings, .. } = check;
        self.problems.extend(problems);
        self.warnings.extend(warnings);
    }

    /// What could be read of the file, as far as anything could: good for finding more mistakes,
    /// and for nothing else until [`Reading::finish`] says that there are none.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Adds a mistake somebody else found at a path of the file, such as `["tools", "clock", "http"]`.
    pub fn add<S: AsRef<str>>(&mut self, path: &[S], message: &str, fix: &str) {
        let mut path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let node = path.iter().try_fold(&self.tree, |node, key| node.child(key));
        if let Some([tree::Entry { key, .. }]) = node.map(Node::entries)
            && matches!(key.as_str(), "env" | "file")
        {
            // What is wrong with a secret stands where it is to be found.
            path.push(key);
        }
        let problem = Problem::maybe_at(message, self.tree.place_of(&path));
        let problem = if fix.is_empty() { problem } else { problem.fix(fix) };
        self.problems.push(problem);
    }

    /// Builds the tools as well. What is wrong with them joins the report.
    pub fn finish_with_tools(mut self) -> Result<(Loaded, Catalog), Problems> {
        let built = self.build_tools();
        match (built, self.finish()) {
            (Some(catalog), Ok(loaded)) => Ok((loaded, catalog)),
            (_, Err(problems)) => Err(problems),
            (None, Ok(loaded)) => {
                let problem = Problem::new("the tools cannot be built");
                Err(Problems { source: loaded.source, list: vec![problem] })
            }
        }
    }

    /// Builds the tools, those with mistakes included, to find more of them.
    fn build_tools(&mut self) -> Option<Catalog> {
        let file = self.file.as_ref()?;
        let defaults = tools::Defaults {
            call_timeout: file.limits.call_timeout.0,
            tool_result: file.limits.tool_result.0,
        };
        let errors = match Catalog::build(&file.tools, &defaults) {
            Ok(catalog) => return Some(catalog),
            Err(errors) => errors,
        };
        for error in errors {
            let path: Vec<&str> =
                ["tools", &error.tool].into_iter().chain(error.path.iter().map(String::as_str)).collect();
            let explained = match error.missing {
                [] => self.shape.explains(&path),
                keys => keys.iter().any(|key| self.shape.explains(&[&path[..], &[key]].concat())),
            };
            if !explained {
                self.add(&path, &error.message, error.fix.as_deref().unwrap_or_default());
            }
        }
        None
    }

    /// The configuration, or every mistake in it. Tools are not built, so theirs are not in it.
    pub fn finish(self) -> Result<Loaded, Problems> {
        let source = Arc::new(self.source);
        // A mistake quotes what is wrong, and that may have come out of a variable that is secret.
        let told = |problems: Vec<Problem>| {
            sorted(problems.into_iter().map(|problem| problem.hiding(&self.hidden)).collect())
        };
        match self.file {
            Some(file) if self.problems.is_empty() => Ok(Loaded {
                file,
                source,
                warnings: told(self.warnings),
                written: self.tree.to_json(),
                hidden: self.hidden,
                places: self.places,
                flags: self.flags,
                named: self.named,
            }),
            _ => Err(Problems { source, list: told(self.problems) }),
        }
    }
}

/// Only what is free of secrets.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("source", &self.source)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Only what is free of secrets.
impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("source", &self.source)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Hides what stands behind a key whose name sounds secret, in a text that could not be parsed.
fn mask_by_name(source: &mut Source, text: &str) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let secret = line.match_indices([':', '=']).find(|(at, _)| {
            let key = line[..*at].trim_end_matches(['"', '\'', ' ']);
            expand::sounds_secret(key.rsplit(|c| !is_word(c)).next().unwrap_or_default())
        });
        if let Some((at, _)) = secret {
            source.mask(start + at + 1..start + line.len());
        }
        start += line.len();
    }
}

/// The JSON Schema of the file.
#[must_use]
pub fn schema() -> Value {
    schemars::schema_for!(File).to_value()
}
