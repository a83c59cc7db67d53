//! `\begin{…} … \end{…}`: matrices, determinants, cases.

use super::{
    ParseError,
    list::{List, Separator, bare},
    pratt::{Parser, negated},
    token::Kind,
};
use crate::math::expr::{Expr, Function};

/// Cells that a matrix may have.
const MAX_CELLS: usize = 400;

impl Parser<'_> {
    /// An environment whose `\begin` was passed.
    pub(super) fn environment(&mut self, name: &str) -> Result<Expr, ParseError> {
        let mut rows: Vec<Vec<Expr>> = vec![Vec::new()];
        let mut cells = 0;
        loop {
            self.pay(2)?;
            // `\text{if}` before a case's condition says nothing.
            if name == "cases" {
                while matches!(self.peek(0), Some(Kind::Where(_) | Kind::Comma)) {
                    self.skip();
                }
            }
            let cell = bare(self.list()?, true);
            cells += 1;
            if cells > MAX_CELLS {
                return Err(ParseError::TooLarge);
            }
            if let (Some(cell), Some(row)) = (cell, rows.last_mut()) {
                row.push(cell);
            }
            match self.peek(0) {
                Some(Kind::Ampersand) => self.skip(),
                Some(Kind::Newline) => {
                    self.skip();
                    rows.push(Vec::new());
                }
                Some(Kind::End(end)) if end == name => {
                    self.skip();
                    break;
                }
                _ => return Err(self.error("an environment is not closed here")),
            }
        }
        rows.retain(|row| !row.is_empty());
        let width = rows.first().map_or(0, Vec::len);
        if width == 0 {
            return Err(self.error("an empty environment"));
        }
        let even = rows.iter().all(|row| row.len() == width);
        match name {
            "cases" | "rcases" => self.cases(rows),
            "array" if width == 1 && rows.iter().flatten().any(is_relation) => self.cases(rows),
            "vmatrix" | "Vmatrix" if even && rows.len() == width => Ok(determinant(rows)),
            _ if !even => Err(self.error("a matrix's rows differ in length")),
            "pmatrix" | "bmatrix" | "Bmatrix" | "matrix" | "smallmatrix" | "psmallmatrix"
            | "bsmallmatrix" | "array" | "vmatrix" | "Vmatrix" | "tabular" => {
                Ok(Expr::Matrix(rows))
            }
            _ => Err(self.error("an environment that is not known")),
        }
    }

    /// Relations under each other hold together; values with conditions stay as they are.
    fn cases(&self, rows: Vec<Vec<Expr>>) -> Result<Expr, ParseError> {
        if rows.iter().all(|row| row.len() == 1) {
            let items: Vec<Expr> = rows.into_iter().flatten().collect();
            let separators = vec![Separator::Comma; items.len().saturating_sub(1)];
            return bare(List { items, separators }, false)
                .ok_or_else(|| self.error("an empty environment"));
        }
        let mut parts = vec![Expr::Text("cases".to_string())];
        parts.extend(rows.into_iter().flatten());
        Ok(Expr::Call(Function::Named, parts))
    }
}

fn is_relation(expr: &Expr) -> bool {
    matches!(expr, Expr::Relation { .. })
}

/// The determinant, written out up to three rows; by name beyond.
fn determinant(mut rows: Vec<Vec<Expr>>) -> Expr {
    let get = |i: usize, j: usize| {
        rows.get(i)
            .and_then(|row| row.get(j))
            .cloned()
            .unwrap_or(Expr::Set(Vec::new()))
    };
    let minor = |i: usize, j: usize, k: usize, l: usize| {
        Expr::Sum(vec![
            Expr::Product(vec![get(i, k), get(j, l)]),
            negated(Expr::Product(vec![get(i, l), get(j, k)])),
        ])
    };
    match rows.len() {
        1 => rows
            .pop()
            .and_then(|mut row| row.pop())
            .unwrap_or(Expr::Set(Vec::new())),
        2 => minor(0, 1, 0, 1),
        3 => Expr::Sum(vec![
            Expr::Product(vec![get(0, 0), minor(1, 2, 1, 2)]),
            negated(Expr::Product(vec![get(0, 1), minor(1, 2, 0, 2)])),
            Expr::Product(vec![get(0, 2), minor(1, 2, 0, 1)]),
        ]),
        _ => {
            let name = Expr::Text("det".to_string());
            Expr::Call(Function::Named, vec![name, Expr::Matrix(rows)])
        }
    }
}
