//! stub
use super::{
    super::{expr::Expr, fuel::Fuel},
    Result,
};
use num_rational::BigRational;
pub(super) enum Outcome {
    Same,
    Different,
    Undefined,
}
pub(super) fn compare(_a: &Expr, _b: &Expr, _fuel: &mut Fuel) -> Result<Outcome> {
    Ok(Outcome::Different)
}
pub(super) fn real_value(_a: &Expr, _fuel: &mut Fuel) -> Result<Option<BigRational>> {
    Ok(None)
}
pub(super) fn constant_sign(_a: &Expr, _fuel: &mut Fuel) -> Result<Option<std::cmp::Ordering>> {
    Ok(Some(std::cmp::Ordering::Greater))
}
