//! Comparison by evaluation at random points. A difference larger than its error's bound is one; a
//! difference of nothing within the bound, at several points and once in higher precision, is none.

use super::{
    super::{
        expr::{Expr, Function},
        fuel::Fuel,
    },
    NotJudged, Result,
    complex::Complex,
    evaluate::{Evaluator, Region, Stop},
    real::Fault,
    shape,
};
use num_rational::BigRational;
use std::cmp::Ordering;

/// Bits of the first evaluations (77 digits) and of the last (154 digits).
const BITS: u64 = 256;
const MORE_BITS: u64 = 512;
/// Bits that agreeing values must at least share.
const SHARED: i64 = 180;
/// Points at which values agree before they are taken to be the same.
const POINTS: usize = 3;

/// What evaluation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Same,
    Different,
    /// There is no point at which both have a value.
    Undefined,
}

/// What one point says.
enum AtPoint {
    Agree,
    Differ,
    /// One has no value here, or too little of it is known.
    Silent,
    /// One is too large to be computed, the other may not be.
    TooLarge,
}

/// How values are compared.
#[derive(Clone, Copy)]
struct Reading {
    /// Odd roots of negative numbers are real.
    real_roots: bool,
}

fn too_large() -> NotJudged {
    NotJudged::TooMuchWork("a number is too large".to_owned())
}

/// Compares two expressions by their values.
pub(super) fn compare(gold: &Expr, answer: &Expr, fuel: &mut Fuel) -> Result<Outcome> {
    let mut odd_root = false;
    let outcome = read(
        gold,
        answer,
        Reading { real_roots: false },
        &mut odd_root,
        fuel,
    )?;
    if outcome != Outcome::Same && odd_root {
        // The other reading of ∛−8.
        return read(
            gold,
            answer,
            Reading { real_roots: true },
            &mut odd_root,
            fuel,
        );
    }
    Ok(outcome)
}

fn read(
    gold: &Expr,
    answer: &Expr,
    reading: Reading,
    odd_root: &mut bool,
    fuel: &mut Fuel,
) -> Result<Outcome> {
    let constant = shape::is_constant(gold) && shape::is_constant(answer);
    let enough = match (constant, has_pieces(gold) || has_pieces(answer)) {
        (true, _) => 1,
        (false, false) => POINTS,
        (false, true) => 2 * POINTS,
    };
    let mut agreed: Option<(Region, u64)> = None;
    let mut agreements = 0;
    let mut complex_only = None;
    let mut too_large_met = false;
    for (region, salt) in points(gold, answer, constant) {
        let mut left_reals = false;
        let verdict = at_point(
            gold,
            answer,
            BITS,
            region,
            salt,
            reading,
            odd_root,
            &mut left_reals,
            fuel,
        )?;
        // With variables, a detour over complex numbers makes identities of real analysis fail by a
        // convention of branches: such points only count where there are no others. Below zero they
        // don't.
        if left_reals && !constant {
            if region != Region::Signed {
                match verdict {
                    AtPoint::Differ => complex_only = Some(false),
                    AtPoint::Agree => {
                        complex_only = complex_only.or(Some(true));
                        agreed = agreed.or(Some((region, salt)));
                    }
                    AtPoint::Silent | AtPoint::TooLarge => {}
                }
            }
            continue;
        }
        match verdict {
            AtPoint::Differ => return Ok(Outcome::Different),
            AtPoint::Agree => {
                agreed = agreed.or(Some((region, salt)));
                agreements += 1;
                if agreements >= enough {
                    break;
                }
            }
            AtPoint::Silent => {}
            AtPoint::TooLarge => too_large_met = true,
        }
    }
    if agreements == 0 && complex_only != Some(true) {
        if too_large_met {
            return Err(too_large());
        }
        return Ok(if complex_only == Some(false) {
            Outcome::Different
        } else {
            Outcome::Undefined
        });
    }
    // Once more, where a tiny difference would show.
    if let Some((region, salt)) = agreed {
        let mut left_reals = false;
        let last = at_point(
            gold,
            answer,
            MORE_BITS,
            region,
            salt,
            reading,
            odd_root,
            &mut left_reals,
            fuel,
        )?;
        if matches!(last, AtPoint::Differ) {
            return Ok(Outcome::Different);
        }
    }
    Ok(Outcome::Same)
}

/// Where to evaluate: positive numbers of three sizes, and some that are negative; whole numbers where
/// there is a factorial of a variable or a sum.
fn points(gold: &Expr, answer: &Expr, constant: bool) -> Vec<(Region, u64)> {
    if constant {
        return vec![(Region::Small, 0)];
    }
    let counts = |node: &Expr| match node {
        Expr::Call(Function::Factorial | Function::DoubleFactorial | Function::Binomial, items) => {
            items.iter().any(|item| !shape::is_constant(item))
        }
        Expr::Call(Function::Named, items) => shape::series(items).is_some(),
        _ => false,
    };
    if shape::any(gold, &counts) || shape::any(answer, &counts) {
        return (0..8).map(|salt| (Region::Whole, salt)).collect();
    }
    vec![
        (Region::Small, 0),
        (Region::Signed, 0),
        (Region::Large, 0),
        (Region::Unit, 0),
        (Region::Signed, 1),
        (Region::Small, 1),
    ]
}

/// Whether it may be different functions on different parts of the line.
fn has_pieces(expression: &Expr) -> bool {
    shape::any(expression, &|node| {
        matches!(
            node,
            Expr::Call(
                Function::Abs
                    | Function::Floor
                    | Function::Ceil
                    | Function::Min
                    | Function::Max
                    | Function::Mod
                    | Function::Gcd
                    | Function::Lcm,
                _
            )
        )
    })
}

fn at_point(
    gold: &Expr,
    answer: &Expr,
    bits: u64,
    region: Region,
    salt: u64,
    reading: Reading,
    odd_root: &mut bool,
    left_reals: &mut bool,
    fuel: &mut Fuel,
) -> Result<AtPoint> {
    let mut evaluator = Evaluator::new(bits, (region, salt), reading.real_roots, fuel);
    let (ours, theirs) = (evaluator.value(gold), evaluator.value(answer));
    *left_reals |= evaluator.left_reals;
    *odd_root |= evaluator.odd_root;
    match (ours, theirs) {
        (Err(Stop::OutOfFuel), _) | (_, Err(Stop::OutOfFuel)) => {
            Err(super::super::fuel::OutOfFuel.into())
        }
        (Err(Stop::Fault(Fault::TooLarge)), _) | (_, Err(Stop::Fault(Fault::TooLarge))) => {
            Ok(AtPoint::TooLarge)
        }
        (Err(_), _) | (_, Err(_)) => Ok(AtPoint::Silent),
        (Ok(ours), Ok(theirs)) => Ok(difference(&ours, &theirs, bits)),
    }
}

fn difference(ours: &Complex, theirs: &Complex, bits: u64) -> AtPoint {
    let difference = ours.minus(theirs, bits);
    let sure = |sign: Option<Ordering>| sign.is_some_and(Ordering::is_ne);
    if sure(difference.re.sign()) || sure(difference.im.sign()) {
        return AtPoint::Differ;
    }
    let size = ours.magnitude().max(theirs.magnitude()).max(0);
    let shared = SHARED * (bits / BITS) as i64;
    if difference.error() <= size - shared {
        AtPoint::Agree
    } else {
        AtPoint::Silent
    }
}

/// A rational close to a real constant; None where it is not real, or has no value.
pub(super) fn real_value(constant: &Expr, fuel: &mut Fuel) -> Result<Option<BigRational>> {
    for real_roots in [false, true] {
        let mut evaluator = Evaluator::new(BITS, (Region::Small, 0), real_roots, fuel);
        match evaluator.value(constant) {
            Ok(value) if value.im.sign().is_none_or(Ordering::is_eq) => {
                return Ok(value.re.to_rational());
            }
            Ok(_) if evaluator.odd_root => {}
            Ok(_) | Err(Stop::Fault(Fault::Undefined)) => return Ok(None),
            Err(Stop::Fault(Fault::TooLarge)) => return Err(too_large()),
            Err(Stop::OutOfFuel) => return Err(super::super::fuel::OutOfFuel.into()),
        }
    }
    Ok(None)
}

/// Whether a constant is a real number of at least 2^bits.
pub(super) fn is_at_least(constant: &Expr, bits: i64, fuel: &mut Fuel) -> Result<bool> {
    let mut evaluator = Evaluator::new(BITS, (Region::Small, 0), false, fuel);
    match evaluator.value(constant) {
        Ok(value) => Ok(value.is_real()
            && value.re.sign() == Some(Ordering::Greater)
            && value.re.magnitude() > bits),
        Err(Stop::Fault(_)) => Ok(false),
        Err(Stop::OutOfFuel) => Err(super::super::fuel::OutOfFuel.into()),
    }
}

/// Whether it has a value at all that can be computed.
pub(super) fn has_value(constant: &Expr, fuel: &mut Fuel) -> Result<bool> {
    let mut evaluator = Evaluator::new(BITS, (Region::Small, 0), false, fuel);
    match evaluator.value(constant) {
        Ok(_) => Ok(true),
        Err(Stop::Fault(_)) => Ok(false),
        Err(Stop::OutOfFuel) => Err(super::super::fuel::OutOfFuel.into()),
    }
}

/// The sign of what is the same number other than zero at every point; None where it is not. One
/// point is enough where it is known to be.
pub(super) fn constant_sign(
    expression: &Expr,
    known: bool,
    fuel: &mut Fuel,
) -> Result<Option<Ordering>> {
    let mut first: Option<Complex> = None;
    let mut agreements = 0;
    for (region, salt) in points(expression, expression, false) {
        let mut evaluator = Evaluator::new(BITS, (region, salt), false, fuel);
        let value = evaluator.value(expression);
        if evaluator.left_reals && region == Region::Signed {
            continue;
        }
        match (value, &first) {
            (Err(Stop::OutOfFuel), _) => return Err(super::super::fuel::OutOfFuel.into()),
            (Err(_), _) => {}
            (Ok(value), None) => {
                if known && value.re.sign().is_some_and(Ordering::is_ne) {
                    return Ok(value.re.sign());
                }
                first = Some(value);
            }
            (Ok(value), Some(before)) => match difference(before, &value, BITS) {
                AtPoint::Agree => agreements += 1,
                AtPoint::Differ => return Ok(None),
                AtPoint::Silent | AtPoint::TooLarge => {}
            },
        }
    }
    let sign = first.and_then(|value| value.re.sign());
    Ok(sign.filter(|sign| agreements > 0 && sign.is_ne()))
}
