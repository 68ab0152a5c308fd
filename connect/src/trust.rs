//! Whom connections trust, and what they show for themselves: certificates and keys of PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where systems keep the authorities that they trust.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The authorities of a file, or else of the system; `named_by` is the setting that names the file.
///
/// # Errors
/// When there are none: a sentence.
pub(crate) fn authorities(file: Option<&Path>, named_by: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = file.map(Path::to_owned).or_else(|| SYSTEM.map(PathBuf::from).into_iter().find(|path| path.exists()));
    let file = file.ok_or_else(|| format!("no file of trusted certificates was found: name one by {named_by}"))?;
    let unreadable = |error: &dyn std::fmt::Display| {
        format!("the trusted certificates in {} cannot be read: {error}", file.display())
    };
    let read = CertificateDer::pem_file_iter(&file).map_err(|error| unreadable(&error))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(&error))?;
    // A system's file may hold some that are not understood; one of them cannot be what was meant.
    if RootCertStore::empty().add_parsable_certificates(found.iter().cloned()).0 == 0 {
        return Err(unreadable(&"it holds none"));
    }
    Ok(found)
}

/// What we show of ourselves: the certificates from ours up to the authority, and the key, of a file each.
///
/// # Errors
/// When one holds none: a sentence.
pub(crate) fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let unreadable = |what: &str, file: &Path, error: &dyn std::fmt::Display| {
        format!("the {what} in {} cannot be read: {error}", file.display())
    };
    let read = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.map_err(|error| unreadable("certificate", certificate, &error))?;
    if chain.is_empty() {
        return Err(unreadable("certificate", certificate, &"it holds none"));
    }
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("key", key, &error))?))
}

/// What a server or the connection to it said, with what to do where that is about the certificate that we show or do not show.
/// `section` is that of the settings.
pub(crate) fn explained(said: String, section: &str, has_certificate: bool) -> String {
    let alert = said.split_once("received fatal alert: ").map(|(_, alert)| alert);
    let is_asked = said.contains("requires a valid client certificate");
    let refused = ["CertificateRequired", "UnknownCA", "BadCertificate", "CertificateUnknown", "CertificateExpired"];
    let further = ["CertificateRevoked", "UnsupportedCertificate", "DecryptError"];
    let is_refused = alert.is_some_and(|alert| refused.iter().chain(&further).any(|known| alert.starts_with(known)));
    if said.contains("certificate authentication failed") {
        format!("{said}: the name in the certificate of {section}.tls_cert is not the role's")
    } else if !is_asked && !is_refused {
        said
    } else if has_certificate {
        format!(
            "{said}: the server does not take the certificate of {section}.tls_cert, which it must trust and which must be valid"
        )
    } else {
        format!("{said}: the server asks for a certificate, name it by {section}.tls_cert and {section}.tls_key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_our_certificate_comes_with_what_to_do() {
        let told = |said: &str, has| explained(said.to_owned(), "redis", has);
        assert!(told("x: received fatal alert: CertificateRequired", false).contains("name it by redis.tls_cert"));
        assert!(told("x: received fatal alert: UnknownCA", true).contains("does not take the certificate of redis"));
        assert!(told("connection requires a valid client certificate [28000]", false).contains("name it by"));
        assert!(told("certificate authentication failed for user \"me\"", true).contains("is not the role's"));
        for other in ["received fatal alert: ProtocolVersion", "invalid peer certificate: UnknownIssuer"] {
            assert_eq!(told(other, true), other);
        }
    }
}
