//! `tools` for the set `encoders` of `run`: only the pure parts, so that a change is built in seconds.

pub mod address;
mod arguments;
pub mod http {
    mod auth;
    pub(super) mod form;
    pub(super) mod origin;
    mod written;

    /// As `Http::read` does, without connections.
    #[cfg(test)]
    pub(super) fn read(settings: &super::settings::Http, schema: &super::arguments::Schema, mistakes: &mut super::load::Mistakes) {
        if let Some(form) = form::Form::load(settings, schema, mistakes) {
            origin::name_host("http", &form.origin, &mut super::address::Reach::default(), mistakes);
        }
    }
}
mod load;
mod place;
mod secret;
pub mod settings;
pub mod text;

#[cfg(test)]
mod testing {
    use serde_json::Value;

    pub(super) use super::hostile::HOSTILE;
    use super::load::{LoadError, Mistakes};

    /// What is wrong with the `http` of these tools.
    pub(super) fn build(tools: Value) -> Result<(), Vec<LoadError>> {
        let mut errors = Vec::new();
        for (name, tool) in tools.as_object().unwrap() {
            let mut mistakes = Mistakes::of(name);
            let settings = serde_json::from_value(tool["http"].clone()).unwrap();
            let schema = super::arguments::Schema::compile(&tool["parameters"]).unwrap();
            super::http::read(&settings, &schema, &mut mistakes);
            errors.extend(mistakes.into_inner());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
#[cfg(test)]
mod hostile;
