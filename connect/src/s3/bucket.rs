//! A place in a bucket: what is there, and reading it.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket as Signer, Credentials, Method, S3Action};

use super::refusal::{Deed, refusal};
use super::request::{Answer, Request, SIGNED_FOR, Sender};
use super::{Address, Error, Settings};

/// Most bytes of a file that are moved, and in memory, at once.
pub(super) const PART_LEN: usize = 8 << 20;

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name behind the prefix.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// A place in a bucket.
pub struct Bucket {
    pub(super) address: Address,
    pub(super) signer: Signer,
    pub(super) credentials: Credentials,
    pub(super) sender: Sender,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Nothing is asked yet. Once `stop` is true, requests end with [`Error::Stopped`].
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(address: Address, settings: &Settings, stop: Arc<AtomicBool>) -> Result<Self, Error> {
        let (endpoint, style) = settings.endpoint(&address.bucket);
        let unusable = |error: &dyn std::fmt::Display| Error::Settings(format!("the object store's address: {error}"));
        let url = endpoint.parse().map_err(|error| unusable(&error))?;
        let signer = Signer::new(url, style, address.bucket.clone(), settings.region.clone());
        let signer = signer.map_err(|error| unusable(&error))?;
        let origin = signer.base_url().origin().ascii_serialization();
        let sender = Sender::new(settings, origin, stop)?;
        Ok(Self { address, signer, credentials: settings.credentials.clone(), sender })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn key(&self, path: &str) -> String {
        format!("{}{path}", self.address.prefix)
    }

    pub(super) fn accepted(&self, answer: Answer, deed: Deed) -> Result<Answer, Error> {
        if answer.is_error {
            let place = &self.sender.place;
            return Err(refusal(&answer, deed, &self.address.bucket, place, SystemTime::now()));
        }
        Ok(answer)
    }

    /// An answer of the server that makes no sense.
    pub(super) fn senseless(&self, what: &str) -> Error {
        Error::Refused(format!("{}: {what}: is it an object store?", self.sender.place))
    }

    /// All that is there, by name.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let (mut found, mut token) = (Vec::new(), None::<String>);
        loop {
            let sign = || {
                let mut action = self.signer.list_objects_v2(Some(&self.credentials));
                action.with_prefix(self.address.prefix.as_str());
                if let Some(token) = &token {
                    action.with_continuation_token(token.as_str());
                }
                action.sign(SIGNED_FOR).into()
            };
            let answer = self.accepted(self.sender.send(&Request::new(Method::Get, &sign))?, Deed::List)?;
            let text = String::from_utf8_lossy(&answer.body);
            let listed = ListObjectsV2::parse_response(&text)
                .map_err(|_| self.senseless("its list of objects is not understood"))?;
            for object in listed.contents {
                // Consoles leave empty objects with the names of folders.
                if let Some(path) = object.key.strip_prefix(&self.address.prefix).filter(|path| !is_folder(path)) {
                    found.push(Entry { path: path.to_owned(), bytes: object.size.unwrap_or(0) });
                }
            }
            token = listed.next_continuation_token;
            if token.is_none() {
                found.sort_by(|one, other| one.path.cmp(&other.path));
                return Ok(found);
            }
        }
    }

    /// Reads an object of this length part by part.
    #[must_use]
    pub fn object(&self, entry: &Entry) -> Object<'_> {
        let Entry { path, bytes } = entry.clone();
        Object { bucket: self, path, at: 0, bytes, part: Vec::new(), read: 0 }
    }

    /// One part of an object.
    fn part(&self, path: &str, from: u64, len: usize) -> Result<Vec<u8>, Error> {
        let key = self.key(path);
        let sign = || self.signer.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR).into();
        let request = Request { range: Some((from, len)), ..Request::new(Method::Get, &sign) };
        let answer = self.accepted(self.sender.send(&request)?, Deed::Read)?;
        if answer.body.len() != len {
            return Err(Error::Refused(format!("{}{path} changed while it was read", self.address)));
        }
        Ok(answer.body)
    }

    /// Takes an object away, whoever may have asked for an end.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        let key = self.key(path);
        let sign = || self.signer.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR).into();
        let answer = self.sender.send_last(&Request::new(Method::Delete, &sign))?;
        self.accepted(answer, Deed::Remove).map(|_| ())
    }
}

fn is_folder(path: &str) -> bool {
    path.is_empty() || path.ends_with('/')
}

/// The bytes of an object. An error of it is one of [`Error`].
#[derive(Debug)]
pub struct Object<'a> {
    bucket: &'a Bucket,
    path: String,
    /// Where the next part begins.
    at: u64,
    bytes: u64,
    part: Vec<u8>,
    /// How much of the part was given.
    read: usize,
}

impl Read for Object<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.part.len() && self.at < self.bytes {
            let len = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX).min(PART_LEN);
            self.part = self.bucket.part(&self.path, self.at, len).map_err(io::Error::other)?;
            (self.read, self.at) = (0, self.at + self.part.len() as u64);
        }
        let len = (&self.part[self.read..]).read(buffer)?;
        self.read += len;
        Ok(len)
    }
}
