//! Adapters as they are typed, and the names that they go by.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// `DIR` or `DIR=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adapter {
    /// Where it is.
    pub(crate) folder: PathBuf,
    /// What it is called: as was typed, or after its folder.
    pub(crate) name: String,
}

impl Adapter {
    /// Takes what was typed. A folder whose own name has a `=` is that folder.
    ///
    /// # Errors
    /// One line that says what is wrong with the name.
    pub(crate) fn typed(text: OsString) -> std::result::Result<Self, String> {
        let parts = text.to_str().filter(|_| !Path::new(&text).is_dir()).and_then(|text| text.rsplit_once('='));
        let (folder, name) = match parts {
            Some((folder, name)) => (PathBuf::from(folder), Some(name.to_owned())),
            None => (PathBuf::from(text), None),
        };
        let name = name.or_else(|| name_of(&folder)).unwrap_or_else(|| folder.display().to_string());
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err("expected a name of visible characters behind `=`".to_owned());
        }
        Ok(Self { folder, name })
    }
}

/// The name of an adapter's folder, or of the run that left it: of `RUN/checkpoint-N/adapter` that is `RUN`.
fn name_of(folder: &Path) -> Option<String> {
    let path = match folder.file_name() {
        Some(_) => std::path::absolute(folder).ok()?,
        // `.` and `..` have names only where they lead.
        None => folder.canonicalize().ok()?,
    };
    let last = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let checkpoint = path.parent().filter(|checkpoint| {
        path.ends_with(ernie_train::checkpoint::ADAPTER_FOLDER)
            && last(checkpoint).is_some_and(|name| name.starts_with("checkpoint-"))
    });
    checkpoint.and_then(Path::parent).and_then(last).or_else(|| last(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_called_as_typed_or_after_its_folder_or_run() {
        let typed = |text: &str| Adapter::typed(text.into()).map(|it| (it.folder.display().to_string(), it.name));
        let is = |folder: &str, name: &str| Ok((folder.to_owned(), name.to_owned()));
        assert_eq!(typed("a/formal"), is("a/formal", "formal"));
        assert_eq!(typed("a/formal/"), is("a/formal/", "formal"));
        assert_eq!(typed("a/formal=brief"), is("a/formal", "brief"));
        assert_eq!(typed("a=b=c"), is("a=b", "c"));
        assert_eq!(typed("runs/lora/checkpoint-6/adapter"), is("runs/lora/checkpoint-6/adapter", "lora"));
        assert_eq!(typed("runs/lora/best/adapter"), is("runs/lora/best/adapter", "adapter"));
        assert_eq!(typed("/checkpoint-6/adapter"), is("/checkpoint-6/adapter", "adapter"));
        for bad in ["a=", "a=x\ny", "="] {
            assert!(typed(bad).is_err(), "{bad}");
        }
        // From inside a run, too.
        let here = std::env::current_dir().unwrap();
        assert_eq!(typed("checkpoint-6/adapter").map(|it| it.1).ok(), last_of(&here));
        assert_eq!(typed(".").map(|it| it.1).ok(), last_of(&here));
        let at = tempfile::tempdir().unwrap();
        let odd = at.path().join("rank=4");
        std::fs::create_dir(&odd).unwrap();
        let odd = odd.display().to_string();
        assert_eq!(typed(&odd), is(&odd, "rank=4"));
        assert_eq!(typed(&format!("{odd}=four")), is(&odd, "four"));
    }

    fn last_of(path: &Path) -> Option<String> {
        path.file_name().map(|name| name.to_string_lossy().into_owned())
    }
}
