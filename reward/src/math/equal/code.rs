//! Codes of what has no value in the field: words, lists, relations, part by part.

use super::{
    super::{
        expr::{Delimiter, Expr},
        fuel::OutOfFuel,
    },
    modular::{Modular, STRUCTURE, TEXT},
    residue::{Residue, Scrambler},
};

impl Modular<'_> {
    /// A code of what stands there, part by part.
    pub(super) fn structure(&mut self, expression: &Expr) -> Result<Residue, OutOfFuel> {
        let state = self.scramble(STRUCTURE);
        Ok(match expression {
            Expr::Number(_) | Expr::Decimal(_) | Expr::Symbol(_) => {
                return Ok(self.value(expression)?.unwrap_or(Residue::ZERO));
            }
            Expr::Constant(constant) => state.word(1).word(*constant as u64).element(),
            Expr::Text(text) => self.scramble(TEXT).text(text).element(),
            Expr::Sum(items) => self.parts(state.word(2), items)?,
            Expr::Product(items) => self.parts(state.word(3), items)?,
            Expr::Quotient(a, b) => self.parts(state.word(4), [&**a, &**b])?,
            Expr::Power(a, b) => self.parts(state.word(5), [&**a, &**b])?,
            Expr::Negated(a) => self.parts(state.word(6), [&**a])?,
            Expr::Percent(a) => self.parts(state.word(7), [&**a])?,
            Expr::Call(function, items) => {
                self.parts(state.word(8).word(*function as u64), items)?
            }
            Expr::PlusMinus {
                left,
                right,
                plus_first,
            } => self.parts(
                state.word(9).word(u64::from(*plus_first)),
                [&**left, &**right],
            )?,
            Expr::Set(items) => self.parts(state.word(10), items)?,
            Expr::Delimited { open, close, items } => self.parts(
                state
                    .word(11)
                    .word(delimiter(*open))
                    .word(delimiter(*close)),
                items,
            )?,
            Expr::SetOperation(operation, items) => {
                self.parts(state.word(12).word(*operation as u64), items)?
            }
            Expr::Relation { sides, operators } => {
                let state = operators.iter().fold(state.word(13), |state, operator| {
                    state.word(*operator as u64)
                });
                self.parts(state, sides)?
            }
            Expr::SetBuilder { element, condition } => {
                self.parts(state.word(14), [&**element, &**condition])?
            }
            Expr::And(items) => self.parts(state.word(15), items)?,
            Expr::Or(items) => self.parts(state.word(16), items)?,
            Expr::Matrix(rows) => {
                let state = state.word(17).word(rows.len() as u64);
                self.parts(state, rows.iter().flatten())?
            }
        })
    }

    fn parts<'e>(
        &mut self,
        mut state: Scrambler,
        items: impl IntoIterator<Item = &'e Expr>,
    ) -> Result<Residue, OutOfFuel> {
        for item in items {
            self.fuel.spend(1)?;
            state = state.residue(self.code(item)?);
        }
        Ok(state.element())
    }
}

fn delimiter(delimiter: Delimiter) -> u64 {
    delimiter as u64
}
