//! Moments as a user writes them.

/// `2026-01-31T12:00:00Z`, with a fraction of a second if wanted, in microseconds since 1970.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    let refuse = || format!("'{text}' is no time; write it in UTC like 2026-01-31T12:00:00Z");
    let (date, time) = text.strip_suffix('Z').and_then(|text| text.split_once('T')).ok_or_else(refuse)?;
    let numbers = |text: &str, mark: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(mark).map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [year, month, day] = numbers(date, '-').ok_or_else(refuse)?;
    let [hour, minute, second] = numbers(time, ':').ok_or_else(refuse)?;
    let fits = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 60 || fraction.len() > 6 {
        return Err(refuse());
    }
    let micros: u64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").parse().map_err(|_| refuse())? };
    // Days since 1970-01-01 of a date in the Gregorian calendar, whose years here begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let seconds = (days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second;
    Ok(seconds * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::iso_time;

    #[test]
    fn times_are_read_as_they_are_written() {
        for us in [0, 951_782_400_000_000, 1_767_225_599_999_000, 1_790_000_000_123_000] {
            assert_eq!(parse_time(&if us == 0 { "1970-01-01T00:00:00Z".to_owned() } else { iso_time(us) }), Ok(us));
        }
        assert!(parse_time("2026-01-31").is_err() && parse_time("yesterday").is_err());
    }
}
