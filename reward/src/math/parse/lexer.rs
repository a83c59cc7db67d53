//! From characters to tokens.

use num_bigint::BigInt;
use num_rational::BigRational;

use super::{
    ParseError,
    commands::{self, Command, command},
    numbers,
    token::{Kind, Token},
    words::{self, Meaning},
};
use crate::math::{
    expr::{Constant, Function, Relation},
    fuel::Fuel,
};

/// How deep texts may stand in texts (`\text{$\text{a}$}`) and scripts in Unicode.
const MAX_NESTING: u32 = 4;

/// Which side the delimiter that follows is on.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Open,
    Close,
    Either,
}

/// The tokens of `chars`, the first of which stands at `offset` in the text that was given.
pub(super) fn tokens(
    chars: &[char],
    offset: usize,
    fuel: &mut Fuel,
) -> Result<Vec<Token>, ParseError> {
    let mut lexer = Lexer {
        chars,
        at: 0,
        offset,
        tokens: Vec::new(),
        spaced: false,
        side: Side::Either,
        nesting: 0,
        listing: Vec::new(),
        pinned: None,
    };
    lexer.run(fuel)?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    offset: usize,
    tokens: Vec<Token>,
    spaced: bool,
    side: Side,
    nesting: u32,
    /// Environments that are open: true for those whose lines are a list.
    listing: Vec<bool>,
    /// Where tokens are said to stand while something else is read in place of a character.
    pinned: Option<usize>,
}

impl Lexer<'_> {
    fn run(&mut self, fuel: &mut Fuel) -> Result<(), ParseError> {
        while let Some(c) = self.peek(0) {
            let before = self.at;
            self.step(c, fuel)?;
            // A name in a group is read by looking ahead: what was passed is paid for here.
            fuel.spend((self.at.saturating_sub(before) as u64).max(1))?;
        }
        Ok(())
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        let at = self.pinned.unwrap_or(self.offset + self.at);
        ParseError::Malformed {
            at,
            message: message.into(),
        }
    }

    fn push(&mut self, kind: Kind) {
        let at = self.pinned.unwrap_or(self.offset + self.at);
        self.tokens.push(Token {
            kind,
            at,
            spaced: self.spaced,
        });
        self.spaced = false;
        self.side = Side::Either;
    }

    fn skip_spaces(&mut self) {
        while self.peek(0).is_some_and(char::is_whitespace) {
            self.at += 1;
            self.spaced = true;
        }
    }

    fn step(&mut self, c: char, fuel: &mut Fuel) -> Result<(), ParseError> {
        if c.is_whitespace()
            || "$~\"`“”\u{feff}\u{200b}\u{200c}\u{200d}\u{2061}\u{2062}".contains(c)
        {
            self.at += 1;
            self.spaced = true;
            return Ok(());
        }
        let starts_number =
            c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit()));
        if starts_number && let Some((kind, end)) = numbers::number(self.chars, self.at)? {
            if let Kind::Digits(digits) = &kind {
                fuel.spend((digits.len() * digits.len() / 64) as u64)?;
            }
            self.push(kind);
            self.at = end;
            return Ok(());
        }
        if c.is_ascii_alphabetic() {
            return self.letters();
        }
        if c == '\\' {
            return self.command(fuel);
        }
        let kind = match c {
            '+' => Kind::Plus,
            '-' => Kind::Minus,
            '*' if self.peek(1) == Some('*') => {
                self.at += 1;
                Kind::Caret
            }
            '*' => Kind::Times,
            '/' => Kind::Divide,
            '^' => Kind::Caret,
            '_' => Kind::Underscore,
            '%' => Kind::Percent,
            '&' => Kind::Ampersand,
            ',' => Kind::Comma,
            ';' => Kind::Semicolon,
            '(' => Kind::RoundOpen,
            ')' => Kind::RoundClose,
            '[' => Kind::SquareOpen,
            ']' => Kind::SquareClose,
            '{' => Kind::BraceOpen,
            '}' => Kind::BraceClose,
            '=' => {
                if self.peek(1) == Some('=') {
                    self.at += 1;
                }
                Kind::Relation(Relation::Equal)
            }
            '!' if self.peek(1) == Some('=') => {
                self.at += 1;
                Kind::Relation(Relation::NotEqual)
            }
            '!' => Kind::Bang,
            ':' if self.peek(1) == Some('=') => {
                self.at += 1;
                Kind::Relation(Relation::Equal)
            }
            ':' => Kind::Colon,
            '<' | '>' if self.side != Side::Either => {
                if c == '<' {
                    Kind::AngleOpen
                } else {
                    Kind::AngleClose
                }
            }
            '<' | '>' => {
                let equal = self.peek(1) == Some('=');
                self.at += usize::from(equal);
                Kind::Relation(match (c, equal) {
                    ('<', false) => Relation::Less,
                    ('<', true) => Relation::LessEqual,
                    (_, false) => Relation::Greater,
                    (_, true) => Relation::GreaterEqual,
                })
            }
            '|' => match self.side {
                Side::Open => Kind::BarOpen,
                Side::Close => Kind::BarClose,
                Side::Either => Kind::Bar,
            },
            '\'' => Kind::Prime,
            '.' if self.side != Side::Either => Kind::NoDelimiter,
            '.' => {
                let mut dots = 0;
                while self.peek(dots) == Some('.') {
                    dots += 1;
                }
                self.at += dots;
                // A full stop alone says nothing.
                if dots > 1 {
                    self.at -= 1;
                    self.push(Kind::Dots);
                    self.at += 1;
                }
                return Ok(());
            }
            '√' => Kind::Root { latex: false },
            _ => return self.foreign(c, fuel),
        };
        self.push(kind);
        self.at += 1;
        Ok(())
    }

    /// A character beyond ASCII.
    fn foreign(&mut self, c: char, fuel: &mut Fuel) -> Result<(), ParseError> {
        if let Some((numerator, denominator)) = commands::vulgar(c) {
            let value = BigRational::new(BigInt::from(numerator), BigInt::from(denominator));
            self.push(Kind::Exact {
                value,
                vulgar: true,
            });
            self.at += 1;
            return Ok(());
        }
        if let Some((raised, _)) = commands::script(c) {
            let mut inner = String::new();
            let start = self.at;
            while let Some((_, plain)) = self
                .peek(0)
                .and_then(commands::script)
                .filter(|(r, _)| *r == raised)
            {
                inner.push(plain);
                self.at += 1;
            }
            let end = std::mem::replace(&mut self.at, start);
            if !raised && self.attach_subscript(&inner) {
                self.at = end;
                return Ok(());
            }
            let latex = format!("{}{{{inner}}}", if raised { '^' } else { '_' });
            self.read_in_place(&latex, fuel)?;
            self.at = end;
            return Ok(());
        }
        match commands::unicode(c) {
            Some(latex) => {
                self.read_in_place(latex, fuel)?;
                self.at += 1;
                Ok(())
            }
            None if c.is_alphabetic() => {
                // Words of other alphabets are words.
                let mut word = String::new();
                while let Some(c) = self.peek(0).filter(|c| c.is_alphabetic()) {
                    word.extend(c.to_lowercase());
                    self.at += 1;
                }
                self.at -= 1;
                self.push(Kind::Text(word));
                self.at += 1;
                Ok(())
            }
            None => Err(self.error(format!("the character {c:?} means nothing here"))),
        }
    }

    /// Reads other text as if it stood at the current character, which stays the current one.
    fn read_in_place(&mut self, latex: &str, fuel: &mut Fuel) -> Result<(), ParseError> {
        let chars: Vec<char> = latex.chars().collect();
        self.read_inner(&chars, fuel)
    }

    fn read_inner(&mut self, chars: &[char], fuel: &mut Fuel) -> Result<(), ParseError> {
        if self.nesting >= MAX_NESTING {
            return Err(ParseError::TooDeep);
        }
        let mut inner = Lexer {
            chars,
            at: 0,
            offset: 0,
            tokens: std::mem::take(&mut self.tokens),
            spaced: self.spaced,
            side: self.side,
            nesting: self.nesting + 1,
            listing: Vec::new(),
            pinned: Some(self.pinned.unwrap_or(self.offset + self.at)),
        };
        let result = inner.run(fuel);
        self.spaced = inner.spaced;
        self.side = inner.side;
        self.tokens = inner.tokens;
        result
    }

    /// Bare letters: a function, a connective, a unit, or variables.
    fn letters(&mut self) -> Result<(), ParseError> {
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

    fn subscript_follows(&self, at: usize) -> bool {
        self.chars
            .get(at..)
            .unwrap_or(&[])
            .iter()
            .find(|c| !c.is_whitespace())
            == Some(&'_')
    }

    /// `a.m.`, `p.m.` after a number; its length.
    fn day_half(&self) -> Option<usize> {
        let here: String = self.chars.get(self.at..self.at + 4)?.iter().collect();
        let after = self
            .tokens
            .last()
            .is_some_and(|token| token.kind.ends_operand());
        (after && ["a.m.", "p.m."].contains(&here.to_lowercase().as_str())).then_some(4)
    }

    fn word(&self, word: &str, end: usize) -> Option<Kind> {
        if word.len() < 2 {
            return None;
        }
        match word.to_lowercase().as_str() {
            "and" => return Some(Kind::And),
            "or" => return Some(Kind::Or),
            "percent" | "percentage" | "pct" => return Some(Kind::Percent),
            "degrees" | "degree" | "deg" if self.after_operand() => return Some(Kind::Degree),
            "if" | "where" if self.after_operand() => return Some(Kind::Where(false)),
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
            "union" => return Some(Kind::Set(crate::math::expr::SetOperation::Union)),
            _ => {}
        }
        if self.after_operand() && words::is_unit(word) {
            return Some(Kind::Text(word.to_lowercase()));
        }
        let greek = word.len() > 2 && word.chars().all(|c| c.is_ascii_lowercase());
        match commands::symbol(word).filter(|_| greek) {
            Some(name) => Some(Kind::Symbol {
                name: name.to_string(),
                capital: false,
            }),
            None => None,
        }
    }

    fn after_operand(&self) -> bool {
        self.tokens
            .last()
            .is_some_and(|token| token.kind.ends_operand())
    }

    fn command(&mut self, fuel: &mut Fuel) -> Result<(), ParseError> {
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

    fn apply(
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
                if let [c] = self.ahead_group().as_slice()
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
        // In a list's environment `&` only sets lines under each other.
        if self.listing.last() == Some(&true) {
            while self.peek(0).is_some_and(|c| c == '&' || c.is_whitespace()) {
                self.at += 1;
                self.spaced = true;
            }
        }
        Ok(())
    }

    fn operator(&mut self, name: &str) {
        let kind = match commands::function(name) {
            Some(Kind::Operator(name)) => Kind::Operator(name),
            Some(kind) => kind,
            None => Kind::Operator(name.to_string()),
        };
        self.push(kind);
    }

    /// `[…]` after a command or a line's end.
    fn skip_optional(&mut self) {
        if self.peek(0) == Some('[')
            && let Some(length) = self
                .chars
                .iter()
                .skip(self.at)
                .take(16)
                .position(|c| *c == ']')
        {
            self.at += length + 1;
        }
    }

    /// The group's inside that follows, without its braces; one character where none is opened.
    fn ahead_group(&self) -> Vec<char> {
        let (inner, _) = self.find_group();
        self.chars.get(inner).unwrap_or(&[]).to_vec()
    }

    fn group(&mut self) -> Vec<char> {
        let (inner, end) = self.find_group();
        self.at = end;
        self.chars.get(inner).unwrap_or(&[]).to_vec()
    }

    fn find_group(&self) -> (std::ops::Range<usize>, usize) {
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
    fn scripts(&mut self) {
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
                    let Some(length) = length else { return };
                    self.at += ahead + 1 + length;
                    self.append("'");
                }
                _ => return,
            }
        }
    }

    fn append(&mut self, what: &str) {
        if let Some(Token {
            kind: Kind::Symbol { name, .. },
            ..
        }) = self.tokens.last_mut()
        {
            name.push_str(what);
        }
    }

    /// Puts a subscript into the name of the last token; false when that is no name.
    fn attach_subscript(&mut self, subscript: &str) -> bool {
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
        let primes = name.len() - name.trim_end_matches('\'').len();
        name.truncate(name.len() - primes);
        name.push('_');
        name.push_str(subscript);
        name.extend(std::iter::repeat_n('\'', primes));
        true
    }

    fn text(&mut self, end: usize, roman: bool, fuel: &mut Fuel) -> Result<(), ParseError> {
        let start = self.at;
        self.at = end;
        let inner = self.group();
        let behind = std::mem::replace(&mut self.at, start);
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
        if trimmed.contains('$') || trimmed.contains("\\(") || trimmed.contains("\\frac") {
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
                Meaning::Words(words) => self.push(Kind::Text(words)),
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
        {
            *kind = Kind::Symbol {
                name: std::mem::take(name),
                capital: true,
            };
            self.scripts();
        }
        Ok(())
    }
}

/// A name's normal form: lower-cased, without spaces, braces and commands that only set type.
fn normal_name(chars: &[char]) -> String {
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
    name.chars()
        .filter(|c| !c.is_whitespace() && !"{}$~".contains(*c))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Whether a token is a function with one argument, whose name `\sin^{-1}` inverts.
pub(super) fn inverse(function: Function) -> Option<Function> {
    match function {
        Function::Sin => Some(Function::Asin),
        Function::Cos => Some(Function::Acos),
        Function::Tan => Some(Function::Atan),
        _ => None,
    }
}
