//! Matrices entry by entry, and sums and products of them.

use super::{super::expr::Expr, Judge, Result, exact, shape};
use num_traits::ToPrimitive;

/// Entries up to which matrices are multiplied, and the largest power of one.
const ENTRIES: usize = 64;
const POWER: u32 = 8;

type Rows = Vec<Vec<Expr>>;

impl Judge<'_> {
    /// None where neither is a matrix. A matrix equals only a matrix, as in the reference: a column is
    /// not a point.
    pub(super) fn matrices(&mut self, gold: &Expr, answer: &Expr) -> Result<Option<bool>> {
        let matrix = |node: &Expr| matches!(node, Expr::Matrix(_));
        if !shape::any(gold, &matrix) && !shape::any(answer, &matrix) {
            return Ok(None);
        }
        let (ours, theirs) = (self.rows(gold)?, self.rows(answer)?);
        let (Some(ours), Some(theirs)) = (&ours, &theirs) else {
            return Ok((ours.is_some() || theirs.is_some()).then_some(false));
        };
        if ours.len() != theirs.len() {
            return Ok(Some(false));
        }
        for (ours, theirs) in ours.iter().zip(theirs) {
            if ours.len() != theirs.len() {
                return Ok(Some(false));
            }
            for (one, other) in ours.iter().zip(theirs) {
                if !self.answers(one, other)? {
                    return Ok(Some(false));
                }
            }
        }
        Ok(Some(true))
    }

    /// The entries of what is a matrix.
    fn rows(&mut self, expression: &Expr) -> Result<Option<Rows>> {
        self.fuel.spend(1)?;
        Ok(match expression {
            Expr::Matrix(rows) => Some(rows.clone()),
            Expr::Negated(inner) => self
                .rows(inner)?
                .map(|rows| entries(&rows, |entry| Expr::Negated(Box::new(entry.clone())))),
            Expr::Quotient(above, below) => self.rows(above)?.map(|rows| {
                entries(&rows, |entry| {
                    Expr::Quotient(Box::new(entry.clone()), below.clone())
                })
            }),
            Expr::Sum(items) => {
                let mut total: Option<Rows> = None;
                for item in items {
                    let Some(rows) = self.rows(item)? else {
                        return Ok(None);
                    };
                    total = Some(match total {
                        None => rows,
                        Some(total) => match sum(&total, &rows) {
                            Some(total) => total,
                            None => return Ok(None),
                        },
                    });
                }
                total
            }
            Expr::Product(items) => {
                let (mut factors, mut total) = (Vec::new(), None);
                for item in items {
                    match (self.rows(item)?, total.take()) {
                        (None, before) => {
                            factors.push(item.clone());
                            total = before;
                        }
                        (Some(rows), None) => total = Some(rows),
                        (Some(rows), Some(before)) => {
                            total = self.product(&before, &rows)?;
                            if total.is_none() {
                                return Ok(None);
                            }
                        }
                    }
                }
                match total {
                    Some(rows) if !factors.is_empty() => Some(entries(&rows, |entry| {
                        let mut factors = factors.clone();
                        factors.push(entry.clone());
                        Expr::Product(factors)
                    })),
                    other => other,
                }
            }
            Expr::Power(base, exponent) => {
                let Some(rows) = self.rows(base)? else {
                    return Ok(None);
                };
                let times = exact::rational(exponent, self.fuel)?
                    .filter(|value| value.is_integer())
                    .and_then(|value| value.numer().to_u32());
                let Some(times @ 1..=POWER) = times else {
                    return Ok(None);
                };
                let mut total = rows.clone();
                for _ in 1..times {
                    match self.product(&total, &rows)? {
                        Some(next) => total = next,
                        None => return Ok(None),
                    }
                }
                Some(total)
            }
            _ => None,
        })
    }

    fn product(&mut self, left: &Rows, right: &Rows) -> Result<Option<Rows>> {
        let (inner, width) = (right.len(), right.first().map_or(0, Vec::len));
        if left.iter().any(|row| row.len() != inner)
            || left.len() * inner > ENTRIES
            || inner * width > ENTRIES
        {
            return Ok(None);
        }
        self.fuel.spend((left.len() * inner * width) as u64 * 8)?;
        let mut rows = Vec::with_capacity(left.len());
        for row in left {
            let mut entries = Vec::with_capacity(width);
            for column in 0..width {
                let terms: Vec<Expr> = row
                    .iter()
                    .zip(right)
                    .filter_map(|(a, below)| {
                        Some(Expr::Product(vec![a.clone(), below.get(column)?.clone()]))
                    })
                    .collect();
                let entry = Expr::Sum(terms);
                // Numbers stay numbers, so that powers don't grow.
                entries.push(match exact::rational(&entry, self.fuel)? {
                    Some(value) => Expr::Number(value),
                    None => {
                        // Entries of products of products grow: what is copied is paid for.
                        shape::deeper_than(&entry, usize::MAX, self.fuel)?;
                        entry
                    }
                });
            }
            rows.push(entries);
        }
        Ok(Some(rows))
    }
}

fn entries(rows: &Rows, change: impl Fn(&Expr) -> Expr) -> Rows {
    rows.iter()
        .map(|row| row.iter().map(&change).collect())
        .collect()
}

fn sum(left: &Rows, right: &Rows) -> Option<Rows> {
    (left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|(left, right)| left.len() == right.len()))
    .then(|| {
        left.iter()
            .zip(right)
            .map(|(left, right)| {
                left.iter()
                    .zip(right)
                    .map(|(a, b)| Expr::Sum(vec![a.clone(), b.clone()]))
                    .collect()
            })
            .collect()
    })
}
