//! Reads the file of a document.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

/// The largest document that is read, in bytes.
pub const LARGEST: u64 = 16 * 1024 * 1024;

/// The document in a file, YAML or JSON. The error is a sentence without the file's name; what cannot be parsed has
/// its line and column in it. Reads on the calling thread.
pub fn read(path: &Path) -> Result<Value, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|why| why.to_string())?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|why| why.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err("it is larger than 16MiB".into());
    }
    let json = text.trim_start().starts_with('{').then(|| serde_json::from_str(&text));
    match json {
        Some(Ok(document)) => Ok(document),
        // YAML may begin with a brace, too.
        Some(Err(why)) => yaml(&text).map_err(|_| why.to_string()),
        None => yaml(&text).map_err(|why| why.to_string()),
    }
}

/// As YAML 1.2 reads it: `y` and `no` are texts, not truth values.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}
