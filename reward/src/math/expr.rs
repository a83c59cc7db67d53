//! The language of answers as a tree: what the parser makes and the comparer reads.

use num_rational::BigRational;

/// An answer.
///
/// The parser writes down what stands there and decides little: `(1, 2)` is [`Expr::Delimited`],
/// whether it means a point or an interval is for the comparer, who sees the other side too.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// An exact number: `7`, and what the parser folds at once (`2 1/3`).
    Number(BigRational),
    /// A number written with a decimal point or an exponent (`0.5`, `7.02e5`): its exact value. It
    /// compares at six decimals, as a float does in the reference.
    Decimal(BigRational),
    /// π, e, i, ∞.
    Constant(Constant),
    /// A variable, lower-cased, subscript included (`x`, `x_1`, `theta`).
    Symbol(String),
    /// `a + b + …`; a difference is a sum with a [`Expr::Negated`].
    Sum(Vec<Expr>),
    /// `a b …`.
    Product(Vec<Expr>),
    /// `a / b`, `\frac{a}{b}`, `a : b`.
    Quotient(Box<Expr>, Box<Expr>),
    /// `a^b`; roots are [`Function::Root`].
    Power(Box<Expr>, Box<Expr>),
    /// `-a`.
    Negated(Box<Expr>),
    /// A function of its arguments.
    Call(Function, Vec<Expr>),
    /// `a%`: equal to `a` and to `a / 100`, as the reference has it.
    Percent(Box<Expr>),
    /// `a ± b` (`upper` first sign +), `a ∓ b`, and with no left side `±b` (`Number(0)` on the left).
    PlusMinus {
        /// The middle.
        left: Box<Expr>,
        /// What is added and taken away.
        right: Box<Expr>,
        /// True for `±`, false for `∓`.
        plus_first: bool,
    },
    /// `{a, b}`, several answers joined (`a and b`, `a, b` bare): order does not matter. Empty: `∅`.
    Set(Vec<Expr>),
    /// `(a, b)`, `[a, b]`, `(a, b]`, `[a, b, c]`, `<a, b>`: point, vector, list or interval. At least
    /// one item when `open` or `close` is square, at least two when both are round.
    Delimited {
        /// Left delimiter.
        open: Delimiter,
        /// Right delimiter.
        close: Delimiter,
        /// What stands between the commas (or semicolons).
        items: Vec<Expr>,
    },
    /// Union, intersection, difference of sets.
    SetOperation(SetOperation, Vec<Expr>),
    /// `a < b <= c`, `x = 3`, `x ∈ S`: one operator fewer than sides.
    Relation {
        /// The sides.
        sides: Vec<Expr>,
        /// What stands between them.
        operators: Vec<Relation>,
    },
    /// `{x | condition}`, `{x : condition}`, `{x ∈ S : condition}`.
    SetBuilder {
        /// What the elements are.
        element: Box<Expr>,
        /// Which.
        condition: Box<Expr>,
    },
    /// `a and b` of relations.
    And(Vec<Expr>),
    /// `a or b` of relations.
    Or(Vec<Expr>),
    /// Rows of a matrix; a column vector has rows of one. All rows have the same length.
    Matrix(Vec<Vec<Expr>>),
    /// Words: `\text{east}`. Lower-cased, spaces removed.
    Text(String),
}

/// A number with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// π.
    Pi,
    /// Euler's number.
    E,
    /// The imaginary unit.
    I,
    /// ∞; minus infinity is its negation.
    Infinity,
}

/// A function by its standard meaning. Angles are in radians; a degree sign multiplies by π/180
/// inside a trigonometric function's argument and is a unit (dropped) elsewhere: the parser does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `Root(x)` square root; `Root(x, n)` the n-th.
    Root,
    /// Absolute value; of a complex number its modulus.
    Abs,
    /// `n!`.
    Factorial,
    /// `n!!`.
    DoubleFactorial,
    /// `Binomial(n, k)`.
    Binomial,
    /// Natural logarithm.
    Ln,
    /// `Log(x, base)`. A bare `\log x` and `\lg x` have base 10.
    Log,
    /// e to the power.
    Exp,
    /// Largest integer not above.
    Floor,
    /// Smallest integer not below.
    Ceil,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Cotangent.
    Cot,
    /// Secant.
    Sec,
    /// Cosecant.
    Csc,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Hyperbolic tangent.
    Tanh,
    /// Greatest common divisor.
    Gcd,
    /// Least common multiple.
    Lcm,
    /// Smallest argument.
    Min,
    /// Largest argument.
    Max,
    /// Complex conjugate.
    Conjugate,
    /// Remainder: `Mod(a, n)`.
    Mod,
    /// A function that has only a name (`f(x)`, derivatives, sums and integrals that stay as they
    /// are): the first argument is an [`Expr::Text`] with its name, and it equals itself alone.
    Named,
}

/// What surrounds a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delimiter {
    /// `(` or `)`.
    Round,
    /// `[` or `]`.
    Square,
    /// `⟨` or `⟩`.
    Angle,
}

/// An operation on sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetOperation {
    /// ∪.
    Union,
    /// ∩.
    Intersection,
    /// ∖.
    Difference,
}

/// What stands between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `=` (also ≡).
    Equal,
    /// `≠`.
    NotEqual,
    /// `<`.
    Less,
    /// `≤`.
    LessEqual,
    /// `>`.
    Greater,
    /// `≥`.
    GreaterEqual,
    /// `∈`.
    In,
    /// `∉`.
    NotIn,
    /// `≈`.
    Approximate,
}
