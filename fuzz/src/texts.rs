//! Configs, problems, templates, and what a policy answers.

use std::{path::Path, sync::Arc};

use ::parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use tina_coordinator::{
    config::{BadRows, RunConfig},
    data::{Filter, PromptTemplate, RowFormat, Source, read_problems},
};
use tina_model::{ChatMessage, ChatTemplate};
use tina_reward::math::{MathConfig, Verifier};

use crate::file;

/// A run's config, and one `--set` of the command line: what stands behind the last NUL.
pub mod config {
    use super::*;

    fn parse(text: &str, sets: &[String]) -> Option<RunConfig> {
        RunConfig::parse(text, "run.toml", Path::new("/nowhere"), sets).ok()
    }

    /// Reads it; what is taken is written alike.
    pub fn run(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let (text, set) = match text.rsplit_once('\0') {
            Some((text, set)) => (text, vec![set.to_owned()]),
            None => (text, Vec::new()),
        };
        if let Some(config) = parse(text, &set) {
            let written = config.to_toml();
            assert_eq!(parse(&written, &[]), Some(config), "{written}");
        }
    }

    /// The configs that come with the project, and one with a mixture of sources.
    pub fn seeds() -> Vec<Vec<u8>> {
        let quickstart = include_str!("../../deploy/quickstart.toml");
        let mixture = "
[run]
name = \"a\"
[model]
source = \"hf:a/b@main\"
[data]
held_out = 10
bad_rows = \"skip\"
prompt_template = \"{question} {extra.a}\"
filter = [\"level >= 3\"]
[[data.sources]]
source = \"x-{0..3}.jsonl\"
weight = 0.5
[[data.sources]]
source = \"hf:a/b:c.parquet\"
weight = 1
limit = 10
[[reward]]
kind = \"accuracy\"
weight = 2.0
[[reward]]
kind = \"tag_count\"
weight = 0.5
[rollout]
workers = [{ device = \"cpu\", slots = 4 }]
";
        let set = format!("{quickstart}\0learner.lr=1e-5");
        let reward = format!("{quickstart}\0reward=[{{ kind = \"accuracy\" }}]");
        [quickstart, mixture, &set, &reward]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
    }
}

/// How rows become problems: a template with a path into them, and a filter.
fn problems(path: &Path) {
    let Ok(source) = path.display().to_string().parse::<Source>() else {
        return;
    };
    let template = PromptTemplate::parse("{question}: {extra.a.0}").expect("a template");
    let formats = [
        RowFormat {
            filter: vec![Filter::parse("level >= 2").expect("a filter")],
            keep: vec!["extra".to_owned()],
            ..RowFormat::new("question", "extra.answer", template)
        },
        RowFormat::new(
            "question",
            "answer",
            PromptTemplate::parse("{question}").expect("a template"),
        ),
    ];
    for format in formats {
        let _ = read_problems(&source, &format, BadRows::Skip);
    }
}

/// A file of problems, one JSON object a line.
pub mod json_lines {
    use super::*;

    /// Reads problems from it.
    pub fn run(bytes: &[u8]) {
        problems(&file("problems.jsonl", bytes));
    }

    /// Plain rows, nested ones, and JSON inside of texts.
    pub fn seeds() -> Vec<Vec<u8>> {
        let plain = r#"{"id": "x", "question": "1 + 1?", "answer": "2"}
{"question": "2 + 2?", "answer": 4, "level": 3}

{"question": "π?", "answer": "3.14", "level": null}
"#;
        let nested = r#"{"question": "a", "extra": {"answer": "1", "a": ["x", {"b": 2}]}, "level": 2}
{"question": "b", "extra": "{\"answer\": \"[1]\", \"a\": [1.5e3]}", "level": "5"}
"#;
        [plain, nested]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
    }
}

/// A Parquet file of problems.
pub mod parquet {
    use super::*;

    /// Reads problems from it.
    pub fn run(bytes: &[u8]) {
        problems(&file("problems.parquet", bytes));
    }

    /// Two row groups, by each compression.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
        ]
        .map(seed)
        .to_vec()
    }

    /// Values, definition levels, repetition levels.
    type Column<'a> = (&'a [&'a str], &'a [i16], Option<&'a [i16]>);

    fn seed(compression: Compression) -> Vec<u8> {
        const SCHEMA: &str = "message schema {
            OPTIONAL BYTE_ARRAY question (UTF8);
            OPTIONAL BYTE_ARRAY answer (UTF8);
            OPTIONAL INT64 level;
            OPTIONAL group extra { OPTIONAL BYTE_ARRAY answer (UTF8); }
            OPTIONAL group choices (LIST) { REPEATED group list { OPTIONAL BYTE_ARRAY element (UTF8); } }
        }";
        let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .build();
        let mut writer =
            SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("a writer");
        for number in 0..2 {
            let mut group = writer.next_row_group().expect("a group");
            let (question, answer) = (format!("{number} + 1?"), (number + 1).to_string());
            let columns: [Column<'_>; 4] = [
                (&[&question, "π?"], &[1, 0, 1], None),
                (&[&answer, "3.14"], &[1, 0, 1], None),
                (&[&answer, "3.14"], &[2, 0, 2], None),
                (&["a", "b", "c"], &[3, 3, 0, 3], Some(&[0, 1, 0, 0])),
            ];
            for (at, (values, levels, repeat)) in columns.into_iter().enumerate() {
                if at == 2 {
                    let mut column = group.next_column().expect("a column").expect("one more");
                    let numbers = column.typed::<Int64Type>();
                    numbers
                        .write_batch(&[number, 3], Some(&[1, 0, 1]), None)
                        .expect("written");
                    column.close().expect("closed");
                }
                let mut column = group.next_column().expect("a column").expect("one more");
                let values: Vec<ByteArray> =
                    values.iter().map(|text| ByteArray::from(*text)).collect();
                let typed = column.typed::<ByteArrayType>();
                typed
                    .write_batch(&values, Some(levels), repeat)
                    .expect("written");
                column.close().expect("closed");
            }
            group.close().expect("closed");
        }
        writer.into_inner().expect("written")
    }
}

/// A chat template.
pub mod chat_template {
    use super::*;

    /// Compiles it and renders two conversations.
    pub fn run(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let special = [("bos_token".to_owned(), "<s>".to_owned())];
        let Ok(template) = ChatTemplate::new(text, &special) else {
            return;
        };
        let template = template.at(1_700_000_000);
        let message = |role: &str, content: &str| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let asked = [message("system", "Think."), message("user", "1 + 1?")];
        let _ = template.render(&asked, true);
        let _ = template.render(&[message("assistant", "{{ 2 }}\n")], false);
    }

    /// What templates of models do.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n\
             {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "{{- bos_token }}{%- if messages[0].role == 'system' %}{% set s = messages[0].content %}\
             {% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}{{ s.strip() }}\
             {{ strftime_now('%d %b %Y') }}{{ messages | tojson(indent=2) }}",
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
             {% if m.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('role') }}\
             {% endif %}{% generation %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}\
             {% endgeneration %}{% endfor %}{{ ns.n }}{{ range(3) | list | length }}",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

/// An answer, and its gold in the first line.
pub mod verify {
    use super::*;

    /// Any two texts get a verdict, under both configurations.
    pub fn run(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let (gold, completion) = text.split_once('\n').unwrap_or((text, text));
        for config in [MathConfig::reference(), MathConfig::tina()] {
            let verifier = Verifier::new(config);
            verifier.verify(gold, completion);
            // The whole of it inside of a box reaches the parser more often.
            verifier.verify(&format!("${gold}$"), &format!("\\boxed{{{completion}}}"));
        }
    }

    /// Answers of several kinds.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            "\\frac{1}{2}\nso the answer is $\\boxed{0.5}$",
            "$x^2+2x+1$\n$(x+1)^2$",
            "\\{1, 2, 3\\}\n\\left\\{3, 2, 1\\right\\}",
            "[1, \\infty)\nx \\geq 1",
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}\n\\boxed{\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}}",
            "2^{10}!\n\\sqrt[3]{27} + \\binom{5}{2} \\mod 7",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}
