//! The table of bars.

/// One bar.
pub struct Row {
    /// What is measured.
    pub measure: String,
    /// The plain policy, in this run.
    pub plain: String,
    /// What is known to be good, as published or measured before.
    pub good: String,
    /// What shall be reached.
    pub reach: String,
    /// What was reached, in this run.
    pub ours: String,
}

impl Row {
    /// A bar.
    pub fn new(measure: impl Into<String>, plain: String, good: &str, reach: &str, ours: String) -> Self {
        Self { measure: measure.into(), plain, good: good.to_owned(), reach: reach.to_owned(), ours }
    }
}

/// Prints a group.
pub fn print(name: &str, rows: &[Row]) {
    println!("\n## {name}\n\n| measure | plain | known good | reach | ours |\n|---|---|---|---|---|");
    for row in rows {
        println!("| {} | {} | {} | {} | {} |", row.measure, row.plain, row.good, row.reach, row.ours);
    }
}

/// All as JSON.
pub fn json(rows: &[Row]) -> serde_json::Value {
    let object = |row: &Row| {
        serde_json::json!({
            "measure": row.measure, "plain": row.plain, "known_good": row.good, "reach": row.reach, "ours": row.ours,
        })
    };
    rows.iter().map(object).collect()
}
