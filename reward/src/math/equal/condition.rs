//! Where an inequality or an equation in one variable holds: a part of the line.

use super::{
    super::expr::{Expr, Function, Relation},
    Judge, Result, exact,
    line::Line,
    numeric, shape,
};
use num_rational::BigRational;
use num_traits::{Signed, Zero};
use std::cmp::Ordering;

impl Judge<'_> {
    /// Where a condition on one variable holds.
    pub(super) fn condition(&mut self, condition: &Expr, variable: &Expr) -> Result<Option<Line>> {
        let (items, all) = match condition {
            Expr::And(items) => (items.as_slice(), true),
            Expr::Or(items) => (items.as_slice(), false),
            Expr::Relation { sides, operators } => {
                let mut total = Line::all();
                for (pair, operator) in sides.windows(2).zip(operators) {
                    let [left, right] = pair else {
                        return Ok(None);
                    };
                    let Some(part) = self.single(left, *operator, right, variable)? else {
                        return Ok(None);
                    };
                    match self.combine(&total, &part, |a, b| a && b)? {
                        Some(both) => total = both,
                        None => return Ok(None),
                    }
                }
                return Ok(Some(total));
            }
            _ => return Ok(None),
        };
        let mut total = if all { Line::all() } else { Line::none() };
        for item in items {
            let Some(part) = self.condition(item, variable)? else {
                return Ok(None);
            };
            let combined = self.combine(&total, &part, |a, b| if all { a && b } else { a || b })?;
            match combined {
                Some(combined) => total = combined,
                None => return Ok(None),
            }
        }
        Ok(Some(total))
    }

    /// One relation in one variable, linear or quadratic, or with an absolute value on a side.
    fn single(
        &mut self,
        left: &Expr,
        operator: Relation,
        right: &Expr,
        variable: &Expr,
    ) -> Result<Option<Line>> {
        match operator {
            Relation::In if left == variable => return self.line(right),
            Relation::NotIn if left == variable => {
                let Some(set) = self.line(right)? else {
                    return Ok(None);
                };
                return self.combine(&Line::all(), &set, |a, b| a && !b);
            }
            // `x = 1, 2` and `x ≠ 1, 2`.
            Relation::Equal if left == variable && matches!(right, Expr::Set(_)) => {
                return self.line(right);
            }
            Relation::NotEqual if left == variable && matches!(right, Expr::Set(_)) => {
                return self.single(left, Relation::NotIn, right, variable);
            }
            Relation::In | Relation::NotIn | Relation::Approximate => return Ok(None),
            _ if !shape::is_scalar(left) || !shape::is_scalar(right) => return Ok(None),
            _ => {}
        }
        let absolute = match (left, right) {
            (Expr::Call(Function::Abs, inner), bound) => Some((inner, bound, operator)),
            (bound, Expr::Call(Function::Abs, inner)) => Some((inner, bound, flipped(operator))),
            _ => None,
        };
        if let Some((inner, bound, operator)) = absolute
            && let [inner] = inner.as_slice()
            && shape::is_constant(bound)
        {
            return self.absolute(inner, operator, bound, variable);
        }
        let difference = Expr::Sum(vec![left.clone(), Expr::Negated(Box::new(right.clone()))]);
        self.polynomial(&difference, operator, variable)
    }

    /// |t| < c is −c < t < c, |t| > c is the rest.
    fn absolute(
        &mut self,
        inner: &Expr,
        operator: Relation,
        bound: &Expr,
        variable: &Expr,
    ) -> Result<Option<Line>> {
        match self.sign(bound)? {
            Some(sign) if sign.is_lt() => {
                return Ok(match operator {
                    Relation::Less | Relation::LessEqual | Relation::Equal => Some(Line::none()),
                    _ => Some(Line::all()),
                });
            }
            Some(_) => {}
            None => return Ok(None),
        }
        let minus = Expr::Negated(Box::new(bound.clone()));
        let (Some(one), Some(other)) = (
            self.single(inner, operator, bound, variable)?,
            self.single(inner, flipped(operator), &minus, variable)?,
        ) else {
            return Ok(None);
        };
        let both = matches!(
            operator,
            Relation::Less | Relation::LessEqual | Relation::NotEqual
        );
        self.combine(&one, &other, |a, b| if both { a && b } else { a || b })
    }

    /// Where a₂x² + a₁x + a₀ is in that relation to 0.
    fn polynomial(
        &mut self,
        difference: &Expr,
        operator: Relation,
        variable: &Expr,
    ) -> Result<Option<Line>> {
        let at = |value: i64| replace(difference, variable, &number(value));
        let (zero, one, two) = (at(0), at(1), at(2));
        if !shape::is_constant(&zero) {
            return Ok(None);
        }
        // Newton's differences: a₂ = (d(2) − 2d(1) + d(0)) / 2, a₁ = d(1) − d(0) − a₂.
        let second = Expr::Quotient(
            Box::new(Expr::Sum(vec![
                two,
                Expr::Product(vec![number(-2), one.clone()]),
                zero.clone(),
            ])),
            Box::new(number(2)),
        );
        let first = Expr::Sum(vec![
            one,
            Expr::Negated(Box::new(zero.clone())),
            Expr::Negated(Box::new(second.clone())),
        ]);
        let second = self.simplified(second)?;
        let first = self.simplified(first)?;
        let zero = self.simplified(zero)?;
        let square = Expr::Power(Box::new(variable.clone()), Box::new(number(2)));
        let whole = Expr::Sum(vec![
            Expr::Product(vec![second.clone(), square]),
            Expr::Product(vec![first.clone(), variable.clone()]),
            zero.clone(),
        ]);
        if !self.same_value(difference, &whole)? {
            return Ok(None);
        }
        let Some(leading) = self.sign(&second)? else {
            return Ok(None);
        };
        let roots = if leading.is_eq() {
            match self.sign(&first)? {
                Some(Ordering::Equal) => {
                    let sign = self.sign(&zero)?;
                    return Ok(sign.map(|sign| {
                        if holds(operator, sign) {
                            Line::all()
                        } else {
                            Line::none()
                        }
                    }));
                }
                Some(_) => vec![Expr::Quotient(
                    Box::new(Expr::Negated(Box::new(zero.clone()))),
                    Box::new(first.clone()),
                )],
                None => return Ok(None),
            }
        } else {
            let discriminant = self.simplified(Expr::Sum(vec![
                Expr::Product(vec![first.clone(), first.clone()]),
                Expr::Product(vec![number(-4), second.clone(), zero.clone()]),
            ]))?;
            let middle = Expr::Negated(Box::new(first.clone()));
            let below = Expr::Product(vec![number(2), second.clone()]);
            let over = |above: Expr| Expr::Quotient(Box::new(above), Box::new(below.clone()));
            match self.sign(&discriminant)? {
                None => return Ok(None),
                Some(Ordering::Less) => Vec::new(),
                Some(Ordering::Equal) => vec![over(middle)],
                Some(Ordering::Greater) => {
                    let root = Expr::Call(Function::Root, vec![discriminant]);
                    let minus = Expr::Negated(Box::new(root.clone()));
                    let low = over(Expr::Sum(vec![middle.clone(), minus]));
                    let high = over(Expr::Sum(vec![middle, root]));
                    if leading.is_gt() {
                        vec![low, high]
                    } else {
                        vec![high, low]
                    }
                }
            }
        };
        let mut points = Vec::with_capacity(roots.len());
        for root in roots {
            let root = self.simplified(root)?;
            match self.point(&root)? {
                Some(point) => points.push(point),
                None => return Ok(None),
            }
        }
        // Signs from the right: the leading coefficient's, which each single root turns round.
        let far = if leading.is_eq() {
            self.sign(&first)?.unwrap_or(Ordering::Equal)
        } else {
            leading
        };
        let inside = match points.len() {
            0 => vec![holds(operator, far)],
            1 => {
                let before = if leading.is_eq() { far.reverse() } else { far };
                vec![
                    holds(operator, before),
                    holds(operator, Ordering::Equal),
                    holds(operator, far),
                ]
            }
            _ => {
                let at = holds(operator, Ordering::Equal);
                let (out, between) = (holds(operator, far), holds(operator, far.reverse()));
                vec![out, at, between, at, out]
            }
        };
        Ok(Some(Line { points, inside }))
    }

    /// As one number, where it is rational.
    fn simplified(&mut self, expression: Expr) -> Result<Expr> {
        Ok(match exact::rational(&expression, self.fuel)? {
            Some(value) => Expr::Number(value),
            None => expression,
        })
    }

    /// The sign of a real constant.
    pub(super) fn sign(&mut self, constant: &Expr) -> Result<Option<Ordering>> {
        if let Some(value) = exact::rational(constant, self.fuel)? {
            return Ok(Some(value.cmp(&BigRational::zero())));
        }
        if self.same_value(constant, &number(0))? {
            return Ok(Some(Ordering::Equal));
        }
        Ok(numeric::real_value(constant, self.fuel)?.map(|value| {
            if value.is_negative() {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        }))
    }
}

fn number(value: i64) -> Expr {
    Expr::Number(BigRational::from_integer(value.into()))
}

/// With a part replaced wherever it stands.
fn replace(expression: &Expr, part: &Expr, by: &Expr) -> Expr {
    if expression == part {
        by.clone()
    } else {
        shape::map(expression, &mut |child| replace(child, part, by))
    }
}

/// The relation read from right to left.
pub(super) fn flipped(operator: Relation) -> Relation {
    match operator {
        Relation::Less => Relation::Greater,
        Relation::LessEqual => Relation::GreaterEqual,
        Relation::Greater => Relation::Less,
        Relation::GreaterEqual => Relation::LessEqual,
        other => other,
    }
}

/// Whether something with this sign is in that relation to 0.
fn holds(operator: Relation, sign: Ordering) -> bool {
    match operator {
        Relation::Equal => sign.is_eq(),
        Relation::NotEqual => sign.is_ne(),
        Relation::Less => sign.is_lt(),
        Relation::LessEqual => sign.is_le(),
        Relation::Greater => sign.is_gt(),
        Relation::GreaterEqual => sign.is_ge(),
        Relation::In | Relation::NotIn | Relation::Approximate => false,
    }
}
