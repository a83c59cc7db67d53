//! What the lexer makes of an answer's characters.

use num_rational::BigRational;

use crate::math::expr::{Constant, Function, Relation, SetOperation};

/// A token and where it stood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    /// What it is.
    pub(super) kind: Kind,
    /// Its first character, counted from 0 in the text that was given.
    pub(super) at: usize,
    /// Whether space stands before it.
    pub(super) spaced: bool,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Digits alone; their separators are gone. Kept as text, as `\frac12` takes it apart.
    Digits(String),
    /// A number with a point or an exponent.
    Decimal(BigRational),
    /// A number that is exact and no integer: a repeating decimal or `½`.
    Exact {
        /// Its value.
        value: BigRational,
        /// True for `½`, which makes a mixed number of the integer before it.
        vulgar: bool,
    },
    /// A variable, lower-cased, with subscript and primes.
    Symbol {
        /// Its name.
        name: String,
        /// Whether it was a capital letter.
        capital: bool,
    },
    /// π, e, i, ∞.
    Constant(Constant),
    /// Words, lower-cased, without spaces. After an operand they are a unit.
    Text(String),
    /// A function with its usual name.
    Function(Function),
    /// `\lg`.
    CommonLogarithm,
    /// `\operatorname{name}`.
    Operator(String),
    /// A sum, product, integral or limit by its name.
    Big(&'static str),
    /// An overline over more than a name.
    Overline,
    /// `\frac`.
    Fraction,
    /// `\sqrt` (true) or `√` (false).
    Root {
        /// Whether LaTeX's rules for arguments hold.
        latex: bool,
    },
    /// `\binom`.
    Binomial,
    /// `\choose`.
    Choose,
    /// `\over`.
    Over,
    /// `+`.
    Plus,
    /// `-`.
    Minus,
    /// `±` (true), `∓` (false).
    PlusMinus(bool),
    /// `·`, `×`, `*`.
    Times,
    /// `/`, `÷`.
    Divide,
    /// `:`.
    Colon,
    /// `\bmod`.
    Modulo,
    /// `\pmod`.
    ParenthesisedModulo,
    /// `^`.
    Caret,
    /// `_` after something that takes no subscript into its name.
    Underscore,
    /// `!`.
    Bang,
    /// `%`.
    Percent,
    /// A degree sign.
    Degree,
    /// `\circ`: a degree sign when raised.
    Circle,
    /// `'` after what has no name.
    Prime,
    /// `\top`.
    Transpose,
    /// `,`.
    Comma,
    /// `;`.
    Semicolon,
    /// `and`.
    And,
    /// `or`.
    Or,
    /// `if`, `where` and the like (true: `for all`, after which nothing counts).
    Where(bool),
    /// `|` whose side is open.
    Bar,
    /// `\left|`.
    BarOpen,
    /// `\right|`.
    BarClose,
    /// `(`.
    RoundOpen,
    /// `)`.
    RoundClose,
    /// `[`.
    SquareOpen,
    /// `]`.
    SquareClose,
    /// `{`.
    BraceOpen,
    /// `}`.
    BraceClose,
    /// `\{`.
    SetOpen,
    /// `\}`.
    SetClose,
    /// `\langle`.
    AngleOpen,
    /// `\rangle`.
    AngleClose,
    /// `\lfloor`.
    FloorOpen,
    /// `\rfloor`.
    FloorClose,
    /// `\lceil`.
    CeilOpen,
    /// `\rceil`.
    CeilClose,
    /// `\left.` or `\right.`.
    NoDelimiter,
    /// `=`, `<`, `\in`, ….
    Relation(Relation),
    /// A relation that has only a name: `\subset`, `\to`.
    NamedRelation(&'static str),
    /// `\mid`.
    Mid,
    /// `\cup`, `\cap`, `\setminus`.
    Set(SetOperation),
    /// `∅`.
    Empty,
    /// `\begin{…}`.
    Begin(String),
    /// `\end{…}`.
    End(String),
    /// `&`.
    Ampersand,
    /// `\\`.
    Newline,
    /// `…`.
    Dots,
}

impl Kind {
    /// Whether an operand may end with it, so that a word after it is a unit.
    pub(super) fn ends_operand(&self) -> bool {
        matches!(
            self,
            Kind::Digits(_)
                | Kind::Decimal(_)
                | Kind::Exact { .. }
                | Kind::Symbol { .. }
                | Kind::Constant(_)
                | Kind::Text(_)
                | Kind::Bang
                | Kind::Percent
                | Kind::Degree
                | Kind::RoundClose
                | Kind::SquareClose
                | Kind::BraceClose
                | Kind::BarClose
                | Kind::FloorClose
                | Kind::CeilClose
        )
    }
}
