//! `[redis]` raised into what the connection needs.

use std::path::Path;

use anyhow::Context;
use taskmaster_connect::redis::Settings;

use super::secret::{password, shown};
use super::sections::Redis;
use super::value::ServerTls;

impl Redis {
    /// Whether there is a server.
    pub(crate) fn is_configured(&self) -> bool {
        !self.url.0.is_empty()
    }

    /// Longest result that is remembered there, if any is.
    pub(crate) fn result_bytes_max(&self) -> Option<usize> {
        self.is_configured().then(|| usize::try_from(self.max_result.0).unwrap_or(usize::MAX))
    }

    /// Where it is, with the password read from its file if there is one.
    ///
    /// # Errors
    /// What is wrong, without secrets.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let login = password("redis.password_file", self.password_file.as_deref(), &self.password)?;
        let mut settings = Settings::new(&self.url.0, login.as_deref()).context("redis.url")?;
        let read = |named_by: &str, file: &Path| {
            std::fs::read(file).with_context(|| format!("{named_by} {} cannot be read", file.display()))
        };
        settings.tls_ca = self.tls_ca.as_deref().map(|file| read("redis.tls_ca", file)).transpose()?;
        let (certificate, key) = (self.tls_cert.as_deref(), self.tls_key.as_deref());
        if let Some((certificate, key)) = shown("redis", certificate, key, settings.is_encrypted())? {
            settings.tls_shown = Some((read("redis.tls_cert", certificate)?, read("redis.tls_key", key)?));
        }
        let file = self.sentinel_password_file.as_deref();
        settings.sentinel_login = (
            Some(self.sentinel_user.clone()).filter(|user| !user.is_empty()),
            password("redis.sentinel_password_file", file, &self.sentinel_password)?,
        );
        settings.encrypts_sentinels = self.sentinel_tls == ServerTls::Verify;
        settings.prefix.clone_from(&self.prefix);
        (settings.timeout, settings.connect_timeout, settings.ttl) =
            (self.timeout.0, self.connect_timeout.0, self.ttl.0);
        settings.local_max = usize::try_from(self.local_size.0 / self.max_result.0).unwrap_or(usize::MAX);
        Ok(settings)
    }
}
