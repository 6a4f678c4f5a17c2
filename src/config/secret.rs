//! Opens secrets: takes their text from where the file says it is.

use std::io::Read;

use secrecy::SecretString;

use super::Env;
use crate::units::Secret;

/// The largest file a secret may be read from.
const LARGEST: u64 = 64 * 1024;

/// The text of a secret. The error says in a sentence why there is none; it never shows text.
pub fn open(secret: &Secret, env: Env<'_>) -> Result<SecretString, String> {
    match secret {
        Secret::Text(text) => Ok(text.clone().into()),
        Secret::Env { env: name } => match env(name) {
            Some(text) => Ok(text.into()),
            None => Err(format!("the environment variable `{name}` is not set")),
        },
        Secret::File { file } => read(file).map(Into::into),
    }
}

fn read(path: &str) -> Result<String, String> {
    let cannot = |why: std::io::Error| format!("the file `{path}` cannot be read: {why}");
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > LARGEST {
        return Err(format!("the file `{path}` is larger than 64KiB: that is no secret"));
    }
    let end = text.strip_suffix('\n').map_or(text.len(), |t| t.strip_suffix('\r').unwrap_or(t).len());
    text.truncate(end);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use secrecy::ExposeSecret;

    use super::*;

    fn opened(secret: &Secret) -> Result<String, String> {
        open(secret, &|name| (name == "SET").then(|| "value".to_owned()))
            .map(|s| s.expose_secret().to_owned())
    }

    #[test]
    fn a_secret_is_found_where_it_is_said_to_be() {
        assert_eq!(opened(&Secret::Text("x".into())), Ok("x".into()));
        assert_eq!(opened(&Secret::Env { env: "SET".into() }), Ok("value".into()));
        let missing = "the environment variable `UNSET` is not set".to_owned();
        assert_eq!(opened(&Secret::Env { env: "UNSET".into() }), Err(missing));
    }

    #[test]
    fn one_line_end_of_a_file_is_dropped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"key\r\n").unwrap();
        let secret = Secret::File { file: file.path().to_string_lossy().into_owned() };
        assert_eq!(opened(&secret), Ok("key".into()));
    }

    #[test]
    fn a_file_that_is_missing_or_huge_is_an_error() {
        assert!(
            opened(&Secret::File { file: "/nonexistent/key".into() }).unwrap_err().contains("cannot be read")
        );
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let secret = Secret::File { file: file.path().to_string_lossy().into_owned() };
        file.write_all(&vec![b'x'; 70_000]).unwrap();
        assert!(opened(&secret).unwrap_err().contains("larger than"));
    }
}
