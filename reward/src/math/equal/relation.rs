//! Equations and inequalities.

use super::{
    super::expr::{Expr, Relation},
    Judge, Result,
    compare::assignment,
    condition::flipped,
    line::{is_reals, same_variable},
    modular::Modular,
    numeric, shape,
};
use std::{cmp::Ordering, collections::BTreeMap};

/// left < right, left ≤ right, left ≠ right …, never with > or ≥.
#[derive(Clone, Debug)]
struct Single {
    left: Expr,
    operator: Relation,
    right: Expr,
}

/// What the finite field says of a quotient.
enum Ratio {
    /// It does not vary.
    Constant,
    /// Something in it has no place in the field.
    Unknown,
}

impl Judge<'_> {
    /// Two equations, each given by its sides.
    pub(super) fn equations(&mut self, gold: &[Expr], answer: &[Expr]) -> Result<bool> {
        let (gold, answer) = (ends(gold), ends(answer));
        let (Some((a, b)), Some((c, d))) = (gold, answer) else {
            return Ok(false);
        };
        if [a, b, c, d].into_iter().all(shape::is_scalar) {
            // `2 + 3 = 5` says 5.
            if [a, b, c, d].into_iter().all(shape::is_constant) {
                return self.scalars(b, d);
            }
            return self.scalar_equations((a, b), (c, d));
        }
        Ok(self.answers(a, c)? && self.answers(b, d)?
            || self.answers(a, d)? && self.answers(b, c)?)
    }

    fn scalar_equations(&mut self, gold: (&Expr, &Expr), answer: (&Expr, &Expr)) -> Result<bool> {
        let words = |side: &Expr| matches!(side, Expr::Text(_));
        if words(gold.0) || words(gold.1) || words(answer.0) || words(answer.1) {
            return Ok(self.scalars(gold.0, answer.0)? && self.scalars(gold.1, answer.1)?);
        }
        // `x = 0.333` and `x = 1/3`: the decimals' rule is for values.
        if shape::is_decimal(gold.1) || shape::is_decimal(answer.1) {
            return Ok(self.scalars(gold.0, answer.0)? && self.scalars(gold.1, answer.1)?);
        }
        let (ours, theirs) = (difference(gold.0, gold.1), difference(answer.0, answer.1));
        if self.multiples(&ours, &theirs)? {
            return Ok(true);
        }
        if self.solves(gold, &theirs)? || self.solves(answer, &ours)? {
            return Ok(true);
        }
        // `x/y = 2/3` and `3x = 2y`: where the denominators are not zero.
        let (ours, theirs) = (cleared(&ours), cleared(&theirs));
        match (ours, theirs) {
            (None, None) => Ok(false),
            (Some(ours), None) => self.multiples(&ours, &difference(answer.0, answer.1)),
            (None, Some(theirs)) => self.multiples(&difference(gold.0, gold.1), &theirs),
            (Some(ours), Some(theirs)) => self.multiples(&ours, &theirs),
        }
    }

    /// Whether `y = f` is the only solution for y of `other = 0`, linear in y: `y = 2/x` and `xy = 2`.
    fn solves(&mut self, equation: (&Expr, &Expr), other: &Expr) -> Result<bool> {
        let (Expr::Symbol(name), value) = equation else {
            return Ok(false);
        };
        let is_name = |node: &Expr| matches!(node, Expr::Symbol(other) if other == name);
        if shape::any(value, &is_name) || !shape::any(other, &is_name) {
            return Ok(false);
        }
        let at = |value: &Expr| {
            shape::substitute(other, &BTreeMap::from([(name.clone(), value.clone())]))
        };
        let number =
            |value: i64| Expr::Number(num_rational::BigRational::from_integer(value.into()));
        let (zero, one, two) = (at(&number(0)), at(&number(1)), at(&number(2)));
        let bend = Expr::Sum(vec![
            two,
            Expr::Product(vec![number(-2), one.clone()]),
            zero.clone(),
        ]);
        Ok(self.same_value(&bend, &number(0))?
            && !self.same_value(&zero, &one)?
            && self.same_value(&at(value), &number(0))?)
    }

    /// Whether one is a constant other than zero times the other.
    fn multiples(&mut self, ours: &Expr, theirs: &Expr) -> Result<bool> {
        Ok(match self.ratio(ours, theirs)? {
            Some(Ratio::Constant) => true,
            Some(Ratio::Unknown) => {
                numeric::constant_sign(&quotient(ours, theirs), false, self.fuel)?.is_some()
            }
            None => false,
        })
    }

    /// Whether one is a constant other than zero times the other: the constant's sign.
    fn proportional(&mut self, ours: &Expr, theirs: &Expr) -> Result<Option<Ordering>> {
        let Some(ratio) = self.ratio(ours, theirs)? else {
            return Ok(None);
        };
        // What the field proves need not be shown again: one point gives the sign.
        let known = matches!(ratio, Ratio::Constant);
        numeric::constant_sign(&quotient(ours, theirs), known, self.fuel)
    }

    /// What the finite field says of a quotient: the same under two assignments, or not (None).
    fn ratio(&mut self, ours: &Expr, theirs: &Expr) -> Result<Option<Ratio>> {
        let mut ratios = Vec::with_capacity(2);
        let mut opaque = false;
        for salt in [1, 2] {
            let mut modular = Modular::new(salt, self.fuel);
            let (Some(one), Some(other)) = (modular.value(ours)?, modular.value(theirs)?) else {
                return Ok(None);
            };
            opaque |= modular.opaque;
            if other.is_zero() || one.is_zero() {
                return Ok(None);
            }
            ratios.extend(other.inverse().map(|inverse| one.times(inverse)));
        }
        Ok(match ratios.as_slice() {
            [a, b] if a == b => Some(Ratio::Constant),
            _ => opaque.then_some(Ratio::Unknown),
        })
    }

    /// At least one is an inequality, or several joined.
    pub(super) fn inequalities(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        let (ours, theirs) = (shape::is_inequality(gold), shape::is_inequality(answer));
        if ours && theirs {
            return self.two_inequalities(gold, answer);
        }
        // An inequality gold takes a set of reals; the other way round only where it is asked for.
        let one_number = |side: &Expr| shape::is_scalar(side) && !is_reals(side);
        if (ours || self.comparison.set_relation) && !one_number(gold) && !one_number(answer) {
            return self.same_on_the_line(gold, answer);
        }
        Ok(false)
    }

    fn two_inequalities(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        if let (Some(ours), Some(theirs)) = (singles(gold), singles(answer))
            && ours.len() == theirs.len()
        {
            let mut left = theirs;
            let mut all = true;
            for one in &ours {
                let mut partner = None;
                for (at, other) in left.iter().enumerate() {
                    if self.same_single(one, other)? {
                        partner = Some(at);
                        break;
                    }
                }
                match partner {
                    Some(at) => {
                        left.remove(at);
                    }
                    None => {
                        all = false;
                        break;
                    }
                }
            }
            if all {
                return Ok(true);
            }
        }
        if same_variable(gold, answer) {
            return self.same_on_the_line(gold, answer);
        }
        if let (Expr::Or(ours), Expr::Or(theirs)) | (Expr::And(ours), Expr::And(theirs)) =
            (gold, answer)
        {
            return self.some_order(ours, theirs);
        }
        Ok(false)
    }

    fn same_single(&mut self, gold: &Single, answer: &Single) -> Result<bool> {
        if gold.operator != answer.operator {
            return Ok(false);
        }
        if self.answers(&gold.left, &answer.left)? && self.answers(&gold.right, &answer.right)? {
            return Ok(true);
        }
        if ![&gold.left, &gold.right, &answer.left, &answer.right]
            .into_iter()
            .all(shape::is_scalar)
        {
            return Ok(false);
        }
        if matches!(gold.operator, Relation::In | Relation::NotIn) {
            return Ok(false);
        }
        let factor = self.proportional(
            &difference(&gold.left, &gold.right),
            &difference(&answer.left, &answer.right),
        )?;
        Ok(match gold.operator {
            Relation::NotEqual | Relation::Equal => factor.is_some(),
            _ => factor == Some(Ordering::Greater),
        })
    }
}

/// First and last side: what a chain of equations says.
fn ends(sides: &[Expr]) -> Option<(&Expr, &Expr)> {
    assignment(sides).or(match sides {
        [first, .., last] => Some((first, last)),
        _ => None,
    })
}

fn difference(left: &Expr, right: &Expr) -> Expr {
    Expr::Sum(vec![left.clone(), Expr::Negated(Box::new(right.clone()))])
}

fn quotient(above: &Expr, below: &Expr) -> Expr {
    Expr::Quotient(Box::new(above.clone()), Box::new(below.clone()))
}

/// Times every denominator that varies; None where there is none.
fn cleared(sum: &Expr) -> Option<Expr> {
    fn denominators<'e>(expression: &'e Expr, found: &mut Vec<&'e Expr>) {
        match expression {
            Expr::Sum(items) | Expr::Product(items) => {
                for item in items {
                    denominators(item, found);
                }
            }
            Expr::Negated(inner) => denominators(inner, found),
            Expr::Quotient(above, below) => {
                denominators(above, found);
                if !shape::is_constant(below) && !found.contains(&&**below) {
                    found.push(below);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    denominators(sum, &mut found);
    if found.is_empty() {
        return None;
    }
    let mut factors = vec![sum.clone()];
    factors.extend(found.into_iter().cloned());
    Some(Expr::Product(factors))
}

/// A chain, or several joined by and, as single relations, > and ≥ turned round.
fn singles(expression: &Expr) -> Option<Vec<Single>> {
    match expression {
        Expr::Relation { sides, operators } => Some(
            sides
                .windows(2)
                .zip(operators)
                .filter_map(|(pair, operator)| {
                    let [left, right] = pair else {
                        return None;
                    };
                    Some(match operator {
                        Relation::Greater | Relation::GreaterEqual => Single {
                            left: right.clone(),
                            operator: flipped(*operator),
                            right: left.clone(),
                        },
                        _ => Single {
                            left: left.clone(),
                            operator: *operator,
                            right: right.clone(),
                        },
                    })
                })
                .collect(),
        ),
        Expr::And(items) => {
            let mut all = Vec::new();
            for item in items {
                all.extend(singles(item)?);
            }
            Some(all)
        }
        _ => None,
    }
}
