//! A configuration: any text is either loaded or answered with its mistakes, what is printed loads
//! again as the same, and a secret of the environment is never shown.

use fanfold::config::print::Detail;
use fanfold::config::{Flags, read_text};

/// The value of a variable that sounds secret.
const SECRET: &str = "hush-5417-hush";

fn env(name: &str) -> Option<String> {
    match name {
        "API_KEY" => Some(SECRET.into()),
        "HOST" => Some("example.org".into()),
        "NUMBER" => Some("7".into()),
        _ => None,
    }
}

pub fn hold(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files are read where the text names them, and a fuzzer names /dev/stdin sooner or later.
    if ["file", "ca", "cert", "spec"].iter().any(|key| text.contains(key)) {
        return;
    }
    let reading = read_text("fuzz.yaml", text, &env, &Flags::default());
    match reading.finish() {
        Err(problems) => {
            let report = problems.to_string();
            assert!(report.contains("fuzz.yaml"), "a report says where: {report}");
            shows_nothing(text, &report);
        }
        Ok(loaded) => {
            let report = loaded.render_warnings(false);
            shows_nothing(text, &report);
            let printed = loaded.print(Detail::Everything).expect("it can be printed");
            shows_nothing(text, &printed);
            if printed.contains('•') || printed.contains("file") {
                return;
            }
            let again = read_text("again.yaml", &printed, &env, &Flags::default()).finish();
            let again = again.unwrap_or_else(|problems| panic!("{problems}\n{printed}"));
            assert_eq!(again.print(Detail::Everything).expect("it can be printed"), printed);
        }
    }
}

fn shows_nothing(text: &str, shown: &str) {
    assert!(text.contains(SECRET) || !shown.contains(SECRET), "a secret is shown: {shown}");
}
