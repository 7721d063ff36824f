//! Owns what templates expect of Python and the `transformers` library: methods, `tojson`, `raise_exception`,
//! `strftime_now`, and the spellings of Python. It knows no conversation.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};

/// Gives an environment the names that chat templates use.
pub(super) fn install(environment: &mut Environment<'static>) {
    minijinja_contrib::add_to_environment(environment);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", tojson);
    environment.add_test("none", |value: &Value| is_nothing(value));
    add_lazy(environment, "map", Value::from_function(minijinja::filters::map));
    add_lazy(environment, "select", Value::from_function(minijinja::filters::select));
    add_lazy(environment, "reject", Value::from_function(minijinja::filters::reject));
    add_lazy(environment, "selectattr", Value::from_function(minijinja::filters::selectattr));
    add_lazy(environment, "rejectattr", Value::from_function(minijinja::filters::rejectattr));
}

/// A filter whose result in Python is a generator: it takes nothing for an empty list, can be looped over and joined,
/// but is no list for `tojson`.
fn add_lazy(environment: &mut Environment<'static>, name: &'static str, filter: Value) {
    environment.add_filter(name, move |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        let mut all = vec![if is_nothing(&value) { Value::from(Vec::<Value>::new()) } else { value }];
        all.extend(args.into_values());
        let items: Vec<Value> = filter.call(state, &all)?.try_iter()?.collect();
        Ok::<_, Error>(Value::make_iterable(move || items.clone().into_iter()))
    });
}

/// `{% generation %}` marks the assistant's text for training; here it means nothing.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let tag = &rest[open..open + length + 2];
        out.push_str(&rest[..open]);
        let word = tag[2..length].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[open + length + 2..];
    }
    out.push_str(rest);
    out
}

/// What `tools` and `documents` are when there are none: `none` that cannot be looped over, as in Python. A template
/// that needs tools then fails instead of making a prompt without them.
pub(super) fn nothing() -> Value {
    Value::from_object(Nothing)
}

#[derive(Debug)]
struct Nothing;

impl Object for Nothing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("None")
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_none() || value.downcast_object_ref::<Nothing>().is_some()
}

/// The function that prints the time given: seconds since 1970-01-01 in the zone to show.
pub(super) fn strftime_now(now: Option<i64>) -> Value {
    Value::from_function(move |format: String| -> Result<String, Error> {
        let now =
            now.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "there is no clock to print a date from"))?;
        strftime(now, &format)
    })
}

fn strftime(now: i64, format: &str) -> Result<String, Error> {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[days.rem_euclid(7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let code = characters.next();
        // `%-d`: without the leading zero.
        let (bare, code) = if code == Some('-') { (true, characters.next()) } else { (false, code) };
        let mut number = |value: i64, width: usize| {
            let width = if bare { 0 } else { width };
            write!(out, "{value:0width$}")
        };
        let written = match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => write!(out, "{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('p') => out.write_str(if hour < 12 { "AM" } else { "PM" }),
            Some('A') => out.write_str(weekday),
            Some('a') => out.write_str(&weekday[..3]),
            Some('B') => out.write_str(month_name),
            Some('b' | 'h') => out.write_str(&month_name[..3]),
            Some('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('D') => write!(out, "{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('T' | 'X') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('R') => write!(out, "{hour:02}:{minute:02}"),
            Some('Z') => Ok(()),
            Some('%') => out.write_str("%"),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                return Err(Error::new(ErrorKind::InvalidOperation, format!("the date code %{code} is not known")));
            }
        };
        written.expect("writing to a string cannot fail: this is a bug");
    }
    Ok(out)
}

/// Days since 1970-01-01 to year, month, day (proleptic Gregorian; the year begins in March while counting).
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to the first day of a year.
fn days_before(year: i64) -> i64 {
    let last = year - 1;
    365 * (year - 1970) + (last.div_euclid(4) - last.div_euclid(100) + last.div_euclid(400)) - 477
}

/// `tojson` as the `transformers` library defines it: Python's separators, characters as they are, nothing escaped for
/// HTML. Takes `indent`, `ensure_ascii`, `sort_keys`, `separators`.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii: Option<Value> = options.get("ensure_ascii")?;
    let sort_keys: Option<Value> = options.get("sort_keys")?;
    let separators: Option<Value> = options.get("separators")?;
    // The filter's parameters in order are ensure_ascii, indent, separators, sort_keys; templates name them.
    let indent: Option<Value> = match options.get("indent")? {
        Some(indent) => Some(indent),
        None => indent.filter(|value| value.is_integer()),
    };
    options.assert_all_used()?;
    let indent = indent.as_ref().and_then(Value::as_usize);
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators.filter(|value| !value.is_none()) {
        item = separators.get_item_by_index(0)?.to_string();
        key = separators.get_item_by_index(1)?.to_string();
    }
    let style = JsonStyle {
        indent,
        item,
        key,
        ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        sorted: sort_keys.is_some_and(|value| value.is_true()),
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// JSON as Python's `json.dumps` writes it.
pub(super) fn to_json(value: &Value) -> String {
    let style = JsonStyle { indent: None, item: ", ".into(), key: ": ".into(), ascii: false, sorted: false };
    let mut out = String::new();
    match style.write(value, 0, &mut out) {
        Ok(()) => out,
        Err(_) => value.to_string(),
    }
}

struct JsonStyle {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// Deeper values are refused, as the parsers of requests do.
const MAX_JSON_DEPTH: usize = 130;

impl JsonStyle {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, "a value is nested too deeply for JSON"));
        }
        if is_nothing(value) {
            out.push_str("null");
            return Ok(());
        }
        match value.kind() {
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.separate(index, depth + 1, out);
                    self.write(item, depth + 1, out)?;
                }
                self.close(items.is_empty(), depth, out);
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                out.push('{');
                for (index, key) in keys.iter().enumerate() {
                    self.separate(index, depth + 1, out);
                    self.key(key, out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)?;
                }
                self.close(keys.is_empty(), depth, out);
                out.push('}');
            }
            kind => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("a value of type {kind} is not JSON")));
            }
        }
        Ok(())
    }

    fn key(&self, key: &Value, out: &mut String) {
        match key.kind() {
            ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::None => out.push_str("\"null\""),
            _ => self.string(&key.to_string(), out),
        }
    }

    fn number(&self, value: &Value, out: &mut String) {
        if value.is_integer() {
            out.push_str(&value.to_string());
            return;
        }
        out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                control if control < ' ' => escape(u16::try_from(u32::from(control)).unwrap_or_default(), out),
                other if self.ascii && !other.is_ascii() => {
                    let mut units = [0; 2];
                    other.encode_utf16(&mut units).iter().for_each(|&unit| escape(unit, out));
                }
                other => out.push(other),
            }
        }
        out.push('"');
    }

    fn separate(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.line(depth, out);
    }

    fn close(&self, empty: bool, depth: usize, out: &mut String) {
        if !empty {
            self.line(depth, out);
        }
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    }
}

fn escape(unit: u16, out: &mut String) {
    out.push_str(&format!("\\u{unit:04x}"));
}

/// A float as Python writes it: `1.0`, `1e-05`, `1e+16`.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // 2026-01-15 12:34:56 and 2000-02-29 00:00:00, checked with `date -u -d`.
        assert_eq!(
            strftime(1_768_480_496, "%Y-%m-%d %H:%M:%S %A %b %j").expect("known"),
            "2026-01-15 12:34:56 Thursday Jan 015"
        );
        assert_eq!(
            strftime(951_782_400, "%d %B %Y, %-d.%-m.%y %I %p").expect("known"),
            "29 February 2000, 29.2.00 12 AM"
        );
        assert_eq!(strftime(-1, "%F %T").expect("known"), "1969-12-31 23:59:59");
        assert_eq!(strftime(1_735_603_200, "%j").expect("known"), "366");
        assert!(strftime(0, "%Q").is_err());
    }

    #[test]
    fn floats_are_spelled_as_python_does() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (123456.75, "123456.75"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn generation_marks_vanish_with_their_spaces() {
        let source = "a {%- generation -%} b {% endgeneration %}c{% if generation %}d{% endif %}";
        assert_eq!(without_generation_marks(source), "a {%- if true -%} b {% endif %}c{% if generation %}d{% endif %}");
    }
}
