//! What the lexer does at a command.

use super::{
    ParseError,
    commands::{self, Command, command},
    lexer::{Lexer, Side},
    names::normal_name,
    numbers::MAX_DIGITS,
    token::{Kind, Token},
    words::{self, Meaning},
};
use crate::math::{
    expr::{Constant, Relation},
    fuel::Fuel,
};

impl Lexer<'_> {
    pub(super) fn command(&mut self, fuel: &mut Fuel) -> Result<(), ParseError> {
        let start = self.at + 1;
        let mut end = start;
        while self.chars.get(end).is_some_and(char::is_ascii_alphabetic) {
            end += 1;
        }
        if end == start {
            let Some(c) = self.chars.get(start).copied() else {
                // A lone backslash at the end.
                self.at += 1;
                return Ok(());
            };
            // `\\frac` is a slip for `\frac` where no lines can end.
            let doubled = c == '\\' && self.listing.is_empty();
            if doubled
                && self
                    .chars
                    .get(start + 1)
                    .is_some_and(char::is_ascii_alphabetic)
            {
                self.at += 1;
                return Ok(());
            }
            let name = c.to_string();
            let Some(meaning) = command(if c.is_whitespace() { " " } else { &name }) else {
                // `\'`, `\.` and the like: the character alone.
                self.at += 1;
                return Ok(());
            };
            return self.apply(meaning, &name, start + 1, fuel);
        }
        let name: String = self
            .chars
            .get(start..end.min(start + 32))
            .unwrap_or(&[])
            .iter()
            .collect();
        if name == "operatorname" && self.chars.get(end) == Some(&'*') {
            end += 1;
        }
        if let Some(meaning) = command(&name) {
            return self.apply(meaning, &name, end, fuel);
        }
        // `\quadx`: letters run into a command.
        for length in (2..name.len()).rev() {
            let head = name.get(..length).unwrap_or_default();
            let known = matches!(
                head,
                "quad"
                    | "qquad"
                    | "cdot"
                    | "times"
                    | "pi"
                    | "infty"
                    | "div"
                    | "pm"
                    | "left"
                    | "right"
                    | "circ"
                    | "cup"
                    | "leq"
                    | "geq"
                    | "le"
                    | "ge"
                    | "displaystyle"
            );
            if known && let Some(meaning) = command(head) {
                return self.apply(meaning, head, start + length, fuel);
            }
        }
        Err(self.error(format!("the command \\{name} is not known")))
    }

    pub(super) fn apply(
        &mut self,
        meaning: Command,
        name: &str,
        end: usize,
        fuel: &mut Fuel,
    ) -> Result<(), ParseError> {
        match meaning {
            Command::Token(Kind::Bar) => {
                let kind = match self.side {
                    Side::Open => Kind::BarOpen,
                    Side::Close => Kind::BarClose,
                    Side::Either => Kind::Bar,
                };
                self.push(kind);
                self.at = end;
            }
            Command::Token(Kind::Symbol { name, .. }) => {
                self.push(Kind::Symbol {
                    name,
                    capital: false,
                });
                self.at = end;
                self.scripts();
            }
            Command::Token(Kind::Newline) => {
                let list = self.listing.last() == Some(&true);
                self.push(if list { Kind::Comma } else { Kind::Newline });
                self.at = end;
                // `\\[4pt]`; but `\\[1, 2]` starts a line with a bracket.
                let rest: String = self.chars.iter().skip(end).take(8).collect();
                if rest.split(']').next().is_some_and(|size| {
                    ["pt", "em", "ex", "mm", "cm"]
                        .iter()
                        .any(|unit| size.ends_with(unit))
                }) {
                    self.skip_optional();
                }
            }
            Command::Token(kind) => {
                self.push(kind);
                self.at = end;
            }
            Command::Space => {
                self.spaced |= name != "!";
                self.at = end;
            }
            Command::Skip => self.at = end,
            Command::SkipGroup => {
                self.at = end;
                self.group();
            }
            Command::Text => self.text(end, false, fuel)?,
            Command::Roman => self.text(end, true, fuel)?,
            Command::Letters => {
                // `\mathbf{i}` is a vector, not the imaginary unit.
                self.at = end;
                let inner = self.ahead_group();
                if let Some(digits) = spaced_digits(&inner) {
                    self.push(Kind::Digits(digits));
                    self.group();
                } else if let [c] = inner.as_slice()
                    && matches!(c, 'i' | 'e')
                {
                    let name = c.to_string();
                    self.push(Kind::Symbol {
                        name,
                        capital: false,
                    });
                    self.group();
                    self.scripts();
                }
            }
            Command::Blackboard => {
                self.at = end;
                let inner = self.group();
                let name = format!("mathbb{{{}}}", normal_name(&inner));
                self.push(Kind::Symbol {
                    name,
                    capital: true,
                });
                self.scripts();
            }
            Command::Accent(accent) => {
                self.at = end;
                let inner = self.ahead_group();
                if accent == "bar" && inner.iter().any(|c| "+-*/=^()0123456789".contains(*c)) {
                    self.at -= 1;
                    self.push(Kind::Overline);
                    self.at += 1;
                } else {
                    self.group();
                    let name = format!("{accent}{{{}}}", normal_name(&inner));
                    self.push(Kind::Symbol {
                        name,
                        capital: true,
                    });
                    self.scripts();
                }
            }
            Command::Operator => {
                self.at = end;
                let name = normal_name(&self.group());
                self.operator(&name);
            }
            Command::Opening => (self.side, self.at) = (Side::Open, end),
            Command::Closing => (self.side, self.at) = (Side::Close, end),
            Command::AnySize => self.at = end,
            Command::Begin => {
                self.at = end;
                let name: String = self.group().iter().collect();
                let name = name.trim_end_matches('*').to_string();
                let list = matches!(
                    name.as_str(),
                    "aligned"
                        | "align"
                        | "gathered"
                        | "gather"
                        | "split"
                        | "eqnarray"
                        | "equation"
                        | "multline"
                        | "alignat"
                        | "math"
                        | "displaymath"
                        | "center"
                );
                self.listing.push(list);
                if matches!(name.as_str(), "array" | "tabular" | "alignat") {
                    self.skip_optional();
                    self.group();
                }
                if !list {
                    self.push(Kind::Begin(name));
                }
            }
            Command::End => {
                self.at = end;
                let name: String = self.group().iter().collect();
                if self.listing.pop() != Some(true) {
                    self.push(Kind::End(name.trim_end_matches('*').to_string()));
                }
            }
            Command::Not => {
                self.at = end;
                self.skip_spaces();
                let rest: String = self.chars.iter().skip(self.at).take(12).collect();
                let (kind, length) = if rest.starts_with("\\in") {
                    (Kind::Relation(Relation::NotIn), 3)
                } else if rest.starts_with('=') {
                    (Kind::Relation(Relation::NotEqual), 1)
                } else if rest.starts_with("\\equiv") {
                    (Kind::Relation(Relation::NotEqual), 6)
                } else if rest.starts_with("\\mid") {
                    (Kind::NamedRelation("notdivides"), 4)
                } else if rest.starts_with("\\subseteq") {
                    (Kind::NamedRelation("notsubset"), 9)
                } else if rest.starts_with("\\subset") {
                    (Kind::NamedRelation("notsubset"), 7)
                } else {
                    return Err(self.error("what \\not negates is not known"));
                };
                self.push(kind);
                self.at += length;
            }
        }
        Ok(())
    }

    pub(super) fn text(
        &mut self,
        end: usize,
        roman: bool,
        fuel: &mut Fuel,
    ) -> Result<(), ParseError> {
        let start = self.at;
        self.at = end;
        let inner = self.group();
        let behind = std::mem::replace(&mut self.at, start);
        if let Some(digits) = spaced_digits(&inner) {
            self.push(Kind::Digits(digits));
            self.at = behind;
            return Ok(());
        }
        let content: String = inner.iter().collect();
        let trimmed = content.trim();
        let upright = match trimmed {
            "e" if roman => Some(Kind::Constant(Constant::E)),
            "i" if roman => Some(Kind::Constant(Constant::I)),
            "T" if roman => Some(Kind::Symbol {
                name: "t".to_string(),
                capital: true,
            }),
            "d" if roman => Some(Kind::Symbol {
                name: "d".to_string(),
                capital: false,
            }),
            _ => None,
        };
        if let Some(kind) = upright {
            self.push(kind);
            self.at = behind;
            return Ok(());
        }
        if content.starts_with(char::is_whitespace) {
            self.spaced = true;
        }
        if let Some(kind) = commands::function(trimmed).filter(|_| roman || !self.after_operand()) {
            self.push(kind);
            self.at = behind;
            return Ok(());
        }
        if trimmed.contains('$') || is_formula(&inner) {
            self.read_inner(&inner, fuel)?;
            self.at = behind;
            return Ok(());
        }
        for meaning in words::meanings(trimmed) {
            match meaning {
                Meaning::Nothing => {}
                Meaning::And => self.push(Kind::And),
                Meaning::Or => self.push(Kind::Or),
                Meaning::Percent => self.push(Kind::Percent),
                Meaning::Degree => self.push(Kind::Degree),
                Meaning::Where(all) => self.push(Kind::Where(all)),
                Meaning::Mathematics => self.read_inner(&inner, fuel)?,
                Meaning::Words(words) => self.words(words, fuel)?,
            }
        }
        self.at = behind;
        self.spaced |= content.ends_with(char::is_whitespace);
        // A single letter in text takes a subscript as a variable does.
        if self.subscript_follows(self.at)
            && let Some(Token {
                kind: kind @ Kind::Text(_),
                ..
            }) = self.tokens.last_mut()
            && let Kind::Text(name) = kind
            && name.chars().count() == 1
            && name.chars().all(char::is_alphabetic)
        {
            *kind = Kind::Symbol {
                name: std::mem::take(name),
                capital: true,
            };
            self.scripts();
        }
        Ok(())
    }

    /// Words of a text. What is mathematics once brackets and the like are gone is so with them
    /// (`\text{\(0}`), and so is a single sign that is so outside (`\text{π}`).
    fn words(&mut self, words: String, fuel: &mut Fuel) -> Result<(), ParseError> {
        let mut letters = words.chars();
        let sign = match (letters.next(), letters.next()) {
            (Some(sign), None) => commands::unicode(sign),
            _ => None,
        };
        let means_more = || match words::meanings(&words).as_slice() {
            [Meaning::Words(same)] => *same != words || commands::function(&words).is_some(),
            _ => true,
        };
        match sign {
            Some(latex) => self.read_in_place(latex, fuel)?,
            None if means_more() => self.read_in_place(&words, fuel)?,
            None => self.push(Kind::Text(words)),
        }
        Ok(())
    }
}

/// `\mathbf{2 6 2}`: a number in bold, its digits set apart.
fn spaced_digits(chars: &[char]) -> Option<String> {
    let digits: String = chars.iter().filter(|c| !c.is_whitespace()).collect();
    let fits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    (fits && digits.len() <= MAX_DIGITS).then_some(digits)
}

/// Whether what stands in `\text{…}` is a formula: commands, and no words beside them.
fn is_formula(chars: &[char]) -> bool {
    let mut commands = false;
    let mut letters = 0;
    let mut after_backslash = false;
    for c in chars {
        match c {
            '\\' => (after_backslash, letters) = (true, 0),
            c if c.is_ascii_alphabetic() => {
                commands |= after_backslash;
                letters += usize::from(!after_backslash);
                // A word of three letters is no product.
                if letters > 2 {
                    return false;
                }
            }
            // `\begin{pmatrix}`: the name of a group right behind a command is none of its words.
            '{' => letters = 0,
            _ => (after_backslash, letters) = (false, 0),
        }
    }
    commands
}
