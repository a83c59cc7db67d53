//! What must hold of any text.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::{collection::vec, prelude::*, sample::select};
use tina_reward::math::{
    MathConfig, Outcome, Verifier,
    equal::equal,
    extract::LatexExtraction,
    fuel::Fuel,
    parse::{Syntax, parse},
};

/// What answers and the prose around them are made of.
const FRAGMENTS: &[&str] = &[
    "$",
    "$$",
    "\\[",
    "\\]",
    "\\(",
    "\\)",
    "\\boxed{",
    "\\fbox{",
    "}",
    "{",
    "\\{",
    "\\}",
    " ",
    "\n",
    "0",
    "1",
    "7",
    "-3",
    "1,234",
    "0.5",
    ".5",
    "5.",
    "9^{9^{9^9}}",
    "1e9999",
    "10^{100}",
    "99!!",
    "\\frac",
    "\\frac{1}{2}",
    "\\frac12",
    "\\dfrac",
    "\\sqrt",
    "\\sqrt[3]",
    "\\binom",
    "^",
    "_",
    "+",
    "-",
    "*",
    "/",
    "\\cdot",
    "\\times",
    "\\div",
    "\\pm",
    "=",
    "<",
    "\\le",
    "\\in",
    "\\cup",
    "\\cap",
    "\\setminus",
    "(",
    ")",
    "[",
    "]",
    "\\left(",
    "\\right]",
    "|",
    "\\lfloor",
    "\\rceil",
    ",",
    ";",
    ":",
    "!",
    "%",
    "\\%",
    "'",
    "x",
    "y",
    "n",
    "i",
    "e",
    "\\pi",
    "\\infty",
    "\\alpha",
    "\\theta",
    "\\sin",
    "\\log_",
    "\\ln",
    "\\text{",
    "\\text{cm}",
    "\\mathrm{",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "\\begin{cases}",
    "\\end{cases}",
    "&",
    "\\\\",
    "\\sum_",
    "\\int",
    "\\lim",
    "\\overline{",
    "^\\circ",
    "°",
    "π",
    "√",
    "½",
    "×",
    "−",
    "∞",
    "≤",
    "∪",
    "é",
    "\u{a0}",
    " and ",
    " or ",
    "east",
    "A",
    "Answer: ",
    "The final answer is ",
    " I hope",
    "percent",
    "#",
    "~",
    "&&",
    "\u{0}",
    "\u{feff}",
    "𝟙",
];

fn text() -> impl Strategy<Value = String> {
    vec(select(FRAGMENTS), 0..40).prop_map(|fragments| fragments.concat())
}

/// Answers that are plain values, in several spellings.
fn value() -> impl Strategy<Value = String> {
    let number = (-99_i32..100, 1_i32..50);
    prop_oneof![
        number.clone().prop_map(|(a, _)| a.to_string()),
        number
            .clone()
            .prop_map(|(a, b)| format!("\\frac{{{a}}}{{{b}}}")),
        number.clone().prop_map(|(a, b)| format!("{a}/{b}")),
        number
            .clone()
            .prop_map(|(a, b)| format!("{a}\\sqrt{{{b}}}")),
        number
            .clone()
            .prop_map(|(a, b)| format!("\\sqrt{{{}}}", a * a * b)),
        number.clone().prop_map(|(a, b)| format!("{a}+{b}\\pi")),
        number.clone().prop_map(|(a, b)| format!("{a}.{b}")),
        number
            .clone()
            .prop_map(|(a, b)| format!("2^{{{}}}{a:+}", b % 9)),
        number.prop_map(|(a, b)| format!("{a}-{b}i")),
    ]
}

fn bounded(gold: &str, completion: &str) {
    for config in [MathConfig::reference(), MathConfig::tina()] {
        let verifier = Verifier::new(config);
        let start = Instant::now();
        verifier.verify(gold, completion);
        // Generous: tests run unoptimized and beside others.
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{gold} {completion}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_gets_a_verdict(gold in text(), completion in text()) {
        bounded(&gold, &completion);
        bounded(&format!("${gold}$"), &format!("\\boxed{{{completion}}}"));
    }

    #[test]
    fn any_characters_get_a_verdict(gold in any::<String>(), completion in any::<String>()) {
        bounded(&gold, &completion);
        bounded(&format!("${gold}$"), &format!("\\boxed{{{completion}}}"));
    }

    #[test]
    fn a_value_equals_itself(a in value()) {
        let verifier = Verifier::new(MathConfig::reference());
        let judgement = verifier.verify(&format!("${a}$"), &format!("\\boxed{{{a} + 0}}"));
        prop_assert_eq!(judgement.outcome, Outcome::Equal);
    }

    #[test]
    fn an_expression_equals_its_own_rendering(text in prop_oneof![text(), value()]) {
        let repairs = LatexExtraction::reference().repairs;
        let mut fuel = Fuel::new(1_000_000);
        if let Ok(tree) = parse(&text, Syntax::Latex, repairs, &mut fuel) {
            let rendered = tree.to_string();
            let again = parse(&rendered, Syntax::Latex, repairs, &mut fuel);
            prop_assert!(again.is_ok(), "{text:?} {rendered:?} {again:?}");
            let comparison = MathConfig::reference().comparison;
            let same = equal(&tree, &again.unwrap(), comparison, &mut fuel);
            prop_assert!(same != Ok(false), "{text:?} {rendered:?}");
        }
    }

    #[test]
    fn values_are_equal_both_ways(a in value(), b in value()) {
        let config = MathConfig::reference();
        let verifier = Verifier::new(config.clone());
        let [one, other] = [(&a, &b), (&b, &a)].map(|(gold, answer)| {
            verifier.verify(&format!("${gold}$"), &format!("\\boxed{{{answer}}}")).outcome.verdict()
        });
        prop_assert_eq!(one, other);
    }
}

#[test]
fn long_texts_cost_linear_time() {
    // Each would take quadratic time of a rule that looks ahead from every place.
    for unit in [
        "$",
        "$x",
        "\\[",
        "\\( ",
        "\\boxed{",
        "answer ",
        "final answer ",
        "1 ",
        "1+",
        "=1 ",
        "{",
        " [",
        "1,000",
        "-\\frac{1",
        "answer:=",
        "\\boxed{1}, ",
    ] {
        let text = unit.repeat(100_000 / unit.len());
        bounded("$1$", &text);
        bounded(&text, "\\boxed{1}");
    }
}

#[test]
fn towers_are_cheap() {
    for tower in [
        "9^{9^{9^9}}",
        "2003^{2002^{2001}}",
        "(10^{10})!",
        "((99!)!)!",
        "\\binom{10^{9}}{10^{8}}",
    ] {
        bounded(&format!("${tower}$"), &format!("\\boxed{{{tower}+1}}"));
    }
}
