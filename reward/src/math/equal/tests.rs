//! Rule by rule, over trees written by a small reader of its own.

use super::{
    super::expr::{Constant, Delimiter, Function, Relation, SetOperation},
    *,
};
use num_rational::BigRational;
use proptest::prelude::*;

const DEFAULT: Comparison = Comparison {
    float_rounding: 6,
    strict: true,
    set_relation: false,
};

fn same(gold: &Expr, answer: &Expr) -> bool {
    equal(gold, answer, DEFAULT, &mut Fuel::new(1_000_000)).unwrap()
}

fn n(value: i64) -> Expr {
    Expr::Number(BigRational::from_integer(value.into()))
}
fn q(above: i64, below: i64) -> Expr {
    Expr::Number(BigRational::new(above.into(), below.into()))
}
fn d(text: &str) -> Expr {
    let (whole, part) = text.split_once('.').unwrap();
    let digits: num_bigint::BigInt = format!("{whole}{part}").parse().unwrap();
    let scale = num_traits::Pow::pow(num_bigint::BigInt::from(10), part.len());
    Expr::Decimal(BigRational::new(digits, scale))
}
fn v(name: &str) -> Expr {
    Expr::Symbol(name.to_owned())
}
fn t(text: &str) -> Expr {
    Expr::Text(text.to_owned())
}
fn sum<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Sum(items.to_vec())
}
fn mul<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Product(items.to_vec())
}
fn div(a: Expr, b: Expr) -> Expr {
    Expr::Quotient(Box::new(a), Box::new(b))
}
fn pow(a: Expr, b: Expr) -> Expr {
    Expr::Power(Box::new(a), Box::new(b))
}
fn neg(a: Expr) -> Expr {
    Expr::Negated(Box::new(a))
}
fn call(function: Function, a: Expr) -> Expr {
    Expr::Call(function, vec![a])
}
fn root(a: Expr) -> Expr {
    call(Function::Root, a)
}
fn set<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::Set(items.to_vec())
}
fn list<const N: usize>(marks: &str, items: [Expr; N]) -> Expr {
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
fn rel(left: Expr, operator: Relation, right: Expr) -> Expr {
    Expr::Relation {
        sides: vec![left, right],
        operators: vec![operator],
    }
}
fn chain(a: Expr, p: Relation, b: Expr, q: Relation, c: Expr) -> Expr {
    Expr::Relation {
        sides: vec![a, b, c],
        operators: vec![p, q],
    }
}
fn eq(left: Expr, right: Expr) -> Expr {
    rel(left, Relation::Equal, right)
}
fn union<const N: usize>(items: [Expr; N]) -> Expr {
    Expr::SetOperation(SetOperation::Union, items.to_vec())
}
fn percent(a: Expr) -> Expr {
    Expr::Percent(Box::new(a))
}
fn plus_minus(left: Expr, right: Expr) -> Expr {
    Expr::PlusMinus {
        left: Box::new(left),
        right: Box::new(right),
        plus_first: true,
    }
}
fn matrix<const R: usize, const C: usize>(rows: [[Expr; C]; R]) -> Expr {
    Expr::Matrix(rows.into_iter().map(|row| row.to_vec()).collect())
}
const PI: Expr = Expr::Constant(Constant::Pi);
const E: Expr = Expr::Constant(Constant::E);
const I: Expr = Expr::Constant(Constant::I);
const INFINITY: Expr = Expr::Constant(Constant::Infinity);

#[track_caller]
fn yes(gold: &Expr, answer: &Expr) {
    assert!(same(gold, answer), "{gold:?} is {answer:?}");
}
#[track_caller]
fn no(gold: &Expr, answer: &Expr) {
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
    no(&n(1), &sum([n(1), pow(E, n(-300))]));
}

#[test]
fn towers_cost_nothing() {
    let tower = |top| pow(n(9), pow(n(9), pow(n(9), n(top))));
    yes(&tower(9), &pow(n(9), pow(n(9), pow(n(9), n(9)))));
    no(&tower(9), &tower(8));
    let mut fuel = Fuel::new(20_000);
    assert!(matches!(
        equal(&tower(9), &n(7), DEFAULT, &mut fuel),
        Err(NotJudged::TooMuchWork(_)) | Ok(false)
    ));
    assert!(fuel.left() > 10_000);
    no(&pow(n(2), n(100_000)), &pow(n(2), n(100_001)));
    yes(&pow(n(4), n(50_000)), &pow(n(2), n(100_000)));
    let huge = pow(n(2003), pow(n(2002), n(2001)));
    assert!(equal(&huge, &n(1), DEFAULT, &mut Fuel::new(100_000)) != Ok(true));
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
fn division_by_zero_equals_itself_alone() {
    yes(&div(n(12), n(0)), &div(n(12), n(0)));
    no(&div(n(12), n(0)), &div(n(1), n(0)));
    no(&n(0), &div(n(0), n(0)));
}

#[test]
fn words_and_letters() {
    yes(&t("odd"), &mul([v("o"), v("d"), v("d")]));
    yes(&t("even"), &mul([E, v("v"), E, v("n")]));
    yes(&t("e"), &E);
    yes(&t("c"), &v("c"));
    no(&v("d"), &t("e"));
    no(&t("east"), &t("west"));
    no(&t("one"), &n(1));
}

#[test]
fn sets_and_points() {
    yes(&set([n(1), n(3)]), &set([n(3), n(1)]));
    yes(&set([n(1), n(3)]), &set([n(3), n(1), n(1)]));
    yes(&set([n(2)]), &n(2));
    yes(&n(2), &set([n(2)]));
    yes(&q(639, 40), &set([q(639, 40), d("15.975")]));
    no(&set([n(1), n(3)]), &n(1));
    no(&n(256), &set([n(256), n(257)]));
    yes(&set([n(3), n(1)]), &list("()", [n(3), n(1)]));
    yes(&set([n(1), n(3)]), &list("()", [n(3), n(1)]));
    no(&list("()", [n(3), n(1)]), &set([n(1), n(3)]));
    yes(&list("()", [n(3), n(1)]), &set([n(3), n(1)]));
    yes(&list("()", [n(1), n(3)]), &set([n(1), n(3)]));
    no(&list("()", [n(1), n(2)]), &list("[]", [n(1), n(2)]));
    no(&list("()", [v("a"), v("b")]), &list("[]", [v("a"), v("b")]));
    yes(&list("()", [n(2), n(1)]), &list("[]", [n(2), n(1)]));
    yes(
        &list("()", [n(1), n(2), n(3)]),
        &list("[]", [n(1), n(2), n(3)]),
    );
    no(
        &list("()", [n(1), n(2), n(3)]),
        &list("()", [n(1), n(3), n(2)]),
    );
    yes(&list("()", [n(1), q(9, 2)]), &list("()", [n(1), d("4.5")]));
    yes(
        &set([q(1, 3), root(n(2))]),
        &set([root(n(2)), d("0.333333")]),
    );
    yes(
        &set([list("()", [n(1), n(2)]), list("()", [n(4), n(3)])]),
        &set([list("()", [n(4), n(3)]), list("()", [n(1), n(2)])]),
    );
    yes(&list("<>", [n(1), n(2)]), &list("()", [n(1), n(2)]));
}

#[test]
fn plus_minus_is_two_answers() {
    yes(&plus_minus(n(0), n(3)), &set([n(3), n(-3)]));
    no(&plus_minus(n(0), n(2021)), &n(2021));
    yes(
        &set([plus_minus(n(1), root(n(5))), n(-2)]),
        &set([n(-2), sum([n(1), neg(root(n(5)))]), sum([n(1), root(n(5))])]),
    );
    yes(
        &div(plus_minus(n(-1), root(n(13))), n(4)),
        &set([
            div(sum([n(-1), root(n(13))]), n(4)),
            div(sum([n(-1), neg(root(n(13)))]), n(4)),
        ]),
    );
    yes(
        &eq(v("x"), plus_minus(n(0), n(3))),
        &set([eq(v("x"), n(-3)), eq(v("x"), n(3))]),
    );
    yes(&eq(v("x"), plus_minus(n(0), n(3))), &plus_minus(n(0), n(3)));
}

#[test]
fn intervals_on_the_line() {
    let below = |a| list("()", [neg(INFINITY), a]);
    let above = |a| list("()", [a, INFINITY]);
    yes(&below(n(5)), &below(n(5)));
    no(&below(n(5)), &list("(]", [neg(INFINITY), n(5)]));
    yes(&above(n(1)), &list("()", [n(1), sum([INFINITY])]));
    let reals = v("mathbb{R}");
    yes(
        &union([below(n(0)), above(n(0))]),
        &Expr::SetOperation(SetOperation::Difference, vec![reals.clone(), set([n(0)])]),
    );
    yes(&reals, &list("()", [neg(INFINITY), INFINITY]));
    yes(
        &union([list("[]", [n(1), n(2)]), list("[]", [n(2), n(3)])]),
        &list("[]", [n(1), n(3)]),
    );
    yes(
        &union([list("()", [n(1), n(2)]), list("()", [n(2), n(3)])]),
        &Expr::SetOperation(
            SetOperation::Difference,
            vec![list("()", [n(1), n(3)]), set([n(2)])],
        ),
    );
    yes(
        &union([set([n(-1)]), list("[)", [n(0), root(n(7))])]),
        &union([list("[)", [n(0), root(n(7))]), set([n(-1)])]),
    );
    no(
        &union([set([n(-1)]), list("[)", [n(0), n(7)])]),
        &union([set([n(-1)]), list("[]", [n(0), n(7)])]),
    );
    yes(
        &list("(]", [q(3, 5), q(8, 3)]),
        &list("(]", [d("0.6"), d("2.666667")]),
    );
    yes(
        &union([below(root(n(2))), above(n(3))]),
        &union([above(n(3)), below(div(n(2), root(n(2))))]),
    );
}

#[test]
fn inequalities() {
    use Relation::{Greater, GreaterEqual, In, Less, LessEqual, NotEqual};
    let x = || v("x");
    yes(&rel(x(), GreaterEqual, n(5)), &rel(n(5), LessEqual, x()));
    yes(&rel(x(), Less, n(1)), &rel(neg(x()), Greater, n(-1)));
    yes(
        &rel(x(), Greater, n(1)),
        &rel(mul([n(2), x()]), Greater, n(2)),
    );
    no(&rel(x(), Less, n(1)), &rel(x(), Greater, n(-1)));
    no(&rel(x(), Less, n(1)), &rel(x(), Greater, n(1)));
    no(&rel(x(), Less, n(1)), &rel(x(), LessEqual, n(1)));
    no(&rel(x(), Less, n(1)), &rel(v("y"), Less, n(1)));
    yes(
        &chain(n(1), Less, x(), Less, n(3)),
        &chain(n(3), Greater, x(), Greater, n(1)),
    );
    yes(
        &chain(n(1), Less, x(), Less, n(3)),
        &Expr::And(vec![rel(x(), Greater, n(1)), rel(x(), Less, n(3))]),
    );
    yes(
        &chain(n(1), Less, x(), Less, n(3)),
        &list("()", [n(1), n(3)]),
    );
    no(
        &list("()", [n(1), n(3)]),
        &chain(n(1), Less, x(), Less, n(3)),
    );
    let sets = Comparison {
        set_relation: true,
        ..DEFAULT
    };
    assert_eq!(
        equal(
            &list("()", [n(1), n(3)]),
            &chain(n(1), Less, x(), Less, n(3)),
            sets,
            &mut Fuel::new(100_000)
        ),
        Ok(true)
    );
    let f = Expr::Call(Function::Named, vec![t("f"), x()]);
    yes(&chain(n(0), Less, f, Less, n(1)), &list("()", [n(0), n(1)]));
    let z = || v("z");
    yes(
        &chain(
            n(1),
            LessEqual,
            call(Function::Abs, z()),
            LessEqual,
            q(3, 2),
        ),
        &rel(
            z(),
            In,
            union([list("[]", [q(-3, 2), n(-1)]), list("[]", [n(1), q(3, 2)])]),
        ),
    );
    yes(
        &chain(n(-2), LessEqual, x(), LessEqual, n(7)),
        &rel(x(), In, list("[]", [n(-2), n(7)])),
    );
    no(
        &rel(x(), In, list("[]", [n(-2), n(7)])),
        &chain(n(-2), LessEqual, x(), LessEqual, n(7)),
    );
    yes(
        &list("[]", [n(-2), n(7)]),
        &rel(x(), In, list("[]", [n(-2), n(7)])),
    );
    yes(
        &rel(x(), NotEqual, n(0)),
        &union([
            list("()", [neg(INFINITY), n(0)]),
            list("()", [n(0), INFINITY]),
        ]),
    );
    yes(&rel(pow(x(), n(2)), Less, n(4)), &list("()", [n(-2), n(2)]));
    yes(
        &rel(pow(x(), n(2)), GreaterEqual, n(2)),
        &union([
            list("(]", [neg(INFINITY), neg(root(n(2)))]),
            list("[)", [root(n(2)), INFINITY]),
        ]),
    );
    yes(
        &set([rel(x(), Less, n(1)), rel(x(), Greater, n(3))]),
        &set([rel(x(), Greater, n(3)), rel(x(), Less, n(1))]),
    );
    yes(
        &Expr::SetBuilder {
            element: Box::new(x()),
            condition: Box::new(rel(x(), Greater, n(1))),
        },
        &list("()", [n(1), INFINITY]),
    );
}

#[test]
fn equations() {
    let (x, y) = (v("x"), v("y"));
    yes(&n(11), &eq(x.clone(), n(11)));
    yes(&eq(x.clone(), n(11)), &n(11));
    no(&eq(x.clone(), n(1)), &eq(y.clone(), n(1)));
    yes(&n(5), &eq(n(5), x.clone()));
    no(
        &eq(n(7), sum([mul([n(11), x.clone()]), y.clone()])),
        &sum([mul([n(11), x.clone()]), y.clone()]),
    );
    no(&eq(sum([mul([n(2), x.clone()]), y.clone()]), n(1)), &n(1));
    yes(
        &eq(sum([mul([n(2), x.clone()]), y.clone()]), n(4)),
        &eq(
            sum([mul([n(4), x.clone()]), mul([n(2), y.clone()]), n(-8)]),
            n(0),
        ),
    );
    yes(
        &eq(
            sum([mul([n(2), x.clone()]), mul([n(4), y.clone()]), n(-3)]),
            n(0),
        ),
        &eq(y.clone(), sum([mul([q(-1, 2), x.clone()]), q(3, 4)])),
    );
    no(
        &eq(sum([mul([n(2), x.clone()]), y.clone()]), n(4)),
        &eq(sum([mul([n(2), x.clone()]), y.clone()]), n(5)),
    );
    yes(
        &eq(y.clone(), div(n(2), x.clone())),
        &eq(mul([x.clone(), y.clone()]), n(2)),
    );
    yes(
        &eq(x.clone(), n(11)),
        &Expr::Relation {
            sides: vec![x.clone(), sum([n(5), n(5), n(1)]), n(7), n(11)],
            operators: vec![Relation::Equal; 3],
        },
    );
    yes(&n(3), &eq(sum([n(0), n(3)]), n(3)));
    yes(
        &q(14, 15),
        &rel(q(14, 15), Relation::Approximate, d("0.933")),
    );
    yes(
        &set([eq(mul([v("a"), v("b")]), n(4)), eq(v("c"), n(5))]),
        &set([n(4), n(5)]),
    );
    yes(
        &eq(list("()", [v("p"), v("q")]), list("()", [n(3), n(2)])),
        &list("()", [n(3), n(2)]),
    );
    yes(
        &eq(list("()", [x.clone(), y.clone()]), list("()", [n(2), n(1)])),
        &set([eq(y.clone(), n(1)), eq(x.clone(), n(2))]),
    );
    yes(
        &set([eq(x.clone(), n(2)), eq(y.clone(), n(1))]),
        &list("()", [n(2), n(1)]),
    );
    no(
        &set([eq(x.clone(), n(2)), eq(y.clone(), n(1))]),
        &list("()", [n(1), n(2)]),
    );
    yes(
        &Expr::Or(vec![eq(x.clone(), n(1)), eq(x.clone(), n(2))]),
        &set([n(2), n(1)]),
    );
    yes(
        &eq(v("d"), list("()", [n(0), n(1)])),
        &eq(v("d"), list("()", [n(0), n(1)])),
    );
    no(
        &eq(v("d"), list("()", [n(0), n(1)])),
        &eq(v("d"), list("()", [n(0), d("1.5")])),
    );
    no(
        &eq(v("n"), set([n(2), n(3), n(4)])),
        &eq(v("n"), set([n(1), n(2), n(3)])),
    );
    yes(
        &eq(v("m"), sum([pow(n(2), sum([v("n"), n(-2)])), n(1)])),
        &eq(
            mul([n(2), v("m")]),
            sum([div(pow(n(2), v("n")), n(2)), n(2)]),
        ),
    );
}

#[test]
fn matrices() {
    yes(
        &matrix([[n(1), q(1, 2)], [n(3), n(4)]]),
        &matrix([[d("1.0"), d("0.5")], [n(3), n(4)]]),
    );
    no(&matrix([[n(1)], [n(2)]]), &matrix([[n(1), n(2)]]));
    no(&matrix([[n(1)], [n(2)]]), &list("()", [n(1), n(2)]));
    yes(
        &matrix([[n(6), n(8)]]),
        &sum([matrix([[n(1), n(2)]]), matrix([[n(5), n(6)]])]),
    );
    yes(
        &matrix([[n(7), n(10)], [n(15), n(22)]]),
        &pow(matrix([[n(1), n(2)], [n(3), n(4)]]), n(2)),
    );
    yes(
        &mul([q(1, 2), matrix([[n(2)], [n(4)]])]),
        &matrix([[n(1)], [n(2)]]),
    );
}

#[test]
fn names_do_not_matter_where_so_asked() {
    let loose = Comparison {
        strict: false,
        ..DEFAULT
    };
    let check =
        |gold: &Expr, answer: &Expr| equal(gold, answer, loose, &mut Fuel::new(1_000_000)).unwrap();
    assert!(check(
        &sum([v("x"), mul([n(2), v("y")])]),
        &sum([v("b"), mul([n(2), v("a")])])
    ));
    assert!(!check(&sum([v("x"), n(1)]), &sum([v("y"), n(2)])));
}

#[test]
fn too_deep_is_not_judged() {
    let mut deep = n(1);
    for _ in 0..500 {
        deep = neg(deep);
    }
    assert!(matches!(
        equal(&deep, &n(1), DEFAULT, &mut Fuel::new(1_000_000)),
        Err(NotJudged::TooMuchWork(_))
    ));
    assert!(matches!(
        equal(
            &pow(sum([v("x"), n(1)]), n(7)),
            &v("x"),
            DEFAULT,
            &mut Fuel::new(5)
        ),
        Err(NotJudged::TooMuchWork(_))
    ));
}

#[test]
fn the_deepest_fit_a_small_stack() {
    let judged = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(|| {
            let nested = |top: Expr| {
                (0..DEEPEST / 2 - 2).fold(top, |inner, _| sum([n(1), call(Function::Sin, inner)]))
            };
            let (one, other) = (nested(v("x")), nested(v("y")));
            let fuel = || Fuel::new(10_000_000);
            (
                equal(&one, &other, DEFAULT, &mut fuel()),
                equal(&eq(v("z"), one), &eq(other, v("z")), DEFAULT, &mut fuel()),
            )
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(judged, (Ok(false), Ok(false)));
}

#[test]
fn systems_say_which_is_which() {
    let system = |a, b| Expr::And(vec![eq(v("a"), n(a)), eq(v("b"), n(b))]);
    no(&system(1, 2), &system(2, 1));
    yes(&system(1, 2), &set([eq(v("b"), n(2)), eq(v("a"), n(1))]));
    yes(
        &Expr::Or(vec![system(5, 2), system(7, 2)]),
        &set([list("()", [n(5), n(2)]), list("()", [n(7), n(2)])]),
    );
}

/// A polynomial in x and y from its coefficients, its terms in an order.
fn polynomial(terms: &[(i64, i64, i64)]) -> Expr {
    Expr::Sum(
        terms
            .iter()
            .map(|(c, a, b)| mul([n(*c), pow(v("x"), n(*a)), pow(v("y"), n(*b))]))
            .collect(),
    )
}

fn terms() -> impl Strategy<Value = Vec<(i64, i64, i64)>> {
    prop::collection::vec((-50_i64..50, 0_i64..5, 0_i64..5), 1..8)
}

fn value() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        (-20_i64..20).prop_map(n),
        (-20_i64..20, 1_i64..9).prop_map(|(a, b)| q(a, b)),
        (-2000_i64..2000).prop_map(|a| Expr::Decimal(BigRational::new(a.into(), 100.into()))),
        Just(PI),
        Just(E),
        Just(I),
        prop::sample::select(vec!["x", "y", "z"]).prop_map(v),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Expr::Sum),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Expr::Product),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| div(a, b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| pow(a, b)),
            inner.clone().prop_map(neg),
            inner.clone().prop_map(percent),
            inner.clone().prop_map(root),
            inner.clone().prop_map(|a| call(Function::Sin, a)),
            inner.clone().prop_map(|a| call(Function::Ln, a)),
            inner.clone().prop_map(|a| call(Function::Floor, a)),
            inner.clone().prop_map(|a| call(Function::Factorial, a)),
            inner.clone().prop_map(|a| call(Function::Acos, a)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| list("()", [a, b])),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| list("[)", [a, b])),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| plus_minus(a, b)),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Expr::Set),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| union([a, b])),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| rel(a, Relation::Less, b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| eq(a, b)),
            (inner.clone(), inner).prop_map(|(a, b)| matrix([[a, b]])),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_polynomial_in_any_order((terms, shuffled) in terms().prop_flat_map(|terms| {
        (Just(terms.clone()), Just(terms).prop_shuffle())
    })) {
        prop_assert!(same(&polynomial(&terms), &polynomial(&shuffled)));
    }

    #[test]
    fn a_changed_coefficient_is_noticed(terms in terms(), at in 0_usize..8, by in 1_i64..5) {
        let mut changed = terms.clone();
        let at = at % terms.len();
        changed[at].0 += by;
        prop_assert!(!same(&polynomial(&terms), &polynomial(&changed)));
    }

    #[test]
    fn a_product_is_its_expansion(a in terms(), b in terms()) {
        let product = mul([polynomial(&a), polynomial(&b)]);
        let expanded: Vec<_> = a
            .iter()
            .flat_map(|(c, i, j)| b.iter().map(move |(d, k, l)| (c * d, i + k, j + l)))
            .collect();
        prop_assert!(same(&product, &polynomial(&expanded)));
    }

    #[test]
    fn equations_scale(terms in terms(), by in 1_i64..9, minus in any::<bool>()) {
        prop_assume!(terms.iter().any(|(c, a, b)| *c != 0 && a + b > 0));
        let side = polynomial(&terms);
        prop_assume!(!same(&side, &n(0)));
        let factor = if minus { -by } else { by };
        let scaled = mul([n(factor), side.clone()]);
        let marked = sum([side.clone(), v("w")]);
        let scaled_marked = mul([n(factor), marked.clone()]);
        prop_assert!(same(&eq(marked.clone(), n(0)), &eq(scaled_marked.clone(), n(0))));
        prop_assert_eq!(
            same(&rel(marked, Relation::Less, n(0)), &rel(scaled_marked, Relation::Less, n(0))),
            !minus
        );
        let _ = scaled;
    }

    #[test]
    fn surds_multiply_out(a in 1_i64..60, b in 1_i64..60, c in -9_i64..9, e in -9_i64..9) {
        let left = sum([mul([n(c), root(n(a))]), root(n(b))]);
        let right = sum([mul([n(e), root(n(b))]), root(n(a))]);
        let expanded = sum([
            mul([n(c * e + 1), root(n(a * b))]),
            n(c * a + e * b),
        ]);
        prop_assert!(same(&mul([left, right]), &expanded));
    }

    #[test]
    fn the_verdict_is_the_same_both_ways_and_never_panics(a in value(), b in value()) {
        let judge = |x: &Expr, y: &Expr| equal(x, y, DEFAULT, &mut Fuel::new(300_000));
        let (one, other) = (judge(&a, &b), judge(&b, &a));
        if shape::is_scalar(&a) && shape::is_scalar(&b) && one.is_ok() && other.is_ok() {
            prop_assert_eq!(one, other);
        }
        let itself = judge(&a, &a.clone());
        prop_assert_eq!(itself, Ok(true));
    }
}
