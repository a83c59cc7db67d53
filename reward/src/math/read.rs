//! From a text to what its answer is taken for: finds in their order, until one parses.

use super::{
    Reading,
    expr::Expr,
    extract::{Content, Find, LatexPart, Source, priorities},
    fuel::Fuel,
    parse::{ParseError, Repairs, Syntax, parse},
};

/// What a text's answer is taken for.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The answer's tree.
    pub(super) tree: Option<Expr>,
    /// What it is equal to as text: a letter of a multiple choice, and the first find as written.
    pub(super) texts: Vec<String>,
    /// Whether a tree or letter was made of a find.
    pub(super) understood: bool,
    /// The find that was understood, as written; else the first.
    pub(super) extracted: Option<String>,
    /// Why the first find that was not understood was not.
    pub(super) problem: Option<ParseError>,
}

/// A find that was understood.
enum Meaning {
    Tree(Expr),
    Letter(String),
}

/// Reads the answer of a text. Fuel that is out ends the search; what was found by then counts.
pub(super) fn read(text: &str, reading: &Reading, fuel: &mut Fuel) -> Answer {
    let source = Source::new(text);
    let mut answer = Answer::default();
    let mut first = None;
    'search: for priority in priorities(&reading.kinds) {
        for find in source.finds(&reading.kinds, priority) {
            let written = written(&find);
            let meaning = meaning(find, fuel);
            let written = match meaning {
                Ok(meaning) => {
                    answer.understood = true;
                    answer.extracted = Some(written.clone());
                    match meaning {
                        Meaning::Tree(tree) => answer.tree = Some(tree),
                        Meaning::Letter(letter) => answer.texts.push(letter),
                    }
                    written
                }
                Err(problem) => {
                    answer.problem.get_or_insert(problem);
                    written
                }
            };
            if first.is_none() && !written.is_empty() {
                first = Some(written);
            }
            if answer.understood || reading.first_only || fuel.left() == 0 {
                break 'search;
            }
        }
    }
    if answer.extracted.is_none() {
        answer.extracted.clone_from(&first);
    }
    if reading.as_text {
        answer.texts.extend(first);
    }
    answer
}

/// A find as a person reads it, and as it counts as text.
fn written(find: &Find<'_>) -> String {
    match &find.content {
        Content::Latex { parts, .. } => {
            let parts: Vec<&str> = parts.iter().map(|part| part.text.trim()).collect();
            parts.join(" and ")
        }
        Content::Number { digits, .. } => digits.clone(),
        Content::Plain(text) => text.trim().to_owned(),
        Content::Letter { written, .. } => (*written).to_owned(),
    }
}

fn meaning(find: Find<'_>, fuel: &mut Fuel) -> Result<Meaning, ParseError> {
    // What the reference repairs in LaTeX it does not in text as typed.
    const AS_TYPED: Repairs = Repairs {
        basic_latex: false,
        units: false,
        malformed_operators: false,
        nits: false,
        equations: false,
    };
    match find.content {
        Content::Letter { compared, .. } => Ok(Meaning::Letter(compared)),
        Content::Plain(text) => parse(text, Syntax::Plain, AS_TYPED, fuel).map(Meaning::Tree),
        Content::Number { digits, percent } => parse(&digits, Syntax::Plain, AS_TYPED, fuel)
            .map(|number| Meaning::Tree(with_percent(number, percent))),
        Content::Latex { parts, repairs } => latex(&parts, repairs, fuel).map(Meaning::Tree),
    }
}

/// One tree of the parts: a set if all parse, else the first.
fn latex(parts: &[LatexPart<'_>], repairs: Repairs, fuel: &mut Fuel) -> Result<Expr, ParseError> {
    let mut trees = parts.iter().map(|part| {
        if let Some(at) = unbalanced(&part.text) {
            return Err(ParseError::Malformed {
                at,
                message: "a brace without its other half".to_owned(),
            });
        }
        let tree = parse(&part.text, Syntax::Latex, repairs, fuel);
        tree.map(|tree| with_percent(tree, part.percent))
    });
    let first = trees.next().ok_or(ParseError::Empty)??;
    let Ok(rest) = trees.collect::<Result<Vec<Expr>, ParseError>>() else {
        return Ok(first);
    };
    if rest.is_empty() {
        return Ok(first);
    }
    let items = std::iter::once(first)
        .chain(rest)
        .flat_map(|tree| match tree {
            Expr::Set(items) => items,
            other => vec![other],
        })
        .collect();
    Ok(Expr::Set(items))
}

/// The character of a brace that is not closed or not opened: an answer that was cut off may have
/// gone on, so it is none.
fn unbalanced(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut escaped = false;
    for (at, char) in text.chars().enumerate() {
        match char {
            '{' if !escaped => open.push(at),
            '}' if !escaped && open.pop().is_none() => return Some(at),
            _ => {}
        }
        escaped = char == '\\' && !escaped;
    }
    open.pop()
}

fn with_percent(tree: Expr, percent: bool) -> Expr {
    if percent {
        Expr::Percent(Box::new(tree))
    } else {
        tree
    }
}
