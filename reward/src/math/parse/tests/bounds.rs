//! Whatever the text is, the parser ends, soon, without a panic, and renders what it reads.

use super::*;

/// In a small stack, as a caller's thread may have one.
#[test]
fn nothing_overflows() {
    let thread = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(extremes)
        .unwrap();
    thread.join().unwrap();
}

fn extremes() {
    for part in [
        "(",
        "{",
        "\\{",
        "[",
        "|",
        "-",
        "\\frac{",
        "\\sqrt{",
        "x^{",
        "x^",
        "\\sin ",
        "2^{3",
        "\\bar{1",
        "\\mathbf{",
    ] {
        for times in [50, 5_000, 50_000] {
            let _ = read(&part.repeat(times));
        }
    }
    for part in [
        "/2", "!", "%", "\\pm 1", "'", "\\bmod 2", "\\pmod 2", "\\mid 2", "=1", "+1", "x", ",1",
    ] {
        for times in [50, 5_000] {
            let _ = read(&format!("1{}", part.repeat(times)));
        }
    }
    assert_eq!(read(&"(".repeat(1_000)), Err(ParseError::TooDeep));
    assert_eq!(read(&"9".repeat(6_000)), Err(ParseError::TooLarge));
    assert_eq!(read("1e99999999999999999999"), Err(ParseError::TooLarge));
    let mut little = Fuel::new(10);
    assert!(matches!(
        parse(&"1+".repeat(100), Syntax::Latex, ALL, &mut little),
        Err(ParseError::OutOfFuel(_))
    ));
}

const FRAGMENTS: [&str; 96] = [
    "1",
    "2",
    "10",
    "0.5",
    "1,000",
    "x",
    "y",
    "n",
    "f",
    "e",
    "i",
    "\\pi",
    "E",
    "\\infty",
    "+",
    "-",
    "*",
    "/",
    "^",
    "_",
    "!",
    "%",
    "=",
    "<",
    "\\le",
    "\\ne",
    "\\in",
    "\\approx",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\{",
    "\\}",
    "|",
    "\\left|",
    "\\right|",
    "\\left(",
    "\\right)",
    ",",
    ";",
    ":",
    " ",
    "\\frac",
    "\\frac{1}{2}",
    "\\frac12",
    "\\sqrt",
    "\\sqrt{2}",
    "\\sqrt[3]{2}",
    "\\binom{n}{k}",
    "\\sin",
    "\\cos",
    "\\log_2",
    "\\ln",
    "\\sin^{-1}",
    "\\max",
    "\\gcd",
    "^\\circ",
    "°",
    "\\%",
    "\\text{ and }",
    "\\text{ or }",
    "\\text{cm}",
    "\\text{if}",
    "\\text{Bob}",
    "\\cup",
    "\\cap",
    "\\setminus",
    "\\emptyset",
    "\\mathbb{R}",
    "\\pm",
    "\\mp",
    "\\cdot",
    "\\times",
    "\\div",
    "\\pmod",
    "\\bmod",
    "\\mid",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    "\\begin{cases}",
    "\\end{cases}",
    "\\lfloor",
    "\\rfloor",
    "\\sum_{k=1}^n",
    "\\int",
    "dx",
    "\\ldots",
    "'",
    "½",
    "²",
    "\\overline{3}",
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn fragments_never_panic_and_read_back(
        parts in proptest::collection::vec(proptest::sample::select(&FRAGMENTS[..]), 1..12),
    ) {
        let text = parts.concat();
        if let Ok(expr) = read(&text) {
            let latex = expr.to_string();
            proptest::prop_assert_eq!(read(&latex), Ok(expr), "{} renders to {}", text, latex);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
        let _ = read(&text);
        let _ = parse(&text, Syntax::Plain, ALL, &mut Fuel::new(100_000));
    }
}
