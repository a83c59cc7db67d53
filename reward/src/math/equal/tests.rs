//! Numbers and expressions, rule by rule, and how the tests write trees down.

use super::{
    super::expr::{Constant, Delimiter, Function, Relation, SetOperation},
    *,
};
use num_rational::BigRational;

pub(super) const DEFAULT: Comparison = Comparison {
    float_rounding: 6,
    strict: true,
    set_relation: false,
};

pub(super) fn same(gold: &Expr, answer: &Expr) -> bool {
    equal(gold, answer, DEFAULT, &mut Fuel::new(1_000_000)).unwrap()
}

pub(super) fn n(value: i64) -> Expr {
    Expr::Number(BigRational::from_integer(value.into()))
}
pub(super) fn q(above: i64, below: i64) -> Expr {
    Expr::Number(BigRational::new(above.into(), below.into()))
}
pub(super) fn d(text: &str) -> Expr {
    let (whole, part) = text.split_once('.').unwrap();
    let digits: num_bigint::BigInt = format!("{whole}{part}").parse().unwrap();
    let scale = num_traits::Pow::pow(num_bigint::BigInt::from(10), part.len());
    Expr::Decimal(BigRational::new(digits, scale))
}
pub(super) fn v(name: &str) -> Expr {
    Expr::Symbol(name.to_owned())
}
pub(super) fn t(text: &str) -> Expr {
    Expr::Text(text.to_owned())
}
pub(super) fn sum<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Sum(items.to_vec())
}
pub(super) fn mul<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Product(items.to_vec())
}
pub(super) fn div(a: Expr, b: Expr) -> Expr {
    Expr::Quotient(Box::new(a), Box::new(b))
}
pub(super) fn pow(a: Expr, b: Expr) -> Expr {
    Expr::Power(Box::new(a), Box::new(b))
}
pub(super) fn neg(a: Expr) -> Expr {
    Expr::Negated(Box::new(a))
}
pub(super) fn call(function: Function, a: Expr) -> Expr {
    Expr::Call(function, vec![a])
}
pub(super) fn root(a: Expr) -> Expr {
    call(Function::Root, a)
}
pub(super) fn set<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Set(items.to_vec())
}
pub(super) fn list<const N: usize>(marks: &str, items: [Expr; N]) -> Expr {
    let of = |mark: char| match mark {
        '(' | ')' => Delimiter::Round,
        '<' | '>' => Delimiter::Angle,
        _ => Delimiter::Square,
    };
    let mut marks = marks.chars();
    Expr::Delimited {
        open: of(marks.next().unwrap()),
        close: of(marks.next().unwrap()),
        items: items.to_vec(),
    }
}
pub(super) fn rel(left: Expr, operator: Relation, right: Expr) -> Expr {
    Expr::Relation {
        sides: vec![left, right],
        operators: vec![operator],
    }
}
pub(super) fn chain(a: Expr, p: Relation, b: Expr, q: Relation, c: Expr) -> Expr {
    Expr::Relation {
        sides: vec![a, b, c],
        operators: vec![p, q],
    }
}
pub(super) fn eq(left: Expr, right: Expr) -> Expr {
    rel(left, Relation::Equal, right)
}
pub(super) fn union<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::SetOperation(SetOperation::Union, items.to_vec())
}
pub(super) fn percent(a: Expr) -> Expr {
    Expr::Percent(Box::new(a))
}
pub(super) fn plus_minus(left: Expr, right: Expr) -> Expr {
    Expr::PlusMinus {
        left: Box::new(left),
        right: Box::new(right),
        plus_first: true,
    }
}
pub(super) fn matrix<const R: usize, const C: usize>(rows: [[Expr; C]; R]) -> Expr {
    Expr::Matrix(rows.into_iter().map(|row| row.to_vec()).collect())
}
pub(super) const PI: Expr = Expr::Constant(Constant::Pi);
pub(super) const E: Expr = Expr::Constant(Constant::E);
pub(super) const I: Expr = Expr::Constant(Constant::I);
pub(super) const INFINITY: Expr = Expr::Constant(Constant::Infinity);

#[track_caller]
pub(super) fn yes(gold: &Expr, answer: &Expr) {
    assert!(same(gold, answer), "{gold:?} is {answer:?}");
}
#[track_caller]
pub(super) fn no(gold: &Expr, answer: &Expr) {
    assert!(!same(gold, answer), "{gold:?} is not {answer:?}");
}

#[test]
fn numbers_are_exact() {
    yes(&q(1, 2), &div(n(2), n(4)));
    yes(&n(6), &Expr::Call(Function::Binomial, vec![n(4), n(2)]));
    yes(&n(7), &root(n(49)));
    yes(&n(3), &Expr::Call(Function::Log, vec![n(8), n(2)]));
    no(&n(42), &n(43));
    no(&div(n(1), pow(n(2), n(99))), &div(n(1), pow(n(2), n(98))));
    let factorial = |k| div(n(1), call(Function::Factorial, n(k)));
    no(&factorial(2004), &factorial(2006));
    yes(&factorial(2004), &factorial(2004));
    yes(&factorial(2006), &div(factorial(2004), n(2005 * 2006)));
    no(&sum([n(1), neg(div(n(1), E))]), &sum([n(1), div(n(1), E)]));
    no(&PI, &sum([PI, div(n(1), pow(n(10), n(100)))]));
    let million = Expr::Call(Function::Binomial, vec![n(2_037_171), n(2019)]);
    no(&million, &d("0.541"));
    let quotient = div(
        call(Function::Factorial, n(2016)),
        call(Function::Factorial, n(1953)),
    );
    let mut fuel = Fuel::new(30_000);
    assert_eq!(
        equal(
            &quotient,
            &mul([v("n"), pow(n(2), v("n"))]),
            DEFAULT,
            &mut fuel
        ),
        Ok(false)
    );
    no(&n(1), &sum([n(1), pow(E, n(-300))]));
}

#[test]
fn towers_cost_nothing() {
    let tower = |top| pow(n(9), pow(n(9), pow(n(9), n(top))));
    yes(&tower(9), &pow(n(9), pow(n(9), pow(n(9), n(9)))));
    no(&tower(9), &tower(8));
    let mut fuel = Fuel::new(20_000);
    assert_eq!(equal(&tower(9), &n(7), DEFAULT, &mut fuel), Ok(false));
    assert_eq!(equal(&root(n(7)), &tower(9), DEFAULT, &mut fuel), Ok(false));
    assert!(fuel.left() > 10_000, "{fuel:?}");
    assert!(matches!(
        equal(&tower(9), &sum([tower(9), n(1), n(-1)]), DEFAULT, &mut fuel),
        Ok(true) | Err(NotJudged::TooMuchWork(_))
    ));
    no(&pow(n(2), n(100_000)), &pow(n(2), n(100_001)));
    yes(&pow(n(4), n(50_000)), &pow(n(2), n(100_000)));
    let huge = pow(n(2003), pow(n(2002), n(2001)));
    no(&huge, &n(1));
}

#[test]
fn extreme_exponents_take_no_memory() {
    let tiny = |k: i64| pow(n(2), pow(n(2), n(-k)));
    // This one is 1 to more digits than are looked at.
    assert!(
        equal(
            &tiny(1_000_000_000),
            &n(1),
            DEFAULT,
            &mut Fuel::new(100_000)
        )
        .is_ok()
    );
    no(&tiny(100), &n(1));
    no(&tiny(1_000_000_000), &call(Function::Sin, v("x")));
    no(&pow(v("x"), tiny(1_000_000_000)), &pow(v("x"), n(3)));
    for large in [
        call(Function::Floor, pow(root(n(2)), n(3_000_000))),
        call(Function::Sin, pow(n(10), n(5000))),
    ] {
        assert!(matches!(
            equal(&large, &n(0), DEFAULT, &mut Fuel::new(100_000)),
            Err(NotJudged::TooMuchWork(_))
        ));
    }
}

#[test]
fn decimals_round_and_keep_significance() {
    yes(&q(1, 3), &d("0.333333"));
    no(&q(1, 3), &d("0.33333"));
    yes(&mul([n(8), PI]), &d("25.132741228718"));
    no(&mul([n(7), PI]), &d("21.98"));
    yes(&root(n(3)), &d("1.732050807569"));
    yes(&neg(root(n(3))), &neg(d("1.732050807569")));
    no(&d("0.0000001"), &d("0.0000002"));
    yes(&d("0.0000001"), &pow(n(10), n(-7)));
    yes(&d("1.5"), &d("1.5000004"));
    no(&d("1.5"), &d("1.500001"));
    no(&n(0), &d("0.0000001"));
    no(&d("0.7773"), &d("0.8"));
    yes(&n(200), &mul([d("2.0"), pow(n(10), n(2))]));
    yes(&mul([v("x"), d("2.5")]), &div(mul([n(5), v("x")]), n(2)));
    let four = Comparison {
        float_rounding: 4,
        ..DEFAULT
    };
    assert_eq!(
        equal(&q(1, 3), &d("0.3333"), four, &mut Fuel::new(10_000)),
        Ok(true)
    );
}

#[test]
fn percents_are_both() {
    yes(&percent(n(9)), &n(9));
    yes(&neg(percent(q(23, 60))), &q(-23, 60));
    yes(&neg(percent(q(23, 60))), &percent(q(-23, 60)));
    yes(&neg(percent(n(50))), &q(-1, 2));
    no(&neg(percent(n(50))), &n(50));
    yes(&percent(n(9)), &d("0.09"));
    yes(&n(9), &percent(n(9)));
    yes(&percent(d("9.5")), &d("0.095"));
    no(&percent(d("9.5")), &d("9.5"));
    no(&percent(d("17.5")), &percent(d("18.5")));
    no(&q(28, 100), &n(28));
}

#[test]
fn surds_in_any_form() {
    yes(&root(n(117)), &mul([n(3), root(n(13))]));
    yes(&root(n(5)), &div(n(5), root(n(5))));
    yes(&root(n(5)), &pow(n(5), q(1, 2)));
    yes(
        &div(n(1), sum([root(n(3)), root(n(2))])),
        &sum([root(n(3)), neg(root(n(2)))]),
    );
    yes(
        &div(mul([n(10), root(d("10.5"))]), n(27)),
        &div(mul([n(5), root(n(42))]), n(27)),
    );
    yes(
        &root(sum([n(3), mul([n(2), root(n(2))])])),
        &sum([n(1), root(n(2))]),
    );
    no(&root(n(26)), &root(n(27)));
    no(
        &mul([n(6), root(n(2))]),
        &mul([n(6), Expr::Call(Function::Root, vec![n(2), n(3)])]),
    );
    yes(&root(n(-1)), &I);
    yes(&root(n(-12)), &mul([n(2), I, root(n(3))]));
    yes(&n(-2), &Expr::Call(Function::Root, vec![n(-8), n(3)]));
    yes(
        &Expr::Call(Function::Root, vec![n(54), n(3)]),
        &mul([n(3), Expr::Call(Function::Root, vec![n(2), n(3)])]),
    );
    // Sums of three roots that agree in their first digits.
    no(
        &sum([root(n(10)), root(n(11))]),
        &sum([root(n(5)), root(n(18))]),
    );
}

#[test]
fn complex_numbers() {
    yes(&mul([sum([n(1), I]), sum([n(1), neg(I)])]), &n(2));
    yes(&pow(E, mul([I, PI])), &n(-1));
    yes(&div(n(1), I), &neg(I));
    no(
        &sum([n(1), mul([n(2), I])]),
        &sum([n(1), neg(mul([n(2), I]))]),
    );
    yes(&call(Function::Abs, sum([n(3), mul([n(4), I])])), &n(5));
    no(
        &sum([n(1), mul([root(n(3)), I])]),
        &sum([n(-1), neg(mul([root(n(3)), I]))]),
    );
}

#[test]
fn polynomials_and_fractions_in_any_form() {
    let (x, y) = (v("x"), v("y"));
    yes(
        &pow(sum([x.clone(), y.clone()]), n(2)),
        &sum([
            pow(x.clone(), n(2)),
            mul([n(2), y.clone(), x.clone()]),
            pow(y.clone(), n(2)),
        ]),
    );
    yes(
        &div(sum([pow(x.clone(), n(2)), n(-1)]), sum([x.clone(), n(1)])),
        &sum([x.clone(), n(-1)]),
    );
    yes(
        &div(sum([x.clone(), n(2)]), n(7)),
        &sum([div(x.clone(), n(7)), q(2, 7)]),
    );
    no(&mul([n(2), x.clone()]), &mul([n(2), y.clone()]));
    no(&sum([x.clone(), n(1)]), &x);
    no(
        &mul([sum([x.clone(), n(5)]), y.clone()]),
        &mul([n(5), y.clone()]),
    );
    yes(
        &mul([PI, div(x.clone(), sum([y.clone(), x.clone()]))]),
        &div(mul([PI, x.clone()]), sum([x.clone(), y])),
    );
    yes(
        &mul([div(root(n(2)), n(4)), x.clone()]),
        &div(x, mul([n(2), root(n(2))])),
    );
}

#[test]
fn functions_by_evaluation() {
    let (x, y) = (v("x"), v("y"));
    let sin = |a: &Expr| call(Function::Sin, a.clone());
    let cos = |a: &Expr| call(Function::Cos, a.clone());
    yes(&sum([pow(sin(&x), n(2)), pow(cos(&x), n(2))]), &n(1));
    yes(
        &sum([pow(call(Function::Tan, y.clone()), n(2)), n(1)]),
        &pow(call(Function::Sec, y.clone()), n(2)),
    );
    yes(
        &mul([
            q(1, 4),
            root(n(2)),
            cos(&sum([x.clone(), neg(div(PI, n(4)))])),
        ]),
        &div(
            mul([root(n(2)), sin(&sum([x.clone(), div(PI, n(4))]))]),
            n(4),
        ),
    );
    no(&sin(&x), &cos(&x));
    no(
        &mul([n(2), cos(&mul([n(2), x.clone()]))]),
        &cos(&mul([n(2), x.clone()])),
    );
    yes(
        &pow(n(2), sum([x.clone(), n(1)])),
        &mul([n(2), pow(n(2), x.clone())]),
    );
    yes(&pow(n(4), x.clone()), &pow(n(2), mul([n(2), x.clone()])));
    yes(&root(div(n(1), x.clone())), &div(n(1), root(x.clone())));
    yes(
        &root(mul([x.clone(), y.clone()])),
        &mul([root(x.clone()), root(y.clone())]),
    );
    no(&root(pow(x.clone(), n(2))), &x);
    yes(&root(pow(x.clone(), n(2))), &call(Function::Abs, x.clone()));
    no(&call(Function::Abs, x.clone()), &x);
    yes(
        &call(Function::Ln, n(8)),
        &mul([n(3), call(Function::Ln, n(2))]),
    );
    yes(
        &call(Function::Ln, div(x.clone(), y.clone())),
        &sum([
            call(Function::Ln, x.clone()),
            neg(call(Function::Ln, y.clone())),
        ]),
    );
    yes(&sin(&div(PI, n(3))), &div(root(n(3)), n(2)));
    yes(
        &cos(&mul([n(2), div(PI, n(5))])),
        &div(sum([root(n(5)), n(-1)]), n(4)),
    );
    yes(&mul([n(4), call(Function::Atan, n(1))]), &PI);
    yes(&call(Function::Asin, n(1)), &div(PI, n(2)));
    yes(&call(Function::Acos, q(1, 2)), &div(PI, n(3)));
    yes(
        &div(
            pow(Expr::Call(Function::Root, vec![x.clone(), n(3)]), n(2)),
            n(3),
        ),
        &div(pow(x.clone(), q(2, 3)), n(3)),
    );
    yes(
        &call(Function::Factorial, x.clone()),
        &mul([
            x.clone(),
            call(Function::Factorial, sum([x.clone(), n(-1)])),
        ]),
    );
    yes(&call(Function::Floor, root(n(2))), &n(1));
    yes(&call(Function::Ceil, PI), &n(4));
    let f = |a: Expr| Expr::Call(Function::Named, vec![t("f"), a]);
    yes(&f(sum([x.clone(), n(1)])), &f(sum([n(1), x.clone()])));
    no(&f(x.clone()), &f(y.clone()));
    no(&f(x.clone()), &Expr::Call(Function::Named, vec![t("g"), x]));
}

#[test]
fn sums_by_their_terms() {
    let series = |name: &str, k: &str, low: i64, high: Expr, term: Expr| {
        Expr::Call(Function::Named, vec![t(name), eq(v(k), n(low)), high, term])
    };
    let triangle = div(mul([v("n"), sum([v("n"), n(1)])]), n(2));
    yes(&series("sum", "k", 1, v("n"), v("k")), &triangle);
    yes(
        &series("sum", "k", 1, v("n"), v("k")),
        &series("sum", "j", 1, v("n"), v("j")),
    );
    no(
        &series("sum", "k", 1, v("n"), v("k")),
        &series("sum", "j", 2, v("n"), v("j")),
    );
    yes(&series("sum", "k", 1, n(10), pow(v("k"), n(2))), &n(385));
    yes(
        &series("prod", "k", 1, v("n"), v("k")),
        &call(Function::Factorial, v("n")),
    );
    let unknown = |k: &str| {
        let f = Expr::Call(Function::Named, vec![t("f"), v(k)]);
        series("sum", k, 1, INFINITY, f)
    };
    yes(&unknown("k"), &unknown("j"));
    no(&unknown("k"), &sum([unknown("j"), n(1)]));
}

#[test]
fn division_by_zero_equals_itself_alone() {
    yes(&div(n(12), n(0)), &div(n(12), n(0)));
    no(&div(n(12), n(0)), &div(n(1), n(0)));
    no(&n(0), &div(n(0), n(0)));
}
