//! Filters on rows: `difficulty_level <= 2`, `subject == "Algebra"`, `source in ["amc", "aime"]`.

use std::cmp::Ordering;

use serde_json::Value;

use super::{
    DataError,
    rows::{Row, field},
};

/// One condition on a field of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    text: String,
    field: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Is(Compare, Value),
    In(Vec<Value>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Longer ones first, since each is looked for at the same place.
const COMPARISONS: [(&str, Compare); 6] = [
    ("==", Compare::Equal),
    ("!=", Compare::Unequal),
    ("<=", Compare::LessOrEqual),
    (">=", Compare::GreaterOrEqual),
    ("<", Compare::Less),
    (">", Compare::Greater),
];

impl Filter {
    /// Parses `FIELD OP VALUE`: OP is `==`, `!=`, `<`, `<=`, `>`, `>=` or `in`; VALUE is JSON (a
    /// number, text in double quotes, `true`, `false`, `null`; after `in` a list). FIELD may be a
    /// path (`extra.level`).
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        let bad = |message: &str| DataError::Filter {
            filter: text.to_owned(),
            message: format!(
                "{message}; write FIELD OP VALUE, e.g. level <= 2, subject == \"Algebra\" or \
                 source in [\"amc\", \"aime\"]"
            ),
        };
        let comparison = text.char_indices().find_map(|(at, _)| {
            let known = COMPARISONS.iter();
            let mut found = known.filter(|(name, _)| text[at..].starts_with(name));
            found
                .next()
                .map(|(name, compare)| (at, name.len(), *compare))
        });
        let list = text
            .find(" in ")
            .filter(|at| comparison.is_none_or(|(c, ..)| *at < c));
        let (name, value, compare) = match (list, comparison) {
            (Some(at), _) => (&text[..at], &text[at + 4..], None),
            (None, Some((at, length, compare))) => {
                (&text[..at], &text[at + length..], Some(compare))
            }
            (None, None) => return Err(bad("there is no ==, !=, <, <=, >, >= or in")),
        };
        let name = name.trim();
        if name.is_empty() {
            return Err(bad("there is no field before the comparison"));
        }
        let value: Value = serde_json::from_str(value.trim()).map_err(|_| {
            bad(
                "what comes after the comparison is neither a number, text in double quotes, true, \
                 false, null nor a list of them",
            )
        })?;
        let test = match (compare, value) {
            (None, Value::Array(items)) => Test::In(items),
            (None, _) => return Err(bad("after `in` comes a list")),
            (Some(_), Value::Array(_) | Value::Object(_)) => {
                return Err(bad(
                    "a field is compared with one value; for a list write `in`",
                ));
            }
            (Some(compare), value) => Test::Is(compare, value),
        };
        Ok(Self {
            text: text.to_owned(),
            field: name.to_owned(),
            test,
        })
    }

    /// The field that it looks at.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// Whether the row stays. A field that is not there is null; null and values of different kinds
    /// are unequal, and neither less nor greater. Text that is a number compares with a number by
    /// its value.
    pub fn keeps(&self, row: &Row) -> bool {
        let there = field(row, &self.field).unwrap_or(&Value::Null);
        match &self.test {
            Test::In(items) => items.iter().any(|item| same(there, item)),
            Test::Is(Compare::Equal, value) => same(there, value),
            Test::Is(Compare::Unequal, value) => !same(there, value),
            Test::Is(compare, value) => order(there, value).is_some_and(|order| match compare {
                Compare::Less => order.is_lt(),
                Compare::LessOrEqual => order.is_le(),
                Compare::Greater => order.is_gt(),
                _ => order.is_ge(),
            }),
        }
    }

    /// The error for a filter whose field no row has.
    pub(super) fn unknown_field(&self, source: &str, fields: &[String]) -> DataError {
        DataError::Filter {
            filter: self.text.clone(),
            message: format!(
                "no row of {source} has a field {:?}; there are {}",
                self.field,
                fields.join(", ")
            ),
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Bool(_), Value::Bool(_)) | (Value::Null, Value::Null) => a == b,
        _ => order(a, b) == Some(Ordering::Equal),
    }
}

/// Numbers by value, texts by their characters; none where the two can't be compared.
fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(_) | Value::String(_), Value::Number(_))
        | (Value::Number(_), Value::String(_)) => number(a)?.partial_cmp(&number(b)?),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"level": 3, "subject": "Algebra", "share": "0.5", "hard": true,
        "none": null, "extra": {"source": "amc"}, "a in b": 1}"#;

    fn keeps(filter: &str) -> bool {
        let row: Row = serde_json::from_str(ROW).expect("a row");
        Filter::parse(filter).expect(filter).keeps(&row)
    }

    #[test]
    fn a_filter_compares_a_field_with_a_value() {
        for filter in [
            "level <= 3",
            "level<4",
            "level >= 3.0",
            "level == 3",
            "level != 4",
            "level in [1, 3]",
            "subject == \"Algebra\"",
            "subject != \"Geometry\"",
            "subject < \"B\"",
            "subject in [\"Geometry\", \"Algebra\"]",
            "share >= 0.5",
            "level == \"3\"",
            "hard == true",
            "none == null",
            "absent == null",
            "absent != 1",
            "extra.source == \"amc\"",
            "subject != \"x in [y] <= 2\"",
        ] {
            assert!(keeps(filter), "{filter}");
        }
        for filter in [
            "level < 3",
            "level > 3",
            "level == 4",
            "level == \"three\"",
            "subject == \"algebra\"",
            "subject <= 2",
            "hard == 1",
            "hard == \"true\"",
            "none == 0",
            "absent <= 1",
            "absent in [1]",
            "extra == null",
        ] {
            assert!(!keeps(filter), "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_says_what_would_be() {
        for (filter, word) in [
            ("level", "there is no =="),
            ("level = 2", "there is no =="),
            ("<= 2", "no field"),
            ("level <= two", "double quotes"),
            ("level <=", "double quotes"),
            ("level in 2", "comes a list"),
            ("level == [2]", "write `in`"),
        ] {
            let error = Filter::parse(filter).expect_err(filter).to_string();
            assert!(error.contains(word), "{filter}: {error}");
            assert!(error.contains("write FIELD OP VALUE"), "{error}");
        }
    }
}
