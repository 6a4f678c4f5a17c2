//! Opens a [`Secret`]: reads the variable or the file it names, once, while a catalog is built.

use std::io::Read as _;

use secrecy::SecretString;

use crate::units::Secret;

/// The most a secret's file may hold.
const MAX_FILE: u64 = 64 * 1024;

/// The secret's text. The error is a sentence for the operator; it holds names, never the text.
pub(super) fn open(secret: &Secret) -> Result<SecretString, String> {
    match secret {
        Secret::Text(text) => Ok(text.as_str().into()),
        Secret::Env { env } => match std::env::var(env) {
            Ok(text) => Ok(text.into()),
            Err(std::env::VarError::NotPresent) => Err(format!("the environment variable {env} is not set")),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(format!("the environment variable {env} is not UTF-8"))
            }
        },
        Secret::File { file } => {
            read(file).map_err(|error| format!("the file {file} cannot be read: {error}"))
        }
    }
}

fn read(path: &str) -> std::io::Result<SecretString> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is longer than 64 KiB"));
    }
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn one_line_end_of_a_file_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (written, read) in
            [("abc\n", "abc"), ("abc\r\n", "abc"), ("abc\n\n", "abc\n"), ("abc", "abc"), ("", "")]
        {
            std::fs::write(&path, written).unwrap();
            let secret = Secret::File { file: path.to_str().unwrap().into() };
            assert_eq!(open(&secret).unwrap().expose_secret(), read);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let gone = open(&Secret::Env { env: "FANFOLD_TEST_NO_SUCH_VARIABLE".into() }).unwrap_err();
        assert!(gone.contains("FANFOLD_TEST_NO_SUCH_VARIABLE"), "{gone}");
        let gone = open(&Secret::File { file: "/nonexistent/token".into() }).unwrap_err();
        assert!(gone.contains("/nonexistent/token"), "{gone}");
        assert!(open(&Secret::File { file: "/dev/zero".into() }).is_err());
    }
}
