//! Stop strings, found in a completion's text as its tokens come (pure).
//!
//! A token is not a piece of text: a stop string may begin in one token and end in another, and a
//! character of several bytes may be spread over several tokens.

/// Turns tokens into text; the tokenizer, or what a test puts in its place.
pub trait TokenText: Send + Sync {
    /// The text of these tokens, special tokens written out. Bytes that make no whole character
    /// come as U+FFFD.
    fn text(&self, tokens: &[u32]) -> Result<String, String>;
}

impl TokenText for tina_model::Tokenizer {
    fn text(&self, tokens: &[u32]) -> Result<String, String> {
        self.decode(tokens, false)
            .map_err(|error| error.to_string())
    }
}

/// A character has at most four bytes, so at most this many tokens can be waiting for its end;
/// text that is still broken then stays broken.
const UNFINISHED_TOKENS: usize = 4;

/// Watches the text of one completion for stop strings.
#[derive(Clone, Debug)]
pub struct StopScan {
    stops: Vec<String>,
    /// The text before `read`, as far back as a stop string may reach.
    tail: String,
    /// Tokens `[context, read)` have been read and are decoded once more as context for those
    /// after them: a token's text may depend on the one before it.
    context: usize,
    read: usize,
}

impl StopScan {
    /// Watches for any of these; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect();
        Self {
            stops,
            tail: String::new(),
            context: 0,
            read: 0,
        }
    }

    /// Whether the text of `tokens`, all of the completion so far, contains a stop string. To be
    /// called after each token.
    pub fn reached(&mut self, tokens: &[u32], decode: &dyn TokenText) -> Result<bool, String> {
        if self.stops.is_empty() {
            return Ok(false);
        }
        let before = decode.text(&tokens[self.context..self.read])?;
        let now = decode.text(&tokens[self.context..])?;
        let new = &now[common_prefix(&before, &now)..];
        let whole = new.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let unfinished = whole.len() < new.len() && tokens.len() - self.read < UNFINISHED_TOKENS;
        let seen = self.tail.len();
        self.tail.push_str(if unfinished { whole } else { new });
        let found = self
            .stops
            .iter()
            .any(|stop| self.tail.contains(stop.as_str()));
        if unfinished {
            // Read again once its last character is whole.
            self.tail.truncate(seen);
        } else {
            self.context = self.read;
            self.read = tokens.len();
            self.forget();
        }
        Ok(found)
    }

    /// Keeps of the tail only what a stop string may still begin in.
    fn forget(&mut self) {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut cut = self.tail.len().saturating_sub(longest);
        while !self.tail.is_char_boundary(cut) {
            cut -= 1;
        }
        self.tail.drain(..cut);
    }
}

/// Bytes in which both begin alike, up to a character's edge.
fn common_prefix(a: &str, b: &str) -> usize {
    if b.starts_with(a) {
        return a.len();
    }
    a.chars()
        .zip(b.chars())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x.len_utf8())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token is one of these byte strings.
    struct Pieces(Vec<&'static [u8]>);

    impl TokenText for Pieces {
        fn text(&self, tokens: &[u32]) -> Result<String, String> {
            let bytes: Vec<u8> = tokens
                .iter()
                .flat_map(|&token| self.0[token as usize].iter().copied())
                .collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    /// How many of the pieces, sampled one by one, it takes until a stop string is there.
    fn stops_after(pieces: &[&'static [u8]], stops: &[&str]) -> Option<usize> {
        let decode = Pieces(pieces.to_vec());
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut scan = StopScan::new(&stops);
        let tokens: Vec<u32> = (0..pieces.len() as u32).collect();
        (1..=tokens.len()).find(|&n| scan.reached(&tokens[..n], &decode).unwrap())
    }

    #[test]
    fn a_stop_string_inside_one_token_is_found() {
        assert_eq!(stops_after(&[b"a", b"bSTOPc", b"d"], &["STOP"]), Some(2));
    }

    #[test]
    fn a_stop_string_across_tokens_is_found_at_its_last() {
        assert_eq!(
            stops_after(&[b"</", b"ans", b"wer", b">", b"x"], &["</answer>"]),
            Some(4)
        );
        assert_eq!(stops_after(&[b"x", b"\n", b"\n", b"y"], &["\n\n"]), Some(3));
    }

    #[test]
    fn any_of_several_stops_and_only_whole_ones_count() {
        assert_eq!(
            stops_after(&[b"ab", b"c", b"END"], &["abd", "END"]),
            Some(3)
        );
        assert_eq!(stops_after(&[b"EN", b"d", b"EN"], &["END"]), None);
        assert_eq!(stops_after(&[b"anything"], &[]), None);
        assert_eq!(stops_after(&[b"anything"], &[""]), None);
    }

    #[test]
    fn a_character_spread_over_tokens_is_read_once_whole() {
        // U+1F600 in four tokens.
        assert_eq!(
            stops_after(&[b"\xf0", b"\x9f", b"\x98", b"\x80", b"z"], &["😀"]),
            Some(4)
        );
        assert_eq!(
            stops_after(&[b"a\xe2\x82", b"\xac!", b"z"], &["€!"]),
            Some(2)
        );
    }

    #[test]
    fn a_stop_before_an_unfinished_character_is_found_at_once() {
        assert_eq!(
            stops_after(&[b"EN", b"D\xe2", b"\x82\xac"], &["END"]),
            Some(2)
        );
    }

    #[test]
    fn broken_bytes_do_not_hide_what_follows() {
        let broken: &[u8] = b"\xff";
        let pieces = [broken, broken, broken, broken, broken, broken, b"ST", b"OP"];
        assert_eq!(stops_after(&pieces, &["STOP"]), Some(8));
    }

    #[test]
    fn incremental_scanning_agrees_with_scanning_the_whole_text() {
        let text = "ab€😀cd€ab😀dé".as_bytes();
        let stops = ["b€", "😀c", "€ab😀d", "dé", "é"];
        for width in 1..=5 {
            let pieces: Vec<&'static [u8]> = text.chunks(width).collect();
            for stop in stops {
                let expected = (1..=pieces.len())
                    .find(|&n| String::from_utf8_lossy(&pieces[..n].concat()).contains(stop));
                assert_eq!(
                    stops_after(&pieces, &[stop]),
                    expected,
                    "{stop:?} in {width}s"
                );
            }
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_completion() {
        let decode = Pieces(vec!["aé".as_bytes()]);
        let mut scan = StopScan::new(&["STOP".to_owned()]);
        let tokens = vec![0; 500];
        for n in 1..=tokens.len() {
            assert!(!scan.reached(&tokens[..n], &decode).unwrap());
            assert!(scan.tail.len() <= 8 && n - scan.context <= 2);
        }
    }

    #[test]
    fn a_tokenizer_that_fails_is_reported() {
        struct Broken;
        impl TokenText for Broken {
            fn text(&self, _: &[u32]) -> Result<String, String> {
                Err("no such token".to_owned())
            }
        }
        assert!(
            StopScan::new(&["x".to_owned()])
                .reached(&[1], &Broken)
                .is_err()
        );
    }
}
