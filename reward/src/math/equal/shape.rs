//! Questions about a tree, and rewritings that do not look at values: ± to two answers, `≈` cut off.

use super::super::{
    expr::{Constant, Expr, Function, Relation},
    fuel::{Fuel, OutOfFuel},
};
use std::collections::BTreeMap;

/// The parts right below.
pub(super) fn children(expression: &Expr) -> Vec<&Expr> {
    match expression {
        Expr::Number(_)
        | Expr::Decimal(_)
        | Expr::Constant(_)
        | Expr::Symbol(_)
        | Expr::Text(_) => Vec::new(),
        Expr::Sum(items)
        | Expr::Product(items)
        | Expr::Call(_, items)
        | Expr::Set(items)
        | Expr::Delimited { items, .. }
        | Expr::SetOperation(_, items)
        | Expr::And(items)
        | Expr::Or(items)
        | Expr::Relation { sides: items, .. } => items.iter().collect(),
        Expr::Quotient(a, b) | Expr::Power(a, b) => vec![&**a, &**b],
        Expr::PlusMinus { left, right, .. } => vec![&**left, &**right],
        Expr::SetBuilder { element, condition } => vec![&**element, &**condition],
        Expr::Negated(inner) | Expr::Percent(inner) => vec![&**inner],
        Expr::Matrix(rows) => rows.iter().flatten().collect(),
    }
}

/// The same tree with other parts right below.
pub(super) fn map(expression: &Expr, change: &mut dyn FnMut(&Expr) -> Expr) -> Expr {
    let mut all = |items: &[Expr]| items.iter().map(&mut *change).collect::<Vec<_>>();
    match expression {
        Expr::Number(_)
        | Expr::Decimal(_)
        | Expr::Constant(_)
        | Expr::Symbol(_)
        | Expr::Text(_) => expression.clone(),
        Expr::Sum(items) => Expr::Sum(all(items)),
        Expr::Product(items) => Expr::Product(all(items)),
        Expr::Call(function, items) => Expr::Call(*function, all(items)),
        Expr::Set(items) => Expr::Set(all(items)),
        Expr::Delimited { open, close, items } => Expr::Delimited {
            open: *open,
            close: *close,
            items: all(items),
        },
        Expr::SetOperation(operation, items) => Expr::SetOperation(*operation, all(items)),
        Expr::And(items) => Expr::And(all(items)),
        Expr::Or(items) => Expr::Or(all(items)),
        Expr::Relation { sides, operators } => Expr::Relation {
            sides: all(sides),
            operators: operators.clone(),
        },
        Expr::Quotient(a, b) => Expr::Quotient(Box::new(change(a)), Box::new(change(b))),
        Expr::Power(a, b) => Expr::Power(Box::new(change(a)), Box::new(change(b))),
        Expr::PlusMinus {
            left,
            right,
            plus_first,
        } => Expr::PlusMinus {
            left: Box::new(change(left)),
            right: Box::new(change(right)),
            plus_first: *plus_first,
        },
        Expr::SetBuilder { element, condition } => Expr::SetBuilder {
            element: Box::new(change(element)),
            condition: Box::new(change(condition)),
        },
        Expr::Negated(inner) => Expr::Negated(Box::new(change(inner))),
        Expr::Percent(inner) => Expr::Percent(Box::new(change(inner))),
        Expr::Matrix(rows) => Expr::Matrix(rows.iter().map(|row| all(row)).collect()),
    }
}

/// Whether a tree has more levels than that. Costs a unit for every node.
pub(super) fn deeper_than(
    expression: &Expr,
    levels: usize,
    fuel: &mut Fuel,
) -> Result<bool, OutOfFuel> {
    fuel.spend(1)?;
    if levels == 0 {
        return Ok(true);
    }
    for child in children(expression) {
        if deeper_than(child, levels - 1, fuel)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether any node is as asked.
pub(super) fn any(expression: &Expr, asked: &dyn Fn(&Expr) -> bool) -> bool {
    asked(expression)
        || children(expression)
            .into_iter()
            .any(|child| any(child, asked))
}

/// Nothing in it varies: no variable, no named function, no words.
pub(super) fn is_constant(expression: &Expr) -> bool {
    !any(expression, &|node| {
        matches!(
            node,
            Expr::Symbol(_) | Expr::Text(_) | Expr::Call(Function::Named, _)
        )
    })
}

/// A decimal as it is written, perhaps with a sign or a percent sign.
pub(super) fn is_decimal(expression: &Expr) -> bool {
    match expression {
        Expr::Decimal(_) => true,
        Expr::Negated(inner) | Expr::Percent(inner) => is_decimal(inner),
        _ => false,
    }
}

/// One number, not a list, set or relation of them.
pub(super) fn is_scalar(expression: &Expr) -> bool {
    !matches!(
        expression,
        Expr::Set(_)
            | Expr::Delimited { .. }
            | Expr::SetOperation(..)
            | Expr::SetBuilder { .. }
            | Expr::Relation { .. }
            | Expr::And(_)
            | Expr::Or(_)
            | Expr::Matrix(_)
    )
}

/// What is named on an equation's left side: `x`, `AB`, `f(x)`, `S_1 : S`, `|AB|`, `(p, q)`.
pub(super) fn is_name(expression: &Expr) -> bool {
    fn no_numbers(expression: &Expr) -> bool {
        match expression {
            Expr::Number(_) | Expr::Decimal(_) | Expr::Percent(_) | Expr::PlusMinus { .. } => false,
            Expr::Call(Function::Named, _) => true,
            other => children(other).into_iter().all(no_numbers),
        }
    }
    !is_constant(expression) && no_numbers(expression)
}

/// An equation, or a chain of them: all sides.
pub(super) fn equation(expression: &Expr) -> Option<&[Expr]> {
    match expression {
        Expr::Relation { sides, operators }
            if sides.len() >= 2
                && operators
                    .iter()
                    .all(|operator| matches!(operator, Relation::Equal | Relation::In)) =>
        {
            Some(sides)
        }
        _ => None,
    }
}

/// A relation other than an equation, or several joined by and, or.
pub(super) fn is_inequality(expression: &Expr) -> bool {
    match expression {
        Expr::Relation { .. } => equation(expression).is_none(),
        Expr::And(items) | Expr::Or(items) => {
            !items.is_empty()
                && items
                    .iter()
                    .all(|item| is_inequality(item) || equation(item).is_some())
        }
        _ => false,
    }
}

/// A sum or a product over a variable from one bound to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series<'e> {
    /// Terms are multiplied.
    pub(super) product: bool,
    pub(super) variable: &'e str,
    pub(super) low: &'e Expr,
    pub(super) high: &'e Expr,
    pub(super) term: &'e Expr,
}

/// What a named function is, where it is a sum or a product with both bounds.
pub(super) fn series(arguments: &[Expr]) -> Option<Series<'_>> {
    let [Expr::Text(name), from, high, term] = arguments else {
        return None;
    };
    let product = match name.as_str() {
        "sum" => false,
        "prod" => true,
        _ => return None,
    };
    match equation(from)? {
        [Expr::Symbol(variable), low] => Some(Series {
            product,
            variable,
            low,
            high,
            term,
        }),
        _ => None,
    }
}

/// The letters of a word that was read as a product of variables: `o d d`, `e v e n`.
pub(super) fn word(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Text(text) => Some(text.clone()),
        Expr::Symbol(name) => Some(name.to_lowercase()),
        Expr::Constant(Constant::E) => Some("e".to_owned()),
        Expr::Constant(Constant::I) => Some("i".to_owned()),
        Expr::Constant(Constant::Pi) => Some("pi".to_owned()),
        Expr::Product(items) => items.iter().map(word).collect(),
        _ => None,
    }
}

/// Variables in the order in which they appear.
pub(super) fn symbols(expression: &Expr, found: &mut Vec<String>) {
    if let Expr::Symbol(name) = expression
        && !found.contains(name)
    {
        found.push(name.clone());
    }
    for child in children(expression) {
        symbols(child, found);
    }
}

/// With variables replaced.
pub(super) fn substitute(expression: &Expr, values: &BTreeMap<String, Expr>) -> Expr {
    match expression {
        Expr::Symbol(name) => values.get(name).unwrap_or(expression).clone(),
        other => map(other, &mut |child| substitute(child, values)),
    }
}

/// With every `±` read as its first sign, or every one as its second.
fn with_signs(expression: &Expr, first: bool) -> Expr {
    match expression {
        Expr::PlusMinus {
            left,
            right,
            plus_first,
        } => {
            let (left, right) = (with_signs(left, first), with_signs(right, first));
            let right = if *plus_first == first {
                right
            } else {
                Expr::Negated(Box::new(right))
            };
            Expr::Sum(vec![left, right])
        }
        other => map(other, &mut |child| with_signs(child, first)),
    }
}

/// Equations that hold together: `p = 5, q = 2`.
fn is_system(expression: &Expr) -> bool {
    matches!(expression, Expr::And(items) if items.iter().all(|item| equation(item).is_some()))
}

fn has_plus_minus(expression: &Expr) -> bool {
    any(expression, &|node| matches!(node, Expr::PlusMinus { .. }))
}

/// Makes two answers of one with `±`, inside of a set two items; cuts a chain at its first `≈`;
/// makes a set of equations that are joined by and, or. None when nothing changes.
pub(super) fn prepared(expression: &Expr) -> Option<Expr> {
    match expression {
        Expr::Relation { sides, operators } if operators.contains(&Relation::Approximate) => {
            let at = operators
                .iter()
                .position(|operator| *operator == Relation::Approximate)?;
            let kept = sides.get(..=at)?;
            let cut = match kept {
                // `x ≈ 11`: the name says nothing.
                [name] if is_name(name) => sides.get(at + 1)?.clone(),
                [value] => value.clone(),
                several => Expr::Relation {
                    sides: several.to_vec(),
                    operators: operators.get(..at)?.to_vec(),
                },
            };
            Some(prepared(&cut).unwrap_or(cut))
        }
        Expr::And(items) | Expr::Or(items)
            if !items.is_empty()
                && items
                    .iter()
                    .all(|item| equation(item).is_some() || is_system(item)) =>
        {
            let set = Expr::Set(items.clone());
            Some(prepared(&set).unwrap_or(set))
        }
        Expr::Set(items) if items.iter().any(|item| prepared(item).is_some()) => {
            let mut flat = Vec::with_capacity(items.len() + 1);
            for item in items {
                match (prepared(item), item) {
                    // Sets in a set stay what they are.
                    (Some(other), Expr::Set(_) | Expr::And(_)) => flat.push(other),
                    (Some(Expr::Set(inner)), _) => flat.extend(inner),
                    (Some(other), _) => flat.push(other),
                    (None, _) => flat.push(item.clone()),
                }
            }
            Some(Expr::Set(flat))
        }
        Expr::Set(_) => None,
        other if has_plus_minus(other) => Some(Expr::Set(vec![
            with_signs(other, true),
            with_signs(other, false),
        ])),
        _ => None,
    }
}
