//! Sets of real numbers as what they are on the line: intervals, points, unions, intersections,
//! differences, inequalities in one variable.

use super::{
    super::expr::{Delimiter, Expr, Function, Relation, SetOperation},
    Judge, Result, exact, numeric,
    scalar::infinity,
    shape,
};
use num_rational::BigRational;
use num_traits::{Signed, Zero};
use std::{cmp::Ordering, collections::BTreeMap};

/// Ends of intervals up to which a set is compared.
const MOST_POINTS: usize = 100;

/// A set of reals: points in rising order, and whether the set holds the gap before the first, the
/// first, the gap after it, and so on to the gap after the last: 2n + 1 flags.
#[derive(Clone, Debug)]
pub(super) struct Line {
    points: Vec<Point>,
    inside: Vec<bool>,
}

/// A real constant.
#[derive(Clone, Debug)]
struct Point {
    expression: Expr,
    /// Its value, within 2⁻²⁰⁰ or so.
    value: BigRational,
    exact: bool,
}

impl Line {
    fn all() -> Self {
        Self {
            points: Vec::new(),
            inside: vec![true],
        }
    }

    fn none() -> Self {
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

    /// Each has a partner.
    pub(super) fn some_order(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<bool> {
        if ours.len() != theirs.len() {
            return Ok(false);
        }
        let mut left: Vec<&Expr> = theirs.iter().collect();
        for one in ours {
            let mut partner = None;
            for (at, other) in left.iter().enumerate() {
                if self.answers(one, other)? {
                    partner = Some(at);
                    break;
                }
            }
            match partner {
                Some(at) => left.remove(at),
                None => return Ok(false),
            };
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
                        // `x < 1 or x > 3` is read as two answers.
                        match item {
                            Expr::Relation { .. } => self.line(item)?,
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

    fn point(&mut self, expression: &Expr) -> Result<Option<Point>> {
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
    fn combine(
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

    /// Where a condition on one variable holds.
    fn condition(&mut self, condition: &Expr, variable: &Expr) -> Result<Option<Line>> {
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
            Relation::In | Relation::NotIn | Relation::Approximate => return Ok(None),
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

/// What a condition is on: its one variable, or its one named function (`0 < f(x) < 1`).
fn variable(condition: &Expr) -> Option<Expr> {
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
