//! The files that a config is made of: the one that was named, the one that it `extends`, and so on.

use std::path::{Path, PathBuf};

use super::{
    ConfigError,
    schema::Finding,
    tree::{self, Node, Place, Tree},
};

/// The top-level key that names the file underneath.
pub(super) const EXTENDS: &str = "extends";
/// Files that one config may be made of.
const MAX_FILES: usize = 16;

/// One file of a config.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    /// What errors call it.
    pub(super) name: String,
    /// Where relative paths in it start from; absolute.
    pub(super) folder: PathBuf,
    text: String,
    /// Tells whether two are the same file; none for a text that came from nowhere.
    identity: Option<PathBuf>,
}

impl SourceFile {
    /// The file at `path`, which errors will call `name`.
    fn read(path: &Path, name: String) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let absolute = std::path::absolute(path)?;
        Ok(Self {
            name,
            folder: absolute.parent().unwrap_or(Path::new("/")).to_owned(),
            text,
            identity: Some(std::fs::canonicalize(&absolute).unwrap_or(absolute)),
        })
    }
}

/// All files of a config; a [`Place`]'s index points into them.
#[derive(Clone, Debug)]
pub(super) struct Files {
    files: Vec<SourceFile>,
}

impl Files {
    /// Starts with the file at `path`.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) fn open(path: &Path) -> Result<Self, ConfigError> {
        let file = SourceFile::read(path, path.display().to_string());
        let file = file.map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { files: vec![file] })
    }

    /// Starts with a text; `folder` is where its relative paths start from.
    pub(super) fn of_text(text: &str, name: &str, folder: &Path) -> Self {
        Self {
            files: vec![SourceFile {
                name: name.to_owned(),
                folder: folder.to_owned(),
                text: text.to_owned(),
                identity: None,
            }],
        }
    }

    /// Parses the first file, reads and parses those underneath, and merges them: what a file says
    /// goes before what the file says that it extends ([`tree::merge`]).
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(super) fn merged(&mut self) -> Result<Node, Finding> {
        let mut layers = Vec::new();
        for index in 0.. {
            let Some(file) = self.files.get(index) else {
                break;
            };
            let mut root = tree::parse(&file.text, index).map_err(|(span, message)| {
                let place = span.map(|span| Place::File {
                    file: index,
                    offset: span.start,
                });
                complaint("", place, message)
            })?;
            let below = self.below(index, &mut root)?;
            layers.push(root);
            self.files.extend(below);
        }
        let merged = layers.into_iter().rev().reduce(tree::merge);
        merged.ok_or_else(|| complaint("", None, "there is no file".to_owned()))
    }

    /// The file that file `index` extends; takes the key out of `root`.
    fn below(&self, index: usize, root: &mut Node) -> Result<Option<SourceFile>, Finding> {
        let Tree::Table(entries) = &mut root.tree else {
            return Ok(None);
        };
        let Some(at) = entries.iter().position(|entry| entry.key == EXTENDS) else {
            return Ok(None);
        };
        let entry = entries.swap_remove(at);
        let refuse = |message: String| complaint(EXTENDS, Some(entry.node.place), message);
        let wanted = match &entry.node.tree {
            Tree::Text(wanted) if !wanted.is_empty() => wanted,
            _ => {
                return Err(refuse(
                    "expected a config file, relative to this one".to_owned(),
                ));
            }
        };
        let above = &self.files[index];
        let name = Path::new(&above.name).parent().unwrap_or(Path::new(""));
        let name = name.join(wanted).display().to_string();
        let path = above.folder.join(wanted);
        let file = SourceFile::read(&path, name)
            .map_err(|error| refuse(format!("{} can't be read: {error}", path.display())))?;
        if let Some(first) = self
            .files
            .iter()
            .position(|above| above.identity == file.identity)
        {
            let mut names: Vec<&str> = self.files[first..].iter().map(|f| &*f.name).collect();
            names.push(&file.name);
            return Err(refuse(format!("goes in a circle: {}", names.join(" -> "))));
        }
        if self.files.len() == MAX_FILES {
            return Err(refuse(format!("a config is {MAX_FILES} files at most")));
        }
        Ok(Some(file))
    }

    /// Where relative paths start from that were written at `place`; those of the command line and
    /// of defaults start from the first file.
    pub(super) fn folder(&self, place: Option<Place>) -> &Path {
        let file = match place {
            Some(Place::File { file, .. }) => file,
            _ => 0,
        };
        self.files
            .get(file)
            .map_or(Path::new(""), |file| &file.folder)
    }

    /// Name, line and column (from 1) of a byte of a file.
    pub(super) fn position(&self, file: usize, offset: usize) -> (&str, usize, usize) {
        let Some(file) = self.files.get(file) else {
            return ("", 0, 0);
        };
        let before = file.text.get(..offset).unwrap_or(&file.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (&file.name, line, column)
    }

    /// What errors call the first file.
    pub(super) fn name(&self) -> &str {
        self.files.first().map_or("", |file| &file.name)
    }
}

fn complaint(key: &str, place: Option<Place>, message: String) -> Finding {
    Finding {
        place,
        key: key.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests;
