//! What an operator accepted of a server's tools: a digest of each, in a file that only `fanfold tools accept` writes.
//!
//! The file holds JSON, `{ SERVER: { TOOL: DIGEST } }`. fanfold itself only reads it, so it may lie on a file system
//! that cannot be written, and several replicas may have the same. The digest is the SHA-256 of the tool's name, its
//! description, its schema (without regard to white space and the order of members) and what the server says of its
//! effects.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Withheld;
use crate::tools::load::Mistakes;
use crate::tools::mcp::Listed;
use crate::wire::call::canonical;

/// Where the file is, when the settings do not say.
pub const FILE: &str = "fanfold.pins.json";
/// The largest file that is read.
const LARGEST: u64 = 4 * 1024 * 1024;

/// Digests of tools, by server and name.
pub type All = BTreeMap<String, BTreeMap<String, String>>;

/// What was accepted of one server.
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<String, String>);

impl Pins {
    /// Reads the file. Without one, nothing was accepted yet.
    pub(super) fn read(path: Option<&str>, server: &str, mistakes: &mut Mistakes) -> Self {
        let path = path.unwrap_or(FILE);
        match read(Path::new(path)) {
            Ok(mut all) => Self(all.remove(server).unwrap_or_default()),
            Err(why) => {
                mistakes.add(&["pins"], why);
                Self::default()
            }
        }
    }

    /// The digest of a tool that is as it was accepted.
    pub(super) fn check(&self, listed: &Listed) -> Result<Arc<str>, Withheld> {
        match self.0.get(&*listed.name) {
            None => Err(Withheld::New),
            Some(digest) if *digest == self::digest(listed) => Ok(digest.as_str().into()),
            Some(_) => Err(Withheld::Changed),
        }
    }
}

/// What the file says; nothing, when it is not there.
pub fn read(path: &Path) -> Result<All, String> {
    let cannot = |why: String| format!("the file {} cannot be read: {why}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(All::new()),
        Err(error) => return Err(cannot(error.to_string())),
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| cannot(error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(cannot("it is larger than 4MiB".into()));
    }
    serde_json::from_slice(&text).map_err(|error| cannot(format!("it is not what fanfold wrote: {error}")))
}

/// Writes the file: whole or not at all.
pub fn write(path: &Path, all: &All) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&file, all)?;
    std::io::Write::write_all(&mut file.as_file(), b"\n")?;
    file.as_file().sync_all()?;
    // Everybody who runs fanfold may read it; it holds no secret.
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// The digest of a tool.
pub(in crate::tools) fn digest(listed: &Listed) -> String {
    let said = listed.said.as_ref();
    let hints = said.map(|said| (said.read_only_hint, said.idempotent_hint, said.destructive_hint));
    let hints = format!("{:?}", hints.unwrap_or_default());
    let schema = canonical(&listed.parameters);
    let mut hash = Sha256::new();
    for part in [&*listed.name, listed.description.as_deref().unwrap_or_default(), &*schema, &*hints] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
