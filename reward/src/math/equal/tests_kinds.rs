//! Words, sets, intervals, relations, matrices, rule by rule.

use super::{
    super::expr::{Expr, Function, Relation, SetOperation},
    tests::{
        DEFAULT, E, INFINITY, call, chain, d, div, eq, list, matrix, mul, n, neg, no, plus_minus,
        pow, q, rel, root, set, sum, t, union, v, yes,
    },
    *,
};

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
