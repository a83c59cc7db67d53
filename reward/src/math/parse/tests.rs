//! What answers are read as.

mod bounds;

use super::*;

/// All repairs: the reference's default.
const ALL: Repairs = Repairs {
    basic_latex: true,
    units: true,
    malformed_operators: true,
    nits: true,
    equations: false,
};

fn read(text: &str) -> Result<Expr, ParseError> {
    parse(text, Syntax::Latex, ALL, &mut Fuel::new(1_000_000))
}

/// The tree's rendering; it must read back to the same tree.
fn rendered(text: &str) -> String {
    let expr = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let latex = expr.to_string();
    assert_eq!(
        read(&latex).as_ref(),
        Ok(&expr),
        "{text} renders to {latex}"
    );
    latex
}

fn check(cases: &[(&str, &str)]) {
    for (text, latex) in cases {
        assert_eq!(rendered(text), *latex, "{text}");
    }
}

#[test]
fn numbers_are_exact_however_they_are_written() {
    check(&[
        ("007", "7"),
        ("-5", "-5"),
        ("1,000", "1000"),
        ("-1,234,567", "-1234567"),
        ("1,234.5", "1234.5"),
        ("1{,}000", "1000"),
        ("14 {, }916", "14916"),
        ("1,\\!600", "1600"),
        ("11,\\! 111,\\! 111", "11111111"),
        ("\\mathbf{2 6 2}", "262"),
        ("-\\text{2 3}", "-23"),
        ("12\\,345", "12345"),
        ("12 345", "12345"),
        ("x = 12,500", "x = 12500"),
        ("(1,234)", "(1, 234)"),
        ("32, 349", "\\{32, 349\\}"),
        ("27,54,108", "\\{27, 54, 108\\}"),
        (".5", "0.5"),
        ("335.", "335"),
        ("1000.0", "1000.0"),
        ("2{,}5", "2.5"),
        ("0.\\overline{3}", "\\frac{1}{3}"),
        ("-0.1\\overline{6}", "-\\frac{1}{6}"),
        ("77.\\bar{3}", "\\frac{232}{3}"),
        ("7.02e5", "702000.0"),
        ("3.3e-10", "0.00000000033"),
        ("7.02 \\times 10^{5}", "7.02 \\cdot 10^{5}"),
        ("7.02 x 10^5", "7.02 \\cdot 10^{5}"),
        ("101_2", "5"),
        ("52_{8}", "42"),
        ("53_4", "\\operatorname{subscript}(53, 4)"),
        ("10\\%", "10\\%"),
        ("62.5 \\text{ percent}", "62.5\\%"),
    ]);
}

#[test]
fn fractions_and_mixed_numbers() {
    check(&[
        ("\\frac12", "\\frac{1}{2}"),
        ("\\frac1{2}", "\\frac{1}{2}"),
        ("\\frac{1}2", "\\frac{1}{2}"),
        ("\\frac 1 2", "\\frac{1}{2}"),
        ("\\dfrac{-4}{6}", "-\\frac{2}{3}"),
        ("\\frac\\pi2", "\\frac{\\pi}{2}"),
        ("2\\frac12", "\\frac{5}{2}"),
        ("-1\\frac{1}{2}", "-\\frac{3}{2}"),
        ("2 2/3", "\\frac{8}{3}"),
        ("1 1/4", "\\frac{5}{4}"),
        ("2½", "\\frac{5}{2}"),
        ("11\\frac{1}{9} \\%", "(\\frac{100}{9})\\%"),
        ("1/2x", "\\frac{1}{2 \\cdot x}"),
        ("a/b/c", "\\frac{\\frac{a}{b}}{c}"),
        ("7:32", "\\frac{7}{32}"),
        ("1/0", "\\frac{1}{0}"),
        ("4:05", "\\operatorname{time}(4, 5)"),
    ]);
}

#[test]
fn roots_powers_and_factorials() {
    check(&[
        ("\\sqrt3", "\\sqrt{3}"),
        ("5\\sqrt[3]{4}", "5 \\cdot \\sqrt[3]{4}"),
        ("√2", "\\sqrt{2}"),
        ("∛8", "\\sqrt[3]{8}"),
        ("sqrt(2)", "\\sqrt{2}"),
        ("x^10", "x^{10}"),
        ("x**2", "x^{2}"),
        ("x²", "x^{2}"),
        ("-2^2", "-(2^{2})"),
        ("2^3^2", "2^{3^{2}}"),
        ("e^{i\\pi}", "e^{i \\cdot \\pi}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1 - \\frac{1}{e}"),
        ("2(3i+2)", "2 \\cdot (3 \\cdot i + 2)"),
        ("\\frac{n!(n-1)!}{2}", "\\frac{n! \\cdot (n - 1)!}{2}"),
        ("5!!", "5!!"),
        ("(n!)!", "(n!)!"),
        ("{n \\choose k}", "\\binom{n}{k}"),
        ("\\dbinom{4}{2}", "\\binom{4}{2}"),
    ]);
}

#[test]
fn texts_of_a_sign_or_of_less_than_words() {
    check(&[
        ("\\text{π}", "\\pi"),
        ("\\text{π\\(", "\\pi"),
        ("\\text{\\(0", "0"),
        ("\\text{^", "\\text{^}"),
        ("\\text{(C)}", "c"),
        ("\\alpha'", "\\alpha'"),
    ]);
}

#[test]
fn functions_with_and_without_brackets() {
    check(&[
        ("\\sin 30^\\circ", "\\sin(30 \\cdot \\frac{\\pi}{180})"),
        ("30^\\circ", "30"),
        ("45°", "45"),
        ("\\sin^2 x", "\\sin(x)^{2}"),
        (
            "\\tan^{-1}\\left(\\frac{1}{2}\\right)",
            "\\arctan(\\frac{1}{2})",
        ),
        ("2 \\sin b \\cos a", "2 \\cdot \\sin(b) \\cdot \\cos(a)"),
        ("\\sin \\pi/4", "\\sin(\\frac{\\pi}{4})"),
        ("\\ln 2 / 3", "\\frac{\\ln(2)}{3}"),
        ("\\log_2 8", "\\log_{2}(8)"),
        ("\\log 5", "\\log_{10}(5)"),
        ("\\ln|x|", "\\ln(\\left|x\\right|)"),
        ("||x|-1|", "\\left|\\left|x\\right| - 1\\right|"),
        ("\\exp{a*t}", "\\exp(a \\cdot t)"),
        ("\\min\\{a, b\\}", "\\min(a, b)"),
        ("\\operatorname{lcm}(a, 6)", "\\operatorname{lcm}(a, 6)"),
        ("f(x) = 2x", "f(x) = 2 \\cdot x"),
        ("n(n-1)", "n \\cdot (n - 1)"),
        ("f'(x)", "\\operatorname{f'}(x)"),
        ("\\frac{dy}{dx}", "\\operatorname{derivative}(y, x)"),
        ("\\sum_{k=1}^n k^2", "\\operatorname{sum}(k = 1, n, k^{2})"),
        ("3 \\pmod 5", "\\operatorname{mod}(3, 5)"),
        (
            "x \\equiv 2, 5 \\pmod{12}",
            "x = \\{\\operatorname{mod}(2, 12), \\operatorname{mod}(5, 12)\\}",
        ),
    ]);
}

#[test]
fn lists_sets_points_and_intervals() {
    check(&[
        ("1, 2 \\text{ and } 3", "\\{1, 2, 3\\}"),
        ("19, 46, and 82", "\\{19, 46, 82\\}"),
        ("{1,3}", "\\{1, 3\\}"),
        ("-12;-11", "\\{-12, -11\\}"),
        ("1,2;3,4", "\\{(1, 2), (3, 4)\\}"),
        ("(0;0),(1;2)", "\\{(0, 0), (1, 2)\\}"),
        ("(1,2)(3,4)", "\\{(1, 2), (3, 4)\\}"),
        ("\\emptyset", "\\emptyset"),
        ("[0,1)", "[0, 1)"),
        ("]0,1]", "(0, 1]"),
        (
            "(-\\infty, 2) ∪ (3, +\\infty)",
            "(-\\infty, 2) \\cup (3, \\infty)",
        ),
        (
            "\\mathbb{R} \\setminus \\{0\\}",
            "\\mathbb{R} \\setminus \\{0\\}",
        ),
        ("\\mathbb{R} - \\{0\\}", "\\mathbb{R} \\setminus \\{0\\}"),
        ("{x | x > 0}", "\\{x \\mid x > 0\\}"),
        ("\\{x : |x| < 1\\}", "\\{x \\mid \\left|x\\right| < 1\\}"),
        ("\\pm 1, \\pm 2", "\\{\\pm 1, \\pm 2\\}"),
        (
            "\\frac{-1 \\pm \\sqrt{13}}{4}",
            "\\frac{-1 \\pm \\sqrt{13}}{4}",
        ),
        (
            "9 \\text{ chickens and } 10 \\text{ rabbits}",
            "\\{9, 10\\}",
        ),
        ("1, 2, \\ldots, n", "\\{1, 2, \\ldots, n\\}"),
    ]);
}

#[test]
fn relations_alone_and_joined() {
    check(&[
        ("0<x\\le 1", "0 < x \\le 1"),
        ("x != 3", "x \\ne 3"),
        ("n=1, 2, 3", "n = \\{1, 2, 3\\}"),
        (
            "(x, y) = (5, 8) \\quad, \\quad (8, 5)",
            "(x, y) = \\{(5, 8), (8, 5)\\}",
        ),
        ("x = -5, x = 7", "x = -5 \\text{ or } x = 7"),
        ("x=1 \\text{ or } x=2", "x = 1 \\text{ or } x = 2"),
        ("x=1, y=2", "x = 1 \\text{ and } y = 2"),
        (
            "p=5,q=2;p=7,q=2",
            "(p = 5 \\text{ and } q = 2) \\text{ or } (p = 7 \\text{ and } q = 2)",
        ),
        (
            "x=1,y=2 \\text{ or } x=2,y=1",
            "(x = 1 \\text{ and } y = 2) \\text{ or } (x = 2 \\text{ and } y = 1)",
        ),
        ("x<-1 or x>1", "x < -1 \\text{ or } x > 1"),
        ("1 = \\zzz = x = 0", "0"),
        (
            "{W(n) = 1 \\\\text{ and } W(n) = -1",
            "\\operatorname{w}(n) = 1 \\text{ or } \\operatorname{w}(n) = -1",
        ),
        ("x \\neq 0, 1", "x \\ne \\{0, 1\\}"),
        ("a|b", "\\operatorname{divides}(a, b)"),
        ("S_{MBCN}:S=7:32", "\\frac{s_{mbcn}}{s} = \\frac{7}{32}"),
        ("x_{1}=3,\\quadx_{2}=4", "x_{1} = 3 \\text{ and } x_{2} = 4"),
        (
            "\\begin{cases} x=1 \\\\ y=2 \\end{cases}",
            "x = 1 \\text{ and } y = 2",
        ),
        (
            "\\begin{aligned} x&=1\\\\ y&=2 \\end{aligned}",
            "x = 1 \\text{ and } y = 2",
        ),
    ]);
}

#[test]
fn matrices() {
    check(&[
        (
            "\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}",
            "\\begin{pmatrix} \\frac{1}{5} \\\\ -\\frac{18}{5} \\end{pmatrix}",
        ),
        (
            "\\left(\\begin{array}{cc} 1 & 2 \\\\ 3 & 4\\\\ \\end{array}\\right)",
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        ),
        (
            "\\begin{bmatrix} 1 & 2 \\end{bmatrix}^T",
            "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        ),
        (
            "\\begin{vmatrix} a & b \\\\ c & d \\end{vmatrix}",
            "a \\cdot d - (b \\cdot c)",
        ),
    ]);
}

#[test]
fn units_and_words() {
    check(&[
        ("5 \\text{ cm}^2", "5"),
        ("3200 \\mathrm{~cm}^{3}", "3200"),
        ("5\\,\\mathrm{m}/\\mathrm{s}^{2}", "5"),
        ("864 \\mbox{ inches}^2", "864"),
        ("18 minutes", "18"),
        ("12 m", "12"),
        ("12 n", "12 \\cdot n"),
        ("12 m + 1", "12 \\cdot m + 1"),
        ("\\$1,251", "1251"),
        ("5^{\\text{th}}", "5"),
        ("9\\text{ a.m.}", "9"),
        ("\\text{15}", "15"),
        ("\\textbf{(A)}", "a"),
        ("\\mbox{11\\sqrt2}", "11 \\cdot \\sqrt{2}"),
        (
            "\\text{\\begin{pmatrix} 1 & 2 \\end{pmatrix}}",
            "\\begin{pmatrix} 1 & 2 \\end{pmatrix}",
        ),
        ("-5\\%", "(-5)\\%"),
        ("\\text{A, B}", "\\{a, b\\}"),
        ("\\text{A\\!,B}", "\\{a, b\\}"),
        ("\\text{Evelyn}", "\\text{evelyn}"),
        ("Yes", "\\text{yes}"),
        (
            "The midpoints form a regular hexagon",
            "\\text{themidpointsformaregularhexagon}",
        ),
        ("E", "E"),
        ("I and II", "\\{I, I \\cdot I\\}"),
        ("\\boxed{42}", "42"),
        ("$90^{\\circ}$,$60^{\\circ}$", "\\{90, 60\\}"),
        ("**4**", "4"),
    ]);
}

#[test]
fn of_a_chain_the_last_side_is_kept_where_asked() {
    let repairs = Repairs {
        equations: true,
        ..ALL
    };
    let last = |text| {
        parse(text, Syntax::Latex, repairs, &mut Fuel::new(10_000)).map(|expr| expr.to_string())
    };
    assert_eq!(last("x = 1 + 1 = 2"), Ok("2".into()));
    assert_eq!(last("x = 2"), Ok("x = 2".into()));
    assert_eq!(
        last("x = 2 \\text{ or } x = 4"),
        Ok("x = 2 \\text{ or } x = 4".into())
    );
}

#[test]
fn the_papers_configuration_mends_no_operators() {
    let repairs = Repairs {
        malformed_operators: false,
        nits: false,
        ..ALL
    };
    for text in ["\\frac12", "1\\sqrt6", "\\approx 28.71"] {
        let read = parse(text, Syntax::Latex, repairs, &mut Fuel::new(10_000));
        assert!(
            matches!(read, Err(ParseError::Malformed { .. })),
            "{text}: {read:?}"
        );
    }
}

#[test]
fn typed_numbers_may_have_a_decimal_comma() {
    let plain = |text| {
        parse(text, Syntax::Plain, ALL, &mut Fuel::new(10_000))
            .unwrap()
            .to_string()
    };
    assert_eq!(plain("1000,99"), "1000.99");
    assert_eq!(plain("0,111"), "0.111");
    assert_eq!(plain("7,425,000"), "7425000");
    assert_eq!(plain("1 000"), "1000");
    assert_eq!(plain("2/3."), "\\frac{2}{3}");
    assert_eq!(plain("(1+2)*3"), "(1 + 2) \\cdot 3");
}

#[test]
fn errors_say_where() {
    let error = read("1 + \\zzz").unwrap_err();
    let ParseError::Malformed { at, message } = error else {
        panic!("{error}")
    };
    assert_eq!(
        (at, message.as_str()),
        (4, "the command \\zzz is not known")
    );
    assert_eq!(read(" . "), Err(ParseError::Empty));
    assert!(matches!(
        read("3 4"),
        Err(ParseError::Malformed { at: 2, .. })
    ));
}

/// Every answer of the JSON lines in a folder: how many parse, and which do not.
/// `ANSWERS=folder cargo test -p tina-reward answers_of_a_folder -- --ignored --nocapture`
#[test]
#[ignore = "reads the folder that ANSWERS names"]
fn answers_of_a_folder() {
    let Ok(folder) = std::env::var("ANSWERS") else {
        return;
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (mut all, mut parsed, mut kept) = (0, 0, 0);
        for answer in text.lines() {
            all += 1;
            match read(answer) {
                Ok(expr) => {
                    parsed += 1;
                    let rendered = expr.to_string();
                    let again = read(&rendered);
                    if again.as_ref() == Ok(&expr) {
                        kept += 1;
                    } else {
                        println!("ROUND {answer:?} {rendered:?} {again:?}");
                    }
                    if std::env::var("SHOW").is_ok() {
                        println!("SHOW {answer:?} -> {rendered}   {expr:?}");
                    }
                }
                Err(error) => println!("FAIL {answer:?}: {error}"),
            }
        }
        println!(
            "RATE {}: {parsed}/{all} parse, {kept} read back",
            file.display()
        );
    }
}
