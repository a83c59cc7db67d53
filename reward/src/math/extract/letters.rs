//! Letters of a multiple choice.

use super::{
    ANSWER, ANYWHERE, COLON, Content, FINAL, Find, HOPE, LetterExtraction, START,
    text::{Text, each, is_space},
};

pub(super) fn finds<'t>(
    text: &Text<'t>,
    config: &LetterExtraction,
    priority: i32,
    finds: &mut Vec<Find<'t>>,
) {
    let letter = |at: usize| {
        config
            .letters
            .iter()
            .find(|letter| text.starts_with(at, letter))
            .map(|letter| at + letter.len())
    };
    // A letter at `at` and the `**` and stop behind it: (end of all, (start, end) of the letter).
    let closed = |at: usize| {
        let end = letter(at)?;
        let bold = if text.starts_with(end, "**") {
            end + 2
        } else {
            end
        };
        let after = [bold, end]
            .into_iter()
            .find_map(|end| match text.char(end) {
                Some(char) if matches!(char, '.' | ',' | ':') || is_space(char) => {
                    Some(end + char.len_utf8())
                }
                _ => text.is_end(end).then_some(end),
            })?;
        Some((after, (at, end)))
    };
    let bold = |at: usize| {
        let start = if text.starts_with(at, "**") {
            at + 2
        } else {
            at
        };
        closed(start)
    };
    // The same behind whitespace or at the text's start.
    let standing = |at: usize| match text.space(at) {
        Some(width) => bold(at + width),
        None if at == 0 => bold(at),
        None => None,
    };
    let lowercase = config.lowercase;
    let mut take = |start, end, (from, to): (usize, usize)| {
        let written: &'t str = text.str.get(from..to).unwrap_or_default();
        finds.push(Find {
            start,
            end,
            content: Content::Letter {
                written,
                compared: if lowercase {
                    written.to_lowercase()
                } else {
                    written.to_owned()
                },
            },
        });
    };
    match priority {
        HOPE => each(
            text.final_answers_are(),
            |at| {
                let at = text.skip_space(at);
                let end = letter(at)?;
                Some((text.hope(end)?, (at, end)))
            },
            &mut take,
        ),
        FINAL => each(
            text.final_answers(),
            |at| {
                text.behind_is(at, false).find_map(|at| {
                    let at = text.skip_space(at);
                    let end = letter(at)?;
                    Some((end, (at, end)))
                })
            },
            &mut take,
        ),
        COLON => each(
            text.answer_colons(),
            |at| text.places(at, 50, false).find_map(standing),
            &mut take,
        ),
        ANSWER => each(
            text.answers(),
            |at| text.places(at, 50, false).find_map(standing),
            &mut take,
        ),
        START if config.anywhere => each([(0, 0)].into_iter(), bold, &mut take),
        ANYWHERE if config.anywhere => each(
            text.str
                .char_indices()
                .filter(|&(at, char)| at == 0 || is_space(char))
                .map(|(at, _)| (at, at)),
            standing,
            &mut take,
        ),
        _ => {}
    }
}
