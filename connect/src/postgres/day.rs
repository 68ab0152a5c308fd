//! Days since 1970 (UTC) and their names: the unit by which history is partitioned.

/// Microseconds of a day.
const DAY_US: u64 = 86_400_000_000;
/// The last day that has a name here, in the year 9999.
const DAY_MAX: u32 = 2_932_896;

/// A day since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Day(u32);

impl Day {
    /// The day of a time in microseconds since 1970.
    pub(super) fn of(time_us: u64) -> Self {
        Self(u32::try_from(time_us / DAY_US).unwrap_or(DAY_MAX).min(DAY_MAX))
    }

    /// A day by its number.
    pub(super) fn since_1970(days: u32) -> Self {
        Self(days.min(DAY_MAX))
    }

    /// Its number.
    pub(super) const fn number(self) -> i32 {
        self.0.cast_signed()
    }

    /// The one after.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Year, month and day of the month, by the usual arithmetic on eras of 400 years that begin in March.
    fn civil(self) -> (u32, u32, u32) {
        let days = self.0 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        (era * 400 + year_of_era + u32::from(month <= 2), month, day)
    }

    /// Such as `20261126`.
    pub(super) fn compact(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}{month:02}{day:02}")
    }

    /// Such as `2026-11-26`.
    pub(super) fn dashed(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_the_names_of_the_calendar() {
        for (seconds, name) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (1_764_115_200, "2025-11-26"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(Day::of(seconds * 1_000_000).dashed(), name);
        }
        assert_eq!(Day::of(951_782_400_000_000).compact(), "20000229");
        assert_eq!(Day::of(u64::MAX).compact(), "99991231");
    }
}
