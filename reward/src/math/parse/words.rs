//! Words: units, connectives, and texts that are the answer.

/// Bare words that are a unit when they stand after an operand. (Inside of `\text{…}` every word
/// after an operand is one.) Partly from the reference's list, `math_normalization.py` of
/// latex2sympy2-extended, without the short ones that are rather products of variables.
const UNITS: [&str; 114] = [
    "acre",
    "apple",
    "bill",
    "book",
    "bottle",
    "box",
    "boy",
    "bus",
    "car",
    "card",
    "cent",
    "centimeter",
    "centimetre",
    "chicken",
    "child",
    "children",
    "chord",
    "cm",
    "coin",
    "copy",
    "cube",
    "cubic",
    "cup",
    "day",
    "deg",
    "degree",
    "digit",
    "dm",
    "dog",
    "dollar",
    "edge",
    "egg",
    "element",
    "euro",
    "feet",
    "foot",
    "ft",
    "gal",
    "gallon",
    "game",
    "gm",
    "gram",
    "girl",
    "hectare",
    "hour",
    "hr",
    "hrs",
    "inch",
    "integer",
    "joule",
    "kelvin",
    "kg",
    "kilogram",
    "kilometer",
    "kilometre",
    "km",
    "kmh",
    "kmph",
    "kph",
    "lb",
    "lbs",
    "liter",
    "litre",
    "loaf",
    "marble",
    "meal",
    "men",
    "meter",
    "metre",
    "mile",
    "min",
    "minute",
    "mm",
    "mo",
    "monkey",
    "month",
    "mph",
    "multiple",
    "newton",
    "number",
    "ounce",
    "oz",
    "page",
    "pair",
    "people",
    "person",
    "piece",
    "pint",
    "point",
    "pound",
    "quart",
    "question",
    "rabbit",
    "ratio",
    "revolution",
    "round",
    "rupee",
    "sec",
    "second",
    "soldier",
    "solution",
    "square",
    "student",
    "ticket",
    "tile",
    "time",
    "toy",
    "unit",
    "usd",
    "value",
    "volt",
    "watt",
    "way",
    "week",
];

const MORE_UNITS: [&str; 11] = [
    "woman", "women", "yard", "yd", "year", "yr", "am", "pm", "triangle", "tree", "pct",
];

/// Words that are an answer of their own where letters would be a product.
const ANSWERS: [&str; 60] = [
    "yes",
    "no",
    "true",
    "false",
    "even",
    "odd",
    "east",
    "west",
    "north",
    "south",
    "northeast",
    "northwest",
    "southeast",
    "southwest",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "january",
    "february",
    "march",
    "april",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "none",
    "never",
    "always",
    "sometimes",
    "both",
    "neither",
    "undefined",
    "impossible",
    "infinite",
    "finite",
    "positive",
    "negative",
    "zero",
    "circle",
    "ellipse",
    "parabola",
    "hyperbola",
    "line",
    "point",
    "plane",
    "cone",
    "sphere",
    "square",
    "rectangle",
    "dne",
    "red",
    "blue",
    "green",
];

/// Whether a bare word is a unit; plurals are too.
pub(super) fn is_unit(word: &str) -> bool {
    let lower = word.to_lowercase();
    let known = |word: &str| UNITS.contains(&word) || MORE_UNITS.contains(&word);
    // In capitals only the halves of the day: `AM`, `PM`; in small letters they are products.
    match lower.as_str() {
        "am" | "pm" => return word.chars().all(char::is_uppercase),
        _ => {}
    }
    known(&lower)
        || lower
            .strip_suffix("es")
            .is_some_and(|stem| stem.len() > 2 && known(stem))
        || lower
            .strip_suffix('s')
            .is_some_and(|stem| stem.len() > 2 && known(stem))
}

/// Whether a bare word on its own is an answer in words.
pub(super) fn is_answer(word: &str) -> bool {
    ANSWERS.contains(&word.to_lowercase().as_str())
}

/// What words say.
#[derive(Debug, PartialEq)]
pub(super) enum Meaning {
    /// Nothing.
    Nothing,
    /// `and`.
    And,
    /// `or`.
    Or,
    /// `percent`.
    Percent,
    /// `degrees`.
    Degree,
    /// `if`, `where`; true for `for all`.
    Where(bool),
    /// It is mathematics: read it as such.
    Mathematics,
    /// Words, lower-cased and without spaces.
    Words(String),
}

/// Splits words at `and` and `or` on their ends, and says what each part is.
pub(super) fn meanings(text: &str) -> Vec<Meaning> {
    let trimmed = text
        .replace("\\!", "")
        .replace("\\,", " ")
        .replace(['~', '\n', '\t'], " ");
    let mut rest = trimmed.trim().to_string();
    let mut front = Vec::new();
    let mut back = Vec::new();
    if let Some(tail) = rest.strip_prefix(',') {
        // `, and`: the comma joins as well.
        rest = tail.trim_start().to_string();
        if rest.is_empty() {
            return vec![Meaning::Mathematics];
        }
    }
    for (word, meaning) in [("and", Meaning::And), ("or", Meaning::Or)] {
        if let Some(tail) = strip_first_word(&rest, word) {
            front.push(meaning);
            rest = tail;
            break;
        }
    }
    for (word, meaning) in [("and", Meaning::And), ("or", Meaning::Or)] {
        if let Some(head) = strip_last_word(&rest, word) {
            back.push(meaning);
            rest = head;
            break;
        }
    }
    let middle = meaning(&rest);
    if middle != Meaning::Nothing {
        front.push(middle);
    }
    front.extend(back);
    front
}

fn strip_first_word(text: &str, word: &str) -> Option<String> {
    let head = text.get(..word.len())?;
    let tail = text.get(word.len()..)?;
    (head.eq_ignore_ascii_case(word) && !tail.starts_with(|c: char| c.is_alphanumeric()))
        .then(|| tail.trim_start_matches([' ', ',']).to_string())
}

fn strip_last_word(text: &str, word: &str) -> Option<String> {
    let split = text.len().checked_sub(word.len())?;
    let (head, tail) = (text.get(..split)?, text.get(split..)?);
    (tail.eq_ignore_ascii_case(word) && head.ends_with([' ', ',']))
        .then(|| head.trim_end_matches([' ', ',']).to_string())
}

fn meaning(text: &str) -> Meaning {
    let stripped = text.trim().trim_end_matches(['.', ',', ';']).trim();
    let lower = stripped.to_lowercase();
    if lower.is_empty() {
        return if text.contains([',', ';']) {
            Meaning::Mathematics
        } else {
            Meaning::Nothing
        };
    }
    match lower.as_str() {
        "percent" | "percentage" | "pct" | "%" | "\\%" | "percents" => return Meaning::Percent,
        "degree" | "degrees" | "deg" | "°" => return Meaning::Degree,
        "if" | "when" | "for" | "such that" | "provided" | "provided that" | "unless"
        | "otherwise" | "whenever" => return Meaning::Where(false),
        "where" | "with" | "for all" | "for any" | "for every" | "for each" | "for some" => {
            return Meaning::Where(true);
        }
        ":" => return Meaning::Mathematics,
        _ => {}
    }
    // `5 cm` in one text.
    let head = lower.split_whitespace().next().unwrap_or_default();
    let number = head.trim_start_matches(['-', '$', '\\']);
    let counts = number.starts_with(|c: char| c.is_ascii_digit())
        && number
            .chars()
            .all(|c| c.is_ascii_digit() || ".,/:%".contains(c));
    if counts || is_mathematics(stripped) {
        return Meaning::Mathematics;
    }
    let words: String = lower
        .chars()
        .filter(|c| !c.is_whitespace() && !"$\\{}()".contains(*c))
        .collect();
    if words.is_empty() {
        return Meaning::Nothing;
    }
    Meaning::Words(words)
}

/// A number, a letter or a list of them in brackets of any kind, as they stand in `\text{…}`.
fn is_mathematics(text: &str) -> bool {
    let listed = text.contains(',');
    let mut has_digit = false;
    let mut letters_in_a_row = 0;
    for c in text.chars() {
        if c.is_alphabetic() {
            letters_in_a_row += 1;
            if !listed || letters_in_a_row > 1 {
                return false;
            }
            continue;
        }
        letters_in_a_row = 0;
        has_digit |= c.is_ascii_digit();
        if !(c.is_ascii_digit() || " ,.+-/()%√π∞≤≥<>=×·^".contains(c)) {
            return false;
        }
    }
    has_digit || listed
}

/// Whether a text is a sentence and no mathematics, to be taken as the words that it is: letters
/// and their punctuation alone, two words of two letters or more among them.
pub(super) fn is_prose(text: &str) -> bool {
    let proper = |c: char| c.is_alphabetic() || c.is_whitespace() || "'-,.’!?".contains(c);
    if !text.chars().all(proper) {
        return false;
    }
    let mut long = 0;
    let mut any = 0;
    for word in text
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
    {
        any += 1;
        let connects = ["and", "or"].contains(&word.to_lowercase().as_str());
        // In capitals alone they are numerals or the names of segments: `I, II and III`.
        let small = word.chars().any(char::is_lowercase);
        if word.chars().count() >= 2
            && small
            && !connects
            && super::commands::function(word).is_none()
        {
            long += 1;
        }
    }
    long >= 2 || (any == 1 && is_answer(text.trim_matches(|c: char| !c.is_alphabetic())))
}
