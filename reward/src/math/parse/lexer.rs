//! From characters to tokens.

use num_bigint::BigInt;
use num_rational::BigRational;

use super::{
    ParseError, commands, numbers,
    token::{Kind, Token},
};
use crate::math::{expr::Relation, fuel::Fuel};

/// How deep texts may stand in texts (`\text{$\text{a}$}`) and scripts in Unicode.
const MAX_NESTING: u32 = 4;

/// Which side the delimiter that follows is on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
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
        seen: 0,
    };
    lexer.run(fuel)?;
    Ok(lexer.tokens)
}

pub(super) struct Lexer<'a> {
    pub(super) chars: &'a [char],
    pub(super) at: usize,
    pub(super) offset: usize,
    pub(super) tokens: Vec<Token>,
    pub(super) spaced: bool,
    pub(super) side: Side,
    pub(super) nesting: u32,
    /// Environments that are open: true for those whose lines are a list.
    pub(super) listing: Vec<bool>,
    /// Where tokens are said to stand while something else is read in place of a character.
    pub(super) pinned: Option<usize>,
    /// Characters that were looked at beyond the current one, not paid for yet.
    pub(super) seen: usize,
}

impl Lexer<'_> {
    pub(super) fn run(&mut self, fuel: &mut Fuel) -> Result<(), ParseError> {
        while let Some(c) = self.peek(0) {
            self.step(c, fuel)?;
            // Groups that were looked through, perhaps to be looked through again.
            fuel.spend(1 + std::mem::take(&mut self.seen) as u64)?;
        }
        Ok(())
    }

    pub(super) fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        let at = self.pinned.unwrap_or(self.offset + self.at);
        ParseError::Malformed {
            at,
            message: message.into(),
        }
    }

    pub(super) fn push(&mut self, kind: Kind) {
        let at = self.pinned.unwrap_or(self.offset + self.at);
        self.tokens.push(Token {
            kind,
            at,
            spaced: self.spaced,
        });
        self.spaced = false;
        self.side = Side::Either;
    }

    pub(super) fn skip_spaces(&mut self) {
        while self.peek(0).is_some_and(char::is_whitespace) {
            self.at += 1;
            self.spaced = true;
        }
    }

    pub(super) fn step(&mut self, c: char, fuel: &mut Fuel) -> Result<(), ParseError> {
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
            // In a list's environment it only sets lines under each other.
            '&' if self.listing.last() == Some(&true) => {
                self.at += 1;
                self.spaced = true;
                return Ok(());
            }
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
    pub(super) fn foreign(&mut self, c: char, fuel: &mut Fuel) -> Result<(), ParseError> {
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
    pub(super) fn read_in_place(&mut self, latex: &str, fuel: &mut Fuel) -> Result<(), ParseError> {
        let chars: Vec<char> = latex.chars().collect();
        self.read_inner(&chars, fuel)
    }

    pub(super) fn read_inner(&mut self, chars: &[char], fuel: &mut Fuel) -> Result<(), ParseError> {
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
            seen: 0,
        };
        let result = inner.run(fuel);
        self.spaced = inner.spaced;
        self.side = inner.side;
        self.tokens = inner.tokens;
        result
    }

    pub(super) fn after_operand(&self) -> bool {
        self.tokens
            .last()
            .is_some_and(|token| token.kind.ends_operand())
    }

    pub(super) fn operator(&mut self, name: &str) {
        let kind = match commands::function(name) {
            Some(Kind::Operator(name)) => Kind::Operator(name),
            Some(kind) => kind,
            None => Kind::Operator(name.to_string()),
        };
        self.push(kind);
    }

    /// `[…]` after a command or a line's end.
    pub(super) fn skip_optional(&mut self) {
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
}
