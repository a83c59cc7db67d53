//! Finds in texts: what is expected was read off math-verify 0.9.0's `parse`.

use super::*;

/// What the finds of all priorities hold, in the order in which they are asked.
fn found(text: &str, kinds: &[Extraction]) -> Vec<(i32, String)> {
    let source = Source::new(text);
    priorities(kinds)
        .into_iter()
        .flat_map(|priority| {
            let finds = source.finds(kinds, priority);
            finds
                .into_iter()
                .map(move |find| (priority, told(&find.content)))
        })
        .collect()
}

fn told(content: &Content<'_>) -> String {
    let sign = |percent: bool| if percent { "%" } else { "" };
    match content {
        Content::Latex { parts, .. } => parts
            .iter()
            .map(|part| format!("{}{}", part.text, sign(part.percent)))
            .collect::<Vec<_>>()
            .join(" & "),
        Content::Number { digits, percent } => format!("{digits}{}", sign(*percent)),
        Content::Plain(text) => (*text).to_owned(),
        Content::Letter { compared, .. } => compared.clone(),
    }
}

fn latex(boxed_priority: Option<i32>, anywhere: bool) -> Vec<Extraction> {
    vec![Extraction::Latex(LatexExtraction {
        anywhere,
        boxed_priority,
        ..LatexExtraction::reference()
    })]
}

fn plain() -> Vec<Extraction> {
    vec![Extraction::Plain(PlainExtraction { anywhere: true })]
}

fn first(text: &str, kinds: &[Extraction]) -> Option<String> {
    found(text, kinds).into_iter().next().map(|(_, told)| told)
}

#[test]
fn the_most_explicit_words_come_first() {
    let text = "The final answer is $1$. I hope so. Final answer to it is $2$. Answer: $3$, answer $4$, $5$";
    let all = found(text, &latex(Some(0), true));
    let asked: Vec<i32> = all.iter().map(|(priority, _)| *priority).collect();
    assert!(asked.is_sorted());
    assert_eq!(all[0], (0, "1".to_owned()));
    assert_eq!(all[1], (50, "2".to_owned()));
    assert!(all.contains(&(100, "3".to_owned())));
    assert!(all.contains(&(200, "4 & 5".to_owned())));
}

#[test]
fn boxes_come_at_their_priority() {
    let text = "final answer is $1$, \\boxed{2}";
    let at = |priority| first(text, &latex(priority, true)).unwrap();
    assert_eq!(at(Some(0)), "2");
    assert_eq!(at(Some(100)), "1");
    assert_eq!(at(None), "1");
    assert_eq!(first("\\boxed{2}", &latex(None, true)), None);
}

#[test]
fn environments_are_found_by_their_delimiters() {
    let kinds = latex(None, true);
    for (text, expected) in [
        ("so $x$.", Some("x")),
        ("so $$x\ny$$.", Some("x\ny")),
        ("so \\[x\ny\\].", Some("x\ny")),
        ("so \\(x\\).", Some("x")),
        ("so [x] it", Some("x")),
        ("so -\\frac{1}{2.5} it", Some("-\\frac{1}{2.5}")),
        // Inline ends in its line; money and escaped signs are none.
        ("so $x\ny$.", None),
        ("so \\(x\ny\\).", None),
        ("it costs 5$ or 6$", None),
        ("it costs \\$5 or \\$6", None),
        ("$5\\$$", Some("5\\$")),
        ("\\\\[x\\]", None),
        ("f[x]", None),
        ("\\frac{x}{2}", None),
        ("$$", None),
        ("$$$", None),
    ] {
        assert_eq!(first(text, &kinds).as_deref(), expected, "{text}");
    }
}

#[test]
fn environments_are_joined_by_words_and_commas() {
    let kinds = latex(None, true);
    for (text, expected) in [
        ("$1$ and $2$", "1 & 2"),
        ("$1$, $2$,or \\(3\\)", "1 & 2 & 3"),
        // Behind "answer" a space may stand between comma and word; elsewhere prose has its own.
        ("answer: $1$, $2$, or \\(3\\)", "1 & 2 & 3"),
        ("$1$, $2$, or \\(3\\)", "3"),
        ("$1$,$2$,$3$,$4$,$5$,$6$,$7$", "7"),
        ("$1$ \\% and $2$ percent", "1% & 2%"),
        ("$1$ then $2$", "2"),
    ] {
        assert_eq!(first(text, &kinds).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn boxes_belong_together_by_distance_and_separator() {
    let kinds = latex(Some(0), false);
    for (text, expected) in [
        ("\\boxed{1} \\boxed{2}", "1,2"),
        ("\\boxed{1}, but that was wrong. It is \\boxed{2}", "1,2"),
        ("\\boxed{1} but that was wrong. It is \\boxed{2}", "2"),
        (
            "\\boxed{1}, but that was wrong. It is again \\boxed{1}",
            "1",
        ),
        ("$\\boxed{1}$ but that was wrong. It is $\\boxed{2}$", "2"),
        ("$\\boxed{1}$, $\\boxed{2}$ \\%", "1 & 2%"),
        ("\\boxed{\\frac{1}{2}} in {1}", "\\frac{1}{2}"),
        ("\\boxed{1} \\fbox{2} \\boxed{3}", "1,2,3"),
        ("\\boxed {1} \\fbox{2} \\boxed{3}", "3"),
        ("\\boxed{1} {\\boxed{2", "1"),
    ] {
        assert_eq!(first(text, &kinds).as_deref(), Some(expected), "{text}");
    }
    let whole = [Extraction::Latex(LatexExtraction {
        boxed: BoxedContent::Whole,
        ..LatexExtraction::reference()
    })];
    assert_eq!(first("$\\boxed{1}$", &whole).as_deref(), Some("\\boxed{1}"));
}

#[test]
fn numbers_are_found_as_they_are_typed() {
    for (text, expected) in [
        ("there are 1,234 of them", "1234"),
        ("there are 1 234.5 of them", "1234.5"),
        ("there are 1,23 of them", "1.23"),
        ("it is -.5", ""),
        ("it is .5", "0.5"),
        ("it is -007", "-7"),
        ("it costs $5m", "5"),
        ("it costs €5", "5"),
        ("x=5", "5"),
        ("5 percent", "5%"),
        // Taken for a product first; as that does not parse, for the number.
        ("it is **5**", "5**"),
        ("X5Y", ""),
        ("it is 3/4.", "3/4."),
        ("it is (1+2)*3, no more", "(1+2)*3"),
        ("2^10", "2^10"),
        ("answer: 12 = 3 * 4", "3 * 4"),
        ("answer: x = 5, y = 6", "6"),
    ] {
        assert_eq!(
            first(text, &plain()).unwrap_or_default(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn letters_stand_alone() {
    let kinds = [Extraction::Letters(LetterExtraction {
        letters: ["A", "B", "C", "D"].map(str::to_owned).to_vec(),
        anywhere: true,
        lowercase: true,
    })];
    for (text, expected) in [
        ("The answer is C.", Some("c")),
        ("Answer: **B**", Some("b")),
        ("Final answer is D", Some("d")),
        ("A. For B can not be", Some("a")),
        ("For B can not be", Some("b")),
        ("CAB and BAD", None),
        ("the answer is c", None),
    ] {
        assert_eq!(first(text, &kinds).as_deref(), expected, "{text}");
    }
}
