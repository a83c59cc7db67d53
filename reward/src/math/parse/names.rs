//! Bare words, names with their subscripts and primes, and groups that are names.

use super::{
    ParseError, commands,
    lexer::Lexer,
    token::{Kind, Token},
    words,
};
use crate::math::expr::{Constant, SetOperation};

impl Lexer<'_> {
    /// Bare letters: a function, a connective, a unit, or variables.
    pub(super) fn letters(&mut self) -> Result<(), ParseError> {
        let start = self.at;
        let mut end = start;
        // A long run is no word that is known.
        while end - start <= 24 && self.chars.get(end).is_some_and(char::is_ascii_alphabetic) {
            end += 1;
        }
        let word: String = self.chars.get(start..end).unwrap_or(&[]).iter().collect();
        let known = if end - start <= 24 {
            self.word(&word, end)
        } else {
            None
        };
        if let Some(kind) = known {
            self.at = end - 1;
            let point = |i: usize| self.chars.get(i) == Some(&'.');
            // `a.m.`, `sq. ft.`: the point belongs to the word.
            let stop = usize::from(matches!(kind, Kind::Text(_)) && point(end));
            self.push(kind);
            self.at = end + stop;
            return Ok(());
        }
        if let Some(length) = self.day_half() {
            self.push(Kind::Text("am".to_string()));
            self.at += length;
            return Ok(());
        }
        // One letter, or the functions that end a run of letters: `2xsinx` is left alone.
        let c = self.chars.get(start).copied().unwrap_or('x');
        let lower = c.to_ascii_lowercase();
        let times = c == 'x'
            && self
                .tokens
                .last()
                .is_some_and(|t| matches!(t.kind, Kind::Digits(_) | Kind::Decimal(_)))
            && self.chars.get(start + 1..).is_some_and(|rest| {
                let mut rest = rest.iter().skip_while(|c| c.is_whitespace());
                rest.next() == Some(&'1') && rest.next() == Some(&'0') && rest.next() == Some(&'^')
            });
        let kind = if times {
            Kind::Times
        } else {
            match c {
                'e' => Kind::Constant(Constant::E),
                'i' => Kind::Constant(Constant::I),
                _ => Kind::Symbol {
                    name: lower.to_string(),
                    capital: c.is_ascii_uppercase(),
                },
            }
        };
        let names = matches!(kind, Kind::Symbol { .. });
        let scripted = matches!(kind, Kind::Constant(_)) && self.subscript_follows(start + 1);
        if scripted {
            // `e_1`, `i_2` are variables.
            self.push(Kind::Symbol {
                name: lower.to_string(),
                capital: false,
            });
        } else {
            self.push(kind);
        }
        self.at = start + 1;
        if names || scripted {
            self.scripts();
        }
        Ok(())
    }

    pub(super) fn subscript_follows(&self, at: usize) -> bool {
        self.chars
            .get(at..)
            .unwrap_or(&[])
            .iter()
            .find(|c| !c.is_whitespace())
            == Some(&'_')
    }

    /// `a.m.`, `p.m.` after a number; its length.
    pub(super) fn day_half(&self) -> Option<usize> {
        let here: String = self.chars.get(self.at..self.at + 4)?.iter().collect();
        let after = self
            .tokens
            .last()
            .is_some_and(|token| token.kind.ends_operand());
        (after && ["a.m.", "p.m."].contains(&here.to_lowercase().as_str())).then_some(4)
    }

    pub(super) fn word(&self, word: &str, end: usize) -> Option<Kind> {
        if word.len() < 2 {
            return None;
        }
        match word.to_lowercase().as_str() {
            "and" => return Some(Kind::And),
            "or" => return Some(Kind::Or),
            "percent" | "percentage" | "pct" => return Some(Kind::Percent),
            "degrees" | "degree" | "deg" if self.after_operand() => return Some(Kind::Degree),
            "if" if self.after_operand() => return Some(Kind::Where(false)),
            "where" if !self.tokens.is_empty() => return Some(Kind::Where(true)),
            _ => {}
        }
        let called = self
            .chars
            .get(end..)
            .unwrap_or(&[])
            .iter()
            .find(|c| !c.is_whitespace())
            .is_some_and(|c| c.is_ascii_alphanumeric() || "({\\^_|[".contains(*c));
        if let Some(kind) = commands::function(word)
            && (called || !words::is_unit(word))
            && !matches!(kind, Kind::Operator(_))
        {
            return Some(kind);
        }
        match word {
            "sqrt" => return Some(Kind::Root { latex: false }),
            "pi" | "Pi" | "PI" => return Some(Kind::Constant(Constant::Pi)),
            "infinity" | "inf" | "infty" | "oo" | "Infinity" => {
                return Some(Kind::Constant(Constant::Infinity));
            }
            "pm" if !self.after_operand() => return Some(Kind::PlusMinus(true)),
            "mod" => return Some(Kind::Modulo),
            "union" => return Some(Kind::Set(SetOperation::Union)),
            _ => {}
        }
        if self.after_operand() && words::is_unit(word) {
            return Some(Kind::Text(word.to_lowercase()));
        }
        let greek = word.len() > 2 && word.chars().all(|c| c.is_ascii_lowercase());
        let name = commands::symbol(word).filter(|_| greek)?.to_string();
        Some(Kind::Symbol {
            name,
            capital: false,
        })
    }

    /// The group's inside that follows, without its braces; one character where none is opened.
    pub(super) fn ahead_group(&mut self) -> Vec<char> {
        let (inner, end) = self.find_group();
        self.seen += end.saturating_sub(self.at);
        self.chars.get(inner).unwrap_or(&[]).to_vec()
    }

    pub(super) fn group(&mut self) -> Vec<char> {
        let (inner, end) = self.find_group();
        self.seen += end.saturating_sub(self.at);
        self.at = end;
        self.chars.get(inner).unwrap_or(&[]).to_vec()
    }

    pub(super) fn find_group(&self) -> (std::ops::Range<usize>, usize) {
        let mut start = self.at;
        while self.chars.get(start).is_some_and(|c| c.is_whitespace()) {
            start += 1;
        }
        match self.chars.get(start) {
            Some('{') => {}
            Some('\\') => {
                let mut end = start + 1;
                while self.chars.get(end).is_some_and(char::is_ascii_alphabetic) {
                    end += 1;
                }
                return (start..end, end);
            }
            Some(_) => return (start..start + 1, start + 1),
            None => return (start..start, start),
        }
        let mut depth = 0usize;
        let mut at = start;
        while let Some(c) = self.chars.get(at) {
            match c {
                '\\' => at += 1,
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        return (start + 1..at, at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        let end = self.chars.len();
        (start + 1..end, end)
    }

    /// Subscript and primes behind a name go into the name.
    pub(super) fn scripts(&mut self) {
        loop {
            let mut ahead = 0;
            while self.peek(ahead).is_some_and(char::is_whitespace) {
                ahead += 1;
            }
            match self.peek(ahead) {
                Some('_') => {
                    self.at += ahead + 1;
                    let inner = self.group();
                    let inner = normal_name(&inner);
                    self.attach_subscript(&inner);
                }
                Some('\'' | '’' | '′') if ahead == 0 => {
                    self.at += 1;
                    self.append("'");
                }
                Some('^') => {
                    let rest: String = self
                        .chars
                        .iter()
                        .skip(self.at + ahead + 1)
                        .take(9)
                        .collect();
                    let length = ["\\prime", "{\\prime}", "{'}", "{\\prime }"]
                        .iter()
                        .find(|prime| rest.starts_with(**prime))
                        .map(|prime| prime.len());
                    if let Some((sign, length)) = superscript_sign(&rest) {
                        // `\mathbb{Z}^+` is a name too.
                        self.at += ahead + 1 + length;
                        self.attach_subscript(sign);
                        continue;
                    }
                    let Some(length) = length else { return };
                    self.at += ahead + 1 + length;
                    self.append("'");
                }
                _ => return,
            }
        }
    }

    pub(super) fn append(&mut self, what: &str) {
        if let Some(Token {
            kind: Kind::Symbol { name, .. },
            ..
        }) = self.tokens.last_mut()
        {
            name.push_str(what);
        }
    }

    /// Puts a subscript into the name of the last token; false when that is no name.
    pub(super) fn attach_subscript(&mut self, subscript: &str) -> bool {
        let Some(Token {
            kind: Kind::Symbol { name, .. },
            ..
        }) = self.tokens.last_mut()
        else {
            return false;
        };
        if subscript.is_empty() {
            return true;
        }
        let mut primes = name.len() - name.trim_end_matches('\'').len();
        name.truncate(name.len() - primes);
        // A prime inside the subscript is the name's: `x_{a'}` is `x_a'`.
        let bare = subscript.trim_end_matches('\'');
        primes += subscript.len() - bare.len();
        if !bare.is_empty() {
            name.push('_');
            name.push_str(bare);
        }
        name.extend(std::iter::repeat_n('\'', primes));
        true
    }
}

/// A name's normal form: lower-cased, without spaces, braces and commands that only set type.
pub(super) fn normal_name(chars: &[char]) -> String {
    const TYPESETTING: [&str; 12] = [
        "\\mathrm",
        "\\textrm",
        "\\text",
        "\\rm",
        "\\mathit",
        "\\mathbf",
        "\\operatorname",
        "\\,",
        "\\!",
        "\\;",
        "\\left",
        "\\right",
    ];
    let mut name: String = chars.iter().collect();
    for command in TYPESETTING {
        name = name.replace(command, "");
    }
    let kept: Vec<char> = name
        .chars()
        .filter(|c| !c.is_whitespace() && !"{}$~".contains(*c))
        .flat_map(char::to_lowercase)
        .collect();
    // A backslash that starts no command would reach for what comes behind the name.
    let starts = |at: usize| kept.get(at + 1).is_some_and(char::is_ascii_alphabetic);
    kept.iter()
        .enumerate()
        .filter(|(at, c)| **c != '\\' || starts(*at))
        .map(|(_, c)| *c)
        .collect()
}

/// `+`, `-` or `*` raised with nothing after it that it could be the sign of; with its length.
fn superscript_sign(text: &str) -> Option<(&'static str, usize)> {
    for sign in ["+", "-", "*"] {
        if let Some(rest) = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_prefix(sign))
            && rest.starts_with('}')
        {
            return Some((sign, 3));
        }
        if let Some(rest) = text.strip_prefix(sign)
            && rest
                .chars()
                .next()
                .is_none_or(|c| c.is_whitespace() || "),}]=:;|".contains(c))
        {
            return Some((sign, 1));
        }
    }
    None
}
