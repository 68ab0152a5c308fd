//! `[postgres]` raised into what the connection needs.

use anyhow::Context;
use taskmaster_connect::postgres::{Settings, TlsMode};

use super::secret::{password, shown};
use super::sections::Postgres;
use super::value::ServerTls;

impl Postgres {
    /// Whether there is a database.
    pub(crate) fn is_configured(&self) -> bool {
        !self.url.0.is_empty()
    }

    /// Where it is, with the password read from its file if there is one.
    ///
    /// # Errors
    /// What is wrong, without secrets.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let password = password("postgres.password_file", self.password_file.as_deref(), &self.password)?;
        let mut settings = Settings::new(&self.url.0, password.as_deref()).context("postgres.url")?;
        let mode = match self.tls {
            ServerTls::Disable => TlsMode::Disable,
            ServerTls::Verify => TlsMode::Verify,
        };
        settings.set_tls(mode, self.tls_ca.clone());
        anyhow::ensure!(
            !settings.lacks_tls(),
            "postgres.url asks for encryption (sslmode=require), and postgres.tls is \"disable\": set postgres.tls = \"verify\""
        );
        let (certificate, key) = (self.tls_cert.as_deref(), self.tls_key.as_deref());
        if let Some((certificate, key)) = shown("postgres", certificate, key, mode == TlsMode::Verify)? {
            settings.show_certificate(certificate.to_owned(), key.to_owned());
        }
        settings.set_timeouts(self.connect_timeout.0, self.statement_timeout.0);
        Ok(settings)
    }
}
