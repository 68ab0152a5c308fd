//! Values that hold secrets: shown without them.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::setting::{Raw, Setting};

/// What stands where a secret is.
const HIDDEN: &str = "***";

/// A secret. It comes from the environment; a file that others may read is no place for it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Secret {
    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { HIDDEN }
    }
}

impl Setting for Secret {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Variable(text) => Ok(Self(text.clone())),
            Raw::Text(text) if text.is_empty() => Ok(Self::default()),
            _ => Err("does not belong into this file: set the environment variable, or name a file by password_file"
                .to_owned()),
        }
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.shown())
    }

    fn json(&self) -> Value {
        json!(self.shown())
    }
}

/// A password: from its file if there is one, else from the environment. `named_by` is the setting that names the file.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn password(named_by: &str, file: Option<&Path>, secret: &Secret) -> anyhow::Result<Option<String>> {
    let Some(file) = file else { return Ok(Some(secret.0.clone()).filter(|password| !password.is_empty())) };
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{named_by} {} cannot be read", file.display()))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The files of a certificate to show and of its key, of a section whose connections may not be encrypted.
///
/// # Errors
/// When one is named without the other, or in vain.
pub(super) fn shown<'a>(
    section: &str,
    certificate: Option<&'a Path>,
    key: Option<&'a Path>,
    is_encrypted: bool,
) -> anyhow::Result<Option<(&'a Path, &'a Path)>> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) if is_encrypted => Ok(Some((certificate, key))),
        (Some(_), Some(_)) => anyhow::bail!("{section}.tls_cert is shown to nobody: connections are not encrypted"),
        _ => anyhow::bail!("{section}.tls_cert and {section}.tls_key belong together: name both files"),
    }
}

/// The address of a database, which may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct DatabaseUrl(pub(crate) String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl DatabaseUrl {
    /// Without the password: what stands between the user and the last `@`, or behind `password=`.
    fn shown(&self) -> String {
        let text = &self.0;
        if let Some((scheme, rest)) = text.split_once("://") {
            let Some((user, place)) = rest.rsplit_once('@') else { return self.without_pairs() };
            let user = user.split_once(':').map_or(user.to_owned(), |(user, _)| format!("{user}:{HIDDEN}"));
            return Self(format!("{scheme}://{user}@{place}")).without_pairs();
        }
        self.without_pairs()
    }

    fn without_pairs(&self) -> String {
        match self.0.find("password") {
            Some(at) => format!("{}password={HIDDEN}", &self.0[..at]),
            None => self.0.clone(),
        }
    }
}

impl Setting for DatabaseUrl {
    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw
            .text()
            .ok_or("must be a text in quotes, such as \"postgres://user@host:5432/name\" or \"redis://host:6379\"")?;
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        Value::String(self.shown()).to_string()
    }

    fn json(&self) -> Value {
        json!(self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_password() {
        for (url, shown) in [
            ("postgres://me@db:5432/tasks", "postgres://me@db:5432/tasks"),
            ("postgres://me:s3c@ret@db/tasks", "postgres://me:***@db/tasks"),
            ("postgres://db/tasks?user=me&password=s3cret&x=y", "postgres://db/tasks?user=me&password=***"),
            ("host=db user=me password='s3 cret'", "host=db user=me password=***"),
            ("", ""),
        ] {
            let url = DatabaseUrl(url.to_owned());
            assert_eq!((url.shown(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
            assert!(!url.show().contains("s3") && !url.json().to_string().contains("s3"));
        }
    }

    #[test]
    fn a_password_in_the_file_is_refused_without_repeating_it() {
        let refused = Secret::read(&Raw::Text("s3cret".to_owned())).unwrap_err();
        assert!(refused.contains("password_file") && !refused.contains("s3cret"));
        let secret = Secret::read(&Raw::Variable("s3cret".to_owned())).unwrap();
        assert_eq!((secret.show(), format!("{secret:?}")), ("\"***\"".to_owned(), "***".to_owned()));
    }
}
