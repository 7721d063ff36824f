//! Owns times as text: their writing, and the reading of the one form that signed requests have. Reads no clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// RFC 3339 in UTC, to the microsecond: `2026-01-31T12:00:00.000000Z`. A time before 1970 is 1970's beginning.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = date(since.as_secs() / 86_400);
    let second = since.as_secs() % 86_400;
    let (hour, minute, second, micro) = (second / 3600, second / 60 % 60, second % 60, since.subsec_micros());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z")
}

/// Seconds since 1970 of a time written `20260131T120000Z`.
pub fn unix_seconds_of(text: &str) -> Option<u64> {
    let bytes: &[u8; 16] = text.as_bytes().try_into().ok()?;
    if bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = &bytes[from..to];
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0')))
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let valid = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The day whose date this is, near where equally long months would put it.
    let near = (year - 1970) * 365 + (year - 1970) / 4 + (month - 1) * 30;
    let days = (near.saturating_sub(3)..near + 40).find(|days| date(*days) == (year, month, day))?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that the leap day is their
/// last; 400 of them have 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `date -u -d @SECONDS`
    #[test]
    fn times_are_written_as_date_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(unix_seconds_of("19700101T000000Z"), Some(0));
        assert_eq!(unix_seconds_of("20000229T000000Z"), Some(951_782_400));
        assert_eq!(unix_seconds_of("20240229T235959Z"), Some(1_709_251_199));
        assert_eq!(unix_seconds_of("20241231T000000Z"), Some(1_735_603_200));
        assert_eq!(unix_seconds_of("21000301T000000Z"), Some(4_107_542_400));
        for bad in
            ["", "20230229T000000Z", "20231301T000000Z", "2023-01-01T00:00Z", "20230101T240000Z", "20230101T000000+"]
        {
            assert_eq!(unix_seconds_of(bad), None, "{bad}");
        }
        assert!(rfc3339(UNIX_EPOCH + Duration::from_micros(7)).ends_with(":00.000007Z"));
    }
}
