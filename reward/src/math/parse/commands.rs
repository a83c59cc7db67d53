//! What LaTeX's commands mean, and the characters and bare words that mean the same.

use super::token::Kind;
use crate::math::expr::{Constant, Function, Relation, SetOperation};

/// What to do at a command.
pub(super) enum Command {
    /// It is one token.
    Token(Kind),
    /// It is nothing but space.
    Space,
    /// It says nothing; what follows stays (`\displaystyle`, `\boxed`).
    Skip,
    /// It says nothing, and neither does the group after it (`\hspace{1em}`).
    SkipGroup,
    /// Words follow in a group.
    Text,
    /// `\mathrm`: words, a unit, a function or an upright letter.
    Roman,
    /// `\mathbf`: letters in another shape.
    Letters,
    /// `\mathbb`.
    Blackboard,
    /// An accent of this name over a name.
    Accent(&'static str),
    /// `\operatorname`.
    Operator,
    /// `\left`, `\bigl`: the delimiter that follows opens.
    Opening,
    /// `\right`, `\bigr`: the delimiter that follows closes.
    Closing,
    /// `\big`, `\middle`: says nothing of the delimiter that follows.
    AnySize,
    /// `\begin`.
    Begin,
    /// `\end`.
    End,
    /// `\not`.
    Not,
}

/// The meaning of a command by its name without the backslash.
pub(super) fn command(name: &str) -> Option<Command> {
    use Command as C;
    let token = |kind| Some(C::Token(kind));
    if let Some(kind) = function(name) {
        return token(kind);
    }
    match name {
        "," | ";" | ":" | "!" | " " | ">" | "quad" | "qquad" | "enspace" | "thinspace"
        | "negthinspace" | "thickspace" | "medspace" | "space" | "hfill" | "par" | "newline"
        | "allowbreak" | "noindent" | "nobreak" | "nonumber" | "notag" | "hline" | "null" => {
            Some(C::Space)
        }
        "displaystyle" | "textstyle" | "scriptstyle" | "scriptscriptstyle" | "limits"
        | "nolimits" | "boxed" | "fbox" | "mathstrut" | "strut" | "tiny" | "small" | "large"
        | "Large" | "LARGE" | "huge" | "Huge" | "rm" | "bf" | "it" | "cal" | "sf" | "bold"
        | "ensuremath" | "underline" | "cancel" | "bcancel" | "mathord" | "mathop" | "mathrel"
        | "mathbin" | "mathopen" | "mathclose" | "mathpunct" | "mathinner" | "angle"
        | "measuredangle" | "triangle" | "colon" | "therefore" | "because" | "protect"
        | "relax" | "centering" | "$" | "pounds" | "euro" | "yen" | "smash" => {
            Some(if name == "colon" {
                C::Token(Kind::Colon)
            } else {
                C::Skip
            })
        }
        "hspace" | "vspace" | "label" | "tag" | "color" | "textcolor" | "kern" | "mkern"
        | "hskip" | "mskip" | "rule" | "phantom" | "vphantom" | "hphantom" => Some(C::SkipGroup),
        "text" | "textbf" | "textit" | "textrm" | "textnormal" | "textsc" | "texttt" | "textsf"
        | "textup" | "textmd" | "textsl" | "mbox" | "hbox" | "emph" | "intertext" => Some(C::Text),
        "mathrm" | "operatorname*" | "mathsf" | "mathtt" | "unit" | "si" => Some(C::Roman),
        "mathbf" | "mathit" | "mathcal" | "mathfrak" | "mathscr" | "mathnormal" | "boldsymbol"
        | "bm" | "pmb" | "symbf" | "symit" => Some(C::Letters),
        "mathbb" | "Bbb" | "mathds" => Some(C::Blackboard),
        "vec" | "overrightarrow" => Some(C::Accent("vec")),
        "bar" | "overline" => Some(C::Accent("bar")),
        "hat" | "widehat" => Some(C::Accent("hat")),
        "tilde" | "widetilde" => Some(C::Accent("tilde")),
        "dot" => Some(C::Accent("dot")),
        "ddot" => Some(C::Accent("ddot")),
        "check" => Some(C::Accent("check")),
        "overset" | "stackrel" | "underbrace" | "overbrace" | "substack" => None,
        "operatorname" | "DeclareMathOperator" => Some(C::Operator),
        "left" | "mleft" | "bigl" | "Bigl" | "biggl" | "Biggl" => Some(C::Opening),
        "right" | "mright" | "bigr" | "Bigr" | "biggr" | "Biggr" => Some(C::Closing),
        "big" | "Big" | "bigg" | "Bigg" | "middle" | "bigm" | "Bigm" => Some(C::AnySize),
        "begin" => Some(C::Begin),
        "end" => Some(C::End),
        "not" => Some(C::Not),
        "{" | "lbrace" => token(Kind::SetOpen),
        "}" | "rbrace" => token(Kind::SetClose),
        "(" | "lgroup" => token(Kind::RoundOpen),
        ")" | "rgroup" => token(Kind::RoundClose),
        "[" | "]" => Some(C::Space),
        "lbrack" => token(Kind::SquareOpen),
        "rbrack" => token(Kind::SquareClose),
        "|" | "Vert" | "vert" => token(Kind::Bar),
        "lvert" | "lVert" => token(Kind::BarOpen),
        "rvert" | "rVert" => token(Kind::BarClose),
        "langle" => token(Kind::AngleOpen),
        "rangle" => token(Kind::AngleClose),
        "lfloor" => token(Kind::FloorOpen),
        "rfloor" => token(Kind::FloorClose),
        "lceil" => token(Kind::CeilOpen),
        "rceil" => token(Kind::CeilClose),
        "\\" | "cr" => token(Kind::Newline),
        "&" => token(Kind::And),
        "_" => token(Kind::Underscore),
        "%" => token(Kind::Percent),
        "pm" => token(Kind::PlusMinus(true)),
        "mp" => token(Kind::PlusMinus(false)),
        "cdot" | "times" | "ast" | "bullet" | "cdotp" => token(Kind::Times),
        "div" | "slash" => token(Kind::Divide),
        "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" | "flatfrac" => {
            token(Kind::Fraction)
        }
        "sqrt" => token(Kind::Root { latex: true }),
        "binom" | "dbinom" | "tbinom" => token(Kind::Binomial),
        "choose" => token(Kind::Choose),
        "over" | "atop" => token(Kind::Over),
        "bmod" | "mod" => token(Kind::Modulo),
        "pmod" | "pod" => token(Kind::ParenthesisedModulo),
        "circ" => token(Kind::Circle),
        "degree" | "degrees" | "textdegree" => token(Kind::Degree),
        "prime" => token(Kind::Prime),
        "top" | "intercal" => token(Kind::Transpose),
        "land" | "wedge" => token(Kind::And),
        "lor" | "vee" => token(Kind::Or),
        "forall" => token(Kind::Where(true)),
        "infty" | "infin" => token(Kind::Constant(Constant::Infinity)),
        "pi" | "uppi" => token(Kind::Constant(Constant::Pi)),
        "imath" | "i" => token(Kind::Constant(Constant::I)),
        "e" => token(Kind::Constant(Constant::E)),
        "ldots" | "dots" | "cdots" | "dotsc" | "dotsb" | "dotsm" | "vdots" | "ddots" => {
            token(Kind::Dots)
        }
        "emptyset" | "varnothing" | "O" => token(Kind::Empty),
        "cup" | "bigcup" => token(Kind::Set(SetOperation::Union)),
        "cap" | "bigcap" => token(Kind::Set(SetOperation::Intersection)),
        "setminus" | "backslash" | "smallsetminus" => token(Kind::Set(SetOperation::Difference)),
        "mid" => token(Kind::Mid),
        "eq" | "equiv" | "coloneqq" => token(Kind::Relation(Relation::Equal)),
        "ne" | "neq" => token(Kind::Relation(Relation::NotEqual)),
        "lt" => token(Kind::Relation(Relation::Less)),
        "gt" => token(Kind::Relation(Relation::Greater)),
        "le" | "leq" | "leqslant" | "leqq" => token(Kind::Relation(Relation::LessEqual)),
        "ge" | "geq" | "geqslant" | "geqq" => token(Kind::Relation(Relation::GreaterEqual)),
        "in" => token(Kind::Relation(Relation::In)),
        "notin" => token(Kind::Relation(Relation::NotIn)),
        "approx" | "simeq" | "sim" | "thickapprox" | "approxeq" => {
            token(Kind::Relation(Relation::Approximate))
        }
        "cong" => token(Kind::NamedRelation("congruent")),
        "propto" => token(Kind::NamedRelation("proportional")),
        "subset" | "subseteq" | "subsetneq" => token(Kind::NamedRelation("subset")),
        "supset" | "supseteq" | "supsetneq" => token(Kind::NamedRelation("superset")),
        "to" | "rightarrow" | "longrightarrow" | "mapsto" => token(Kind::NamedRelation("to")),
        "parallel" => token(Kind::NamedRelation("parallel")),
        "perp" => token(Kind::NamedRelation("perpendicular")),
        "nmid" => token(Kind::NamedRelation("notdivides")),
        "Rightarrow" | "implies" | "Longrightarrow" => token(Kind::NamedRelation("implies")),
        "iff" | "Leftrightarrow" | "leftrightarrow" => token(Kind::NamedRelation("iff")),
        "neg" | "lnot" => token(Kind::Operator("not".to_string())),
        "sum" => token(Kind::Big("sum")),
        "prod" => token(Kind::Big("prod")),
        "int" => token(Kind::Big("int")),
        "iint" => token(Kind::Big("iint")),
        "oint" => token(Kind::Big("oint")),
        "lim" => token(Kind::Big("lim")),
        _ => {
            let name = symbol(name)?.to_string();
            token(Kind::Symbol {
                name,
                capital: false,
            })
        }
    }
}

/// Functions by the names they have in LaTeX and as bare words.
pub(super) fn function(name: &str) -> Option<Kind> {
    Some(Kind::Function(match name {
        "ln" => Function::Ln,
        "log" => Function::Log,
        "lg" => return Some(Kind::CommonLogarithm),
        "exp" => Function::Exp,
        "sin" => Function::Sin,
        "cos" => Function::Cos,
        "tan" | "tg" => Function::Tan,
        "cot" | "ctg" | "cotg" => Function::Cot,
        "sec" => Function::Sec,
        "csc" | "cosec" => Function::Csc,
        "arcsin" | "asin" => Function::Asin,
        "arccos" | "acos" => Function::Acos,
        "arctan" | "atan" | "arctg" => Function::Atan,
        "sinh" => Function::Sinh,
        "cosh" => Function::Cosh,
        "tanh" => Function::Tanh,
        "gcd" => Function::Gcd,
        "lcm" => Function::Lcm,
        "min" => Function::Min,
        "max" => Function::Max,
        "floor" => Function::Floor,
        "ceil" => Function::Ceil,
        "abs" => Function::Abs,
        "arcsec" | "arccsc" | "arccot" | "coth" | "sech" | "csch" | "det" | "dim" | "ker"
        | "deg" | "arg" | "sgn" | "sup" | "inf" | "Re" | "Im" | "Pr" | "rank" | "trace" | "tr"
        | "arcsinh" | "arccosh" | "arctanh" | "arsinh" | "arcosh" | "artanh" | "erf" | "limsup"
        | "liminf" | "argmax" | "argmin" | "hom" => {
            return Some(Kind::Operator(name.to_lowercase()));
        }
        _ => return None,
    }))
}

/// Names of symbols: Greek letters (π apart) and the like, with variants under one name.
pub(super) fn symbol(name: &str) -> Option<&'static str> {
    const NAMES: [&str; 40] = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "omicron",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
        "hbar",
        "ell",
        "partial",
        "nabla",
        "aleph",
        "odot",
        "oplus",
        "otimes",
        "star",
        "square",
        "diamond",
        "clubsuit",
        "heartsuit",
        "spadesuit",
        "mho",
        "dagger",
        "wp",
    ];
    let plain = name.strip_prefix("var").unwrap_or(name);
    let plain = plain
        .strip_prefix("up")
        .filter(|rest| *rest != "silon")
        .unwrap_or(plain);
    let lower = plain.to_lowercase();
    match name {
        "hslash" => return Some("hbar"),
        "Box" | "blacksquare" => return Some("square"),
        "Diamond" => return Some("diamond"),
        "bigstar" => return Some("star"),
        "Pi" => return Some("capitalpi"),
        _ => {}
    }
    NAMES.iter().find(|known| **known == lower).copied()
}

/// What a character that is no LaTeX means, as LaTeX that is read in its place.
pub(super) fn unicode(c: char) -> Option<&'static str> {
    Some(match c {
        'π' | '𝜋' => "\\pi ",
        '∞' => "\\infty ",
        '≤' | '⩽' | '≦' => "\\le ",
        '≥' | '⩾' | '≧' => "\\ge ",
        '≠' => "\\ne ",
        '≈' | '≃' | '∼' => "\\approx ",
        '≡' => "\\equiv ",
        '≅' => "\\cong ",
        '＝' => "=",
        '＜' => "<",
        '＞' => ">",
        '×' | '·' | '⋅' | '∙' | '•' | '∗' | '✕' | '✖' => "\\times ",
        '÷' | '∕' | '⁄' | '／' => "/",
        '−' | '–' | '—' | '‒' | '－' | '﹣' | '‐' | '‑' => "-",
        '＋' => "+",
        '±' => "\\pm ",
        '∓' => "\\mp ",
        '∪' | '⋃' => "\\cup ",
        '∩' | '⋂' => "\\cap ",
        '∖' | '⧵' => "\\setminus ",
        '∈' => "\\in ",
        '∉' => "\\notin ",
        '⊂' | '⊆' => "\\subset ",
        '⊃' | '⊇' => "\\supset ",
        '∅' | 'Ø' | '⌀' => "\\emptyset ",
        '°' | '˚' | 'º' => "\\degree ",
        '℃' | '℉' => "\\degree ",
        '∠' | '△' | '∆' | '▵' | '€' | '£' | '¥' | '₹' | '₽' | '₩' | '₪' | '฿' => {
            " "
        }
        '∀' => "\\forall ",
        '→' | '↦' => "\\to ",
        '⇒' => "\\implies ",
        '⇔' => "\\iff ",
        '∧' => "\\land ",
        '∨' => "\\lor ",
        '∣' | '｜' => "|",
        '‖' | '∥' => "\\|",
        '⟂' | '⊥' => "\\perp ",
        '∛' => "\\sqrt[3]",
        '∜' => "\\sqrt[4]",
        '∂' => "\\partial ",
        '∇' => "\\nabla ",
        '∑' => "\\sum ",
        '∏' => "\\prod ",
        '∫' => "\\int ",
        '⌊' => "\\lfloor ",
        '⌋' => "\\rfloor ",
        '⌈' => "\\lceil ",
        '⌉' => "\\rceil ",
        '⟨' | '〈' => "\\langle ",
        '⟩' | '〉' => "\\rangle ",
        '（' => "(",
        '）' => ")",
        '［' | '【' => "[",
        '］' | '】' => "]",
        '｛' => "\\{",
        '｝' => "\\}",
        '，' | '、' => ",",
        '；' => ";",
        '：' | '∶' => ":",
        '％' | '﹪' => "\\%",
        '！' => "!",
        '…' | '⋯' => "\\dots ",
        '′' | '’' | '‘' | 'ʹ' => "'",
        '″' => "''",
        'ℝ' => "\\mathbb{R}",
        'ℤ' => "\\mathbb{Z}",
        'ℕ' => "\\mathbb{N}",
        'ℚ' => "\\mathbb{Q}",
        'ℂ' => "\\mathbb{C}",
        'ℓ' => "\\ell ",
        'ℏ' => "\\hbar ",
        'α' => "\\alpha ",
        'β' => "\\beta ",
        'γ' => "\\gamma ",
        'Γ' => "\\Gamma ",
        'δ' => "\\delta ",
        'Δ' => "\\Delta ",
        'ε' | 'ϵ' => "\\epsilon ",
        'ζ' => "\\zeta ",
        'η' => "\\eta ",
        'θ' | 'ϑ' => "\\theta ",
        'Θ' => "\\Theta ",
        'ι' => "\\iota ",
        'κ' => "\\kappa ",
        'λ' => "\\lambda ",
        'Λ' => "\\Lambda ",
        'μ' | 'µ' => "\\mu ",
        'ν' => "\\nu ",
        'ξ' => "\\xi ",
        'ρ' => "\\rho ",
        'σ' | 'ς' => "\\sigma ",
        'Σ' => "\\Sigma ",
        'τ' => "\\tau ",
        'υ' => "\\upsilon ",
        'φ' | 'ϕ' => "\\phi ",
        'Φ' => "\\Phi ",
        'χ' => "\\chi ",
        'ψ' => "\\psi ",
        'Ψ' => "\\Psi ",
        'ω' => "\\omega ",
        'Ω' => "\\Omega ",
        '𝑒' | 'ℯ' => "e",
        '𝑖' | 'ⅈ' => "i",
        '“' | '”' | '"' | '`' | '\u{feff}' | '\u{200b}' | '\u{200c}' | '\u{200d}' | '\u{2061}'
        | '\u{2062}' | '□' | '✓' | '√' => return None,
        _ => return None,
    })
}

/// A raised or lowered character's plain form.
pub(super) fn script(c: char) -> Option<(bool, char)> {
    const RAISED: [(char, char); 19] = [
        ('⁰', '0'),
        ('¹', '1'),
        ('²', '2'),
        ('³', '3'),
        ('⁴', '4'),
        ('⁵', '5'),
        ('⁶', '6'),
        ('⁷', '7'),
        ('⁸', '8'),
        ('⁹', '9'),
        ('⁺', '+'),
        ('⁻', '-'),
        ('⁽', '('),
        ('⁾', ')'),
        ('ⁿ', 'n'),
        ('ˣ', 'x'),
        ('ᵏ', 'k'),
        ('ᵐ', 'm'),
        ('ⁱ', 'i'),
    ];
    const LOWERED: [(char, char); 18] = [
        ('₀', '0'),
        ('₁', '1'),
        ('₂', '2'),
        ('₃', '3'),
        ('₄', '4'),
        ('₅', '5'),
        ('₆', '6'),
        ('₇', '7'),
        ('₈', '8'),
        ('₉', '9'),
        ('₊', '+'),
        ('₋', '-'),
        ('ₙ', 'n'),
        ('ₖ', 'k'),
        ('ₘ', 'm'),
        ('ᵢ', 'i'),
        ('ⱼ', 'j'),
        ('ₓ', 'x'),
    ];
    let find = |table: &[(char, char)], raised| {
        table
            .iter()
            .find(|(from, _)| *from == c)
            .map(|(_, to)| (raised, *to))
    };
    find(&RAISED, true).or_else(|| find(&LOWERED, false))
}

/// `½` as numerator and denominator.
pub(super) fn vulgar(c: char) -> Option<(u32, u32)> {
    Some(match c {
        '½' => (1, 2),
        '⅓' => (1, 3),
        '⅔' => (2, 3),
        '¼' => (1, 4),
        '¾' => (3, 4),
        '⅕' => (1, 5),
        '⅖' => (2, 5),
        '⅗' => (3, 5),
        '⅘' => (4, 5),
        '⅙' => (1, 6),
        '⅚' => (5, 6),
        '⅐' => (1, 7),
        '⅛' => (1, 8),
        '⅜' => (3, 8),
        '⅝' => (5, 8),
        '⅞' => (7, 8),
        '⅑' => (1, 9),
        '⅒' => (1, 10),
        _ => return None,
    })
}
