//! The documentation of every key, made from its declaration.

use std::fmt::Write as _;

use super::RunConfig;

impl RunConfig {
    /// Every section and key in Markdown: what it takes, its default, its unit, what it does. The
    /// second half of `docs/configuration.md`; `tina check --keys` prints it.
    pub fn reference() -> String {
        let mut text = String::new();
        for (name, info) in Self::sections() {
            let header = if name == "reward" {
                "[[reward]]".to_owned()
            } else {
                format!("[{name}]")
            };
            let _ = writeln!(text, "## `{header}`\n\n{}\n", info.doc);
            text.push_str("| Key | Takes | Default | Unit | |\n|---|---|---|---|---|\n");
            for key in info.keys {
                let default = match &key.default {
                    Some(default) => format!("`{default}`"),
                    None if key.required => "required".to_owned(),
                    None => "unset".to_owned(),
                };
                let cells =
                    [&key.kind, &default, key.unit, &key.doc].map(|cell| cell.replace('|', "\\|"));
                let _ = writeln!(text, "| `{}` | {} |", key.name, cells.join(" | "));
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_key_as_it_is() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(page).expect("docs/configuration.md");
        let (_, keys) = page.split_once("\n# Keys\n\n").expect("a chapter `# Keys`");
        assert!(
            keys == RunConfig::reference(),
            "docs/configuration.md does not say what the config does; put what `tina check --keys` \
             prints under `# Keys`"
        );
    }
}
