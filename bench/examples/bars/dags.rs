//! Bars of workflows and projects.

use std::error::Error;
use std::time::Instant;

use taskmaster_scheduler::critical::Graph;
use taskmaster_scheduler::critical::project::Search;
use taskmaster_scheduler::replay::{psplib as projects, wfformat};

use crate::Options;
use crate::load::Traces;
use crate::table::Row;

/// Schedules that the search may build per workflow.
const SCHEDULES: usize = 200;
/// Schedules that the search may build per project: about 10 ms.
const PROJECT_SCHEDULES: usize = 3000;

fn geometric(ratios: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for ratio in ratios {
        sum += ratio.ln();
        count += 1.0;
    }
    (sum / f64::max(count, 1.0)).exp()
}

/// Makespans of recorded workflows over the lower bound.
pub(crate) fn workflows(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut graphs: Vec<Graph> = Vec::new();
    for (name, text) in traces.archive("workflows/wfinstances-dev.tar.xz", ".json")? {
        graphs.push(wfformat::read(&name, &text)?);
    }
    let mut rows = Vec::new();
    for (slots, good, reach) in [(4, "1.015", "1.010"), (16, "1.048", "1.035"), (64, "1.071", "1.045")] {
        let bounds: Vec<i64> = graphs.iter().map(|graph| graph.bound(slots).max(1)).collect();
        let over = |schedule: &dyn Fn(&Graph, i64) -> Vec<i64>| {
            let ratio =
                |(graph, bound): (&Graph, &i64)| graph.makespan(&schedule(graph, *bound)) as f64 / *bound as f64;
            geometric(graphs.iter().zip(&bounds).filter(|(graph, _)| !graph.is_empty()).map(ratio))
        };
        let plain = over(&|graph, _| graph.list_in_order(slots));
        let ranked = over(&|graph, _| {
            let ranks: Vec<f64> = graph.ranks().iter().map(|rank| *rank as f64).collect();
            graph.list(slots, &ranks, false)
        });
        let start = Instant::now();
        let searched = over(&|graph, bound| graph.improve(slots, SCHEDULES, 1, bound));
        let each = start.elapsed().as_secs_f64() * 1e3 / graphs.len() as f64;
        let ours = format!("{searched:.3} (by ranks alone {ranked:.3}; {each:.0} ms each)");
        let name = format!("{} workflows, {slots} slots: makespan over bound", graphs.len());
        rows.push(Row::new(name, format!("{plain:.3}"), good, reach, ours));
    }
    Ok(rows)
}

/// Projects of 90 tasks: the makespan over the shortest known.
pub(crate) fn psplib(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let archive = "scheduling/psplib/psplib-j30-j90.tar.gz";
    let known = traces.archive(archive, "j90hrs.sm")?;
    let known = projects::known(&known.first().ok_or("no list of known lengths")?.1);
    let (mut plain, mut ours, mut count) = (0.0, 0.0, 0.0);
    let mut elapsed = 0.0;
    for (name, text) in traces.archive(archive, ".rcp")? {
        let numbers: Vec<u32> = name.trim_end_matches(".rcp").split('_').skip(1).flat_map(str::parse).collect();
        let best = known.iter().find(|(parameter, instance, _)| numbers == [*parameter, *instance]);
        let (Some((.., best)), true) = (best, name.starts_with("j90_")) else { continue };
        let project = projects::read(&name, &text)?;
        let first = Search::new(&project, 1).run(1);
        let start = Instant::now();
        let found = Search::new(&project, 1).run(PROJECT_SCHEDULES);
        elapsed += start.elapsed().as_secs_f64();
        if !project.is_valid(&found) {
            return Err(format!("{name}: a schedule is not valid").into());
        }
        plain += f64::from(project.makespan(&first)) / f64::from(*best) - 1.0;
        ours += f64::from(project.makespan(&found)) / f64::from(*best) - 1.0;
        count += 1.0;
    }
    let text = format!("+{:.2}% ({:.1} ms each)", 100.0 * ours / count, 1e3 * elapsed / count);
    let plain = format!("+{:.1}%", 100.0 * plain / count);
    Ok(vec![Row::new(format!("PSPLIB j90, {count} projects, over best known"), plain, "+3.2%", "+2%", text)])
}
