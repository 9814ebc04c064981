//! The store and its hub client, against a small hub of this test's own.

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::path::{Path, PathBuf};

use common::shard;
use ernie_files::store::{Progress, PullOptions, Store};
use ernie_files::{Checkpoint, Error, ErrorKind};
use hub::{COMMIT, Hub, NAME, Served, Spec, git_sha1, served, sha256};

/// A small model: weights in large-file storage, the rest in git.
fn model() -> Vec<Served> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    shard(&path, &["a", "b", "c", "d"]);
    vec![
        served("config.json", "{\"hidden_size\": 4}", false),
        served("model.safetensors", std::fs::read(path).unwrap(), true),
        served("tokenizer.model", vec![7; 5_000], true),
        served("added_tokens.json", "", false),
    ]
}

struct Place {
    _folder: tempfile::TempDir,
    cache: PathBuf,
    store: Store,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("hub");
    Place { store: Store::new(&cache), cache, _folder: folder }
}

impl Place {
    fn model(&self) -> PathBuf {
        self.cache.join("models--org--model")
    }

    fn blob(&self, hash: &str) -> PathBuf {
        self.model().join("blobs").join(hash)
    }

    fn pull(&self, hub: &Hub) -> Result<PathBuf, Error> {
        self.pull_as(hub, |_| {})
    }

    fn pull_as(&self, hub: &Hub, change: impl FnOnce(&mut PullOptions)) -> Result<PathBuf, Error> {
        let mut options = PullOptions::new(NAME);
        options.endpoint.clone_from(&hub.endpoint);
        options.retries = 1;
        change(&mut options);
        self.store.pull(&options, &mut ())
    }

    /// The message of a pull that must fail as the environment's fault.
    fn failure(&self, hub: &Hub) -> String {
        let error = self.pull(hub).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
        let message = error.to_string();
        assert!(message.starts_with("org/model: ") && !message.contains('\n'), "{message}");
        assert_eq!(self.store.resolve(NAME, None), None);
        message
    }
}

/// Writes down what it hears.
#[derive(Default)]
struct Heard(Vec<String>);

impl Progress for Heard {
    fn begin(&mut self, file: &str, total_bytes: u64, done_bytes: u64) {
        self.0.push(format!("begin {file} {done_bytes}/{total_bytes}"));
    }
    fn retry(&mut self, file: &str, _why: &str) {
        self.0.push(format!("retry {file}"));
    }
    fn end(&mut self, file: &str, fetched: bool) {
        self.0.push(format!("end {file} {fetched}"));
    }
}

fn read(path: &Path, file: &str) -> Vec<u8> {
    std::fs::read(path.join(file)).unwrap()
}

#[test]
fn a_model_is_fetched_listed_and_found() {
    let hub = Hub::start(Spec::new(model()));
    let place = place();
    assert!(place.store.list().unwrap().is_empty());
    let path = place.pull(&hub).unwrap();
    assert_eq!(path, place.model().join("snapshots").join(COMMIT));
    assert_eq!(Checkpoint::open(&path).unwrap().tensors().count(), 4);
    for file in model() {
        assert_eq!(read(&path, &file.name), file.bytes, "{}", file.name);
    }
    // What no model needs was not asked for.
    assert!(!path.join("pytorch_model.bin").exists());
    assert!(hub.requests().iter().all(|line| !line.contains(".bin") && !line.contains("onnx")));
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(path.join("config.json")).unwrap(),
        Path::new("../../blobs").join(git_sha1(b"{\"hidden_size\": 4}"))
    );
    for revision in [None, Some("main"), Some(COMMIT)] {
        assert_eq!(place.store.resolve(NAME, revision).as_ref(), Some(&path));
    }
    assert_eq!(place.store.resolve(NAME, Some("other")), None);
    assert_eq!(place.store.resolve("org/other", None), None);
    assert_eq!(place.store.resolve("../x", None), None);
    let listed = place.store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].revision.as_str()), (NAME, COMMIT));
    assert_eq!((listed[0].refs.as_slice(), listed[0].files), (&["main".to_owned()][..], 4));
    assert_eq!(listed[0].bytes, model().iter().map(|file| file.bytes.len() as u64).sum::<u64>());
    // A second pull fetches nothing.
    let mut heard = Heard::default();
    let options = PullOptions { endpoint: hub.endpoint.clone(), ..PullOptions::new(NAME) };
    place.store.pull(&options, &mut heard).unwrap();
    assert!(heard.0.contains(&"end model.safetensors false".to_owned()), "{:?}", heard.0);
    assert!(hub.requests().iter().all(|line| !line.starts_with("/cdn/")));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let hub = Hub::start(Spec { token: Some("t0k".into()), ..Spec::new(model()) });
    let place = place();
    assert!(place.failure(&hub).contains("asks for an access token (401)"));
    hub.requests();
    place.pull_as(&hub, |options| options.token = Some("t0k\n".into())).unwrap();
    let (cdn, own): (Vec<_>, Vec<_>) = hub.requests().into_iter().partition(|line| line.starts_with("/cdn/"));
    assert!(cdn.len() >= 2 && cdn.iter().all(|line| line.ends_with("auth=")), "{cdn:?}");
    assert!(own.iter().all(|line| line.ends_with("auth=Bearer t0k")), "{own:?}");
    let debug = format!("{:?}", PullOptions { token: Some("t0k".into()), ..PullOptions::new(NAME) });
    assert!(!debug.contains("t0k"), "{debug}");
}

#[test]
fn a_dropped_connection_is_taken_up_again() {
    let hub = Hub::start(Spec { drops: 2, ..Spec::new(model()) });
    let place = place();
    let mut heard = Heard::default();
    let options = PullOptions { endpoint: hub.endpoint.clone(), retries: 1, ..PullOptions::new(NAME) };
    let path = place.store.pull(&options, &mut heard).unwrap();
    for file in model() {
        assert_eq!(read(&path, &file.name), file.bytes, "{}", file.name);
    }
    assert_eq!(heard.0.iter().filter(|line| line.starts_with("retry ")).count(), 2, "{:?}", heard.0);
    assert!(hub.requests().iter().any(|line| line.contains("range=bytes=9-17")), "config.json went on at byte 9");
}

#[test]
fn a_pull_that_broke_is_resumed_by_the_next() {
    let weights = &model()[1];
    let (hash, half) = (sha256(&weights.bytes), weights.bytes.len() / 2);
    let hub = Hub::start(Spec::new(vec![weights.clone()]));
    hub.change(|spec| spec.drops = 1);
    let place = place();
    let error = place.pull_as(&hub, |options| options.retries = 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("broke off after"), "{error}");
    assert_eq!(place.store.resolve(NAME, None), None);
    assert_eq!(place.store.list().unwrap(), []);
    let part = place.blob(&format!("{hash}.incomplete"));
    assert_eq!(std::fs::metadata(&part).unwrap().len(), half as u64);
    hub.requests();
    let mut heard = Heard::default();
    let options = PullOptions { endpoint: hub.endpoint.clone(), ..PullOptions::new(NAME) };
    let path = place.store.pull(&options, &mut heard).unwrap();
    assert_eq!(read(&path, "model.safetensors"), weights.bytes);
    assert!(heard.0[0].starts_with(&format!("begin model.safetensors {half}/")), "{:?}", heard.0);
    let requests = hub.requests();
    assert!(
        requests.iter().any(|line| line.starts_with(&format!("/cdn/model.safetensors range=bytes={half}-"))),
        "{requests:?}"
    );
    assert!(!part.exists());
}

#[test]
fn a_server_that_ignores_ranges_begins_anew() {
    let weights = &model()[1];
    let hub = Hub::start(Spec { drops: 1, whole: true, ..Spec::new(vec![weights.clone()]) });
    let path = place().pull(&hub).map(|path| path.join("model.safetensors"));
    assert!(path.is_ok(), "{path:?}");
    let place = place();
    hub.change(|spec| spec.drops = 1);
    let path = place.pull(&hub).unwrap();
    assert_eq!(read(&path, "model.safetensors"), weights.bytes);
}

#[test]
fn wrong_bytes_are_deleted() {
    for lfs in [true, false] {
        let mut file = served("model.safetensors", "not what was promised", lfs);
        file.etag = Some(if lfs { sha256(b"promised") } else { git_sha1(b"promised") });
        let named = file.etag.clone().unwrap();
        let hub = Hub::start(Spec::new(vec![file.clone()]));
        let place = place();
        let message = place.failure(&hub);
        assert!(message.contains(&format!("the hub names {named}: deleted")), "{message}");
        assert!(
            message.contains("\"model.safetensors\": ") && message.contains(if lfs { "SHA-256" } else { "git hash" })
        );
        assert_eq!(std::fs::read_dir(place.model().join("blobs")).unwrap().count(), 0);
        assert!(place.store.list().unwrap().is_empty());
        // Once the hub is right, so are we.
        hub.change(|spec| spec.files[0].etag = None);
        place.pull(&hub).unwrap();
    }
}

#[test]
fn a_spoilt_beginning_is_found_and_deleted() {
    let weights = &model()[1];
    let hub = Hub::start(Spec::new(vec![weights.clone()]));
    let place = place();
    let hash = sha256(&weights.bytes);
    let part = place.blob(&format!("{hash}.incomplete"));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, b"spoilt").unwrap();
    assert!(place.failure(&hub).contains("deleted"));
    assert!(!part.exists() && !place.blob(&hash).exists());
    // Longer than the file: cannot be its beginning.
    std::fs::write(&part, vec![1; weights.bytes.len() + 1]).unwrap();
    place.pull(&hub).unwrap();
    // A blob that was cut is fetched again.
    std::fs::write(place.blob(&hash), b"cut").unwrap();
    let path = place.pull(&hub).unwrap();
    assert_eq!(read(&path, "model.safetensors"), weights.bytes);
}

#[test]
fn refusals_are_told_apart() {
    let hub = Hub::start(Spec::new(model()));
    let place = place();
    for (status, expected) in [
        (401, "revision \"main\": the hub asks for an access token (401)"),
        (403, "refuses access (403)"),
        (404, "revision \"main\": the hub does not have it (404)"),
        (418, "the hub answers 418"),
        (503, "the hub answers 503 (tried 2 times)"),
    ] {
        hub.change(|spec| spec.status = Some(status));
        let message = place.failure(&hub);
        assert!(message.contains(expected), "{message}");
    }
    // Nobody there.
    let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let error = place
        .pull_as(&hub, |options| {
            options.endpoint = format!("http://127.0.0.1:{port}");
            options.retries = 0;
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    // Encryption is spoken where it is asked for: the first byte is that of a TLS handshake.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let mut first = [0];
        std::io::Read::read_exact(&mut listener.accept().unwrap().0, &mut first).unwrap();
        first
    });
    let error = place
        .pull_as(&hub, |options| {
            options.endpoint = format!("https://127.0.0.1:{port}");
            options.retries = 0;
        })
        .unwrap_err();
    assert_eq!((error.kind(), heard.join().unwrap()), (ErrorKind::Environment, [0x16]), "{error}");
    // A file that is listed and not there.
    hub.change(|spec| {
        spec.status = None;
        spec.listed.push("tokenizer.json".into());
    });
    assert!(place.failure(&hub).contains("file \"tokenizer.json\": the hub does not have it"));
}

#[test]
fn what_a_hub_names_is_not_trusted() {
    let hub = Hub::start(Spec::new(model()));
    let place = place();
    for name in ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "a\nb", ""] {
        hub.change(|spec| spec.listed = vec![name.into()]);
        assert!(place.failure(&hub).contains("unsafe file name"), "{name}");
    }
    hub.change(|spec| spec.listed.clear());
    for etag in ["../../../x", "abc", "", &"A/".repeat(32)] {
        hub.change(|spec| spec.files[0].etag = Some(etag.into()));
        assert!(place.failure(&hub).contains("names no hash"), "{etag}");
    }
    hub.change(|spec| spec.files[0].etag = None);
    for commit in ["../../x", "main", ""] {
        hub.change(|spec| spec.commit = commit.into());
        assert!(place.failure(&hub).contains("as the commit"), "{commit}");
    }
    assert!(std::fs::read_dir(place.cache.parent().unwrap()).unwrap().count() <= 1);
}

#[test]
fn names_that_cannot_be_are_the_users_fault() {
    let hub = Hub::start(Spec::new(model()));
    let place = place();
    let refused = |change: fn(&mut PullOptions)| {
        let error = place.pull_as(&hub, change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    };
    refused(|options| options.name = "../x".into());
    refused(|options| options.name = "a/b/c".into());
    refused(|options| options.revision = "../x".into());
    refused(|options| options.revision = "a?b".into());
    refused(|options| options.endpoint = "ftp://x".into());
    refused(|options| options.token = Some("a\r\nX: y".into()));
    assert!(hub.requests().is_empty());
    assert!(place.store.remove("../x", None).unwrap_err().is_input());
    assert!(place.store.remove("no/such", None).unwrap_err().is_input());
}

#[test]
fn models_without_safetensors_are_said() {
    let place = place();
    let hub = Hub::start(Spec::new(vec![served("config.json", "{}", false)]));
    assert!(place.failure(&hub).contains("only pickles (\"pytorch_model.bin\")"));
    hub.change(|spec| spec.files.push(served("x-Q4_K_M.gguf", "GGUF", true)));
    assert!(place.failure(&hub).contains("name one of its files, such as \"x-Q4_K_M.gguf\""));
    let path = place.pull_as(&hub, |options| options.files = vec!["x-Q4_K_M.gguf".into()]).unwrap();
    assert_eq!(read(&path, "x-Q4_K_M.gguf"), b"GGUF");
    // A later pull of another file joins the same folder.
    place.pull_as(&hub, |options| options.files = vec!["config.json".into()]).unwrap();
    assert_eq!(read(&path, "config.json"), b"{}");
    let error = place.pull_as(&hub, |options| options.files = vec!["none.gguf".into()]).unwrap_err();
    assert!(error.to_string().contains("no file \"none.gguf\""), "{error}");
}

#[test]
fn a_renamed_model_is_followed() {
    let hub = Hub::start(Spec { renamed: Some("org/newer".into()), ..Spec::new(model()) });
    let place = place();
    let path = place.pull(&hub).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().tensors().count(), 4);
}

#[test]
fn removing_frees_what_no_other_revision_uses() {
    let hub = Hub::start(Spec::new(model()));
    let place = place();
    let old = place.pull(&hub).unwrap();
    let newer = COMMIT.replace('0', "f");
    hub.change(|spec| {
        spec.commit.clone_from(&newer);
        spec.files[0].bytes = b"{\"hidden_size\": 8}".to_vec();
    });
    let new = place.pull(&hub).unwrap();
    place.pull_as(&hub, |options| options.revision = "refs/pr/1".into()).unwrap();
    let listed = place.store.list().unwrap();
    let refs: Vec<_> = listed.iter().map(|stored| stored.refs.join(" ")).collect();
    assert_eq!(refs, ["", "main refs/pr/1"]);
    // The old one can be named by its commit alone; its configuration is all it has for itself.
    assert_eq!(place.store.remove(NAME, Some(COMMIT)).unwrap(), 18);
    assert!(!old.exists());
    assert_eq!(Checkpoint::open(&new).unwrap().tensors().count(), 4);
    assert_eq!(read(&new, "config.json"), b"{\"hidden_size\": 8}");
    assert!(matches!(place.store.remove(NAME, Some("gone")), Err(Error::NotFound { .. })));
    let rest: u64 = listed[1].bytes;
    assert_eq!(place.store.remove(NAME, Some("main")).unwrap(), rest);
    assert!(!place.model().exists() && place.store.list().unwrap().is_empty());
    // All at once.
    place.pull(&hub).unwrap();
    assert!(place.store.remove(NAME, None).unwrap() >= rest);
    assert!(!place.model().exists());
    assert_eq!(place.store.resolve(NAME, None), None);
}
