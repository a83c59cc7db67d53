//! Built-in arithmetic problems: `arithmetic:TASK`. A task is the list of all its distinct
//! problems, so that what is held out and what is trained on can't overlap.

use super::{DataError, Problem};

/// Names of the tasks.
pub const TASKS: [&str; 6] = ["add1", "add2", "addmix", "sub2", "mul21", "add3"];

/// Every distinct problem of a task, in a fixed order: `What is 7 + 5?`, answer `12`.
///
/// - `add1`: two one-digit numbers. `add2`: two two-digit numbers.
/// - `addmix`: a number from 1 to 30 and a one-digit number.
/// - `sub2`: two two-digit numbers, the larger first. `mul21`: a two-digit and a one-digit number.
/// - `add3`: three numbers from 1 to 20.
///
/// # Errors
/// An unknown task; the error names them all.
pub fn problems(task: &str) -> Result<Vec<Problem>, DataError> {
    let pairs = |first: std::ops::RangeInclusive<i64>, second: std::ops::RangeInclusive<i64>| {
        first.flat_map(move |a| second.clone().map(move |b| (a, b)))
    };
    let sum = |(a, b): (i64, i64)| problem(&format!("{a} + {b}"), a + b);
    Ok(match task {
        "add1" => pairs(1..=9, 1..=9).map(sum).collect(),
        "add2" => pairs(10..=99, 10..=99).map(sum).collect(),
        "addmix" => pairs(1..=30, 1..=9).map(sum).collect(),
        "sub2" => pairs(10..=99, 10..=99)
            .filter(|(a, b)| a >= b)
            .map(|(a, b)| problem(&format!("{a} - {b}"), a - b))
            .collect(),
        "mul21" => pairs(10..=99, 2..=9)
            .map(|(a, b)| problem(&format!("{a} * {b}"), a * b))
            .collect(),
        "add3" => pairs(1..=20, 1..=20)
            .flat_map(|(a, b)| {
                (1..=20).map(move |c| problem(&format!("{a} + {b} + {c}"), a + b + c))
            })
            .collect(),
        _ => {
            return Err(DataError::UnknownTask {
                task: task.to_owned(),
            });
        }
    })
}

fn problem(expression: &str, answer: i64) -> Problem {
    let question = format!("What is {expression}?");
    Problem {
        id: expression.replace(' ', ""),
        prompt: question.clone(),
        question,
        answer: answer.to_string(),
        extra: serde_json::Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_problem_is_distinct_and_its_answer_right() {
        let sizes = [81, 8100, 270, 4095, 720, 8000];
        for (task, size) in TASKS.into_iter().zip(sizes) {
            let problems = problems(task).expect(task);
            assert_eq!(problems.len(), size, "{task}");
            let questions: HashSet<_> = problems.iter().map(|p| &p.question).collect();
            assert_eq!(questions.len(), size, "{task}");
            for problem in &problems {
                let words: Vec<&str> = problem.question.trim_end_matches('?').split(' ').collect();
                let mut value: i64 = words[2].parse().expect("a number");
                for pair in words[3..].chunks(2) {
                    let operand: i64 = pair[1].parse().expect("a number");
                    match pair[0] {
                        "+" => value += operand,
                        "-" => value -= operand,
                        _ => value *= operand,
                    }
                }
                assert_eq!(value.to_string(), problem.answer, "{}", problem.question);
                assert!(value >= 0, "{}", problem.question);
            }
        }
    }

    #[test]
    fn an_unknown_task_names_the_known() {
        let error = problems("addmax").expect_err("unknown").to_string();
        assert!(
            error.contains("addmax") && error.contains("addmix"),
            "{error}"
        );
    }
}
