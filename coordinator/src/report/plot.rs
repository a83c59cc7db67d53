//! Charts as SVG text: lines, bands, intervals, stacked bars. No script, no font of its own; the
//! colours follow the reader's light or dark scheme, and are Okabe and Ito's, which people with
//! any colour vision can tell apart.

use std::fmt::Write as _;

use super::ticks::{Ticks, widened};

/// Width of a figure, in SVG's user units (pixels at 100 %).
const WIDTH: f64 = 760.0;
/// Height of a chart's plotting area.
const AREA: f64 = 200.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const BELOW: f64 = 46.0;
const TITLE: f64 = 30.0;
const LEGEND_ROW: f64 = 18.0;
/// Mean width of a character of 11 pixels, for laying out a legend.
const CHARACTER: f64 = 6.3;
/// Most points of a layer that are drawn; more are averaged.
const MOST_POINTS: usize = 600;
/// Most bars of a chart; more are averaged.
const MOST_BARS: usize = 120;
/// Hues there are; a layer's `hue` counts from 0 and starts over here.
const HUES: usize = 6;

/// One chart: layers over the same two axes.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The horizontal axis, with its unit.
    pub x_title: String,
    /// The vertical axis, with its unit.
    pub y_title: String,
    /// From the back to the front.
    pub layers: Vec<Layer>,
    /// Places on the horizontal axis worth a line: where, and what is there.
    pub marks: Vec<(f64, String)>,
    /// The vertical axis begins at 0.
    pub from_zero: bool,
}

/// Something drawn in a chart. Points that are no finite numbers leave a gap.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A line through points (x, y).
    Line {
        /// In the legend; empty: not there.
        name: String,
        /// Which colour.
        hue: usize,
        /// Thin and pale: what a smoothed line is made from.
        faint: bool,
        /// x ascending.
        points: Vec<(f64, f64)>,
    },
    /// The area between two lines: (x, low, high).
    Band {
        /// In the legend; empty: not there.
        name: String,
        /// Which colour.
        hue: usize,
        /// x ascending.
        points: Vec<(f64, f64, f64)>,
    },
    /// Values with intervals: (x, value, low, high), joined by a line.
    Intervals {
        /// In the legend; empty: not there.
        name: String,
        /// Which colour.
        hue: usize,
        /// x ascending.
        points: Vec<(f64, f64, f64, f64)>,
    },
    /// Bars of parts on top of each other.
    Bars {
        /// The parts, lowest first; their hues are 0, 1, ….
        names: Vec<String>,
        /// x and a value a part.
        rows: Vec<(f64, Vec<f64>)>,
    },
}

impl Chart {
    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.extent().is_none()
    }

    /// (x least, x most, y least, y most) of all that is drawn.
    fn extent(&self) -> Option<(f64, f64, f64, f64)> {
        let mut corners: Vec<(f64, f64)> = Vec::new();
        for layer in &self.layers {
            match layer {
                Layer::Line { points, .. } => corners.extend(points),
                Layer::Band { points, .. } => {
                    corners.extend(points.iter().flat_map(|&(x, a, b)| [(x, a), (x, b)]));
                }
                Layer::Intervals { points, .. } => corners.extend(
                    points
                        .iter()
                        .flat_map(|&(x, y, a, b)| [(x, y), (x, a), (x, b)]),
                ),
                Layer::Bars { rows, .. } => corners.extend(rows.iter().flat_map(|(x, parts)| {
                    let sum = finite_sum(parts);
                    [(x - 0.5, sum), (x + 0.5, 0.0)]
                })),
            }
        }
        corners.retain(|(x, y)| x.is_finite() && y.is_finite());
        let &(x, y) = corners.first()?;
        let all = corners.iter().fold((x, x, y, y), |all, &(x, y)| {
            (all.0.min(x), all.1.max(x), all.2.min(y), all.3.max(y))
        });
        Some(all)
    }

    /// (name, hue, whether it is an area) of what the legend explains.
    fn legend(&self) -> Vec<(&str, usize, bool)> {
        let mut entries = Vec::new();
        for layer in &self.layers {
            match layer {
                Layer::Line { name, hue, .. } | Layer::Intervals { name, hue, .. } => {
                    entries.push((&**name, *hue, false));
                }
                Layer::Band { name, hue, .. } => entries.push((&**name, *hue, true)),
                Layer::Bars { names, .. } => {
                    let parts = names.iter().enumerate();
                    entries.extend(parts.map(|(hue, name)| (&**name, hue, false)));
                }
            }
        }
        entries.retain(|(name, ..)| !name.is_empty());
        entries
    }
}

/// The charts as one SVG document, `columns` side by side; those without anything to draw are left
/// out. `None` when that is all of them.
pub fn figure(charts: &[Chart], columns: usize) -> Option<String> {
    let charts: Vec<&Chart> = charts.iter().filter(|chart| !chart.is_empty()).collect();
    if charts.is_empty() {
        return None;
    }
    let columns = columns.clamp(1, charts.len());
    let width = WIDTH / columns as f64;
    let (mut body, mut top) = (String::new(), 0.0);
    for row in charts.chunks(columns) {
        let rows = row.iter().map(|chart| legend_rows(chart, width).len());
        let legend = LEGEND_ROW * rows.max().unwrap_or(0) as f64;
        for (column, chart) in row.iter().enumerate() {
            let left = width * column as f64;
            let _ = writeln!(body, "<g transform=\"translate({left:.1} {top:.1})\">");
            draw(&mut body, chart, width, legend);
            body.push_str("</g>\n");
        }
        top += TITLE + legend + AREA + BELOW;
    }
    let title = charts
        .iter()
        .map(|chart| chart.title.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" \
         viewBox=\"0 0 {WIDTH} {top}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{top}\"/>\n{body}</svg>\n",
        escape(&title)
    ))
}

const STYLE: &str = "
text { font-family: system-ui, sans-serif; font-size: 11px; fill: #333 }
.title { font-size: 14px; font-weight: 600 }
.ground { fill: #fff }
.grid { stroke: #e4e4e4 }
.axis { stroke: #888 }
.mark { stroke: #777; stroke-dasharray: 4 3 }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.faint { fill: none; stroke-width: 1; opacity: .35 }
.band { stroke: none; opacity: .22 }
.whisker { stroke-width: 1.4 }
.s0 { stroke: #0072b2 } .s1 { stroke: #d55e00 } .s2 { stroke: #009e73 }
.s3 { stroke: #cc79a7 } .s4 { stroke: #e69f00 } .s5 { stroke: #56b4e9 }
.f0 { fill: #0072b2 } .f1 { fill: #d55e00 } .f2 { fill: #009e73 }
.f3 { fill: #cc79a7 } .f4 { fill: #e69f00 } .f5 { fill: #56b4e9 }
@media (prefers-color-scheme: dark) {
text { fill: #d5d9df } .ground { fill: #0d1117 } .grid { stroke: #262c36 }
.axis { stroke: #7d8590 } .mark { stroke: #8b949e }
.s0 { stroke: #4aa3df } .f0 { fill: #4aa3df } .s2 { stroke: #2cc295 } .f2 { fill: #2cc295 }
}
";

/// Where data goes on paper.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.left + (value - self.x.0) / (self.x.1 - self.x.0) * self.width
    }

    fn y(&self, value: f64) -> f64 {
        self.top + AREA - (value - self.y.0) / (self.y.1 - self.y.0) * AREA
    }
}

fn draw(out: &mut String, chart: &Chart, width: f64, legend: f64) {
    let Some((x_low, x_high, y_low, y_high)) = chart.extent() else {
        return;
    };
    let y_low = if chart.from_zero {
        y_low.min(0.0)
    } else {
        y_low
    };
    let y_ticks = Ticks::over(y_low, y_high, 5);
    let frame = Frame {
        left: LEFT,
        top: TITLE + legend,
        width: width - LEFT - RIGHT,
        x: widened(x_low, x_high),
        y: (y_ticks.first, y_ticks.last),
    };
    let text = |out: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str| {
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{}</text>",
            escape(words)
        );
    };
    text(out, LEFT, 19.0, "start", " class=\"title\"", &chart.title);
    for (row, entries) in legend_rows(chart, width).iter().enumerate() {
        let y = TITLE + LEGEND_ROW * row as f64 + 9.0;
        for (x, name, hue, area) in entries {
            let hue = hue % HUES;
            let (class, height) = if *area { ("band ", 10.0) } else { ("", 4.0) };
            let _ = writeln!(
                out,
                "<rect class=\"{class}f{hue}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" \
                 height=\"{height}\"/>",
                y - 4.0 - height / 2.0
            );
            text(out, x + 17.0, y, "start", "", name);
        }
    }

    let (right, bottom) = (frame.left + frame.width, frame.top + AREA);
    for (value, label) in y_ticks.all() {
        let y = frame.y(value);
        line(out, "grid", (frame.left, y), (right, y));
        text(out, frame.left - 7.0, y + 3.5, "end", "", &label);
    }
    let x_ticks = Ticks::over(frame.x.0, frame.x.1, (width / 95.0) as usize);
    for (value, label) in x_ticks.all() {
        if (frame.x.0..=frame.x.1).contains(&value) {
            let x = frame.x(value);
            line(out, "axis", (x, bottom), (x, bottom + 4.0));
            text(out, x, bottom + 16.0, "middle", "", &label);
        }
    }
    line(out, "axis", (frame.left, bottom), (right, bottom));
    let middle = frame.left + frame.width / 2.0;
    text(out, middle, bottom + 34.0, "middle", "", &chart.x_title);
    let middle = frame.top + AREA / 2.0;
    let turned = format!(" transform=\"rotate(-90 14 {middle:.1})\"");
    text(out, 14.0, middle, "middle", &turned, &chart.y_title);

    for layer in &chart.layers {
        draw_layer(out, layer, &frame);
    }
    for (row, (at, words)) in chart.marks.iter().enumerate() {
        if at.is_finite() && (frame.x.0..=frame.x.1).contains(at) {
            let x = frame.x(*at);
            line(out, "mark", (x, frame.top), (x, bottom));
            let (anchor, shift) = if x > middle_of(&frame) {
                ("end", -4.0)
            } else {
                ("start", 4.0)
            };
            let y = frame.top + 11.0 + 13.0 * row as f64;
            text(out, x + shift, y, anchor, "", words);
        }
    }
}

fn middle_of(frame: &Frame) -> f64 {
    frame.left + frame.width / 2.0
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn draw_layer(out: &mut String, layer: &Layer, frame: &Frame) {
    match layer {
        Layer::Line {
            hue, faint, points, ..
        } => {
            let class = if *faint { "faint" } else { "line" };
            let rows = points.iter().map(|&(x, y)| vec![x, y]).collect();
            polylines(out, &format!("{class} s{}", hue % HUES), rows, frame);
        }
        Layer::Band { hue, points, .. } => {
            let rows: Vec<Vec<f64>> = points.iter().map(|&(x, a, b)| vec![x, a, b]).collect();
            for run in unbroken(&averaged(rows, MOST_POINTS)) {
                let there = run.iter().map(|row| (row[0], row[2]));
                let back = run.iter().rev().map(|row| (row[0], row[1]));
                let points = coordinates(there.chain(back), frame);
                let hue = hue % HUES;
                let _ = writeln!(out, "<polygon class=\"band f{hue}\" points=\"{points}\"/>");
            }
        }
        Layer::Intervals { hue, points, .. } => {
            let hue = hue % HUES;
            let rows = points.iter().map(|&(x, y, ..)| vec![x, y]).collect();
            polylines(out, &format!("faint s{hue}"), rows, frame);
            for &(x, y, low, high) in points {
                if ![x, y, low, high].iter().all(|value| value.is_finite()) {
                    continue;
                }
                let (x, y, low, high) = (frame.x(x), frame.y(y), frame.y(low), frame.y(high));
                let class = format!("whisker s{hue}");
                line(out, &class, (x, low), (x, high));
                line(out, &class, (x - 4.0, low), (x + 4.0, low));
                line(out, &class, (x - 4.0, high), (x + 4.0, high));
                let _ = writeln!(
                    out,
                    "<circle class=\"f{hue}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
                );
            }
        }
        Layer::Bars { rows, .. } => {
            let rows = rows.iter().map(|(x, parts)| {
                let mut row = vec![*x];
                row.extend(parts);
                row
            });
            let rows = averaged(rows.collect(), MOST_BARS);
            let apart = rows.windows(2).map(|pair| pair[1][0] - pair[0][0]);
            let apart = apart.fold(f64::INFINITY, f64::min);
            let apart = if apart.is_finite() { apart } else { 1.0 };
            let width = (frame.x(frame.x.0 + apart) - frame.left) * 0.86;
            for row in &rows {
                let mut below = 0.0;
                for (hue, part) in row[1..].iter().enumerate() {
                    if !(row[0].is_finite() && *part > 0.0 && part.is_finite()) {
                        continue;
                    }
                    let (top, height) = (frame.y(below + part), frame.y(below));
                    let _ = writeln!(
                        out,
                        "<rect class=\"f{}\" x=\"{:.2}\" y=\"{top:.2}\" width=\"{width:.2}\" \
                         height=\"{:.2}\"/>",
                        hue % HUES,
                        frame.x(row[0]) - width / 2.0,
                        height - top
                    );
                    below += part;
                }
            }
        }
    }
}

/// Lines through rows (x, y), broken where a number is missing.
fn polylines(out: &mut String, class: &str, rows: Vec<Vec<f64>>, frame: &Frame) {
    for run in unbroken(&averaged(rows, MOST_POINTS)) {
        if let [row] = run {
            let (x, y) = (frame.x(row[0]), frame.y(row[1]));
            // A line of no length is seen only with round ends.
            let _ = writeln!(
                out,
                "<polyline class=\"{class}\" stroke-linecap=\"round\" \
                 points=\"{x:.1},{y:.1} {x:.1},{y:.1}\"/>"
            );
            continue;
        }
        let points = coordinates(run.iter().map(|row| (row[0], row[1])), frame);
        let _ = writeln!(out, "<polyline class=\"{class}\" points=\"{points}\"/>");
    }
}

fn coordinates(points: impl Iterator<Item = (f64, f64)>, frame: &Frame) -> String {
    points
        .map(|(x, y)| format!("{:.1},{:.1}", frame.x(x), frame.y(y)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs of rows whose numbers are all finite.
fn unbroken(rows: &[Vec<f64>]) -> impl Iterator<Item = &[Vec<f64>]> {
    rows.split(|row| !row.iter().all(|value| value.is_finite()))
        .filter(|run| !run.is_empty())
}

/// Rows of equal length, at most `most`: means of as many neighbours as that takes. What isn't
/// finite takes no part in a mean.
fn averaged(rows: Vec<Vec<f64>>, most: usize) -> Vec<Vec<f64>> {
    if rows.len() <= most {
        return rows;
    }
    rows.chunks(rows.len().div_ceil(most))
        .map(|chunk| {
            (0..chunk[0].len())
                .map(|at| {
                    let values = chunk.iter().filter_map(|row| row.get(at));
                    let finite: Vec<f64> = values.copied().filter(|v| v.is_finite()).collect();
                    finite.iter().sum::<f64>() / finite.len() as f64
                })
                .collect()
        })
        .collect()
}

fn finite_sum(parts: &[f64]) -> f64 {
    parts.iter().filter(|part| part.is_finite()).sum()
}

/// (x, name, hue, whether it is an area) of legend entries, a row each of what fits into `width`.
fn legend_rows(chart: &Chart, width: f64) -> Vec<Vec<(f64, &str, usize, bool)>> {
    let entries = chart.legend();
    if entries.len() < 2 {
        return Vec::new();
    }
    let (mut rows, mut row, mut x) = (Vec::new(), Vec::new(), LEFT);
    for (name, hue, area) in entries {
        let wide = 17.0 + CHARACTER * name.chars().count() as f64 + 16.0;
        if x + wide > width && !row.is_empty() {
            rows.push(std::mem::take(&mut row));
            x = LEFT;
        }
        row.push((x, name, hue, area));
        x += wide;
    }
    rows.push(row);
    rows
}

/// Text for an SVG element: no markup, and none of the characters that XML can't hold.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => {}
            control if control.is_control() => {}
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(layers: Vec<Layer>) -> Chart {
        Chart {
            title: "a < b & \"c\"\u{1}".into(),
            x_title: "step".into(),
            y_title: "share".into(),
            layers,
            marks: vec![(2.0, "turn </text>".into())],
            from_zero: true,
        }
    }

    fn curve(name: &str, points: Vec<(f64, f64)>) -> Layer {
        Layer::Line {
            name: name.into(),
            hue: 0,
            faint: false,
            points,
        }
    }

    #[test]
    fn what_is_drawn_is_well_formed_and_its_words_are_escaped() {
        let layers = vec![
            curve(
                "<one>",
                vec![(1.0, 0.5), (2.0, f64::NAN), (3.0, 0.7), (4.0, 0.1)],
            ),
            Layer::Band {
                name: "b".into(),
                hue: 1,
                points: vec![(1.0, 0.0, 1.0), (2.0, 0.2, f64::INFINITY), (3.0, 0.1, 0.4)],
            },
            Layer::Intervals {
                name: "i".into(),
                hue: 2,
                points: vec![(1.0, 0.5, 0.4, 0.6), (2.0, f64::NAN, 0.0, 1.0)],
            },
            Layer::Bars {
                names: vec!["p".into(), "q".into()],
                rows: vec![(1.0, vec![0.5, f64::NAN]), (2.0, vec![0.1, 0.2])],
            },
        ];
        let svg = figure(&[chart(layers.clone()), chart(layers)], 2).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;</text>"), "{svg}");
        assert!(svg.contains("turn &lt;/text&gt;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(!svg.contains("<script"));
    }

    #[test]
    fn a_missing_number_breaks_the_line() {
        let points = vec![
            (1.0, 0.0),
            (2.0, 1.0),
            (3.0, f64::NAN),
            (4.0, 1.0),
            (5.0, 0.0),
        ];
        let svg = figure(&[chart(vec![curve("x", points)])], 1).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2);
    }

    #[test]
    fn without_numbers_there_is_no_figure() {
        assert_eq!(figure(&[], 2), None);
        let nothing = chart(vec![curve("x", vec![(1.0, f64::NAN)])]);
        assert!(nothing.is_empty());
        assert_eq!(figure(&[nothing], 1), None);
        // One point, and one value only, have axes all the same.
        for points in [vec![(1.0, 0.0)], vec![(1.0, 3.0), (2.0, 3.0)]] {
            let svg = figure(&[chart(vec![curve("x", points)])], 1).unwrap();
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn long_runs_are_averaged() {
        let points: Vec<_> = (0..100_000).map(|x| (f64::from(x), 0.5)).collect();
        let svg = figure(&[chart(vec![curve("x", points)])], 1).unwrap();
        assert!(svg.len() < 20_000, "{}", svg.len());
        let rows = averaged((0..10).map(|x| vec![f64::from(x)]).collect(), 5);
        assert_eq!(rows, [[0.5], [2.5], [4.5], [6.5], [8.5]]);
    }
}
