//! How answers are printed: aligned tables, human sizes and ISO times for people; one JSON value for programs.
//!
//! Invariants: JSON keys are snake_case and ids are strings; nothing is coloured unless standard output is a terminal
//! and `NO_COLOR` is not set; a closed pipe ends the program quietly.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

/// Shape of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// For people.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

/// Where answers go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Shape asked for.
    pub(crate) shape: Shape,
    /// Whether words may be coloured.
    colour: bool,
}

/// Colours by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    /// Went well.
    Good,
    /// Needs a look.
    Caution,
    /// Went wrong.
    Bad,
    /// Less important.
    Dim,
}

impl Tint {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Caution => "33",
            Self::Bad => "31",
            Self::Dim => "2",
        }
    }
}

impl Output {
    /// Output to standard output.
    pub(crate) fn new(shape: Shape) -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { shape, colour: colour && shape == Shape::Text }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(self) -> bool {
        self.shape == Shape::Json
    }

    /// Prints a JSON value and a line end.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn json(self, value: &Value) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        text.push('\n');
        write(text.as_bytes())
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn text(self, text: &str) -> io::Result<()> {
        write(text.as_bytes())
    }

    /// Prints bytes as they are (a task's result).
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn bytes(self, bytes: &[u8]) -> io::Result<()> {
        write(bytes)
    }

    /// A word in a colour, where colours are wanted.
    pub(crate) fn tint(self, tint: Tint, word: &str) -> String {
        if self.colour { format!("\x1b[{}m{word}\x1b[0m", tint.code()) } else { word.to_owned() }
    }
}

/// Writes all bytes; a reader that went away (`| head`) is no error.
fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// Side on which a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, each column as wide as its widest text.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has not one text per column.
    pub(crate) fn row(&mut self, texts: Vec<String>) {
        assert_eq!(texts.len(), self.columns.len(), "a row has one text per column");
        self.rows.push(texts);
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, with a heading in capitals, columns two blanks apart, no blanks at line ends.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let texts = self.rows.iter().map(|row| visible_width(&row[column]));
            texts.max().unwrap_or(0).max(self.columns[column].0.len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| name.to_uppercase()).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[i].saturating_sub(visible_width(cell)));
                match self.columns[i].1 {
                    Side::Left => line.extend([cell, padding.as_str()]),
                    Side::Right => line.extend([padding.as_str(), cell]),
                }
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Characters seen on a terminal: escape sequences for colour count for nothing.
fn visible_width(text: &str) -> usize {
    let mut count = 0;
    let mut in_escape = false;
    for c in text.chars() {
        match c {
            '\x1b' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            _ => count += 1,
        }
    }
    count
}

/// Names and values below each other, values aligned.
pub(crate) fn pairs(items: &[(&str, String)]) -> String {
    let width = items.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = items.iter().map(|(name, value)| {
        let indented = value.trim_end().replace('\n', &format!("\n{}", " ".repeat(width + 2)));
        format!("{name:width$}  {indented}").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// A size with one decimal in the unit that fits.
pub(crate) fn human_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// A number with thousands set apart by commas.
pub(crate) fn human_count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time in microseconds with three figures in the unit that fits.
pub(crate) fn human_us(us: u64) -> String {
    let (whole, rest, unit) = match us {
        0..1_000 => return format!("{us} µs"),
        1_000..1_000_000 => (us / 1_000, us % 1_000, "ms"),
        1_000_000..120_000_000 => (us / 1_000_000, us / 1_000 % 1_000, "s"),
        _ => return format!("{}m {:02}s", us / 60_000_000, us / 1_000_000 % 60),
    };
    match whole {
        0..10 => format!("{whole}.{:02} {unit}", rest / 10),
        10..100 => format!("{whole}.{} {unit}", rest / 100),
        _ => format!("{whole} {unit}"),
    }
}

/// A time in microseconds since 1970 as `2026-01-31T12:00:00.000Z`; empty for 0.
pub(crate) fn iso_time(us: u64) -> String {
    if us == 0 {
        return String::new();
    }
    let seconds = us / 1_000_000;
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", us / 1_000 % 1_000)
}

/// Year, month and day of a day number since 1970-01-01 in the Gregorian calendar.
fn civil_date(day_number: u64) -> (u64, u64, u64) {
    let mut rest = day_number;
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_counts_and_times_read_well() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1_536), "1.5 KiB");
        assert_eq!(human_bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!(human_count(1_234_567), "1,234,567");
        assert_eq!(human_count(12), "12");
        assert_eq!(human_us(999), "999 µs");
        assert_eq!(human_us(1_234), "1.23 ms");
        assert_eq!(human_us(12_345), "12.3 ms");
        assert_eq!(human_us(61_500_000), "61.5 s");
        assert_eq!(human_us(125_000_000), "2m 05s");
    }

    #[test]
    fn times_are_iso_in_utc() {
        assert_eq!(iso_time(0), "");
        assert_eq!(iso_time(1), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_time(951_782_400_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_time(1_767_225_599_999_999), "2025-12-31T23:59:59.999Z");
    }

    #[test]
    fn columns_are_aligned_whatever_their_colour() {
        let mut table = Table::new(&[("name", Side::Left), ("n", Side::Right)]);
        table.row(vec!["\x1b[32ma\x1b[0m".to_owned(), "10".to_owned()]);
        table.row(vec!["longer".to_owned(), "7".to_owned()]);
        assert_eq!(table.render(), "NAME     N\n\x1b[32ma\x1b[0m       10\nlonger   7\n");
    }

    #[test]
    fn pairs_keep_several_lines_under_their_value() {
        assert_eq!(pairs(&[("a", "1".to_owned()), ("log", "x\ny\n".to_owned())]), "a    1\nlog  x\n     y\n");
    }
}
