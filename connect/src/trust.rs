//! Whom connections trust, and what they show for themselves: certificates and keys of PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

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
