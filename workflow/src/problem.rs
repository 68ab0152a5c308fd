//! What is wrong with a workflow file: a stable code for programs, a sentence for people, a place in the file.

use std::fmt;

/// A place in a file, both counted from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Stable names of problems; their text never changes once released.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as programs see it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The text is not YAML.
    YamlSyntax = "yaml_syntax",
    /// The text is not JSON.
    JsonSyntax = "json_syntax",
    /// JSON, but not a WfCommons instance: a field is missing or of another type.
    JsonShape = "json_shape",
    /// The file is over a size limit.
    FileTooLarge = "file_too_large",
    /// A key that the format does not have.
    UnknownKey = "unknown_key",
    /// The same key twice in one mapping.
    DuplicateKey = "duplicate_key",
    /// A key that must be there is not.
    MissingKey = "missing_key",
    /// Two keys that exclude each other.
    ConflictingKeys = "conflicting_keys",
    /// A value of another shape than the key wants (a list where a text should be).
    WrongType = "wrong_type",
    /// A value of the right shape that means nothing or is out of range.
    BadValue = "bad_value",
    /// A name with characters that names do not have, or too long.
    BadName = "bad_name",
    /// Two tasks of one name.
    DuplicateName = "duplicate_name",
    /// A dependency on a task that does not exist.
    UnknownTask = "unknown_task",
    /// A `{{variable}}` that does not exist.
    UnknownVariable = "unknown_variable",
    /// Tasks that wait for each other.
    Cycle = "cycle",
    /// A workflow without tasks.
    EmptyWorkflow = "empty_workflow",
    /// More tasks than a workflow may have.
    TooManyTasks = "too_many_tasks",
    /// More dependencies than a workflow may have.
    TooManyDependencies = "too_many_dependencies",
    /// An element-wise dependency between arrays of different sizes, or on a task that is no array.
    ArrayMismatch = "array_mismatch",
    /// A command that does not fit into a task.
    CommandTooLarge = "command_too_large",
    /// Resources that no worker has.
    ImpossibleResources = "impossible_resources",
    /// A recorded task without a run time.
    MissingRuntime = "missing_runtime",
    /// A recorded run time that is negative or absurd.
    BadRuntime = "bad_runtime",
    /// A recorded execution of a task that the specification does not have.
    UnknownExecution = "unknown_execution",
    /// Parents and children of a recorded workflow disagree (a warning: both are honoured).
    AsymmetricEdges = "asymmetric_edges",
    /// A recorded task names a file that has no size (a warning: it counts as empty).
    UnknownFile = "unknown_file",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable name of the problem.
    pub code: Code,
    /// What is wrong and what would be right.
    pub sentence: String,
    /// Where, if the file says so.
    pub at: Option<Position>,
}

impl Problem {
    pub(crate) fn new(code: Code, at: impl Into<Option<Position>>, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into(), at: at.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "{at}: ")?;
        }
        write!(f, "{} [{}]", self.sentence, self.code)
    }
}

/// A refused workflow file: at least one problem, and no more than [`Rejected::PROBLEMS_MAX`] of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    problems: Vec<Problem>,
    left_out: usize,
}

impl Rejected {
    /// Problems kept; the rest is only counted.
    pub const PROBLEMS_MAX: usize = 50;

    /// Sorts by place, so that a reader goes through the file once.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "a refusal without a reason");
        problems.sort_by_key(|problem| problem.at);
        let left_out = problems.len().saturating_sub(Self::PROBLEMS_MAX);
        problems.truncate(Self::PROBLEMS_MAX);
        Self { problems, left_out }
    }

    /// The problems, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Code of the first problem, for exit messages and tests.
    #[must_use]
    pub fn code(&self) -> Code {
        self.problems[0].code
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        if self.left_out > 0 {
            write!(f, "\nand {} more", self.left_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejected {}
