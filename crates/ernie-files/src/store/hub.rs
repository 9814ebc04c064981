//! Questions to a hub: which files a revision has, how long they are, by which hash they are known, their bytes.
//!
//! Addresses, headers and the connection are those of the field's client, `hf-hub`. Its own downloader is not used: it
//! checks no hash, appends to a partial file whatever a server answers to a range, builds paths from names and
//! hashes unseen, and never gives up on a connection that has gone quiet. Its request builder takes any address, so all that
//! goes through its agent with our own limits: TLS by `rustls` with built-in roots (the `ureq` feature brings both),
//! the token stays on the hub's host when a download is redirected to a content server, and an encrypted hub
//! cannot send us on to a plain connection.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::names;
use super::pull::PullOptions;
use crate::error::{Error, Result, quoted};

/// Longest list of files that is read.
const MAX_INFO_BYTES: u64 = 32_000_000;
/// Redirects within the hub that are followed: renamed models.
const MAX_REDIRECTS: u32 = 5;
/// Longest wait for a connection, for the head of an answer, and for the next bytes.
const CONNECT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(120);
const NEXT_BYTES: Duration = Duration::from_secs(60);

/// A model on a hub.
pub(super) struct Hub {
    api: Api,
    repo: ApiRepo,
    name: String,
    /// Scheme, host and port of the endpoint.
    origin: String,
    revision: String,
}

/// What the hub says about one file.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) file: String,
    pub(super) url: String,
    pub(super) bytes: u64,
    pub(super) hash: Hash,
}

/// The hash by which the hub knows a file; its digits are the blob's name in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of the bytes: files in large-file storage.
    Sha256(String),
    /// Of git's header and the bytes: all others.
    GitSha1(String),
}

/// Why a request gave nothing.
pub(super) enum Fault {
    /// The network or a busy server: worth another try.
    Passing(String),
    /// An answer that will not change.
    Final(Error),
}

/// A head and a body still to be read.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Box<dyn Read>,
}

impl Answer {
    /// A header, its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// First byte and total of `Content-Range: bytes A-B/TOTAL`; the first is `None` in `bytes */TOTAL`.
    pub(super) fn content_range(&self) -> Option<(Option<u64>, u64)> {
        let (range, total) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-').and_then(|(first, _)| first.parse().ok());
        Some((first, total.parse().ok()?))
    }
}

impl Hub {
    /// Prepares to ask; nothing is sent yet.
    pub(super) fn new(cache_dir: &Path, options: &PullOptions) -> Result<Self> {
        names::check_name(&options.name)?;
        names::check_revision(&options.revision)?;
        let endpoint = options.endpoint.trim_end_matches('/');
        let origin = names::check_endpoint(endpoint)?;
        let token = options.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        if token.is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::name("the access token holds characters that no token has"));
        }
        // The cache is named, so that the client asks neither the environment nor a home folder for it.
        let api = ApiBuilder::from_cache(Cache::new(cache_dir.to_path_buf()))
            .with_endpoint(endpoint.to_owned())
            .with_token(token.map(str::to_owned))
            .with_progress(false)
            .build()
            .map_err(|error| Error::hub(&options.name, error.to_string()))?;
        let repo = Repo::with_revision(options.name.clone(), RepoType::Model, options.revision.clone());
        Ok(Self { repo: api.repo(repo), api, name: options.name.clone(), origin, revision: options.revision.clone() })
    }

    /// The commit that the revision stands at, and its files. Every file name is safe to become a path.
    pub(super) fn files(&self) -> std::result::Result<(String, BTreeSet<String>), Fault> {
        let request = self.repo.info_request();
        let url = request.uri_ref().map(ToString::to_string).unwrap_or_default();
        let answer = self.get(&url, None, true)?;
        self.expect_found(&answer, &format!("revision {}", quoted(&self.revision)))?;
        let mut text = Vec::new();
        let read = answer.body.take(MAX_INFO_BYTES + 1).read_to_end(&mut text);
        read.map_err(|error| Fault::Passing(format!("the list of files broke off: {error}")))?;
        if text.len() as u64 > MAX_INFO_BYTES {
            return Err(self.fail(format!("the list of files is over {MAX_INFO_BYTES} bytes")));
        }
        let info: RepoInfo = serde_json::from_slice(&text)
            .map_err(|error| self.fail(format!("the hub's list of files is not understood: {error}")))?;
        if !names::is_commit(&info.sha) {
            return Err(self.fail(format!("the hub names {} as the commit", quoted(&info.sha))));
        }
        let mut files = BTreeSet::new();
        for sibling in info.siblings {
            if !names::is_safe_file(&sibling.rfilename) {
                return Err(self.fail(format!("the hub lists the unsafe file name {}", quoted(&sibling.rfilename))));
            }
            files.insert(sibling.rfilename);
        }
        Ok((info.sha, files))
    }

    /// Length and hash of one file of a commit.
    pub(super) fn describe(&self, commit: &str, file: &str) -> std::result::Result<Remote, Fault> {
        let repo = Repo::with_revision(self.name.clone(), RepoType::Model, commit.to_owned());
        let url = self.api.repo(repo).url(&names::encode(file));
        let mut at = url.clone();
        // The hub's own headers are on the first answer that is not a move within the hub, redirect or not.
        let mut hops = 0;
        let answer = loop {
            let answer = self.get(&at, Some(0..1), false)?;
            let moved = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            let within = answer.header("location").filter(|to| to.starts_with('/') && !to.starts_with("//"));
            match within {
                Some(to) if moved && hops < MAX_REDIRECTS => at = format!("{}{to}", self.origin),
                _ => break answer,
            }
            hops += 1;
        };
        if !matches!(answer.status, 300..=399 | 416) {
            self.expect_found(&answer, &format!("file {}", quoted(file)))?;
        }
        if answer.header("x-repo-commit").is_some_and(|said| said != commit) {
            return Err(self.fail(format!("{}: the hub answers from another commit", quoted(file))));
        }
        let tag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
        let Some(hash) = tag.and_then(Hash::from_etag) else {
            return Err(self.fail(format!("{}: the hub names no hash to check it by", quoted(file))));
        };
        let length = |name| answer.header(name).and_then(|text| text.parse().ok());
        let bytes = length("x-linked-size")
            .or_else(|| answer.content_range().map(|(_, total)| total))
            .or_else(|| if answer.status == 200 { length("content-length") } else { None });
        let Some(bytes) = bytes else {
            return Err(self.fail(format!("{}: the hub names no length", quoted(file))));
        };
        Ok(Remote { file: file.to_owned(), url, bytes, hash })
    }

    /// The bytes of a file from `start` on. Anything but 200, 206 and 416 is a fault.
    pub(super) fn open(&self, remote: &Remote, start: u64) -> std::result::Result<Answer, Fault> {
        let range = (start > 0).then_some(start..remote.bytes);
        let answer = self.get(&remote.url, range, true)?;
        if answer.status != 416 {
            self.expect_found(&answer, &format!("file {}", quoted(&remote.file)))?;
        }
        Ok(answer)
    }

    /// One request. `follow` lets the client follow redirects, also to other hosts, without the token there.
    fn get(&self, url: &str, range: Option<std::ops::Range<u64>>, follow: bool) -> std::result::Result<Answer, Fault> {
        let mut request = self.repo.info_request().uri(url);
        // Bytes as they are: a packed answer could neither be continued nor counted.
        request = request.header("Accept-Encoding", "identity");
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let mut config = request
            .config()
            .http_status_as_error(false)
            .max_redirects(if follow { 10 } else { 0 })
            .max_redirects_will_error(follow)
            .https_only(self.origin.starts_with("https:"))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(NEXT_BYTES));
        if names::is_loopback(&self.origin) {
            // A hub on this very machine is not behind a proxy.
            config = config.proxy(None);
        }
        let response = config.build().call().map_err(|error| Fault::Passing(format!("{}: {error}", self.origin)))?;
        let (head, body) = response.into_parts();
        let headers = head
            .headers
            .iter()
            .filter_map(|(key, value)| Some((key.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        Ok(Answer { status: head.status.as_u16(), headers, body: Box::new(body.into_reader()) })
    }

    /// Turns a status that is not success into a fault.
    fn expect_found(&self, answer: &Answer, what: &str) -> std::result::Result<(), Fault> {
        let said = match answer.status {
            200 | 206 => return Ok(()),
            401 => {
                "the hub asks for an access token (401): the model is private or gated, or there is none of this name"
            }
            403 => "the hub refuses access (403): ask for it on the model's page, or use another token",
            404 => "the hub does not have it (404)",
            status @ (408 | 429 | 500..=599) => {
                return Err(Fault::Passing(format!("{what}: the hub answers {status}")));
            }
            status => return Err(self.fail(format!("{what}: the hub answers {status}"))),
        };
        Err(self.fail(format!("{what}: {said}")))
    }

    fn fail(&self, what: String) -> Fault {
        Fault::Final(Error::hub(&self.name, what))
    }
}

impl Hash {
    /// Reads an entity tag: quoted or not, weak or not, of 64 digits (SHA-256) or 40 (git).
    fn from_etag(tag: &str) -> Option<Self> {
        let tag = tag.trim();
        let digits = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_ascii_lowercase();
        if names::is_hex(&digits, 64) {
            Some(Self::Sha256(digits))
        } else if names::is_hex(&digits, 40) {
            Some(Self::GitSha1(digits))
        } else {
            None
        }
    }

    /// The hexadecimal digits.
    pub(super) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitSha1(digits) => digits,
        }
    }

    /// What kind of hash it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitSha1(_) => "git hash",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags() {
        let sha = "a".repeat(64);
        let git = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Hash::from_etag(&format!("\"{sha}\"")), Some(Hash::Sha256(sha.clone())));
        assert_eq!(Hash::from_etag(&format!("W/\"{git}\"")), Some(Hash::GitSha1(git.into())));
        for bad in ["", "\"../../x\"", "\"abc\"", &sha[1..]] {
            assert_eq!(Hash::from_etag(bad), None, "{bad}");
        }
    }

    #[test]
    fn content_ranges() {
        let answer = |value: &str| Answer {
            status: 206,
            headers: vec![("content-range".into(), value.into())],
            body: Box::new(std::io::empty()),
        };
        assert_eq!(answer("bytes 5-9/10").content_range(), Some((Some(5), 10)));
        assert_eq!(answer("bytes */10").content_range(), Some((None, 10)));
        assert_eq!(answer("bytes 5-9/*").content_range(), None);
        assert_eq!(answer("rows 1-2/3").content_range(), None);
    }
}
