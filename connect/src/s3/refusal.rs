//! What a server refuses, as a sentence that says what to do.

use std::time::{Duration, SystemTime};

use jiff::fmt::rfc2822::DateTimeParser;

use super::Error;
use super::request::Answer;

/// Servers refuse requests of clocks that are further off than this.
const SKEW_MAX: Duration = Duration::from_secs(300);
/// Most characters of a server's own words.
const WORDS_MAX: usize = 200;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    List,
    Read,
    Write,
    Remove,
}

impl Deed {
    /// What one may be without.
    const fn right(self) -> &'static str {
        match self {
            Self::List => "s3:ListBucket on the bucket",
            Self::Read => "s3:GetObject on its objects",
            Self::Write => "s3:PutObject and s3:AbortMultipartUpload on its objects",
            Self::Remove => "s3:DeleteObject on its objects",
        }
    }
}

/// An answer that is an error, to a request for something in this bucket at this place.
pub(super) fn refusal(answer: &Answer, deed: Deed, bucket: &str, place: &str, now: SystemTime) -> Error {
    let code = answer.element("Code").unwrap_or_default();
    let refused = |sentence: String| Error::Refused(format!("{place}: {sentence}"));
    if let (401 | 403, Some(off)) = (answer.status, skew(answer, now)) {
        let minutes = off.as_secs() / 60;
        return refused(format!("this machine's clock is {minutes} minutes away from the server's: set it right"));
    }
    let region = answer.region.clone().or_else(|| answer.element("Region"));
    match (code.as_str(), region) {
        ("NoSuchBucket", _) => {
            Error::Missing(format!("{place}: there is no bucket {bucket}: make it, or correct the name"))
        }
        ("NoSuchKey" | "NoSuchUpload", _) => Error::Missing(format!("{place}: there is no such object in {bucket}")),
        ("InvalidAccessKeyId", _) => refused("the access key is not known there: correct AWS_ACCESS_KEY_ID".to_owned()),
        ("SignatureDoesNotMatch", _) => refused(
            "the secret is not that of the access key: correct AWS_SECRET_ACCESS_KEY (and AWS_REGION, which is signed)"
                .to_owned(),
        ),
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
            refused("the session's token is not valid any more: set AWS_SESSION_TOKEN and its key anew".to_owned())
        }
        ("RequestTimeTooSkewed", _) => {
            refused("this machine's clock is too far away from the server's: set it right".to_owned())
        }
        (_, Some(region)) if matches!(answer.status, 301 | 307 | 400) => {
            refused(format!("the bucket {bucket} is in the region {region}: set AWS_REGION={region}"))
        }
        _ if matches!(answer.status, 301 | 302 | 307 | 308) => refused(format!(
            "the bucket {bucket} is to be asked for elsewhere: set AWS_REGION to its region, or AWS_ENDPOINT_URL to its server"
        )),
        (_, _) if matches!(answer.status, 401 | 403) => {
            refused(format!("access to the bucket {bucket} is denied: the key needs {}", deed.right()))
        }
        (_, _) => {
            let words: String = answer.element("Message").unwrap_or_default().chars().take(WORDS_MAX).collect();
            refused(format!("it answers {} {code} {words}", answer.status).trim_end().to_owned())
        }
    }
}

/// How far the server's clock is away, if that is too far.
fn skew(answer: &Answer, now: SystemTime) -> Option<Duration> {
    let theirs = DateTimeParser::new().parse_timestamp(answer.date.as_deref()?).ok()?;
    let theirs = SystemTime::from(theirs);
    let off = theirs.duration_since(now).unwrap_or_else(|error| error.duration());
    (off > SKEW_MAX).then_some(off)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, code: &str, more: &str) -> String {
        let body = format!("<?xml version='1.0'?><Error><Code>{code}</Code>{more}</Error>").into_bytes();
        let date = Some("Thu, 26 Nov 2026 18:40:03 GMT".to_owned());
        let answer = Answer { status, body, date, is_error: true, ..Answer::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_718_403);
        refusal(&answer, Deed::Write, "backups", "https://s3.example", now).to_string()
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        for (status, code, more, wanted) in [
            (404, "NoSuchBucket", "", "there is no bucket backups: make it"),
            (403, "InvalidAccessKeyId", "", "correct AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", "", "correct AWS_SECRET_ACCESS_KEY"),
            (400, "ExpiredToken", "", "set AWS_SESSION_TOKEN"),
            (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", "set AWS_REGION=eu-west-1"),
            (301, "PermanentRedirect", "", "set AWS_REGION to its region"),
            (403, "AccessDenied", "", "needs s3:PutObject"),
            (403, "RequestTimeTooSkewed", "", "clock is too far away"),
            (409, "Strange", "<Message>so it is</Message>", "it answers 409 Strange so it is"),
        ] {
            let said = told(status, code, more);
            assert!(said.contains(wanted), "{code}: {said}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_told_of_however_the_server_calls_it() {
        let answer = Answer {
            status: 403,
            body: b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>".to_vec(),
            date: Some("Thu, 26 Nov 2026 18:40:03 GMT".to_owned()),
            is_error: true,
            ..Answer::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_718_403 + 3_600);
        let said = refusal(&answer, Deed::List, "backups", "https://s3.example", now).to_string();
        assert!(said.contains("clock is 60 minutes away"), "{said}");
    }
}
