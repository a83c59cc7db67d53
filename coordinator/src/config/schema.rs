//! The machinery under the config's sections: one declaration gives a section its struct, its
//! reader, its defaults and the text of its documentation.

use std::collections::HashMap;

use super::tree::{Entry, Node, Place, Tree};

/// What is known of one key, for documentation and error messages.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// The key's name in its section.
    pub name: &'static str,
    /// What it holds, in words.
    pub kind: String,
    /// Its default as TOML; none where the key is required or unset by default.
    pub default: Option<String>,
    /// The config is refused without it.
    pub required: bool,
    /// Unit of the value; empty where it has none.
    pub unit: &'static str,
    /// The docstring.
    pub doc: String,
}

/// What is known of one section.
#[derive(Clone, Debug)]
pub struct SectionInfo {
    /// The docstring of the section.
    pub doc: String,
    /// Its keys, in order.
    pub keys: Vec<KeyInfo>,
}

/// One thing that is wrong with a config.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) place: Option<Place>,
    pub(super) key: String,
    pub(super) message: String,
}

/// Reads sections out of the tree, and collects everything that is wrong with them.
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
    places: HashMap<String, Place>,
    /// Every section's keys, to point at a key that stands in the wrong section.
    known: Vec<(String, Vec<&'static str>)>,
}

impl Reader {
    /// `known`: every section's keys.
    pub(super) fn new(known: Vec<(String, Vec<&'static str>)>) -> Self {
        Self {
            findings: Vec::new(),
            places: HashMap::new(),
            known,
        }
    }

    pub(super) fn complain(&mut self, key: &str, place: Option<Place>, message: String) {
        self.findings.push(Finding {
            place,
            key: key.to_owned(),
            message,
        });
    }

    /// Complains about a key by its path, at the place where it was written; a key that was not
    /// written is looked for in what surrounds it.
    pub(super) fn complain_at(&mut self, path: &str, message: String) {
        let mut scope = path;
        let place = loop {
            if let Some(place) = self.places.get(scope) {
                break Some(*place);
            }
            match scope.rsplit_once('.') {
                Some((outer, _)) => scope = outer,
                None => break None,
            }
        };
        self.complain(path, place, message);
    }

    pub(super) fn remember(&mut self, path: &str, place: Place) {
        self.places.insert(path.to_owned(), place);
    }

    /// Whether a key was written, by its path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// The entries of a section's table; complains about unknown keys.
    fn open<'a>(&mut self, node: &'a Node, path: &str, keys: &[&'static str]) -> &'a [Entry] {
        self.remember(path, node.place);
        let Tree::Table(entries) = &node.tree else {
            let found = node.tree.kind();
            self.complain(
                path,
                Some(node.place),
                format!("expected a table, found {found}"),
            );
            return &[];
        };
        for entry in entries {
            let full = format!("{path}.{}", entry.key);
            if keys.contains(&entry.key.as_str()) {
                self.remember(&full, entry.place);
            } else {
                let hint = self.hint(path, &entry.key, keys);
                self.complain(&full, Some(entry.place), format!("unknown key{hint}"));
            }
        }
        entries
    }

    fn hint(&self, path: &str, key: &str, keys: &[&'static str]) -> String {
        if let Some(near) = nearest(key, keys.iter().copied(), 0.75) {
            return format!("; did you mean `{near}`?");
        }
        let elsewhere = self
            .known
            .iter()
            .find(|(section, keys)| section.as_str() != path && keys.contains(&key));
        if let Some((section, _)) = elsewhere {
            return format!("; there is `{section}.{key}`");
        }
        match nearest(key, keys.iter().copied(), 0.0) {
            Some(near) => format!("; the nearest is `{near}` (known: {})", keys.join(", ")),
            None => String::new(),
        }
    }

    /// One key of a section: what was written, or the default.
    pub(super) fn field<T: FromNode + Clone>(
        &mut self,
        entries: &[Entry],
        path: &str,
        name: &str,
        default: Option<T>,
    ) -> Option<T> {
        let full = format!("{path}.{name}");
        let Some(entry) = entries.iter().find(|entry| entry.key == name) else {
            if default.is_none() {
                self.complain_at(&full, format!("missing; it takes {}", T::kind()));
            }
            return default;
        };
        // A bad value is reported, and the default stands in so that the rest is checked too.
        T::read(&entry.node, &full, self).or(default)
    }
}

/// The known word that is most like `word`.
pub(super) fn nearest<'a>(
    word: &str,
    known: impl Iterator<Item = &'a str>,
    least: f64,
) -> Option<&'a str> {
    known
        .map(|k| (strsim::jaro_winkler(word, k), k))
        .filter(|(likeness, _)| *likeness >= least)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// A type that a key can have.
pub(super) trait FromNode: Sized {
    /// What the key takes, in words: "a whole number", "a list of text".
    fn kind() -> String;
    /// None: it was reported to the reader.
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self>;
    /// None: unset.
    fn to_toml(&self) -> Option<toml::Value>;
}

pub(super) fn mistyped<T: FromNode>(node: &Node, path: &str, reader: &mut Reader) -> Option<T> {
    let found = match &node.tree {
        Tree::Text(text) if text.chars().count() <= 60 => format!("text ({text:?})"),
        Tree::Integer(number) => number.to_string(),
        Tree::Float(number) => number.to_string(),
        other => other.kind().to_owned(),
    };
    reader.complain(
        path,
        Some(node.place),
        format!("expected {}, found {found}", T::kind()),
    );
    None
}

impl FromNode for String {
    fn kind() -> String {
        "text".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        match (&node.tree, node.place) {
            (Tree::Text(text), _) => Some(text.clone()),
            // On the command line a name may look like a number: --set run.name=42
            (Tree::Integer(number), Place::Set(_)) => Some(number.to_string()),
            _ => mistyped(node, path, reader),
        }
    }
    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.clone()))
    }
}

impl FromNode for bool {
    fn kind() -> String {
        "true or false".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        match node.tree {
            Tree::Bool(value) => Some(value),
            _ => mistyped(node, path, reader),
        }
    }
    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Boolean(*self))
    }
}

impl FromNode for f64 {
    fn kind() -> String {
        "a number".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        match node.tree {
            Tree::Float(number) if number.is_finite() => Some(number),
            Tree::Integer(number) => Some(number as f64),
            _ => mistyped(node, path, reader),
        }
    }
    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Float(*self))
    }
}

macro_rules! whole_numbers {
    ($($type:ty),*) => {$(
        impl FromNode for $type {
            fn kind() -> String {
                "a whole number, 0 or more".to_owned()
            }
            fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
                match node.tree {
                    Tree::Integer(number) if <$type>::try_from(number).is_ok() => {
                        <$type>::try_from(number).ok()
                    }
                    _ => mistyped(node, path, reader),
                }
            }
            fn to_toml(&self) -> Option<toml::Value> {
                i64::try_from(*self).ok().map(toml::Value::Integer)
            }
        }
    )*};
}
whole_numbers!(u32, u64, usize);

impl<T: FromNode> FromNode for Option<T> {
    fn kind() -> String {
        T::kind()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        T::read(node, path, reader).map(Some)
    }
    fn to_toml(&self) -> Option<toml::Value> {
        self.as_ref().and_then(FromNode::to_toml)
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn kind() -> String {
        format!(
            "a list of {}",
            T::kind()
                .trim_start_matches("a ")
                .trim_start_matches("one of ")
        )
    }
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        let Tree::Array(items) = &node.tree else {
            return mistyped(node, path, reader);
        };
        // Every item is read, so that every bad one is reported.
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(at, item)| T::read(item, &format!("{path}.{at}"), reader))
            .collect();
        read.into_iter().collect()
    }
    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Array(
            self.iter().filter_map(FromNode::to_toml).collect(),
        ))
    }
}

/// A table of the config that is a struct here.
pub(super) trait Section: Sized {
    /// Names of the keys.
    const KEYS: &'static [&'static str];
    fn info() -> SectionInfo;
    /// `node` none: the section was not written.
    fn from_node(node: Option<&Node>, path: &str, reader: &mut Reader) -> Option<Self>;
    /// Set keys in order.
    fn entries(&self) -> Vec<(&'static str, toml::Value)>;
}

/// Reader of a section's entries; see [`section`].
pub(super) fn entries_of<'a>(
    node: Option<&'a Node>,
    path: &str,
    keys: &[&'static str],
    reader: &mut Reader,
) -> &'a [Entry] {
    node.map_or(&[], |node| reader.open(node, path, keys))
}

pub(super) fn key_info<T: FromNode>(
    name: &'static str,
    default: Option<T>,
    unit: &'static str,
    doc: &[&str],
) -> KeyInfo {
    KeyInfo {
        name,
        kind: T::kind(),
        required: default.is_none(),
        default: default
            .and_then(|value| value.to_toml())
            .map(|value| value.to_string()),
        unit,
        doc: join_doc(doc),
    }
}

pub(super) fn join_doc(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Declares a section: `/// doc`, optionally `#[unit = "..."]`, `name: Type = default;`. A key
/// without a default is required.
macro_rules! section {
    (
        $(#[doc = $section_doc:expr])*
        $section:ident {
            $(
                $(#[doc = $doc:expr])*
                $(#[unit = $unit:literal])?
                $field:ident : $type:ty $(= $default:expr)?;
            )*
        }
    ) => {
        $(#[doc = $section_doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $section {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl $crate::config::schema::Section for $section {
            const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn info() -> $crate::config::schema::SectionInfo {
                $crate::config::schema::SectionInfo {
                    doc: $crate::config::schema::join_doc(&[$($section_doc),*]),
                    keys: vec![$({
                        let default: Option<$type> = section!(@default $($default)?);
                        $crate::config::schema::key_info(
                            stringify!($field),
                            default,
                            concat!($($unit)?),
                            &[$($doc),*],
                        )
                    }),*],
                }
            }

            fn from_node(
                node: Option<&$crate::config::tree::Node>,
                path: &str,
                reader: &mut $crate::config::schema::Reader,
            ) -> Option<Self> {
                let entries =
                    $crate::config::schema::entries_of(node, path, Self::KEYS, reader);
                $(
                    let default: Option<$type> = section!(@default $($default)?);
                    let $field = reader.field(entries, path, stringify!($field), default);
                )*
                Some(Self { $($field: $field?),* })
            }

            fn entries(&self) -> Vec<(&'static str, toml::Value)> {
                let values = [$((
                    stringify!($field),
                    $crate::config::schema::FromNode::to_toml(&self.$field),
                )),*];
                values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
            }
        }

        impl $crate::config::schema::FromNode for $section {
            fn kind() -> String {
                format!(
                    "a table of {}",
                    <Self as $crate::config::schema::Section>::KEYS.join(", ")
                )
            }
            fn read(
                node: &$crate::config::tree::Node,
                path: &str,
                reader: &mut $crate::config::schema::Reader,
            ) -> Option<Self> {
                <Self as $crate::config::schema::Section>::from_node(Some(node), path, reader)
            }
            fn to_toml(&self) -> Option<toml::Value> {
                let entries = $crate::config::schema::Section::entries(self).into_iter();
                Some(toml::Value::Table(entries.map(|(k, v)| (k.to_owned(), v)).collect()))
            }
        }
    };
    (@default) => { None };
    (@default $default:expr) => { Some($default) };
}

/// Declares a key's choices: an enum whose variants have names in the config.
macro_rules! choices {
    (
        $(#[doc = $enum_doc:expr])*
        $name:ident { $($(#[doc = $doc:expr])* $variant:ident = $text:literal,)* }
    ) => {
        $(#[doc = $enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// As the config and the wire write it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl $crate::config::schema::FromNode for $name {
            fn kind() -> String {
                format!("one of {}", [$(concat!("\"", $text, "\"")),*].join(", "))
            }
            fn read(
                node: &$crate::config::tree::Node,
                path: &str,
                reader: &mut $crate::config::schema::Reader,
            ) -> Option<Self> {
                match &node.tree {
                    $($crate::config::tree::Tree::Text(text) if text == $text => {
                        return Some(Self::$variant);
                    })*
                    _ => {}
                }
                $crate::config::schema::mistyped(node, path, reader)
            }
            fn to_toml(&self) -> Option<toml::Value> {
                Some(toml::Value::String(self.as_str().to_owned()))
            }
        }
    };
}

pub(super) use {choices, section};
