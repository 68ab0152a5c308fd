//! Durations, byte sizes and processor shares as people write them. Exact integer arithmetic: no floats.

use crate::limits;

/// Milliseconds of `500ms`, `1.5s`, `2m`, `1h30m`, `7d`.
///
/// # Errors
/// A sentence for people when the text has no unit, an unknown one, or is out of range.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err("a duration is empty; write for example 30s, 5m or 1h30m".into());
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(end);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("the duration '{text}' has no unit; write for example {text}s or {text}ms")),
            _ => return Err(format!("the duration '{text}' has an unknown unit '{unit}'; use ms, s, m, h or d")),
        };
        let part_ms =
            scaled(number, unit_ms).ok_or_else(|| format!("'{text}' is no duration; write for example 30s"))?;
        total_ms = total_ms.saturating_add(part_ms);
        rest = tail;
    }
    if total_ms > limits::DURATION_MS_MAX {
        return Err(format!("the duration '{text}' is over ten years"));
    }
    Ok(total_ms)
}

/// Bytes of `512`, `64KiB`, `256MiB`, `1.5GB`.
///
/// # Errors
/// A sentence for people when the text is no size or has an unknown unit.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text.trim());
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("the size '{text}' has an unknown unit '{unit}'; write for example 256MiB or 1GB")),
    };
    scaled(number, factor).ok_or_else(|| format!("'{text}' is no size in bytes; write for example 256MiB"))
}

/// Thousandths of a core or another device of `1`, `0.5`, `500m`.
///
/// # Errors
/// A sentence for people when the text is no such number.
pub fn milli(text: &str) -> Result<u32, String> {
    let (number, unit) = split_number(text.trim());
    let factor = match unit {
        "" => 1_000,
        "m" => 1,
        _ => return Err(format!("'{text}' is no share of a device; write for example 2, 0.5 or 500m")),
    };
    scaled(number, factor)
        .and_then(|milli| u32::try_from(milli).ok())
        .ok_or_else(|| format!("'{text}' is no share of a device; write for example 2, 0.5 or 500m"))
}

/// The leading digits and points, and what follows.
fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// `number * factor`, rounded down; `None` when it is no decimal number or out of range.
pub(crate) fn scaled(number: &str, factor: u64) -> Option<u64> {
    const FRACTION_DIGITS_MAX: usize = 9;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits_only = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(whole) || !digits_only(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let digits = u32::try_from(fraction.len()).expect("at most nine digits");
    let fraction: u128 = fraction.parse().ok()?;
    let part = fraction * u128::from(factor) / 10_u128.pow(digits);
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("1.5s"), Ok(1_500));
        assert_eq!(duration_ms("1h30m"), Ok(5_400_000));
        assert_eq!(duration_ms("7d"), Ok(604_800_000));
    }

    #[test]
    fn durations_without_a_known_unit_are_refused_with_advice() {
        assert!(duration_ms("30").expect_err("no unit").contains("30s"));
        assert!(duration_ms("3 weeks").is_err());
        assert!(duration_ms("-1s").is_err());
        assert!(duration_ms("1..5s").is_err());
        assert!(duration_ms("99999999999999999999s").is_err());
        assert!(duration_ms("4000000h").expect_err("too long").contains("ten years"));
    }

    #[test]
    fn sizes_and_cores() {
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(bytes("12"), Ok(12));
        assert!(bytes("1 potato").is_err());
        assert_eq!(milli("2"), Ok(2_000));
        assert_eq!(milli("0.25"), Ok(250));
        assert_eq!(milli("500m"), Ok(500));
        assert!(milli("1e9").is_err());
        assert!(milli("99999999999").is_err());
    }
}
