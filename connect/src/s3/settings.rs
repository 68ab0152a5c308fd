//! Where a bucket is and who asks, as tools for AWS have it: from the environment and the file of credentials.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rusty_s3::{Credentials, UrlStyle};

use super::Error;

/// What begins the address of a place in a bucket.
const SCHEME: &str = "s3://";
/// The region where none is said: that of AWS's first, and what servers of others call theirs.
const REGION: &str = "us-east-1";

/// A place in a bucket: `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The bucket's name.
    pub bucket: String,
    /// What the keys begin with: empty, or with a `/` at its end.
    pub prefix: String,
}

impl Address {
    /// Whether a text is meant as one.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.strip_prefix(SCHEME).unwrap_or_default();
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if bucket.is_empty() || !is_name(bucket) {
            return Err("names no bucket: write s3://BUCKET/PREFIX".to_owned());
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.split('/').any(|part| part == "." || part == "..") || prefix.starts_with('/') {
            return Err("has a prefix that is no path: write s3://BUCKET/PREFIX".to_owned());
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }
}

/// How buckets are reached.
#[derive(Clone)]
pub struct Settings {
    pub(super) endpoint: Option<String>,
    pub(super) region: String,
    pub(super) credentials: Credentials,
    pub(super) ca: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Settings {
    /// From the environment's variables.
    ///
    /// # Errors
    /// What is missing, without repeating what is there.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let filled = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let first = |names: [&str; 2]| names.into_iter().find_map(filled);
        let credentials = match (filled("AWS_ACCESS_KEY_ID"), filled("AWS_SECRET_ACCESS_KEY")) {
            (Some(key), Some(secret)) => made(key, secret, filled("AWS_SESSION_TOKEN")),
            (None, None) => from_file(filled)?,
            (key, _) => {
                let missing = if key.is_some() { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
                return Err(Error::Settings(format!(
                    "{missing} is not set, and the other half of the key is: set both"
                )));
            }
        };
        Ok(Self {
            endpoint: first(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
            region: first(["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| REGION.to_owned()),
            credentials,
            ca: filled("AWS_CA_BUNDLE").map(PathBuf::from),
        })
    }

    /// The server for a bucket, and where in its addresses the bucket's name stands.
    pub(super) fn endpoint(&self, bucket: &str) -> (String, UrlStyle) {
        match &self.endpoint {
            // Servers of others have a name that is not made for each bucket.
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            None => {
                let china = if self.region.starts_with("cn-") { ".cn" } else { "" };
                // The certificate is for one label before the server's name.
                let style = if bucket.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
                (format!("https://s3.{}.amazonaws.com{china}", self.region), style)
            }
        }
    }
}

fn made(key: String, secret: String, token: Option<String>) -> Credentials {
    match token {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    }
}

/// The key in the file that AWS's tools keep.
fn from_file(filled: impl Fn(&str) -> Option<String>) -> Result<Credentials, Error> {
    let own = || filled("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
    let named = filled("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let missing = |what: &str| {
        let sentence =
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE";
        Error::Settings(format!("{what}: {sentence}"))
    };
    let Some(file) = named.or_else(own) else { return Err(missing("there is no key for the object store")) };
    let text = std::fs::read_to_string(&file)
        .map_err(|error| missing(&format!("there is no key for the object store, and {}: {error}", file.display())))?;
    let profile = filled("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    let lines = text.lines().map(str::trim).skip_while(|line| *line != format!("[{profile}]")).skip(1);
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in lines.take_while(|line| !line.starts_with('[')) {
        let Some((name, value)) = line.split_once('=') else { continue };
        let place = match name.trim() {
            "aws_access_key_id" => &mut key,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        *place = Some(value.trim().to_owned());
    }
    match (key, secret) {
        (Some(key), Some(secret)) => Ok(made(key, secret, token)),
        _ => Err(missing(&format!("{} has no key for the profile {profile}", file.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        Settings::from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_address_is_a_bucket_and_a_prefix_that_ends_a_word() {
        for (text, bucket, prefix, shown) in [
            ("s3://backups/n1/2026-01-31", "backups", "n1/2026-01-31/", "s3://backups/n1/2026-01-31"),
            ("s3://backups/n1/", "backups", "n1/", "s3://backups/n1"),
            ("s3://my.bucket", "my.bucket", "", "s3://my.bucket/"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.bucket.as_str(), address.prefix.as_str()), (bucket, prefix));
            assert_eq!(address.to_string(), shown);
        }
        for bad in ["s3://", "s3:///a", "s3://b?x/a", "s3://b/../a", "s3://b//a"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_says_where_and_who_as_for_other_tools() {
        let key = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];
        let place = |more: &[(&str, &str)], bucket| {
            let (endpoint, style) = settings(&[&key[..], more].concat()).unwrap().endpoint(bucket);
            (endpoint, matches!(style, UrlStyle::Path))
        };
        assert_eq!(place(&[], "b"), ("https://s3.us-east-1.amazonaws.com".to_owned(), false));
        assert_eq!(place(&[], "b.c"), ("https://s3.us-east-1.amazonaws.com".to_owned(), true));
        let regions = [("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_REGION", "cn-north-1")];
        assert_eq!(place(&regions, "b"), ("https://s3.cn-north-1.amazonaws.com.cn".to_owned(), false));
        assert_eq!(place(&regions[..1], "b"), ("https://s3.eu-west-1.amazonaws.com".to_owned(), false));
        let hosts = [("AWS_ENDPOINT_URL", "http://all"), ("AWS_ENDPOINT_URL_S3", "http://s3:9000")];
        assert_eq!(place(&hosts, "b"), ("http://s3:9000".to_owned(), true));
        assert!(!format!("{:?}", settings(&key).unwrap()).contains("s3cret"));
    }

    #[test]
    fn half_a_key_is_refused_and_a_file_may_hold_a_whole_one() {
        let said = settings(&[("AWS_SECRET_ACCESS_KEY", "s3cret")]).unwrap_err().to_string();
        assert!(said.contains("AWS_ACCESS_KEY_ID is not set") && !said.contains("s3cret"), "{said}");
        assert!(settings(&[]).unwrap_err().to_string().contains("set AWS_ACCESS_KEY_ID and"));
        let home = std::env::temp_dir().join(format!("taskmaster-s3-{}", std::process::id()));
        std::fs::create_dir_all(home.join(".aws")).unwrap();
        let text = "[default]\naws_access_key_id = one\naws_secret_access_key=first\n\n[backup]\naws_access_key_id=two\n\
                    aws_secret_access_key = second\naws_session_token = third\n";
        std::fs::write(home.join(".aws/credentials"), text).unwrap();
        let home_text = home.to_str().unwrap();
        let found = settings(&[("HOME", home_text)]).unwrap().credentials;
        assert_eq!((found.key(), found.secret(), found.token()), ("one", "first", None));
        let found = settings(&[("HOME", home_text), ("AWS_PROFILE", "backup")]).unwrap().credentials;
        assert_eq!((found.key(), found.secret(), found.token()), ("two", "second", Some("third")));
        let said = settings(&[("HOME", home_text), ("AWS_PROFILE", "none")]).unwrap_err().to_string();
        assert!(said.contains("no key for the profile none") && !said.contains("second"), "{said}");
        std::fs::remove_dir_all(home).unwrap();
    }
}
