//! Chat templates: messages to the text a model was trained to continue.
//!
//! Templates are Jinja as `transformers` renders it: blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, and a `tojson` that writes as Python does.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use regex::Regex;

use crate::error::{ModelError, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// Instructions that one rendering may take; templates take some tens per message.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat template";

impl ChatTemplate {
    /// Compiles a template; `special_tokens` are the names it may use, such as `bos_token`, with
    /// their texts. `strftime_now` tells the time of this call, so that one template renders the
    /// same messages the same way for as long as it lives; see [`ChatTemplate::at`].
    ///
    /// # Errors
    /// When the template is not valid; the error gives the line.
    pub fn new(template: &str, special_tokens: &[(String, String)]) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_filter("tojson", to_json);
        // `{% generation %}` marks what the assistant wrote, for those who train on it.
        let template = match Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") {
            Ok(marks) => marks.replace_all(template, |found: &regex::Captures<'_>| {
                let block = if found.get(2).is_some() {
                    "endif"
                } else {
                    "if true"
                };
                format!("{{%{} {block} {}%}}", &found[1], &found[3])
            }),
            Err(error) => return Err(ModelError::Template(error.to_string())),
        };
        environment
            .add_template_owned(NAME, template.into_owned())
            .map_err(failed)?;
        #[allow(clippy::disallowed_methods, reason = "templates ask for the date")]
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Ok(Self {
            environment,
            special_tokens: special_tokens.to_vec(),
        }
        .at(now))
    }

    /// The same template at another time, in seconds since 1970, UTC: a run that is resumed on
    /// another day must render the prompts it rendered before.
    #[must_use]
    pub fn at(mut self, unix_seconds: u64) -> Self {
        self.environment
            .add_function("strftime_now", move |format: String| {
                strftime(&format, unix_seconds)
            });
        self
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the model's turn begins.
    ///
    /// # Errors
    /// When the template refuses the conversation, or takes too long.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => &message.role, content => &message.content })
            .collect();
        let tokens = self
            .special_tokens
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()));
        let values = context! {
            messages, add_generation_prompt, tools => Value::from(()), documents => Value::from(()),
            ..Value::from_pairs(tokens)
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(values).map_err(failed)
    }
}

fn failed(error: Error) -> ModelError {
    let mut message = match error.kind() {
        ErrorKind::OutOfFuel => format!("did not end within {FUEL} instructions"),
        _ => error
            .detail()
            .map_or_else(|| error.to_string(), str::to_owned),
    };
    if let Some(line) = error.line() {
        message.push_str(&format!(" (line {line} of the template)"));
    }
    ModelError::Template(message)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let mut out = String::new();
    write_json(&mut out, value, indent, 0)?;
    Ok(Value::from_safe_string(out))
}

fn write_json(
    out: &mut String,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
) -> Result<(), Error> {
    let invalid = |what: String| Error::new(ErrorKind::BadSerialization, what);
    if depth > 64 {
        return Err(invalid("tojson: nested too deeply".to_owned()));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    let quote = |text: &str| serde_json::to_string(text).map_err(|e| invalid(e.to_string()));
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool | ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quote(value.as_str().unwrap_or_default())?),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { between } else { "" });
                line(out, depth + 1);
                write_json(out, &item, indent, depth + 1)?;
            }
            if !out.ends_with('[') {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { between } else { "" });
                line(out, depth + 1);
                out.push_str(&quote(&key.to_string())?);
                out.push_str(": ");
                write_json(out, &value.get_item(&key)?, indent, depth + 1)?;
            }
            if !out.ends_with('{') {
                line(out, depth);
            }
            out.push('}');
        }
        other => return Err(invalid(format!("tojson: a value of kind {other}"))),
    }
    Ok(())
}

/// The directives of `strftime` that templates use, in UTC.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    const DAYS: [&str; 7] = [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let days = unix_seconds / 86400;
    let (hour, minute, second) = (
        unix_seconds / 3600 % 24,
        unix_seconds / 60 % 60,
        unix_seconds % 60,
    );
    // 1970-01-01 was a Thursday.
    let weekday = DAYS[((days + 3) % 7) as usize];
    let (year, month, day) = civil(days);
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        let number = |n: u64| {
            if unpadded {
                n.to_string()
            } else {
                format!("{n:02}")
            }
        };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&number(year % 100)),
            Some('m') => out.push_str(&number(month)),
            Some('d') => out.push_str(&number(day)),
            Some('e') => out.push_str(&format!("{day:>2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&number(hour)),
            Some('I') => out.push_str(&number((hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&number(minute)),
            Some('S') => out.push_str(&number(second)),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: directive `%{directive}` is not known");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970: <https://howardhinnant.github.io/date_algorithms.html>.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As DeepSeek-R1-Distill-Qwen's: a namespace, Python's split, what was thought left out.
    const R1: &str = r"{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_tool=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}";

    /// One statement a line, indented: what trimming of blocks is for.
    const BLOCKS: &str = r#"{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- "<|system|>\n" + system + "\nToday: " + strftime_now("%d %b %Y") + "\n" }}
{% for message in messages %}
    {% if message.role not in ['user', 'assistant'] %}
        {{ raise_exception('only user and assistant may speak') }}
    {% endif %}
    {% if message.role == 'assistant' %}
<|assistant|>
{% generation %}{{ message.content.strip() }}{% endgeneration %}

    {% else %}
<|{{ message.role }}|>
{{ message | tojson }} {{ message.content.split('\n') | tojson(indent=2) }}
    {% endif %}
    {%- if not loop.last %}--{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"#;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    fn conversation() -> Vec<ChatMessage> {
        vec![
            message("system", "  Be brief.  "),
            message("user", "Is \"a < b\" & 'c'?\nYes"),
            message("assistant", "<think>\nhm\n</think>\n\nYes. "),
            message("user", "é?"),
        ]
    }

    fn template(text: &str) -> ChatTemplate {
        let tokens = [("bos_token", "<BOS>"), ("eos_token", "<EOS>")];
        let tokens = tokens.map(|(name, text)| (name.to_owned(), text.to_owned()));
        // 2025-03-07 13:05:09 UTC
        ChatTemplate::new(text, &tokens).unwrap().at(1_741_352_709)
    }

    // Expected texts are what `transformers` renders.

    #[test]
    fn a_distilled_r1_template_renders_as_in_transformers() {
        let chat = template(R1);
        let all = conversation();
        assert_eq!(
            chat.render(&all, true).unwrap(),
            "<BOS>  Be brief.  <｜User｜>Is \"a < b\" & 'c'?\nYes<｜Assistant｜>\n\nYes. \
             <｜end▁of▁sentence｜><｜User｜>é?<｜Assistant｜><think>\n"
        );
        assert_eq!(
            chat.render(&[message("user", "hi")], false).unwrap(),
            "<BOS><｜User｜>hi"
        );
    }

    #[test]
    fn blocks_dates_json_and_generation_marks_render_as_in_transformers() {
        let chat = template(BLOCKS);
        assert_eq!(
            chat.render(&conversation(), true).unwrap(),
            "<BOS><|system|>\nBe brief.\nToday: 07 Mar 2025\n\n<|user|>\n{\"role\": \"user\", \
             \"content\": \"Is \\\"a < b\\\" & 'c'?\\nYes\"} [\n  \"Is \\\"a < b\\\" & 'c'?\",\n  \
             \"Yes\"\n]\n--<|assistant|>\n<think>\nhm\n</think>\n\nYes.\n--<|user|>\n{\"role\": \
             \"user\", \"content\": \"é?\"} [\n  \"é?\"\n]\n<|assistant|>\n"
        );
        assert_eq!(
            chat.render(&[message("user", "hi")], true).unwrap(),
            "<BOS><|system|>\n\nToday: 07 Mar 2025\n\n<|user|>\n{\"role\": \"user\", \
             \"content\": \"hi\"} [\n  \"hi\"\n]\n<|assistant|>\n"
        );
    }

    #[test]
    fn what_a_template_refuses_is_said_with_its_line() {
        let refused = template(BLOCKS)
            .render(&[message("tool", "4")], true)
            .unwrap_err();
        let expected = "chat template: only user and assistant may speak (line 11 of the template)";
        assert_eq!(refused.to_string(), expected);
        let broken = ChatTemplate::new("a\n{% for %}", &[])
            .unwrap_err()
            .to_string();
        assert!(broken.contains("line 2"), "{broken}");
    }

    #[test]
    fn an_endless_template_ends() {
        let text = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
        let error = template(text).render(&[], true).unwrap_err().to_string();
        assert!(error.contains("did not end within"), "{error}");
    }

    #[test]
    fn dates_are_those_of_python() {
        let cases = [
            (0, "Thu Thursday 01 Jan January 1970 00:00:00 70 12 AM"),
            (
                951_782_399,
                "Mon Monday 28 Feb February 2000 23:59:59 00 11 PM",
            ),
            (
                951_782_400,
                "Tue Tuesday 29 Feb February 2000 00:00:00 00 12 AM",
            ),
            (
                4_107_542_400,
                "Mon Monday 01 Mar March 2100 00:00:00 00 12 AM",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(
                strftime("%a %A %d %b %B %Y %H:%M:%S %y %I %p", seconds).unwrap(),
                expected
            );
        }
        assert_eq!(
            strftime("%-d.%-m. %F %T %e%%", 5).unwrap(),
            "1.1. 1970-01-01 00:00:05  1%"
        );
        assert!(strftime("%Q", 0).is_err());
    }
}
