//! What holds for all answers.

use super::super::fuel::Fuel;
use super::{
    super::expr::{Expr, Function, Relation, SetOperation},
    equal, shape,
    tests::{
        DEFAULT, E, I, PI, call, div, eq, list, matrix, mul, n, neg, percent, plus_minus, pow, q,
        rel, root, same, set, sum, union, v,
    },
};
use num_rational::BigRational;
use proptest::prelude::*;

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
    fn a_union_is_the_same_in_any_order_and_with_its_overlaps(
        ends in prop::collection::vec((-9_i64..9, 1_i64..6, 0_usize..4), 1..5)
            .prop_flat_map(|ends| (Just(ends.clone()), Just(ends).prop_shuffle()))
    ) {
        let whole = |ends: &[(i64, i64, usize)]| {
            let marks = ["()", "(]", "[)", "[]"];
            Expr::SetOperation(
                SetOperation::Union,
                ends.iter()
                    .map(|(low, wide, at)| list(marks[*at], [n(*low), q(2 * (low + wide), 2)]))
                    .collect(),
            )
        };
        let (one, other) = (whole(&ends.0), whole(&ends.1));
        prop_assert!(same(&one, &other));
        prop_assert!(same(&one, &union([other.clone(), whole(&ends.0[..1])])));
        let (low, wide, _) = ends.0[0];
        let hole = Expr::SetOperation(
            SetOperation::Difference,
            vec![other, set([q(2 * low + wide, 2)])],
        );
        prop_assert!(!same(&one, &hole));
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
