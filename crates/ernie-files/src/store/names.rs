//! Names that come from users and from the hub, checked before any of them becomes part of a path or an address.

use crate::error::{Error, Result, quoted};

/// Prefix of a model's folder in the cache.
const PREFIX: &str = "models--";
/// What stands for `/` in it.
const SEPARATOR: &str = "--";

/// `ORG/NAME` or `NAME`, by the hub's own rules.
pub(super) fn check_name(name: &str) -> Result<()> {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains(SEPARATOR)
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() <= 2 && parts.iter().all(|text| part(text)) {
        return Ok(());
    }
    Err(Error::name(format!("{}: not a model name, expected ORG/NAME", quoted(name))))
}

/// A branch, tag, `refs/pr/N` or commit.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.contains("..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+@=".contains(&b))
    };
    if revision.len() <= 200 && revision.split('/').all(part) {
        return Ok(());
    }
    Err(Error::name(format!("{}: not a revision, expected a branch, tag or commit", quoted(revision))))
}

/// A whole commit: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// `len` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The folder of a checked name.
pub(super) fn to_folder(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('/', SEPARATOR))
}

/// The name that a folder stands for, if it is one of ours.
pub(super) fn from_folder(folder: &str) -> Option<String> {
    let name = folder.strip_prefix(PREFIX)?.replacen(SEPARATOR, "/", 1);
    check_name(&name).ok().map(|()| name)
}

/// Whether a file name that the hub lists can become a path below a folder of ours.
pub(super) fn is_safe_file(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 1024
        && !name.contains(['\\', '\0'])
        && name.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control))
}

/// Whether a file is one of those that make a model run, or say whose it is. Only the top folder is looked at.
pub(super) fn is_needed(file: &str) -> bool {
    const EXACT: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "preprocessor_config.json",
    ];
    const ENDS: [&str; 2] = [".safetensors", ".safetensors.index.json"];
    const STARTS: [&str; 4] = ["tokenizer", "chat_template", "README", "LICENSE"];
    !file.contains('/')
        && (EXACT.contains(&file)
            || ENDS.iter().any(|end| file.ends_with(end))
            || STARTS.iter().any(|start| file.starts_with(start)))
}

/// Percent-encodes a file name for an address, slashes left as they are.
pub(super) fn encode(file: &str) -> String {
    let mut out = String::with_capacity(file.len());
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Checks a hub's address and returns its scheme, host and port.
pub(super) fn check_endpoint(endpoint: &str) -> Result<String> {
    let bad = || Error::name(format!("{}: not a hub's address, expected https://HOST", quoted(endpoint)));
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(bad)?;
    let host = rest.split('/').next().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
    let path = |b: u8| plain(b) || b"/~".contains(&b);
    let good = matches!(scheme, "http" | "https")
        && !host.is_empty()
        && host.bytes().all(plain)
        && rest.bytes().all(path)
        && !rest.contains("..");
    if good { Ok(format!("{scheme}://{host}")) } else { Err(bad()) }
}

/// Whether an origin is this very machine.
pub(super) fn is_loopback(origin: &str) -> bool {
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["baidu/ERNIE-4.5-0.3B-PT", "gpt2", "a/b_c.d"] {
            assert!(check_name(good).is_ok(), "{good}");
            assert_eq!(from_folder(&to_folder(good)).as_deref(), Some(good));
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a--b/c", "a b", "a/b?x", "a\n", ".a/b", "é"] {
            assert!(check_name(bad).unwrap_err().is_input(), "{bad}");
        }
        assert_eq!(from_folder("datasets--a--b"), None);
    }

    #[test]
    fn revisions() {
        for good in ["main", "refs/pr/1", "v1.0", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        for bad in ["", "../main", "a//b", "/a", "a?b", "a#b", "a b", ".git", "a/..", "a%2e"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files() {
        for bad in ["", "../x", "/etc/passwd", "a/../b", "a//b", "a\\b", "a\nb", "./a", "a/"] {
            assert!(!is_safe_file(bad), "{bad}");
        }
        assert!(is_safe_file("sub/模型.json"));
        for (file, needed) in [
            ("config.json", true),
            ("model-00001-of-00002.safetensors", true),
            ("model.safetensors.index.json", true),
            ("tokenizer.model", true),
            ("tokenizer_config.json", true),
            ("chat_template.jinja", true),
            ("README.md", true),
            ("pytorch_model.bin", false),
            ("modeling_ernie.py", false),
            ("onnx/model.safetensors", false),
            ("model.gguf", false),
        ] {
            assert_eq!(is_needed(file), needed, "{file}");
        }
    }

    #[test]
    fn addresses() {
        let origin = |endpoint| check_endpoint(endpoint).ok();
        assert_eq!(origin("https://huggingface.co").as_deref(), Some("https://huggingface.co"));
        assert_eq!(origin("http://127.0.0.1:80/hub").as_deref(), Some("http://127.0.0.1:80"));
        for bad in [
            "",
            "huggingface.co",
            "file:///etc",
            "https://",
            "https://a@b",
            "https://a b",
            "https://a/?x",
            "https://a/../b",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
        for (origin, local) in [
            ("http://127.0.0.1:80", true),
            ("http://localhost", true),
            ("http://[::1]:8", true),
            ("http://127.0.0.1.evil.org", false),
            ("https://huggingface.co", false),
        ] {
            assert_eq!(is_loopback(origin), local, "{origin}");
        }
        assert_eq!(encode("a b/ü#?%.json"), "a%20b/%C3%BC%23%3F%25.json");
    }
}
