//! A chart: bars or a line over time, as a picture with a sentence that says the same, and a table.

use jiff::Timestamp;
use maud::{Markup, html};

use super::parts::{Text, empty, moment};

const WIDTH: u64 = 520;
const HEIGHT: u64 = 180;
const LEFT: u64 = 78;
const BOTTOM: u64 = 24;
const TOP: u64 = 10;
const RIGHT: u64 = 10;
/// More could not be told apart: of more, the newest.
const POINTS_MAX: usize = 240;
const LINES: u64 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bars,
    Line,
}

pub struct Chart<'a> {
    /// For ids, too.
    pub name: &'a str,
    pub title: &'a str,
    /// What one of the points is.
    pub of: &'a str,
    pub form: Form,
    /// Of each point its moment, what it is called, and its value.
    pub points: Vec<(Timestamp, String, u64)>,
    pub shown: fn(u64) -> String,
    /// The axis ends here, at least.
    pub full: u64,
}

impl Chart<'_> {
    pub fn markup(mut self) -> Markup {
        self.points.sort_by_key(|(at, ..)| *at);
        self.points.drain(..self.points.len().saturating_sub(POINTS_MAX));
        let Some((last_at, _, last)) = self.points.last().cloned() else {
            return html! { figure.chart { figcaption { (self.title) } (empty("There is nothing to draw yet.")) } };
        };
        let values = || self.points.iter().map(|(.., value)| *value);
        let (least, most) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
        let said = format!(
            "{} of {}: from {} to {}, the last one {}.",
            self.points.len(),
            self.of,
            (self.shown)(least),
            (self.shown)(most),
            (self.shown)(last)
        );
        let top = most.max(self.full).max(1);
        let (title, desc) = (format!("{}-title", self.name), format!("{}-desc", self.name));
        let first_at = self.points.first().map_or(last_at, |(at, ..)| *at);
        html! {
            figure.chart {
                figcaption { (self.title) span.sub { "last: " ((self.shown)(last)) } }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby={ (title) " " (desc) } {
                    title id=(title) { (self.title) }
                    desc id=(desc) { (said) }
                    @for n in 0..=LINES {
                        @let y = TOP + (HEIGHT - TOP - BOTTOM) * n / LINES;
                        line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y) y2=(y) {}
                        text.axis x=(LEFT - 6) y=(y + 4) text-anchor="end" { ((self.shown)(top - top / LINES * n - if n == LINES { top % LINES } else { 0 })) }
                    }
                    (self.drawn(top))
                    text.axis x=(LEFT) y=(HEIGHT - 6) { (first_at.strftime("%Y-%m-%d")) }
                    text.axis x=(WIDTH - RIGHT) y=(HEIGHT - 6) text-anchor="end" { (last_at.strftime("%Y-%m-%d")) }
                }
                details.what {
                    summary { "As a table" span.hidden { ": " (self.title) } }
                    div.scroll tabindex="0" role="region" aria-label={ (self.title) ", as a table" } {
                        table {
                            caption.hidden { (self.title) }
                            thead { tr { th scope="col" { "When" } th scope="col" { "What" } th.n scope="col" { "Value" } } }
                            tbody {
                                @for (at, what, value) in self.points.iter().rev() {
                                    tr { td { (moment(*at)) } td { (Text(what)) } td.n { ((self.shown)(*value)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn drawn(&self, top: u64) -> Markup {
        let (inner, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let count = u64::try_from(self.points.len()).unwrap_or(1).max(1);
        let y = |value: u64| {
            let part = u128::from(value.min(top)) * u128::from(high) / u128::from(top);
            TOP + high - u64::try_from(part).unwrap_or(high)
        };
        let width = (inner / count).clamp(1, 28);
        let x = |n: usize| LEFT + inner * (2 * u64::try_from(n).unwrap_or(0) + 1) / (2 * count);
        match self.form {
            Form::Bars => html! {
                @for (n, (_, what, value)) in self.points.iter().enumerate() {
                    rect.bar x=(x(n) - width / 2) y=(y(*value).min(TOP + high - 1)) width=(width.saturating_sub(2).max(1))
                        height=((TOP + high - y(*value)).max(1)) {
                        title { (Text(what)) ": " ((self.shown)(*value)) }
                    }
                }
            },
            Form::Line => {
                let places = self.points.iter().enumerate().map(|(n, (.., value))| format!("{},{}", x(n), y(*value)));
                html! {
                    polyline.line points=(places.collect::<Vec<_>>().join(" ")) {}
                    @for (n, (_, what, value)) in self.points.iter().enumerate() {
                        circle.dot cx=(x(n)) cy=(y(*value)) r="3" { title { (Text(what)) ": " ((self.shown)(*value)) } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_values_fit_in() {
        let chart = |values: &[u64]| Chart {
            name: "c",
            title: "t",
            of: "backups",
            form: Form::Bars,
            points: values.iter().map(|v| (Timestamp::UNIX_EPOCH, "<b>".to_owned(), *v)).collect(),
            shown: |n| n.to_string(),
            full: 0,
        };
        for values in [&[][..], &[0], &[u64::MAX, 0], &[1; 1000]] {
            let drawn = chart(values).markup().into_string();
            assert!(!drawn.contains("<b>"), "{drawn}");
            assert!(drawn.matches("<rect").count() <= POINTS_MAX);
        }
    }
}
