//! Lists: what commas, semicolons, `and` and `or` join, and relations.

use super::{
    ParseError,
    pratt::{Inside, Parser, power},
    token::Kind,
};
use crate::math::expr::{Delimiter, Expr, Function, Relation};

/// What stands between two items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Separator {
    Comma,
    Semicolon,
    And,
    Or,
}

/// Items and what stands between them, one separator fewer than items.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) items: Vec<Expr>,
    pub(super) separators: Vec<Separator>,
}

impl Parser<'_> {
    /// The whole answer.
    pub(super) fn answer(mut self) -> Result<Expr, ParseError> {
        if self.repairs.units {
            self.drop_bare_unit();
        }
        let list = self.list()?;
        if self.peek(0).is_some() {
            return Err(self.error("this does not follow from what stands before"));
        }
        bare(list, true).ok_or(ParseError::Empty)
    }

    /// Items up to a token that neither joins nor continues one.
    pub(super) fn list(&mut self) -> Result<List, ParseError> {
        let mut list = List::default();
        let mut pending = None;
        loop {
            let mut commas = 0;
            while let Some(separator) = self.separator() {
                commas += usize::from(separator == Separator::Comma);
                // `, and`: the word says more than the comma, but a third item joined by commas
                // before it makes them all alike.
                pending = Some(match (pending, separator) {
                    (Some(before), Separator::Comma) => before,
                    (_, separator) => separator,
                });
                if commas > 2 {
                    return Err(self.error("too many commas"));
                }
            }
            if self.ends_list() {
                return Ok(list);
            }
            if let Some(Kind::Where(all)) = self.peek(0) {
                let all = *all;
                self.skip();
                self.take(&Kind::Colon);
                self.take(&Kind::Comma);
                self.condition(&mut list, all)?;
                return Ok(list);
            }
            if !list.items.is_empty() {
                match pending.take() {
                    Some(separator) => list.separators.push(separator),
                    None => return Ok(list),
                }
            }
            pending = None;
            list.items.push(self.relation()?);
        }
    }

    fn separator(&mut self) -> Option<Separator> {
        let separator = match self.peek(0)? {
            Kind::Comma => Separator::Comma,
            Kind::Semicolon => Separator::Semicolon,
            Kind::And => Separator::And,
            Kind::Or => Separator::Or,
            _ => return None,
        };
        self.skip();
        Some(separator)
    }

    fn ends_list(&self) -> bool {
        matches!(
            self.peek(0),
            None | Some(
                Kind::RoundClose
                    | Kind::SquareClose
                    | Kind::BraceClose
                    | Kind::SetClose
                    | Kind::AngleClose
                    | Kind::NoDelimiter
                    | Kind::Ampersand
                    | Kind::Newline
                    | Kind::End(_)
            )
        ) && !(self.peek(0) == Some(&Kind::SquareClose) && self.opens_reversed())
    }

    /// Whether `]` opens an interval: another bracket closes it.
    fn opens_reversed(&self) -> bool {
        if !matches!(self.inside, Inside::Top | Inside::Argument | Inside::Brace) {
            return false;
        }
        let mut depth = 0;
        for ahead in 1..64 {
            match self.peek(ahead) {
                Some(Kind::RoundOpen | Kind::BraceOpen) => depth += 1,
                Some(Kind::RoundClose | Kind::BraceClose) if depth > 0 => depth -= 1,
                Some(Kind::SquareOpen | Kind::SquareClose) if depth == 0 => return true,
                Some(Kind::RoundClose) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }

    /// What follows `if`, `where` or `for all`: it belongs to the last item.
    fn condition(&mut self, list: &mut List, all: bool) -> Result<(), ParseError> {
        let condition = bare(self.list()?, true);
        if all {
            return Ok(());
        }
        match (list.items.pop(), condition) {
            (Some(item), Some(condition)) => {
                let name = Expr::Text("if".to_string());
                list.items
                    .push(Expr::Call(Function::Named, vec![name, item, condition]));
                Ok(())
            }
            (Some(item), None) => {
                list.items.push(item);
                Ok(())
            }
            _ => Err(self.error("a condition of nothing")),
        }
    }

    /// Sides and what relates them.
    pub(super) fn relation(&mut self) -> Result<Expr, ParseError> {
        if self.repairs.nits
            && matches!(
                self.peek(0),
                Some(Kind::Relation(Relation::Equal | Relation::Approximate))
            )
        {
            self.skip();
        }
        let mut sides = vec![self.side()?];
        let mut operators = Vec::new();
        loop {
            match self.peek(0) {
                Some(Kind::Relation(operator)) => {
                    let operator = *operator;
                    self.skip();
                    if self.repairs.nits && operator == Relation::Equal && self.ends_list() {
                        break;
                    }
                    operators.push(operator);
                    sides.push(self.side()?);
                }
                Some(Kind::NamedRelation(name)) => {
                    let name = *name;
                    self.skip();
                    let right = self.side()?;
                    self.relate(&mut sides, name, right)?;
                }
                Some(Kind::Mid | Kind::Bar)
                    if !matches!(self.inside, Inside::Set | Inside::Brace | Inside::Bars) =>
                {
                    self.skip();
                    let right = self.side()?;
                    self.relate(&mut sides, "divides", right)?;
                }
                _ => break,
            }
        }
        if operators.is_empty() {
            return sides.pop().ok_or(ParseError::Empty);
        }
        Ok(Expr::Relation { sides, operators })
    }

    fn relate(&self, sides: &mut [Expr], name: &str, right: Expr) -> Result<(), ParseError> {
        // Chains of these are no answers; refusing them keeps trees flat.
        let last = sides.last_mut().ok_or(ParseError::Empty)?;
        if matches!(last, Expr::Call(Function::Named, _)) {
            return Err(self.error("a chain of relations of this kind"));
        }
        let left = std::mem::replace(last, Expr::Set(Vec::new()));
        *last = Expr::Call(
            Function::Named,
            vec![Expr::Text(name.to_string()), left, right],
        );
        Ok(())
    }

    fn side(&mut self) -> Result<Expr, ParseError> {
        let mut side = points(self.expr(power::ANY)?);
        loop {
            let closes = match (self.peek(0), self.peek(1)) {
                (Some(Kind::ParenthesisedModulo), _) => false,
                (Some(Kind::RoundOpen), Some(Kind::Modulo)) => {
                    self.skip();
                    true
                }
                _ => return Ok(side),
            };
            if matches!(side, Expr::Call(Function::Mod, _)) {
                return Err(self.error("a remainder of a remainder"));
            }
            self.skip();
            let modulus = if closes {
                let modulus = self.within(Inside::Bracket, |p| p.expr(power::ANY))?;
                if !self.take(&Kind::RoundClose) {
                    return Err(self.error("a bracket is not closed"));
                }
                modulus
            } else if matches!(self.peek(0), Some(Kind::BraceOpen)) {
                self.argument()?
            } else {
                self.expr(power::POWER)?
            };
            side = Expr::Call(Function::Mod, vec![side, modulus]);
        }
    }
}

/// Points next to each other are several, not a product.
fn points(expr: Expr) -> Expr {
    match expr {
        Expr::Product(items) if items.iter().all(|i| matches!(i, Expr::Delimited { .. })) => {
            Expr::Set(items)
        }
        other => other,
    }
}

fn is_relational(expr: &Expr) -> bool {
    matches!(expr, Expr::Relation { .. } | Expr::And(_) | Expr::Or(_))
}

/// The variable of `x = …`.
fn equated(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Relation { sides, operators } if operators.as_slice() == [Relation::Equal] => {
            sides.first()
        }
        _ => None,
    }
}

/// A list with no brackets around it: several answers, or several relations that hold together or
/// by choice. With `attach`, `x = 1, 2` gives `x` both values. `None` when there is nothing.
pub(super) fn bare(list: List, attach: bool) -> Option<Expr> {
    let List { items, separators } = list;
    if !separators.contains(&Separator::Semicolon) {
        return join(items, &separators, attach);
    }
    // `p=5,q=2;p=7,q=2`: what commas join within semicolons stays together, in order.
    let together = separators.contains(&Separator::Comma);
    let mut groups: Vec<Vec<Expr>> = vec![Vec::new()];
    let mut between = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match index.checked_sub(1).and_then(|i| separators.get(i)) {
            Some(Separator::Semicolon) => {
                groups.push(Vec::new());
                between.push(Separator::Comma);
            }
            Some(other) if !together => {
                groups.push(Vec::new());
                between.push(*other);
            }
            _ => {}
        }
        if let Some(group) = groups.last_mut() {
            group.push(item);
        }
    }
    let mut relations = false;
    let joined: Vec<Expr> = groups
        .into_iter()
        .filter_map(|mut group| {
            if group.len() < 2 {
                return group.pop();
            }
            if group.iter().all(is_relational) {
                relations = true;
                return Some(Expr::And(group));
            }
            Some(Expr::Delimited {
                open: Delimiter::Round,
                close: Delimiter::Round,
                items: group,
            })
        })
        .collect();
    if relations && joined.len() > 1 && joined.iter().all(is_relational) {
        return Some(Expr::Or(joined));
    }
    join(joined, &between, attach)
}

fn join(items: Vec<Expr>, separators: &[Separator], attach: bool) -> Option<Expr> {
    let mut kept: Vec<Expr> = Vec::with_capacity(items.len());
    let mut between = Vec::with_capacity(separators.len());
    // Whether the last relation has a second value already.
    let mut attached = false;
    for (index, item) in items.into_iter().enumerate() {
        if attach
            && !is_relational(&item)
            && let Some(Expr::Relation { sides, operators }) = kept.last_mut()
            && matches!(
                operators.as_slice(),
                [Relation::Equal | Relation::In | Relation::NotEqual]
            )
            && let Some(last) = sides.last_mut()
        {
            match last {
                Expr::Set(values) if attached => values.push(item),
                _ => {
                    let first = std::mem::replace(last, Expr::Set(Vec::new()));
                    *last = Expr::Set(vec![first, item]);
                }
            }
            if let Expr::Set(values) = last {
                share_modulus(values);
            }
            attached = true;
            continue;
        }
        attached = false;
        if let Some(separator) = index.checked_sub(1).and_then(|i| separators.get(i))
            && !kept.is_empty()
        {
            between.push(*separator);
        }
        kept.push(item);
    }
    if kept.len() < 2 {
        return kept.pop();
    }
    if kept.iter().all(is_relational) {
        return Some(relations(kept, &between));
    }
    share_modulus(&mut kept);
    Some(Expr::Set(kept))
}

/// `2, 5 \pmod{12}`: the modulus behind the last is for all.
fn share_modulus(items: &mut [Expr]) {
    let Some((Expr::Call(Function::Mod, last), before)) = items.split_last() else {
        return;
    };
    let [_, modulus] = last.as_slice() else {
        return;
    };
    if before
        .iter()
        .any(|item| !matches!(item, Expr::Number(_) | Expr::Symbol(_)))
    {
        return;
    }
    let modulus = modulus.clone();
    let count = before.len();
    for item in items.iter_mut().take(count) {
        let value = std::mem::replace(item, Expr::Set(Vec::new()));
        *item = Expr::Call(Function::Mod, vec![value, modulus.clone()]);
    }
}

/// Relations that are joined. `x = 1, x = 2` and `x = 1 and x = 2` are a choice of values.
fn relations(items: Vec<Expr>, separators: &[Separator]) -> Expr {
    let first = items.first().and_then(equated);
    if first.is_some() && items.iter().all(|item| equated(item) == first) {
        return Expr::Or(items);
    }
    let choices = separators.iter().filter(|s| **s == Separator::Or).count();
    if choices == 0 {
        return Expr::And(items);
    }
    // `a, b, or c`: one `or` at the end speaks for the commas too, where one variable is meant.
    let pairs = choices == 1 && separators.len() == 3;
    if !pairs && (choices == separators.len() || separators.last() == Some(&Separator::Or)) {
        return Expr::Or(items);
    }
    let mut groups: Vec<Vec<Expr>> = vec![Vec::new()];
    for (index, item) in items.into_iter().enumerate() {
        let before = index.checked_sub(1).and_then(|i| separators.get(i));
        if before == Some(&Separator::Or) {
            groups.push(Vec::new());
        }
        if let Some(group) = groups.last_mut() {
            group.push(item);
        }
    }
    let groups = groups
        .into_iter()
        .filter_map(|mut group| match group.len() {
            0 | 1 => group.pop(),
            _ => Some(relations(group, &[])),
        });
    Expr::Or(groups.flat_map(flat_or).collect())
}

fn flat_or(expr: Expr) -> Vec<Expr> {
    match expr {
        Expr::Or(items) => items,
        other => vec![other],
    }
}
