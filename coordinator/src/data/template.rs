//! Prompt templates: text with `{field}` in it.

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTemplate {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field(String),
}

impl PromptTemplate {
    /// Parses a template; `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(template: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut chars = template.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    text.push(c);
                }
                '{' => {
                    let mut field = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) if c != '{' => field.push(c),
                            _ => return Err(format!("`{{{field}` has no closing brace")),
                        }
                    }
                    if field.trim().is_empty() {
                        return Err("`{}` names no field; write `{{}}` for braces".to_owned());
                    }
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Field(field.trim().to_owned()));
                }
                '}' => return Err("`}` without `{`; write `}}` for a brace".to_owned()),
                _ => text.push(c),
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        if !parts.iter().any(|part| matches!(part, Part::Field(_))) {
            return Err("it has no {field}: every prompt would be the same".to_owned());
        }
        Ok(Self { parts })
    }

    /// The names of the fields in it.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Field(name) => Some(name.as_str()),
        })
    }

    /// Fills the template in; `field` gives a field's text.
    ///
    /// # Errors
    /// The name of a field that is not there.
    pub fn fill(&self, field: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => Ok(text.clone()),
                Part::Field(name) => field(name).ok_or_else(|| name.clone()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> Result<String, String> {
        PromptTemplate::parse(template)?
            .fill(|name| (name == "question").then(|| "1 + {x}?".to_owned()))
    }

    #[test]
    fn fields_are_filled_in_and_braces_written_twice() {
        assert_eq!(fill("{question}"), Ok("1 + {x}?".to_owned()));
        let boxed = fill("Q: { question }\nUse \\boxed{{}}.");
        assert_eq!(boxed, Ok("Q: 1 + {x}?\nUse \\boxed{}.".to_owned()));
    }

    #[test]
    fn a_bad_template_says_why() {
        for (template, word) in [
            ("{question", "no closing brace"),
            ("{ques{tion}", "no closing brace"),
            ("question}", "without"),
            ("{} {question}", "names no field"),
            ("the same for all", "has no {field}"),
        ] {
            let error = fill(template).expect_err(template);
            assert!(error.contains(word), "{template}: {error}");
        }
        assert_eq!(fill("{answer}"), Err("answer".to_owned()));
    }
}
