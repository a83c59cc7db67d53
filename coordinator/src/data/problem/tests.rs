use super::*;

fn read_text(text: &str, format: &RowFormat, bad_rows: BadRows) -> Result<SourceProblems, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, text).expect("written");
    let source: Source = path.display().to_string().parse().expect("a source");
    read_problems(&source, format, bad_rows).map_err(|error| error.to_string())
}

fn format(template: &str) -> RowFormat {
    let template = PromptTemplate::parse(template).expect("a template");
    RowFormat::new("problem", "answer", template)
}

fn read(text: &str, template: &str) -> Result<Vec<Problem>, String> {
    read_text(text, &format(template), BadRows::Fail).map(|read| read.problems)
}

#[test]
fn rows_become_problems() {
    let text = "{\"problem\": \"1 + 1?\", \"answer\": 2, \"unit\": \"m\"}\n\n\
                {\"id\": \"b\", \"problem\": \"x?\", \"answer\": \"y\", \"unit\": \"s\"}\r\n";
    let problems = read(text, "In {unit}: {question}").expect("rows");
    assert_eq!(problems.len(), 2);
    assert_eq!(problems[0].id, "1");
    assert_eq!(problems[0].answer, "2");
    assert_eq!(problems[0].prompt, "In m: 1 + 1?");
    assert_eq!(problems[1].id, "b");
    assert_eq!(problems[1].prompt, "In s: x?");
    assert!(problems[1].extra.is_empty());
}

#[test]
fn nested_fields_are_found_and_others_kept_on_request() {
    let text = r#"{"q": {"text": "1 + 1?"}, "a": ["2", "two"], "choices": ["1", "2"], "x": 1}"#;
    let mut format = format("{question} {choices.0} or {choices.1}");
    format.question_field = "q.text".to_owned();
    format.answer_field = "a.0".to_owned();
    format.keep = vec!["choices".to_owned(), "a.1".to_owned(), "absent".to_owned()];
    let read = read_text(text, &format, BadRows::Fail).expect("rows");
    let problem = &read.problems[0];
    assert_eq!(problem.prompt, "1 + 1? 1 or 2");
    assert_eq!(problem.answer, "2");
    let extra = serde_json::to_string(&problem.extra).expect("text");
    assert_eq!(extra, r#"{"choices":["1","2"],"a.1":"two"}"#);
}

/// As the paper's II-Thought has them: JSON inside of a text.
#[test]
fn the_gold_answer_has_a_template_and_is_found_inside_json_text() {
    let text = r#"{"messages": [{"content": "1/2 of 1?"}],
        "info": "{\"answer\": {\"value\": \"\\\\frac{1}{2}\"}}", "unit": "m"}"#;
    let mut format = format("{question}");
    format.question_field = "messages.0.content".to_owned();
    format.answer_field = "info.answer.value".to_owned();
    let template = PromptTemplate::parse("${answer}$ {unit}").expect("a template");
    format.answer_template = template;
    let text = text.replace('\n', " ");
    let read = read_text(&text, &format, BadRows::Fail).expect("rows");
    assert_eq!(read.problems[0].prompt, "1/2 of 1?");
    assert_eq!(read.problems[0].answer, r"$\frac{1}{2}$ m");
}

#[test]
fn a_bad_row_is_named_with_its_line_and_what_to_do() {
    let good = "{\"problem\": \"1 + 1?\", \"answer\": 2}\n";
    for (row, words) in [
        ("{\"problem\": 1", vec!["p.jsonl:2:", "not a JSON object"]),
        ("[1]", vec!["p.jsonl:2:", "one object a line"]),
        (
            "{\"question\": 1}",
            vec!["p.jsonl:2:", "\"problem\"", "data.question_field"],
        ),
        (
            "{\"problem\": \"x\"}",
            vec!["p.jsonl:2:", "\"answer\"", "data.answer_field"],
        ),
        (
            "{\"problem\": \"x\", \"answer\": null}",
            vec!["p.jsonl:2:", "it is null"],
        ),
        (
            "{\"problem\": \" \", \"answer\": 1}",
            vec!["p.jsonl:2:", "not empty"],
        ),
    ] {
        let error = read(&format!("{good}{row}"), "{question}").expect_err(row);
        for word in words {
            assert!(error.contains(word), "{row}: {error}");
        }
    }
    let error = read(good, "{unit} {question}").expect_err("no such field");
    assert!(
        error.contains("\"unit\"") && error.contains("data.prompt_template"),
        "{error}"
    );
    let error = read("\n", "{question}").expect_err("empty");
    assert!(error.contains("no problems"), "{error}");
}

#[test]
fn bad_rows_are_counted_shown_and_skipped_on_request() {
    let good = "{\"problem\": \"1 + 1?\", \"answer\": 2}\n";
    let text = format!("{good}{}{good}", "x\n".repeat(7));
    let error = read_text(&text, &format("{question}"), BadRows::Fail).expect_err("bad rows");
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 7, "{error}");
    assert!(lines[0].contains("p.jsonl:2:") && lines[4].contains("p.jsonl:6:"));
    assert_eq!(lines[5], "... and 2 bad rows more");
    assert!(lines[6].contains("data.bad_rows = \"skip\""));

    let read = read_text(&text, &format("{question}"), BadRows::Skip).expect("good rows");
    assert_eq!((read.rows, read.bad, read.problems.len()), (9, 7, 2));
    let lines: Vec<usize> = read.first_bad.iter().map(|row| row.line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6]);

    let error = read_text("x\ny\n", &format("{question}"), BadRows::Skip).expect_err("none good");
    assert!(
        error.contains("all its 2 rows are bad") && error.contains("p.jsonl:1:"),
        "{error}"
    );
}

#[test]
fn filters_and_kinds_of_answers_leave_rows_out() {
    let text: String = (1..=6)
        .map(|n| {
            let answer = if n % 2 == 0 {
                n.to_string()
            } else {
                "x".repeat(n)
            };
            format!("{{\"problem\": \"{n}?\", \"answer\": \"{answer}\", \"level\": {n}}}\n")
        })
        .collect();
    let mut format = format("{question}");
    format.filter = vec![Filter::parse("level <= 5").expect("a filter")];
    format.answers = Answers::Number;
    let read = read_text(&text, &format, BadRows::Fail).expect("rows");
    let questions: Vec<&str> = read.problems.iter().map(|p| p.question.as_str()).collect();
    assert_eq!(questions, ["2?", "4?"]);
    assert_eq!((read.filtered, read.unfit_answer), (1, 3));

    format.filter = vec![Filter::parse("levl <= 5").expect("a filter")];
    let error = read_text(&text, &format, BadRows::Fail).expect_err("no such field");
    assert!(
        error.contains("\"levl\"") && error.contains("problem, answer, level"),
        "{error}"
    );
}

#[test]
fn files_of_a_range_are_read_in_order_and_their_rows_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    for number in 8..=10 {
        let row = format!("{{\"problem\": \"{number}?\", \"answer\": {number}}}\n");
        std::fs::write(folder.path().join(format!("p-{number:02}.jsonl")), row).expect("written");
    }
    let pattern = folder.path().join("p-{08..10}.jsonl");
    let source: Source = pattern.display().to_string().parse().expect("a source");
    let read = read_problems(&source, &format("{question}"), BadRows::Fail).expect("rows");
    let ids: Vec<&str> = read
        .problems
        .iter()
        .map(|problem| problem.id.as_str())
        .collect();
    assert_eq!(ids, ["p-08:1", "p-09:1", "p-10:1"]);
    assert_eq!(read.problems[2].question, "10?");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let source: Source = "/nowhere/p.jsonl".parse().expect("a source");
    let error = read_problems(&source, &format("{question}"), BadRows::Skip).expect_err("no file");
    assert!(error.to_string().starts_with("/nowhere/p.jsonl"), "{error}");
}

#[test]
fn the_kind_of_an_answer_is_what_the_rewards_can_do_with_it() {
    for (answer, kind) in [
        ("1,234.5", AnswerKind::Number),
        ("\\frac{1}{2}", AnswerKind::Number),
        ("$\\frac{\\sqrt{3}}{2}$", AnswerKind::Math),
        ("$(0, \\infty)$", AnswerKind::Math),
        ("no such number exists", AnswerKind::Text),
    ] {
        assert_eq!(AnswerKind::of(answer), kind, "{answer}");
    }
    assert!(fits("$x^2$", Answers::Parseable) && fits("7", Answers::Parseable));
    assert!(!fits("none", Answers::Parseable) && !fits("$x^2$", Answers::Number));
    assert!(fits("none", Answers::Any));
}

#[test]
fn a_gold_answer_may_be_made_of_the_row() {
    let text = "{\"problem\": \"x?\", \"answer\": \"\\\\pi\", \"unit\": \"cm\"}\n";
    let mut format = format("{question} (answer: {answer})");
    let template = |text: &str| PromptTemplate::parse(text).expect("a template");
    format.answer_template = template("${answer}$ {unit}");
    let read = read_text(text, &format, BadRows::Fail).expect("rows");
    let problem = &read.problems[0];
    assert_eq!(problem.answer, "$\\pi$ cm");
    assert_eq!(problem.prompt, "x? (answer: \\pi)");
    // Bare LaTeX is not understood, with delimiters it is.
    format.answers = Answers::Parseable;
    format.answer_template = template("{answer}");
    let read = read_text(text, &format, BadRows::Fail).expect("rows");
    assert_eq!(read.unfit_answer, 1);
    format.answer_template = template("${answer}$");
    let read = read_text(text, &format, BadRows::Fail).expect("rows");
    assert_eq!(read.problems.len(), 1);
    format.answer_template = template("{nothing}");
    let error = read_text(text, &format, BadRows::Fail).expect_err("no field");
    assert!(error.contains("data.answer_template"), "{error}");
}
