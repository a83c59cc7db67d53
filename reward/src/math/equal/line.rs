//! Sets of real numbers as what they are on the line: intervals, points, unions, intersections,
//! differences, inequalities in one variable.

use super::{
    super::expr::{Delimiter, Expr, Function, Relation, SetOperation},
    Judge, Result, exact, numeric,
    scalar::infinity,
    shape,
};
use num_rational::BigRational;
use std::{cmp::Ordering, collections::BTreeMap};

/// Ends of intervals up to which a set is compared.
const MOST_POINTS: usize = 100;

/// A set of reals: points in rising order, and whether the set holds the gap before the first, the
/// first, the gap after it, and so on to the gap after the last: 2n + 1 flags.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) points: Vec<Point>,
    pub(super) inside: Vec<bool>,
}

/// A real constant.
#[derive(Clone, Debug)]
pub(super) struct Point {
    expression: Expr,
    /// Its value, within 2⁻²⁰⁰ or so.
    value: BigRational,
    exact: bool,
}

impl Line {
    pub(super) fn all() -> Self {
        Self {
            points: Vec::new(),
            inside: vec![true],
        }
    }

    pub(super) fn none() -> Self {
        Self {
            points: Vec::new(),
            inside: vec![false],
        }
    }

    /// What lies before, at and after a point.
    fn around(point: Point, before: bool, at: bool, after: bool) -> Self {
        Self {
            points: vec![point],
            inside: vec![before, at, after],
        }
    }
}

/// ℝ by name.
pub(super) fn is_reals(expression: &Expr) -> bool {
    matches!(expression, Expr::Symbol(name)
        if matches!(name.trim_start_matches('\\').to_lowercase().as_str(), "mathbb{r}" | "ℝ" | "reals"))
}

impl Judge<'_> {
    /// Whether two sets of reals are the same. False where one is none, or not known to be one, unless
    /// they consist of the same parts.
    pub(super) fn same_on_the_line(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        if let (Some(ours), Some(theirs)) = (self.line(gold)?, self.line(answer)?) {
            let difference = self.combine(&ours, &theirs, |a, b| a != b)?;
            return Ok(difference.is_some_and(|line| line.inside.iter().all(|inside| !inside)));
        }
        match (gold, answer) {
            (Expr::SetOperation(a, ours), Expr::SetOperation(b, theirs)) if a == b => {
                if *a == SetOperation::Difference {
                    self.each(ours, theirs)
                } else {
                    self.some_order(ours, theirs)
                }
            }
            (
                Expr::SetBuilder {
                    element: a,
                    condition: p,
                },
                Expr::SetBuilder {
                    element: b,
                    condition: q,
                },
            ) => {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                shape::symbols(a, &mut ours);
                shape::symbols(b, &mut theirs);
                if ours.len() != theirs.len() {
                    return Ok(false);
                }
                let names: BTreeMap<String, Expr> = theirs
                    .into_iter()
                    .zip(ours.into_iter().map(Expr::Symbol))
                    .collect();
                Ok(self.answers(a, &shape::substitute(b, &names))?
                    && self.answers(p, &shape::substitute(q, &names))?)
            }
            _ => Ok(false),
        }
    }

    fn each(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<bool> {
        if ours.len() != theirs.len() {
            return Ok(false);
        }
        for (one, other) in ours.iter().zip(theirs) {
            if !self.answers(one, other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The set of reals that an expression is; None where it is none, or varies.
    pub(super) fn line(&mut self, expression: &Expr) -> Result<Option<Line>> {
        self.fuel.spend(4)?;
        Ok(match expression {
            other if is_reals(other) => Some(Line::all()),
            Expr::Set(items) => {
                let mut total = Line::none();
                for item in items {
                    let part = if shape::is_scalar(item) {
                        self.point(item)?
                            .map(|point| Line::around(point, false, true, false))
                    } else {
                        // `x < 1 or x > 3` is read as two answers, of one variable.
                        match item {
                            Expr::Relation { .. }
                                if shape::is_inequality(item)
                                    && items.iter().all(|other| same_variable(item, other)) =>
                            {
                                self.line(item)?
                            }
                            _ => None,
                        }
                    };
                    let Some(part) = part else {
                        return Ok(None);
                    };
                    match self.combine(&total, &part, |a, b| a || b)? {
                        Some(union) => total = union,
                        None => return Ok(None),
                    }
                }
                Some(total)
            }
            Expr::Delimited { open, close, items } => match items.as_slice() {
                [low, high] if *open != Delimiter::Angle && *close != Delimiter::Angle => self
                    .interval(
                        (low, *open == Delimiter::Square),
                        (high, *close == Delimiter::Square),
                    )?,
                _ => None,
            },
            Expr::SetOperation(operation, items) => {
                let mut total: Option<Line> = None;
                for item in items {
                    let Some(part) = self.line(item)? else {
                        return Ok(None);
                    };
                    total = match total {
                        None => Some(part),
                        Some(total) => self.combine(&total, &part, |a, b| match operation {
                            SetOperation::Union => a || b,
                            SetOperation::Intersection => a && b,
                            SetOperation::Difference => a && !b,
                        })?,
                    };
                    if total.is_none() {
                        return Ok(None);
                    }
                }
                total
            }
            Expr::SetBuilder { element, condition } => {
                let over_reals = match &**element {
                    Expr::Symbol(_) => true,
                    Expr::Relation { sides, operators } => {
                        operators.as_slice() == [Relation::In] && sides.last().is_some_and(is_reals)
                    }
                    _ => false,
                };
                if over_reals {
                    self.line(condition)?
                } else {
                    None
                }
            }
            Expr::Relation { .. } | Expr::And(_) | Expr::Or(_) => {
                let Some(variable) = variable(expression) else {
                    return Ok(None);
                };
                self.condition(expression, &variable)?
            }
            _ => None,
        })
    }

    fn interval(&mut self, low: (&Expr, bool), high: (&Expr, bool)) -> Result<Option<Line>> {
        let above = match infinity(low.0) {
            Some(false) => Line::all(),
            Some(true) => return Ok(None),
            None => match self.point(low.0)? {
                Some(point) => Line::around(point, false, low.1, true),
                None => return Ok(None),
            },
        };
        let below = match infinity(high.0) {
            Some(true) => Line::all(),
            Some(false) => return Ok(None),
            None => match self.point(high.0)? {
                Some(point) => Line::around(point, true, high.1, false),
                None => return Ok(None),
            },
        };
        if let ([low], [high]) = (above.points.as_slice(), below.points.as_slice()) {
            // Not an interval, but a point of the plane.
            if low.value > high.value {
                return Ok(None);
            }
        }
        self.combine(&above, &below, |a, b| a && b)
    }

    pub(super) fn point(&mut self, expression: &Expr) -> Result<Option<Point>> {
        if !shape::is_constant(expression) || !shape::is_scalar(expression) {
            return Ok(None);
        }
        let exact = exact::rational(expression, self.fuel)?;
        let is_exact = exact.is_some();
        let value = match exact {
            Some(value) => Some(value),
            None => numeric::real_value(expression, self.fuel)?,
        };
        Ok(value.map(|value| Point {
            expression: expression.clone(),
            value,
            exact: is_exact,
        }))
    }

    fn order(&mut self, one: &Point, other: &Point) -> Result<Ordering> {
        self.fuel.spend(4)?;
        let decimal = shape::is_decimal(&one.expression) || shape::is_decimal(&other.expression);
        if one.exact && other.exact && !decimal {
            return Ok(one.value.cmp(&other.value));
        }
        if self.scalars(&one.expression, &other.expression)? {
            return Ok(Ordering::Equal);
        }
        Ok(one.value.cmp(&other.value))
    }

    /// A set operation, point by point and gap by gap. None where there are too many.
    pub(super) fn combine(
        &mut self,
        one: &Line,
        other: &Line,
        holds: impl Fn(bool, bool) -> bool,
    ) -> Result<Option<Line>> {
        if one.points.len() + other.points.len() > MOST_POINTS {
            return Ok(None);
        }
        let flag = |line: &Line, at: usize| line.inside.get(at).copied().unwrap_or(false);
        let (mut i, mut j) = (0, 0);
        let mut points = Vec::new();
        let mut inside = vec![holds(flag(one, 0), flag(other, 0))];
        loop {
            let next = match (one.points.get(i), other.points.get(j)) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => self.order(a, b)?,
            };
            let (takes_one, takes_other) = (next != Ordering::Greater, next != Ordering::Less);
            let point = if takes_one {
                one.points.get(i)
            } else {
                other.points.get(j)
            };
            points.extend(point.cloned());
            // At the point itself, then in the gap after it.
            let a = if takes_one { 2 * i + 1 } else { 2 * i };
            let b = if takes_other { 2 * j + 1 } else { 2 * j };
            inside.push(holds(flag(one, a), flag(other, b)));
            i += usize::from(takes_one);
            j += usize::from(takes_other);
            inside.push(holds(flag(one, 2 * i), flag(other, 2 * j)));
        }
        Ok(Some(Line { points, inside }))
    }
}

/// What a condition is on: its one variable, or its one named function (`0 < f(x) < 1`).
pub(super) fn variable(condition: &Expr) -> Option<Expr> {
    fn collect<'e>(expression: &'e Expr, found: &mut Vec<&'e Expr>) {
        match expression {
            Expr::Symbol(_) if is_reals(expression) => {}
            Expr::Symbol(_) | Expr::Call(Function::Named, _) | Expr::Text(_) => {
                if !found.contains(&expression) {
                    found.push(expression);
                }
            }
            other => {
                for child in shape::children(other) {
                    collect(child, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    collect(condition, &mut found);
    match found.as_slice() {
        [Expr::Text(_)] => None,
        [one] => Some((*one).clone()),
        _ => None,
    }
}

/// The same variable, or names do not matter.
pub(super) fn same_variable(one: &Expr, other: &Expr) -> bool {
    matches!((variable(one), variable(other)), (Some(a), Some(b)) if a == b)
}
