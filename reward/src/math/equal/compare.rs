//! Pairs two answers up by what they are.

use super::{
    super::expr::{Expr, Relation},
    Judge, Result,
    shape::{self, equation},
};
use std::collections::BTreeMap;

/// Variables up to which every renaming is tried.
const RENAMED: usize = 3;

impl Judge<'_> {
    /// Whether two answers of any kind are the same.
    pub(super) fn answers(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        self.fuel.spend(4)?;
        if gold == answer {
            return Ok(true);
        }
        // Numbers are what most answers are.
        if let (Expr::Number(a), Expr::Number(b)) = (gold, answer) {
            return Ok(a == b);
        }
        if let Some(gold) = shape::prepared(gold) {
            return self.answers(&gold, answer);
        }
        if let Some(answer) = shape::prepared(answer) {
            return self.answers(gold, &answer);
        }
        match (equation(gold), equation(answer)) {
            (Some(gold), Some(answer)) => self.equations(gold, answer),
            (None, Some(sides)) => self.value_and_equation(gold, sides),
            (Some(sides), None) => self.equation_and_value(sides, answer),
            (None, None) => self.values(gold, answer),
        }
    }

    /// `4` and `x = 4`: what the equation ends in counts, `x = 2 + 2 = 4` too.
    fn value_and_equation(&mut self, gold: &Expr, sides: &[Expr]) -> Result<bool> {
        if let Some(named) = by_name(sides)
            && matches!(gold, Expr::Set(items) if items.iter().any(|item| equation(item).is_some()))
        {
            return self.values(gold, &Expr::Set(named));
        }
        match value(sides) {
            Some(value) => self.answers(gold, value),
            None => Ok(false),
        }
    }

    /// `x = 4` and `4`; but `2x + z = 4` is not 4.
    fn equation_and_value(&mut self, sides: &[Expr], answer: &Expr) -> Result<bool> {
        let Some((name, value)) = assignment(sides) else {
            return Ok(false);
        };
        if let Expr::Set(items) = answer
            && items.iter().all(|item| equation(item).is_some())
        {
            if let Some(named) = by_name(&[name.clone(), value.clone()]) {
                return self.values(&Expr::Set(named), answer);
            }
            // `x = {1, 2}` and `x = 1, x = 2`: the name is the same, or it is another's value.
            let others = |item: &Expr| {
                equation(item)
                    .and_then(assignment)
                    .is_some_and(|(other, _)| other != name)
            };
            if items.iter().any(others) {
                return Ok(false);
            }
        }
        self.answers(value, answer)
    }

    /// Neither is an equation.
    fn values(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        if shape::is_inequality(gold) || shape::is_inequality(answer) {
            return self.inequalities(gold, answer);
        }
        if let Some(verdict) = self.matrices(gold, answer)? {
            return Ok(verdict);
        }
        if !shape::is_scalar(gold) || !shape::is_scalar(answer) || line_name(gold, answer) {
            return self.lists(gold, answer);
        }
        self.scalars(gold, answer)
    }

    /// Whether some renaming of the answer's variables makes it equal.
    pub(super) fn equal_but_for_names(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        if self.answers(gold, answer)? {
            return Ok(true);
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        shape::symbols(gold, &mut ours);
        shape::symbols(answer, &mut theirs);
        if ours.len() != theirs.len() || ours.is_empty() {
            return Ok(false);
        }
        let orders = if ours.len() <= RENAMED {
            orders(ours.len())
        } else {
            vec![(0..ours.len()).collect()]
        };
        for order in orders {
            let names: BTreeMap<String, Expr> = theirs
                .iter()
                .zip(&order)
                .filter_map(|(from, to)| Some((from.clone(), Expr::Symbol(ours.get(*to)?.clone()))))
                .collect();
            let renamed = shape::substitute(answer, &names);
            if self.answers(gold, &renamed)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// ℝ, ℤ and so on beside a set.
fn line_name(gold: &Expr, answer: &Expr) -> bool {
    super::line::is_reals(gold) || super::line::is_reals(answer)
}

/// All orders of the numbers below `count`, which is small.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for next in 0..count {
        all = all
            .into_iter()
            .flat_map(|order| {
                (0..=order.len()).map(move |at| {
                    let mut longer = order.clone();
                    longer.insert(at, next);
                    longer
                })
            })
            .collect();
    }
    all
}

/// What an equation says its left side is: the name and the last side.
pub(super) fn assignment(sides: &[Expr]) -> Option<(&Expr, &Expr)> {
    match sides {
        [name, .., value] if shape::is_name(name) => Some((name, value)),
        _ => None,
    }
}

/// The value that an equation ends in; `5 = x` says 5, too.
fn value(sides: &[Expr]) -> Option<&Expr> {
    match sides {
        [value, name] if shape::is_name(name) && shape::is_constant(value) => Some(value),
        [.., value] => Some(value),
        [] => None,
    }
}

/// `(x, y) = (1, 2)` as `x = 1`, `y = 2`.
fn by_name(sides: &[Expr]) -> Option<Vec<Expr>> {
    let (Expr::Delimited { items: names, .. }, Expr::Delimited { items: values, .. }) =
        assignment(sides)?
    else {
        return None;
    };
    (names.len() == values.len()).then(|| {
        names
            .iter()
            .zip(values)
            .map(|(name, value)| Expr::Relation {
                sides: vec![name.clone(), value.clone()],
                operators: vec![Relation::Equal],
            })
            .collect()
    })
}
