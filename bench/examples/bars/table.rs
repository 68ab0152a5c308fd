//! The table of bars.

/// One bar.
pub(crate) struct Row {
    /// What is measured.
    pub(crate) measure: String,
    /// The plain policy, in this run.
    pub(crate) plain: String,
    /// What is known to be good, as published or measured before.
    pub(crate) good: String,
    /// What shall be reached.
    pub(crate) reach: String,
    /// What was reached, in this run.
    pub(crate) ours: String,
}

impl Row {
    /// A bar.
    pub(crate) fn new(measure: impl Into<String>, plain: String, good: &str, reach: &str, ours: String) -> Self {
        Self { measure: measure.into(), plain, good: good.to_owned(), reach: reach.to_owned(), ours }
    }
}

/// Prints a group.
pub(crate) fn print(name: &str, rows: &[Row]) {
    println!("\n## {name}\n\n| measure | plain | known good | reach | ours |\n|---|---|---|---|---|");
    for row in rows {
        println!("| {} | {} | {} | {} | {} |", row.measure, row.plain, row.good, row.reach, row.ours);
    }
}

/// All as JSON.
pub(crate) fn json(rows: &[Row]) -> serde_json::Value {
    let object = |row: &Row| {
        serde_json::json!({
            "measure": row.measure, "plain": row.plain, "known_good": row.good, "reach": row.reach, "ours": row.ours,
        })
    };
    rows.iter().map(object).collect()
}
