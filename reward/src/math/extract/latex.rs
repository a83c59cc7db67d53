//! Answers in LaTeX: environments, several joined, and boxes.

use std::borrow::Cow;

use super::{
    ANSWER, ANYWHERE, BoxedContent, COLON, Content, FINAL, Find, HOPE, LatexExtraction, LatexPart,
    boxed,
    text::{Text, each, percent_word},
};

/// Environments that are joined to the first, at most.
const JOINED: usize = 5;
const BOX: &str = "\\boxed{";

pub(super) fn finds<'t>(
    text: &Text<'t>,
    config: &LatexExtraction,
    priority: i32,
    finds: &mut Vec<Find<'t>>,
) {
    let mut reader = Reader::new(text);
    let mut take = |start, end, spans: Vec<Span>| {
        finds.push(Find {
            start,
            end,
            content: content(text, &spans, config.boxed, config),
        });
    };
    match priority {
        HOPE => each(
            text.final_answers_are(),
            |at| {
                let (end, spans) = reader.chain_behind_space(at)?;
                Some((text.hope(end)?, spans))
            },
            &mut take,
        ),
        FINAL => each(
            text.final_answers(),
            |at| {
                text.behind_is(at, true)
                    .find_map(|at| reader.chain_behind_space(at))
            },
            &mut take,
        ),
        COLON => each(
            text.answer_colons(),
            |at| {
                text.places(at, 50, true)
                    .find_map(|at| reader.chain(at, Chain::Anchored))
            },
            &mut take,
        ),
        ANSWER => each(
            text.answers(),
            |at| {
                text.places(at, 50, true)
                    .find_map(|at| reader.chain(at, Chain::Anchored))
            },
            &mut take,
        ),
        ANYWHERE if config.anywhere => each(
            candidates(text),
            |at| reader.chain(at, Chain::Anywhere),
            &mut take,
        ),
        _ => {}
    }
    if config.boxed_priority == Some(priority) {
        each(
            candidates(text),
            |at| reader.chain(at, Chain::Boxed),
            &mut take,
        );
        finds.extend(bare_box(text, config));
    }
}

/// From the first `\boxed{` to the last `}`: where a box outside of an environment ends is seen
/// when it is opened.
fn bare_box<'t>(text: &Text<'t>, config: &LatexExtraction) -> Option<Find<'t>> {
    let start = text.str.find(BOX)?;
    let end = text.str.rfind('}')? + 1;
    // At least one character between the braces.
    if end < start + BOX.len() + 2 {
        return None;
    }
    let span = Span {
        start,
        end,
        percent: false,
    };
    Some(Find {
        start,
        end,
        content: content(text, &[span], BoxedContent::Last, config),
    })
}

fn content<'t>(
    text: &Text<'t>,
    spans: &[Span],
    which: BoxedContent,
    config: &LatexExtraction,
) -> Content<'t> {
    let parts = spans
        .iter()
        .map(|span| {
            let inside: &'t str = text.str.get(span.start..span.end).unwrap_or_default();
            LatexPart {
                text: match boxed::contents(inside, which) {
                    Cow::Borrowed(text) => Cow::Borrowed(text),
                    Cow::Owned(text) => Cow::Owned(text),
                },
                percent: span.percent,
            }
        })
        .collect();
    Content::Latex {
        parts,
        repairs: config.repairs,
    }
}

/// Where an environment may start.
fn candidates(text: &Text<'_>) -> impl Iterator<Item = (usize, usize)> {
    text.bytes
        .iter()
        .enumerate()
        .filter(|&(at, byte)| match byte {
            b'$' => true,
            b'\\' => matches!(text.byte(at + 1), Some(b'[' | b'(' | b'f')),
            b'-' => text.byte(at + 1) == Some(b'\\'),
            // A bracket's whitespace.
            b' ' | b'\t' | b'\n' | b'\r' => text.byte(at + 1) == Some(b'['),
            _ => false,
        })
        .map(|(at, _)| (at, at))
}

/// Which environments are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    /// Behind the word "answer".
    Anchored,
    /// Anywhere.
    Anywhere,
    /// Those with a box in them.
    Boxed,
}

/// An environment's inside.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    percent: bool,
}

/// Where something is next, remembered: asked from between `from` and `found`, it is the same.
#[derive(Debug, Default)]
struct Next {
    known: Option<(usize, Option<usize>)>,
}

impl Next {
    fn at(&mut self, from: usize, search: impl FnOnce() -> Option<usize>) -> Option<usize> {
        if let Some((known_from, found)) = self.known
            && known_from <= from
            && found.is_none_or(|found| from <= found)
        {
            return found;
        }
        let found = search();
        self.known = Some((from, found));
        found
    }
}

/// Reads environments at a place. Remembers where the next delimiters are, so that a text full of
/// environments that are never closed costs linear time.
struct Reader<'a, 't> {
    text: &'a Text<'t>,
    dollars: Next,
    dollar: Next,
    bracket: Next,
    parenthesis: Next,
}

impl<'a, 't> Reader<'a, 't> {
    fn new(text: &'a Text<'t>) -> Self {
        Self {
            text,
            dollars: Next::default(),
            dollar: Next::default(),
            bracket: Next::default(),
            parenthesis: Next::default(),
        }
    }

    /// [`Self::chain`] behind any whitespace, whose last character may be the bracket's own.
    fn chain_behind_space(&mut self, at: usize) -> Option<(usize, Vec<Span>)> {
        let end = self.text.skip_space(at);
        self.chain(end, Chain::Anchored)
            .or_else(|| self.chain(self.text.space_before(end, at)?, Chain::Anchored))
    }

    /// An environment at `at` and up to five more, joined by "and", "or" or a comma. Answers with its
    /// end too.
    fn chain(&mut self, at: usize, kind: Chain) -> Option<(usize, Vec<Span>)> {
        let boxed = kind == Chain::Boxed;
        let (mut end, first) = self.environment(at, boxed)?;
        let mut spans = vec![first];
        for _ in 0..JOINED {
            if boxed {
                end = self.text.skip_space(end);
            }
            let Some((next_end, span)) = self.joined(end, kind) else {
                break;
            };
            end = next_end;
            spans.push(span);
        }
        if boxed {
            end = self.text.skip_space(end);
        }
        Some((end, spans))
    }

    /// Joining word and environment.
    fn joined(&mut self, at: usize, kind: Chain) -> Option<(usize, Span)> {
        let boxed = kind == Chain::Boxed;
        let at = self.text.skip_space(at);
        let comma = self.text.byte(at) == Some(b',');
        let next = self.text.optional(at, b',');
        let spaced = self.text.skip_space(next);
        // The reference wants ",and" without a space, so that of "answer: $1$, $2$, and $3$" it takes
        // two; without the word "answer" that comma may as well end a clause.
        let word = if comma && kind == Chain::Anchored {
            spaced
        } else {
            next
        };
        let after = if self.text.starts_with(word, "and") {
            word + 3
        } else if self.text.starts_with(word, "or") {
            word + 2
        } else if comma {
            next
        } else {
            return None;
        };
        let end = self.text.skip_space(after);
        self.environment(end, boxed)
            .or_else(|| self.environment(self.text.space_before(end, after)?, boxed))
    }

    /// One environment with the percent sign that may follow.
    fn environment(&mut self, at: usize, boxed: bool) -> Option<(usize, Span)> {
        let (end, mut span) = match self.text.byte(at)? {
            b'$' => self
                .display_dollars(at, boxed)
                .or_else(|| self.dollars(at, boxed)),
            b'\\' => self.backslash(at, boxed),
            b'-' if !boxed => self.fraction(at),
            _ => self.brackets(at, boxed),
        }?;
        let end = self.text.skip_space(end);
        let sign = match self.text.byte(end) {
            Some(b'\\') if self.text.byte(end + 1) == Some(b'%') => Some(end + 2),
            _ => percent_word(self.text, end),
        };
        span.percent = sign.is_some();
        Some((sign.unwrap_or(end), span))
    }

    fn backslash(&mut self, at: usize, boxed: bool) -> Option<(usize, Span)> {
        match self.text.byte(at + 1)? {
            b'[' if self.text.before(at) != Some(b'\\') => {
                let text = self.text;
                let close = self.bracket.at(at + 2, || find(text, at + 2, "\\]"))?;
                self.delimited(at + 2, close, 2, boxed)
            }
            b'(' if self.text.before(at) != Some(b'\\') => {
                let text = self.text;
                let close = self
                    .parenthesis
                    .at(at + 2, || find_in_line(text, at + 2, "\\)"))?;
                if self.text.byte(close) == Some(b'\n') {
                    return None;
                }
                self.delimited(at + 2, close, 2, boxed)
            }
            b'f' if !boxed => self.fraction(at),
            _ => None,
        }
    }

    /// `$$…$$`, over lines.
    fn display_dollars(&mut self, at: usize, boxed: bool) -> Option<(usize, Span)> {
        if !self.text.starts_with(at, "$$") || self.text.before(at) == Some(b'\\') {
            return None;
        }
        let text = self.text;
        let close = self.dollars.at(at + 2, || find(text, at + 2, "$$"))?;
        self.delimited(at + 2, close, 2, boxed)
    }

    /// `$…$` in one line; not behind a digit, where it is money.
    fn dollars(&mut self, at: usize, boxed: bool) -> Option<(usize, Span)> {
        if matches!(self.text.before(at), Some(byte) if byte == b'\\' || byte.is_ascii_digit())
            || self.text.byte(at + 1) == Some(b'$')
        {
            return None;
        }
        let bytes = self.text.bytes;
        let close = self.dollar.at(at + 1, || {
            (at + 1..bytes.len())
                .find(|&at| bytes[at] == b'\n' || (bytes[at] == b'$' && bytes[at - 1] != b'\\'))
        })?;
        if bytes[close] == b'\n' {
            return None;
        }
        self.delimited(at + 1, close, 1, boxed)
    }

    /// ` […] ` in one line, without brackets inside.
    fn brackets(&self, at: usize, boxed: bool) -> Option<(usize, Span)> {
        let open = at + self.text.space(at)?;
        if self.text.byte(open) != Some(b'[') {
            return None;
        }
        let start = open + 1;
        let length = self.text.bytes[start..]
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'[' | b']'))?;
        let close = start + length;
        if length == 0 || self.text.byte(close) != Some(b']') {
            return None;
        }
        let width = self.text.space(close + 1)?;
        self.inside(start, close, boxed)
            .map(|span| (close + 1 + width, span))
    }

    /// `\frac{1}{2}` outside of an environment.
    fn fraction(&self, at: usize) -> Option<(usize, Span)> {
        let mut end = self.text.optional(at, b'-');
        if !self.text.starts_with(end, "\\frac{") {
            return None;
        }
        end = self.number(end + "\\frac{".len())?;
        if !self.text.starts_with(end, "}{") {
            return None;
        }
        end = self.number(end + 2)?;
        (self.text.byte(end) == Some(b'}')).then_some((
            end + 1,
            Span {
                start: at,
                end: end + 1,
                percent: false,
            },
        ))
    }

    /// Past `-?\d+([.,]\d+)?`.
    fn number(&self, at: usize) -> Option<usize> {
        let digits = |from: usize| {
            self.text.bytes[from..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        };
        let start = self.text.optional(at, b'-');
        let end = start + digits(start.min(self.text.bytes.len()));
        if end == start {
            return None;
        }
        if matches!(self.text.byte(end), Some(b'.' | b',')) {
            let decimals = digits(end + 1);
            if decimals > 0 {
                return Some(end + 1 + decimals);
            }
        }
        Some(end)
    }

    /// An environment from `start` to the delimiter at `close`, which a backslash takes its meaning.
    fn delimited(
        &self,
        start: usize,
        close: usize,
        width: usize,
        boxed: bool,
    ) -> Option<(usize, Span)> {
        if close <= start || self.text.before(close) == Some(b'\\') {
            return None;
        }
        self.inside(start, close, boxed)
            .map(|span| (close + width, span))
    }

    /// The inside, if it holds a box where one is wanted.
    fn inside(&self, start: usize, end: usize, boxed: bool) -> Option<Span> {
        if boxed {
            let inside = self.text.str.get(start..end)?;
            let open = inside.find(BOX)? + BOX.len();
            // At least one character in the box.
            if inside.rfind('}')? <= open {
                return None;
            }
        }
        Some(Span {
            start,
            end,
            percent: false,
        })
    }
}

fn find(text: &Text<'_>, from: usize, what: &str) -> Option<usize> {
    text.str.get(from..)?.find(what).map(|at| from + at)
}

/// Where `what` or the line's end is next.
fn find_in_line(text: &Text<'_>, from: usize, what: &str) -> Option<usize> {
    let what = what.as_bytes();
    (from..text.bytes.len())
        .find(|&at| text.bytes[at] == b'\n' || text.bytes[at..].starts_with(what))
}
