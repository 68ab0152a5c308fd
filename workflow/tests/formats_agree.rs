//! The same graph in both formats, the tasks in any order, becomes the same dependencies.

use std::collections::BTreeMap;
use std::fmt::Write;

use proptest::prelude::*;
use taskmaster_workflow::{Options, Plan, from_wfformat, from_yaml};

/// Parents' names by name.
type Graph = BTreeMap<String, Vec<String>>;

/// Edges lead from lower to higher numbers; the second value is the order in which the file lists the tasks.
fn graph() -> impl Strategy<Value = (Graph, Vec<String>)> {
    (1_usize..12).prop_flat_map(|tasks| {
        let edges = prop::collection::vec(prop::bool::weighted(0.3), tasks * tasks);
        let order = Just((0..tasks).map(|task| format!("t{task}")).collect::<Vec<_>>()).prop_shuffle();
        (edges, order).prop_map(move |(edges, order)| {
            let needs = |parent: usize, child: usize| edges[parent * tasks + child];
            let parents = |child: usize| -> Vec<String> {
                (0..child).filter(|&parent| needs(parent, child)).map(|parent| format!("t{parent}")).collect()
            };
            let graph = (0..tasks).map(|child| (format!("t{child}"), parents(child))).collect();
            (graph, order)
        })
    })
}

fn graph_of(plan: &Plan) -> Graph {
    let names = |parents: &[u32]| {
        let mut names: Vec<String> = parents.iter().map(|&task| plan.tasks[task as usize].name.clone()).collect();
        names.sort_by_key(|name| name[1..].parse::<u32>().expect("a number"));
        names
    };
    plan.tasks.iter().map(|task| (task.name.clone(), names(&task.parents))).collect()
}

fn yaml(graph: &Graph, order: &[String]) -> String {
    order.iter().fold(String::from("tasks:\n"), |mut text, name| {
        writeln!(text, "  {name}: {{run: x, needs: [{}]}}", graph[name].join(", ")).expect("a string");
        text
    })
}

/// Half of the edges stand under `parents`, all of them under `children`.
fn json(graph: &Graph, order: &[String]) -> String {
    let list = |names: Vec<&String>| names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",");
    let tasks: Vec<String> = order
        .iter()
        .map(|name| {
            let children = graph.iter().filter(|(_, parents)| parents.contains(name)).map(|(child, _)| child).collect();
            let parents = list(graph[name].iter().step_by(2).collect());
            let children = list(children);
            format!(r#"{{"name":"{name}","id":"{name}","parents":[{parents}],"children":[{children}]}}"#)
        })
        .collect();
    let runs: Vec<String> = order.iter().map(|name| format!(r#"{{"id":"{name}","runtimeInSeconds":1}}"#)).collect();
    let (tasks, runs) = (tasks.join(","), runs.join(","));
    format!(r#"{{"name":"g","workflow":{{"specification":{{"tasks":[{tasks}]}},"execution":{{"tasks":[{runs}]}}}}}}"#)
}

proptest! {
    #[test]
    fn both_formats_give_the_same_graph((graph, order) in graph()) {
        let ours = from_yaml(&yaml(&graph, &order), &Options::default()).expect("valid");
        let theirs = from_wfformat(&json(&graph, &order)).expect("valid");
        prop_assert_eq!(&graph_of(&ours), &graph);
        prop_assert_eq!(&graph_of(&theirs), &graph);
        for plan in [&ours, &theirs] {
            let before = |(place, task): (usize, &taskmaster_workflow::PlanTask)| {
                task.parents.iter().all(|&parent| (parent as usize) < place)
            };
            prop_assert!(plan.tasks.iter().enumerate().all(before), "parents stand first");
        }
    }
}
