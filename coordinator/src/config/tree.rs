//! The config as written: TOML with the place of every key and value, and the `--set` overrides
//! laid over it.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Where a key or a value was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// In a file of the config.
    File {
        /// Index of the file: 0 is the one that was named, 1 the one that it extends, and so on.
        file: usize,
        /// Byte offset into it.
        offset: usize,
    },
    /// The override of this index.
    Set(usize),
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) tree: Tree,
    pub(super) place: Place,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// TOML that no key takes (dates), or numbers out of range.
    Other(&'static str),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

/// One `key = value` of a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Tree {
    /// What a person calls this kind of value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Tree::Text(_) => "text",
            Tree::Integer(_) => "a whole number",
            Tree::Float(_) => "a number",
            Tree::Bool(_) => "true or false",
            Tree::Other(kind) => kind,
            Tree::Array(_) => "a list",
            Tree::Table(_) => "a table",
        }
    }
}

/// Parses the text of the file with index `file`; an error is `(byte range, message)`.
pub(super) fn parse(text: &str, file: usize) -> Result<Node, (Option<Range<usize>>, String)> {
    let table = DeTable::parse(text).map_err(|e| (e.span(), e.message().to_owned()))?;
    let place = |offset| Place::File { file, offset };
    Ok(Node {
        tree: from_table(table.get_ref(), &place),
        place: place(table.span().start),
    })
}

/// Lays `over` on `base`: tables are merged key by key, all else (lists too) is replaced as a whole.
pub(super) fn merge(base: Node, over: Node) -> Node {
    let (mut merged, entries) = match (base.tree, over.tree) {
        (Tree::Table(base), Tree::Table(over)) => (base, over),
        (_, tree) => return Node { tree, ..over },
    };
    for entry in entries {
        let below = merged.iter().position(|below| below.key == entry.key);
        let node = match below.map(|at| merged.swap_remove(at).node) {
            Some(below) => merge(below, entry.node),
            None => entry.node,
        };
        merged.push(Entry { node, ..entry });
    }
    Node {
        tree: Tree::Table(merged),
        place: over.place,
    }
}

fn from_table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Tree {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        place: place(key.span().start),
        node: Node {
            tree: from_value(value.get_ref(), place),
            place: place(value.span().start),
        },
    });
    Tree::Table(entries.collect())
}

fn from_value(value: &DeValue<'_>, place: &dyn Fn(usize) -> Place) -> Tree {
    match value {
        DeValue::String(text) => Tree::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Tree::Other("a number out of range"), Tree::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Tree::Other("not a number"), Tree::Float),
        DeValue::Boolean(value) => Tree::Bool(*value),
        DeValue::Datetime(_) => Tree::Other("a date"),
        DeValue::Array(items) => Tree::Array(
            items
                .iter()
                .map(|item| Node {
                    tree: from_value(item.get_ref(), place),
                    place: place(item.span().start),
                })
                .collect(),
        ),
        DeValue::Table(table) => from_table(table, place),
    }
}

/// Lays `section.key=value` over the tree. The value is TOML; what is not (a bare word, a path)
/// is text. Steps of the path that are numbers index a list (`reward.0.weight=2`), and the index
/// just after its end appends.
///
/// # Errors
/// What is wrong with the override.
pub(super) fn apply(root: &mut Node, index: usize, set: &str) -> Result<(), String> {
    let place = Place::Set(index);
    let (path, text) = set
        .split_once('=')
        .ok_or("expected section.key=value, e.g. learner.lr=1e-5")?;
    let mut node = &mut *root;
    for step in path.trim().split('.') {
        if step.is_empty() {
            return Err(format!("`{path}` is not a path like learner.lr"));
        }
        node = match (&mut node.tree, step.parse::<usize>()) {
            (Tree::Array(items), Ok(at)) => {
                if at > items.len() {
                    return Err(format!(
                        "`{path}`: the list has {} items, counted from 0",
                        items.len()
                    ));
                }
                if at == items.len() {
                    items.push(Node {
                        tree: Tree::Table(Vec::new()),
                        place,
                    });
                }
                &mut items[at]
            }
            (Tree::Table(entries), _) => {
                let at = entries.iter().position(|entry| entry.key == step);
                let at = at.unwrap_or_else(|| {
                    entries.push(Entry {
                        key: step.to_owned(),
                        place,
                        node: Node {
                            tree: Tree::Table(Vec::new()),
                            place,
                        },
                    });
                    entries.len() - 1
                });
                entries[at].place = place;
                &mut entries[at].node
            }
            (other, _) => {
                return Err(format!("`{path}`: `{step}` is inside {}", other.kind()));
            }
        };
    }
    *node = Node {
        tree: set_value(text.trim(), place),
        place,
    };
    Ok(())
}

fn set_value(text: &str, place: Place) -> Tree {
    let line = format!("value = {text}");
    let parsed = DeTable::parse(&line).ok();
    let value = parsed.as_ref().filter(|table| table.get_ref().len() == 1);
    match value.and_then(|table| table.get_ref().get("value")) {
        Some(value) => from_value(value.get_ref(), &|_| place),
        None => Tree::Text(text.to_owned()),
    }
}
