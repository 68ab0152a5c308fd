//! Bounds of a workflow file. Whatever exceeds one is refused with a sentence that names the bound.

/// Bytes of a workflow file in YAML.
pub const YAML_BYTES_MAX: usize = 16 << 20;
/// Bytes of a WfCommons instance. The largest recorded ones are about 4 MiB.
pub const JSON_BYTES_MAX: usize = 256 << 20;
/// Nodes of a YAML file once aliases are expanded: what keeps a small file of nested aliases small.
pub const YAML_NODES_MAX: usize = 1_000_000;
/// Nesting of a YAML file.
pub const YAML_DEPTH_MAX: usize = 64;
/// Tasks of one workflow once arrays are expanded.
pub const TASKS_MAX: usize = 100_000;
/// Dependencies of one workflow once arrays are expanded: 1,000 tasks that each need all of 1,000 others.
pub const DEPENDENCIES_MAX: usize = 1_000_000;
/// Bytes of a workflow's, queue's, kind's, variable's or resource's name, and of an array element's `name[index]`.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a declared task's name: what leaves room for the index of an element.
pub const TASK_NAME_BYTES_MAX: usize = 120;

const _: () = assert!(TASK_NAME_BYTES_MAX + "[100000]".len() <= NAME_BYTES_MAX);

/// Bytes of one task's command, environment and input together; it travels in the task's payload of at most 1 MiB.
pub const COMMAND_BYTES_MAX: usize = 900 << 10;
/// Bytes of all tasks' commands together.
pub const COMMANDS_BYTES_MAX: usize = 256 << 20;
/// Variables of one file.
pub const VARIABLES_MAX: usize = 1_000;
/// Custom resources of one task.
pub const CUSTOM_RESOURCES_MAX: usize = 16;
/// Names of errors that end a task at once.
pub const NON_RETRYABLE_ERRORS_MAX: usize = 64;
/// Attempts of one task.
pub const ATTEMPTS_MAX: u16 = 1_000;
/// Milliseconds of any duration: about ten years.
pub const DURATION_MS_MAX: u64 = 10 * 366 * 24 * 3_600 * 1_000;
/// Milliseconds between two attempts: thirty days.
pub const BACKOFF_MS_MAX: u32 = 30 * 24 * 3_600 * 1_000;
/// Thousandths of a core that one task may ask for.
pub const CPU_MILLI_MAX: u32 = 4_096 * 1_000;
/// Thousandths of a GPU that one task may ask for.
pub const GPU_MILLI_MAX: u32 = 1_024 * 1_000;
/// Bytes of memory that one task may ask for.
pub const MEMORY_BYTES_MAX: u64 = 64 << 40;
/// Units of any other resource that one task may ask for.
pub const RESOURCE_UNITS_MAX: u64 = 1_000_000_000;
