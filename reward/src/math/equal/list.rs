//! Sets, points, vectors and intervals, item by item.

use super::{
    super::expr::{Delimiter, Expr},
    Judge, Result,
    compare::assignment,
    exact, line, shape,
};
use num_rational::BigRational;

/// Items of a set up to which it is compared.
const LARGEST_SET: usize = 200;

/// What a list of answers is.
enum List<'a> {
    /// Any order.
    Set(&'a [Expr]),
    /// In order.
    Tuple(&'a [Expr]),
    /// Two ends; round ones both sides may also be a point.
    Interval(&'a [Expr], Delimiter, Delimiter),
    /// A number or an expression.
    One(&'a Expr),
    /// A union and the like.
    Other,
}

impl Judge<'_> {
    /// Where one at least is a list, a set or an interval.
    pub(super) fn lists(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        let (ours, theirs) = (self.list(gold)?, self.list(answer)?);
        let same = match (ours, theirs) {
            (List::Set(ours), List::Set(theirs)) => self.any_order(ours, theirs)?,
            (List::Set(ours), List::Tuple(theirs)) => self.set_and_point(ours, theirs)?,
            (List::Set(ours), List::Interval(theirs, Delimiter::Round, Delimiter::Round)) => {
                self.set_and_point(ours, theirs)?
            }
            (
                List::Tuple(ours) | List::Interval(ours, Delimiter::Round, Delimiter::Round),
                List::Set(theirs) | List::Tuple(theirs),
            )
            | (List::Tuple(ours), List::Interval(theirs, Delimiter::Round, Delimiter::Round)) => {
                self.in_order(ours, theirs)?
            }
            (List::Interval(ours, a, b), List::Interval(theirs, c, d)) => {
                a == c && b == d && self.in_order(ours, theirs)?
            }
            (List::One(one), List::Tuple([item])) | (List::Tuple([one]), List::One(item)) => {
                self.answers(one, item)?
            }
            // A set of one in many words.
            (List::One(one), List::Set(items)) => match self.distinct(items)?.as_slice() {
                [item] => self.answers(one, item)?,
                _ => false,
            },
            (List::Set(items), List::One(one)) => match self.distinct(items)?.as_slice() {
                [item] => self.answers(item, one)?,
                _ => false,
            },
            _ => false,
        };
        if same {
            return Ok(true);
        }
        // What a bare number is on the line says nothing new.
        if shape::is_scalar(gold) && !line::is_reals(gold)
            || shape::is_scalar(answer) && !line::is_reals(answer)
        {
            return Ok(false);
        }
        self.same_on_the_line(gold, answer)
    }

    fn list<'e>(&mut self, expression: &'e Expr) -> Result<List<'e>> {
        Ok(match expression {
            Expr::Set(items) => List::Set(items),
            Expr::Delimited { open, close, items } => {
                let ends = match items.as_slice() {
                    [low, high] => Some((low, high)),
                    _ => None,
                };
                match (open, close, ends) {
                    // `[2, 1]` is no interval.
                    (Delimiter::Square, Delimiter::Square, Some((low, high)))
                        if self.descending(low, high)? =>
                    {
                        List::Tuple(items)
                    }
                    (Delimiter::Angle, _, _) | (_, Delimiter::Angle, _) | (_, _, None) => {
                        List::Tuple(items)
                    }
                    (open, close, Some(_)) => List::Interval(items, *open, *close),
                }
            }
            other if shape::is_scalar(other) => List::One(other),
            _ => List::Other,
        })
    }

    /// Whether two constants are in falling order, as far as cheap arithmetic tells.
    fn descending(&mut self, low: &Expr, high: &Expr) -> Result<bool> {
        Ok(matches!(
            (
                exact::rational(low, self.fuel)?,
                exact::rational(high, self.fuel)?,
            ),
            (Some(low), Some(high)) if low > high
        ))
    }

    fn in_order(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<bool> {
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

    /// A gold set takes a point's items in any order, except that `x = 1, y = 2` says which is which:
    /// there the items are in the order of the equations or of the names. (The reference takes any.)
    fn set_and_point(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<bool> {
        let mut named = Vec::with_capacity(ours.len());
        for item in ours {
            if let Some((Expr::Symbol(name), value)) = shape::equation(item).and_then(assignment)
                && !named.iter().any(|(other, _)| other == name)
            {
                named.push((name.clone(), value.clone()));
            }
        }
        if named.len() < ours.len() || named.len() < 2 {
            return self.any_order(ours, theirs);
        }
        if self.in_order(ours, theirs)? {
            return Ok(true);
        }
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let values: Vec<Expr> = named.into_iter().map(|(_, value)| value).collect();
        self.in_order(&values, theirs)
    }

    /// Whether each has a partner, after what is said twice is dropped.
    fn any_order(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<bool> {
        if ours.len() > LARGEST_SET || theirs.len() > LARGEST_SET {
            return Ok(ours == theirs);
        }
        if let Some(verdict) = self.plain_numbers(ours, theirs)? {
            return Ok(verdict);
        }
        let (ours, theirs) = (self.distinct(ours)?, self.distinct(theirs)?);
        self.some_order(ours, theirs)
    }

    /// Each of `ours` has a partner of its own in `theirs`.
    pub(super) fn some_order<'e>(
        &mut self,
        ours: impl IntoIterator<Item = &'e Expr, IntoIter: ExactSizeIterator>,
        theirs: impl IntoIterator<Item = &'e Expr>,
    ) -> Result<bool> {
        let ours = ours.into_iter();
        let mut left: Vec<&Expr> = theirs.into_iter().collect();
        if ours.len() != left.len() {
            return Ok(false);
        }
        for one in ours {
            let mut partner = None;
            // Most lists are in the same order.
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

    /// Sets of rationals alone: sorted and compared. None where there is anything else.
    fn plain_numbers(&mut self, ours: &[Expr], theirs: &[Expr]) -> Result<Option<bool>> {
        fn sorted(items: &[Expr]) -> Option<Vec<BigRational>> {
            let mut values = Vec::with_capacity(items.len());
            for item in items {
                match item {
                    Expr::Number(value) => values.push(value.clone()),
                    Expr::Negated(inner) => match &**inner {
                        Expr::Number(value) => values.push(-value.clone()),
                        _ => return None,
                    },
                    _ => return None,
                }
            }
            values.sort();
            values.dedup();
            Some(values)
        }
        self.fuel.spend((ours.len() + theirs.len()) as u64 * 8)?;
        Ok(match (sorted(ours), sorted(theirs)) {
            (Some(ours), Some(theirs)) => Some(ours == theirs),
            _ => None,
        })
    }

    /// Without the items that equal an earlier one.
    fn distinct<'e>(&mut self, items: &'e [Expr]) -> Result<Vec<&'e Expr>> {
        if items.len() > LARGEST_SET {
            return Ok(items.iter().collect());
        }
        let mut kept: Vec<&Expr> = Vec::with_capacity(items.len());
        for item in items {
            let mut known = false;
            for other in &kept {
                // An equation and a value are two things here: `x = 1` and `1`.
                if shape::equation(item).is_some() == shape::equation(other).is_some()
                    && self.answers(other, item)?
                {
                    known = true;
                    break;
                }
            }
            if !known {
                kept.push(item);
            }
        }
        Ok(kept)
    }
}
