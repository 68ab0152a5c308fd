//! Writing an object: at once if it is short, else in parts that become one object when all are there.

use std::io::Read;
use std::time::SystemTime;

use rusty_s3::actions::{CompleteMultipartUploadResponse, CreateMultipartUpload};
use rusty_s3::{Method, S3Action};

use super::bucket::PART_LEN;
use super::refusal::{Deed, refusal};
use super::request::{Request, SIGNED_FOR};
use super::{Bucket, Error};

/// Most parts of an object that servers take.
const PARTS_MAX: u64 = 10_000;
/// Parts are a multiple of this long.
const PART_STEP: u64 = 1 << 20;

/// Length of the parts of an object of this length.
fn part_len(bytes: u64) -> usize {
    let least = bytes.div_ceil(PARTS_MAX).next_multiple_of(PART_STEP);
    usize::try_from(least).unwrap_or(usize::MAX).max(PART_LEN)
}

impl Bucket {
    /// Writes an object of this length; an object of that name is replaced. It is there when it is whole, and durable then.
    ///
    /// # Errors
    /// When it cannot be written, or what it is read from fails or ends early.
    pub fn write(
        &self,
        path: &str,
        from: &mut impl Read,
        bytes: u64,
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), Error> {
        let key = self.key(path);
        let len = part_len(bytes);
        let mut part = vec![0; len.min(usize::try_from(bytes).unwrap_or(usize::MAX))];
        if part.len() as u64 == bytes {
            from.read_exact(&mut part)?;
            let sign = || self.signer.put_object(Some(&self.credentials), &key).sign(SIGNED_FOR).into();
            let request = Request { body: &part, ..Request::new(Method::Put, &sign) };
            self.accepted(self.sender.send(&request)?, Deed::Write)?;
            on_bytes(bytes);
            return Ok(());
        }
        let upload = self.begin(&key)?;
        let written = self.parts(&key, &upload, from, bytes, &mut part, on_bytes);
        let written = written.and_then(|etags| self.complete(&key, &upload, &etags, path, bytes));
        if written.is_err() {
            let sign =
                || self.signer.abort_multipart_upload(Some(&self.credentials), &key, &upload).sign(SIGNED_FOR).into();
            // What went wrong first is what counts.
            let _tried = self.sender.send_last(&Request::new(Method::Delete, &sign));
        }
        written
    }

    fn begin(&self, key: &str) -> Result<String, Error> {
        let sign = || self.signer.create_multipart_upload(Some(&self.credentials), key).sign(SIGNED_FOR).into();
        let answer = self.accepted(self.sender.send(&Request::new(Method::Post, &sign))?, Deed::Write)?;
        let text = String::from_utf8_lossy(&answer.body);
        let made = CreateMultipartUpload::parse_response(&text);
        Ok(made.map_err(|_| self.senseless("it began no upload"))?.upload_id().to_owned())
    }

    /// Sends all parts; their tags.
    fn parts(
        &self,
        key: &str,
        upload: &str,
        from: &mut impl Read,
        bytes: u64,
        part: &mut [u8],
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<Vec<String>, Error> {
        let (mut etags, mut left) = (Vec::new(), bytes);
        while left > 0 {
            let len = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            from.read_exact(&mut part[..len])?;
            let number = u16::try_from(etags.len() + 1).unwrap_or(u16::MAX);
            let sign = || {
                let action = self.signer.upload_part(Some(&self.credentials), key, number, upload);
                action.sign(SIGNED_FOR).into()
            };
            let request = Request { body: &part[..len], ..Request::new(Method::Put, &sign) };
            let answer = self.accepted(self.sender.send(&request)?, Deed::Write)?;
            etags.push(answer.etag.ok_or_else(|| self.senseless("a part has no tag"))?);
            left -= len as u64;
            on_bytes(len as u64);
        }
        Ok(etags)
    }

    /// Makes the parts an object.
    fn complete(&self, key: &str, upload: &str, etags: &[String], path: &str, bytes: u64) -> Result<(), Error> {
        let action = || {
            let tags = etags.iter().map(String::as_str);
            self.signer.complete_multipart_upload(Some(&self.credentials), key, upload, tags)
        };
        let sign = || action().sign(SIGNED_FOR).into();
        let body = action().body();
        let request = Request { body: body.as_bytes(), answers_late: true, ..Request::new(Method::Post, &sign) };
        let answer = self.sender.send(&request)?;
        if !answer.is_error {
            let text = String::from_utf8_lossy(&answer.body);
            let parsed = CompleteMultipartUploadResponse::parse(&text);
            return parsed.map(|_| ()).map_err(|_| self.senseless("it did not end the upload"));
        }
        // The answer to an earlier try was lost, and it had succeeded. (Servers differ in what they say is not there.)
        let is_there = |entry: &super::Entry| entry.path == path && entry.bytes == bytes;
        if answer.status == 404 && self.list()?.iter().any(is_there) {
            return Ok(());
        }
        Err(refusal(&answer, Deed::Write, &self.address.bucket, &self.sender.place, SystemTime::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_object_has_more_parts_than_servers_take_and_parts_stay_short() {
        for bytes in [1, 8 << 20, 80_000 << 20, (80_000 << 20) + 1, 5 << 40] {
            let len = part_len(bytes) as u64;
            assert!(bytes.div_ceil(len) <= PARTS_MAX, "{bytes}");
            assert!(len == PART_LEN as u64 || len < bytes / PARTS_MAX + 2 * PART_STEP, "{bytes}");
        }
    }
}
