//! A text, read at a place: what the rules of all kinds share.

/// A text, and where it says "answer".
#[derive(Debug)]
pub(super) struct Text<'t> {
    pub(super) str: &'t str,
    pub(super) bytes: &'t [u8],
    /// First bytes of "answer", in any case.
    answers: Vec<usize>,
}

const ANSWER: &[u8] = b"answer";
const FINAL: &[u8] = b"final ";

impl<'t> Text<'t> {
    pub(super) fn new(str: &'t str) -> Self {
        let bytes = str.as_bytes();
        let answers = bytes
            .windows(ANSWER.len())
            .enumerate()
            .filter(|(_, window)| window[0] | 0x20 == b'a' && window.eq_ignore_ascii_case(ANSWER))
            .map(|(at, _)| at)
            .collect();
        Self {
            str,
            bytes,
            answers,
        }
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    /// The byte before `at`.
    pub(super) fn before(&self, at: usize) -> Option<u8> {
        self.bytes.get(at.checked_sub(1)?).copied()
    }

    pub(super) fn starts_with(&self, at: usize, what: &str) -> bool {
        self.bytes
            .get(at..)
            .is_some_and(|rest| rest.starts_with(what.as_bytes()))
    }

    /// The character at `at`, a character's boundary.
    pub(super) fn char(&self, at: usize) -> Option<char> {
        match self.byte(at)? {
            byte if byte.is_ascii() => Some(char::from(byte)),
            _ => self.str.get(at..)?.chars().next(),
        }
    }

    /// Length in bytes of the whitespace character at `at`.
    pub(super) fn space(&self, at: usize) -> Option<usize> {
        let char = self.char(at)?;
        is_space(char).then(|| char.len_utf8())
    }

    /// Past the whitespace at `at`.
    pub(super) fn skip_space(&self, mut at: usize) -> usize {
        while let Some(width) = self.space(at) {
            at += width;
        }
        at
    }

    /// The start of the whitespace character that ends at `at` and does not start before `from`.
    pub(super) fn space_before(&self, at: usize, from: usize) -> Option<usize> {
        let char = self.str.get(from..at)?.chars().next_back()?;
        is_space(char).then(|| at - char.len_utf8())
    }

    /// One character further.
    pub(super) fn next(&self, at: usize) -> usize {
        at + self.char(at).map_or(1, char::len_utf8)
    }

    /// Where the text ends for a rule that wants its end: also before a last newline.
    pub(super) fn is_end(&self, at: usize) -> bool {
        at >= self.bytes.len() || (at + 1 == self.bytes.len() && self.bytes[at] == b'\n')
    }

    /// "answer": (first byte, one past the last).
    pub(super) fn answers(&self) -> impl Iterator<Item = (usize, usize)> {
        self.answers.iter().map(|&at| (at, at + ANSWER.len()))
    }

    /// "answer:".
    pub(super) fn answer_colons(&self) -> impl Iterator<Item = (usize, usize)> {
        self.answers()
            .filter(|&(_, end)| self.byte(end) == Some(b':'))
            .map(|(start, end)| (start, end + 1))
    }

    /// "final answer".
    pub(super) fn final_answers(&self) -> impl Iterator<Item = (usize, usize)> {
        self.answers().filter_map(|(start, end)| {
            let from = start.checked_sub(FINAL.len())?;
            self.bytes[from..start]
                .eq_ignore_ascii_case(FINAL)
                .then_some((from, end))
        })
    }

    /// "final answer is" with the colon that may follow.
    pub(super) fn final_answers_are(&self) -> impl Iterator<Item = (usize, usize)> {
        self.final_answers().filter_map(|(start, end)| {
            let is = self.bytes.get(end..end + 3)?;
            is.eq_ignore_ascii_case(b" is")
                .then(|| (start, self.optional(end + 3, b':')))
        })
    }

    /// Past `byte` if it stands at `at`.
    pub(super) fn optional(&self, at: usize, byte: u8) -> usize {
        if self.byte(at) == Some(byte) {
            at + 1
        } else {
            at
        }
    }

    /// Past `.? ?I hope`.
    pub(super) fn hope(&self, at: usize) -> Option<usize> {
        const WORDS: &str = "I hope";
        let at = self.optional(at, b'.');
        let spaced = at + self.space(at).unwrap_or(0);
        self.starts_with(spaced, WORDS)
            .then_some(spaced + WORDS.len())
    }

    /// The places from `from` on, `characters` characters far at most; over newlines if `lines`.
    pub(super) fn places(
        &self,
        from: usize,
        characters: usize,
        lines: bool,
    ) -> impl Iterator<Item = usize> {
        let mut next = Some(from);
        std::iter::from_fn(move || {
            let at = next?;
            next = match self.byte(at) {
                None => None,
                Some(b'\n') if !lines => None,
                Some(_) => Some(self.next(at)),
            };
            Some(at)
        })
        .take(characters + 1)
    }

    /// Where an answer may start behind "final answer" and up to 100 characters and " is".
    pub(super) fn behind_is(&self, from: usize, lines: bool) -> impl Iterator<Item = usize> {
        let mut done = from;
        self.places(from, 100, lines).filter_map(move |at| {
            if at < done || self.space(at).is_none() {
                return None;
            }
            done = self.skip_space(at);
            self.starts_with(done, "is")
                .then(|| self.optional(done + 2, b':'))
        })
    }
}

/// What Python's `\s` takes.
pub(super) fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

/// Past "%", "percent" and the like at `at`.
pub(super) fn percent_word(text: &Text<'_>, at: usize) -> Option<usize> {
    ["%", "percent", "Percent", "pct", "Pct"]
        .iter()
        .find(|word| text.starts_with(at, word))
        .map(|word| at + word.len())
}

/// Every find of a rule that begins at one of `starts`, none overlapping one before it. `rule` is
/// given (start, where to go on) and answers with the find's end and content.
pub(super) fn each<T>(
    starts: impl Iterator<Item = (usize, usize)>,
    mut rule: impl FnMut(usize) -> Option<(usize, T)>,
    mut take: impl FnMut(usize, usize, T),
) {
    let mut free = 0;
    for (start, after) in starts {
        if start < free {
            continue;
        }
        if let Some((end, content)) = rule(after) {
            take(start, end, content);
            free = end;
        }
    }
}
