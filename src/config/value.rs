//! Values with units and closed choices: sizes, durations, log levels.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};
use taskmaster_workflow::units;

use super::setting::{Raw, Setting};

/// A number of bytes, written as `"256MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) u64);

impl ByteSize {
    /// Mebibytes.
    pub(crate) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Gibibytes.
    pub(crate) const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text != "0" {
            return Err(format!("the size '{text}' has no unit; write for example {text}MiB or {text}B"));
        }
        units::bytes(text).map(Self)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides the number, so that the text reads back as the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >> shift > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Setting for ByteSize {
    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().ok_or("must be a size with its unit in quotes, such as \"256MiB\"")?;
        text.parse().map_err(|error| format!("is no size: {error}"))
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }

    fn json(&self) -> Value {
        json!(self.0)
    }
}

/// A length of time, written as `"1m30s"`. Resolution: one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Interval(pub(crate) Duration);

impl Interval {
    /// Milliseconds.
    pub(crate) const fn ms(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    /// Whole milliseconds.
    ///
    /// # Panics
    /// Never: parsed and constant intervals are below ten years.
    pub(crate) fn as_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).expect("an interval is below ten years")
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self::ms(0));
        }
        units::duration_ms(text).map(Self::ms)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_ms();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            if rest >= unit_ms {
                write!(f, "{}{unit}", rest / unit_ms)?;
                rest %= unit_ms;
            }
        }
        Ok(())
    }
}

impl Setting for Interval {
    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().ok_or("must be a duration with its unit in quotes, such as \"5s\" or \"1m30s\"")?;
        text.parse().map_err(|error| format!("is no duration: {error}"))
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }

    fn json(&self) -> Value {
        json!(self.as_ms())
    }
}

/// How much memory the node may use for tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Half of what the machine or its cgroup has.
    Auto,
    /// This much.
    Bytes(ByteSize),
}

impl Setting for Memory {
    fn read(raw: &Raw) -> Result<Self, String> {
        if raw.text() == Some("auto") {
            return Ok(Self::Auto);
        }
        ByteSize::read(raw).map(Self::Bytes).map_err(|error| format!("{error}, or \"auto\" for half of the memory"))
    }

    fn show(&self) -> String {
        match self {
            Self::Auto => "\"auto\"".to_owned(),
            Self::Bytes(size) => size.show(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::Bytes(size) => size.json(),
        }
    }
}

/// Defines a setting that is one of a few words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Its word.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl Setting for $name {
            fn read(raw: &Raw) -> Result<Self, String> {
                match raw.text() {
                    $(Some($word) => Ok(Self::$variant),)*
                    Some(other) => Err(format!("is \"{other}\", but must be one of {}", [$($word),*].join(", "))),
                    None => Err(format!("must be one of {}, in quotes", [$($word),*].join(", "))),
                }
            }

            fn show(&self) -> String {
                format!("\"{}\"", self.word())
            }

            fn json(&self) -> Value {
                json!(self.word())
            }
        }
    };
}

choice! {
    /// Ports of the single shards.
    ShardPorts {
        /// The listen port plus 1, 2, 3...
        Follow = "follow",
        /// Any free ports; clients learn them at hello.
        Ephemeral = "ephemeral",
    }
}

choice! {
    /// Whether connections to a database are encrypted.
    ServerTls {
        /// They are not.
        Disable = "disable",
        /// They are, and the server's certificate must be valid for its name.
        Verify = "verify",
    }
}

choice! {
    /// The least urgent lines that are logged.
    Level {
        /// What stopped or broke.
        Error = "error",
        /// And what needs a look.
        Warn = "warn",
        /// And what happened.
        Info = "info",
        /// And why.
        Debug = "debug",
        /// And each step.
        Trace = "trace",
    }
}

choice! {
    /// Shape of log lines.
    Format {
        /// For people.
        Text = "text",
        /// One object per line.
        Json = "json",
    }
}
