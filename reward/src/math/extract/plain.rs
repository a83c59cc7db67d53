//! Answers as typed: numbers, and sums of them.

use super::{
    ANSWER, ANYWHERE, COLON, Content, FINAL, Find, HOPE, PlainExtraction,
    text::{Text, each, is_space, percent_word},
};

/// Ends of one place that are tried before a rule gives up on it. A number has a few, a sum one for
/// each of its characters: past these no answer is lost but one in a long row of digits.
const ENDS: usize = 64;

const CURRENCIES: &str = "$€£¥₹₽₪₩₫฿₡₢₣₤₥₦₧₨₭₮₯₰₱₲₳₴₵₶₷₸₺₻₼₾₿";

pub(super) fn finds<'t>(
    text: &Text<'t>,
    config: PlainExtraction,
    priority: i32,
    finds: &mut Vec<Find<'t>>,
) {
    let mut reader = Reader { text, run: None };
    let mut take = |start, end, content| {
        finds.push(Find {
            start,
            end,
            content,
        });
    };
    match priority {
        HOPE => each(
            text.final_answers_are(),
            |at| reader.behind_space(at, Follow::Hope),
            &mut take,
        ),
        FINAL => each(
            text.final_answers(),
            |at| {
                text.behind_is(at, false)
                    .find_map(|at| reader.answer(at, Follow::Anything))
            },
            &mut take,
        ),
        COLON => each(text.answer_colons(), |at| reader.behind(at), &mut take),
        ANSWER => each(text.answers(), |at| reader.behind(at), &mut take),
        ANYWHERE if config.anywhere => {
            each(
                candidates(text),
                |at| reader.sum(reader.prefix(at)?, Follow::Anything),
                &mut take,
            );
            each(
                candidates(text),
                |at| reader.number(reader.prefix(at)?, Follow::Anything),
                &mut take,
            );
        }
        _ => {}
    }
}

/// The text's start, whitespace and `=`: an answer follows these alone.
fn candidates(text: &Text<'_>) -> impl Iterator<Item = (usize, usize)> {
    text.str
        .char_indices()
        .filter(|&(at, char)| at == 0 || char == '=' || is_space(char))
        .map(|(at, _)| (at, at))
}

/// What must come after an answer.
#[derive(Clone, Copy, Debug)]
enum Follow {
    Anything,
    /// No `=`: the answer is what is behind it.
    NotEquals,
    /// `I hope`.
    Hope,
}

type Found<'t> = (usize, Content<'t>);

#[derive(Debug)]
struct Reader<'a, 't> {
    text: &'a Text<'t>,
    run: Option<Run>,
}

/// Characters of sums in a row.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    end: usize,
    /// The last place where a sum may end.
    last: Option<usize>,
    /// The last operator with a character between it and that.
    operator: Option<usize>,
}

impl<'t> Reader<'_, 't> {
    /// Behind "answer": after the last `=` within 100 characters of the line, or else the first
    /// within 50.
    fn behind(&mut self, at: usize) -> Option<Found<'t>> {
        let equals: Vec<usize> = self
            .text
            .places(at, 100, false)
            .filter(|&at| self.text.byte(at) == Some(b'='))
            .collect();
        equals
            .into_iter()
            .rev()
            .find_map(|at| self.behind_space(at + 1, Follow::NotEquals))
            .or_else(|| {
                let text = self.text;
                text.places(at, 50, false)
                    .find_map(|at| self.answer(at, Follow::NotEquals))
            })
    }

    /// Behind any whitespace, whose last character is the answer's own.
    fn behind_space(&mut self, at: usize, follow: Follow) -> Option<Found<'t>> {
        let end = self.text.skip_space(at);
        self.answer(end, follow)
            .or_else(|| self.answer(self.text.space_before(end, at)?, follow))
    }

    /// A sum or a number with what must stand before it.
    fn answer(&mut self, at: usize, follow: Follow) -> Option<Found<'t>> {
        let first = self.prefix(at)?;
        self.sum(first, follow)
            .or_else(|| self.number(first, follow))
    }

    /// Past the whitespace or `=` (or nothing at the text's start) and `**`.
    fn prefix(&self, at: usize) -> Option<usize> {
        let after = match self.text.byte(at)? {
            b'=' => at + 1,
            _ => match self.text.space(at) {
                Some(width) => at + width,
                None if at == 0 => at,
                None => return None,
            },
        };
        Some(self.stars(after).unwrap_or(after))
    }

    fn stars(&self, at: usize) -> Option<usize> {
        self.text.starts_with(at, "**").then_some(at + 2)
    }

    /// Whether what must follow does, and where it ends.
    fn follows(&self, at: usize, follow: Follow) -> Option<usize> {
        match follow {
            Follow::Anything => Some(at),
            Follow::NotEquals => {
                (self.text.byte(self.text.skip_space(at)) != Some(b'=')).then_some(at)
            }
            Follow::Hope => self.text.hope(at),
        }
    }

    /// `-?\(?-?\d`, then digits, operators, brackets, dots and whitespace with an operator among
    /// them; as long as what ends it allows.
    fn sum(&mut self, start: usize, follow: Follow) -> Option<Found<'t>> {
        let text = self.text;
        let digit = text.optional(text.optional(text.optional(start, b'-'), b'('), b'-');
        if !text.byte(digit)?.is_ascii_digit() {
            return None;
        }
        let run = self.run(digit);
        if run.operator? <= digit {
            return None;
        }
        let found = |end: usize| -> Option<Found<'t>> {
            let after = self.follows(self.sum_end(end)?, follow)?;
            Some((after, Content::Plain(text.str.get(start..end)?)))
        };
        let mut end = run.last?;
        for _ in 0..ENDS {
            if let Some(found) = found(end) {
                return Some(found);
            }
            // One character shorter, if an operator and a character are left.
            end = text.str.get(..end)?.char_indices().next_back()?.0;
            let inside = text.str.get(digit + 1..end)?;
            let mut chars = inside.chars().rev();
            chars.next()?;
            if !chars.take(ENDS).any(is_operator) {
                return None;
            }
        }
        None
    }

    /// What must end a sum: `**`, then a stop, comma, colon, whitespace, `)`, `$` or the text's end.
    fn sum_end(&self, end: usize) -> Option<usize> {
        let ends = |at: usize| match self.text.char(at) {
            Some(char) if matches!(char, '.' | ',' | ':' | ')' | '$') || is_space(char) => {
                Some(at + char.len_utf8())
            }
            _ => self.text.is_end(at).then_some(at),
        };
        self.stars(end).and_then(ends).or_else(|| ends(end))
    }

    /// The row of characters that `at` stands in, from `at` on at least.
    fn run(&mut self, at: usize) -> Run {
        if let Some(run) = self.run
            && (run.start..run.end).contains(&at)
        {
            return run;
        }
        let text = self.text;
        let rest = text.str.get(at..).unwrap_or_default();
        let end = rest
            .char_indices()
            .find(|&(_, char)| {
                !(char.is_ascii_digit() || char == '.' || is_operator(char) || is_space(char))
            })
            .map_or(text.bytes.len(), |(length, _)| at + length);
        let row = text.str.get(at..end).unwrap_or_default();
        let last = Some(end)
            .into_iter()
            .chain(row.char_indices().rev().map(|(length, _)| at + length))
            .find(|&end| end > at && self.sum_end(end).is_some());
        let operator = last.and_then(|last| {
            let mut chars = text.str.get(at..last)?.char_indices();
            chars.next_back()?;
            chars
                .rfind(|&(_, char)| is_operator(char))
                .map(|(length, _)| at + length)
        });
        let run = Run {
            start: at,
            end,
            last,
            operator,
        };
        self.run = Some(run);
        run
    }

    /// A number with a currency sign before and a percent sign behind, in the order of the
    /// reference: with thousands' separators, with decimals, decimals alone, an integer.
    fn number(&self, start: usize, follow: Follow) -> Option<Found<'t>> {
        let text = self.text;
        let start = match text.char(start)? {
            char if CURRENCIES.contains(char) => start + char.len_utf8(),
            _ => start,
        };
        let first = text.optional(start, b'-');
        let whole = self.digits(first);
        let with_decimals = |point: usize| {
            let decimals = self.digits(point + 1);
            (1..=decimals)
                .rev()
                .take(ENDS)
                .map(move |count| point + 1 + count)
        };
        // Thousands' separators: the most groups first.
        if text.byte(first).is_some_and(|byte| byte != b'0') {
            for length in (1..=whole.min(3)).rev() {
                let groups = (0..).take_while(|group| {
                    let at = first + length + 4 * group;
                    matches!(text.byte(at), Some(b' ' | b',')) && self.digits(at + 1) >= 3
                });
                for group in (1..=groups.count()).rev().take(ENDS) {
                    let end = first + length + 4 * group;
                    let point = (text.byte(end) == Some(b'.')).then_some(end);
                    for end in point.into_iter().flat_map(with_decimals).chain([end]) {
                        if let Some(found) = self.ended(start, end, true, follow) {
                            return Some(found);
                        }
                    }
                }
            }
        }
        // Decimals behind a point or comma.
        let point = first + whole;
        if whole > 0
            && matches!(text.byte(point), Some(b'.' | b','))
            && let Some(found) =
                with_decimals(point).find_map(|end| self.ended(start, end, false, follow))
        {
            return Some(found);
        }
        // The sign belongs to whole digits alone.
        if text.byte(start) == Some(b'.') {
            return with_decimals(start).find_map(|end| self.ended(start, end, false, follow));
        }
        (1..=whole)
            .rev()
            .take(ENDS)
            .find_map(|count| self.ended(start, first + count, false, follow))
    }

    /// Digits in a row from `at` on.
    fn digits(&self, at: usize) -> usize {
        self.text.bytes.get(at..).map_or(0, |rest| {
            rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
        })
    }

    /// The number that ends at `end`, with its percent sign if that fits.
    fn ended(
        &self,
        start: usize,
        end: usize,
        separated: bool,
        follow: Follow,
    ) -> Option<Found<'t>> {
        let signed = percent_word(self.text, self.text.skip_space(end))
            .and_then(|end| self.follows(end, follow));
        let (after, percent) = match signed {
            Some(after) => (after, true),
            None => (self.follows(end, follow)?, false),
        };
        let written = self.text.str.get(start..end)?;
        let number = if separated {
            written.replace([',', ' '], "")
        } else {
            written.replace(',', ".")
        };
        let (sign, unsigned) = match number.strip_prefix('-') {
            Some(unsigned) => ("-", unsigned),
            None => ("", number.as_str()),
        };
        let significant = unsigned.trim_start_matches('0');
        let zero = if significant.starts_with(|char: char| char.is_ascii_digit()) {
            ""
        } else {
            "0"
        };
        Some((
            after,
            Content::Number {
                digits: format!("{sign}{zero}{significant}"),
                percent,
            },
        ))
    }
}

fn is_operator(char: char) -> bool {
    matches!(char, '+' | '-' | '*' | '×' | '/' | '^' | '(' | ')' | '÷')
}
