//! What answers are read as.

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
            match read(&answer) {
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
