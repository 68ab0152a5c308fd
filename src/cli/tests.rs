//! Behaviour of the command line as a whole.

use clap::{CommandFactory, Parser};

use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn documented_lines_are_understood() {
    for line in [
        "taskmaster dev",
        "taskmaster dev --temporary --shards 1 --listen 127.0.0.1:0",
        "taskmaster dev --nodes 3 --temporary",
        "taskmaster run examples/corpus.yaml --var chunks=50",
        "taskmaster run montage.json --speed 1000",
        "taskmaster serve --config taskmaster.toml",
        "taskmaster submit --queue emails --kind send --payload {\"to\":1} --priority high --delay 5s --deadline 1m --unique-key k",
        "taskmaster submit --queue emails --from tasks.ndjson",
        "taskmaster worker --label zone=north --label disk=fast --gpu 2",
        "taskmaster submit --kind k --on zone=north --on disk=fast --prefer rack=r1",
        "taskmaster submit --kind k --gpu 1 --or cpu=8,memory=4GiB --or cpu=4,licence=1,on:zone=north",
        "taskmaster worker --queue emails --exec ./send.sh --concurrency 8",
        "taskmaster task list --state ready --state leased --limit 5 --output json",
        "taskmaster task get 00000000000000000000000000",
        "taskmaster task result 00000000000000000000000000 --timeout 5s",
        "taskmaster task cancel 00000000000000000000000000 00000000000000000000000001",
        "taskmaster task retry 00000000000000000000000000",
        "taskmaster task why 00000000000000000000000000",
        "taskmaster task resume 00000000000000000000000000 --from 3",
        "taskmaster task fork 00000000000000000000000000 --from good",
        "taskmaster state log 00000000000000000000000000 --output json",
        "taskmaster state show 00000000000000000000000000 --at 3 --file state.bin",
        "taskmaster state diff 00000000000000000000000000 3 4",
        "taskmaster state branch 00000000000000000000000000 try --at 3 --switch",
        "taskmaster state branch 00000000000000000000000000 try --delete",
        "taskmaster state rollback 00000000000000000000000000 3",
        "taskmaster state tag 00000000000000000000000000 good --at 3",
        "taskmaster state gc 00000000000000000000000000 --keep 10",
        "taskmaster state at --position 7 --data-dir data 00000000000000000000000000",
        "taskmaster state at --time 2026-01-31T12:00:00Z --data-dir data --partition 3",
        "taskmaster state save --task 00000000000000000000000000 --token 1 --attempt 1 --file state.bin --label half",
        "taskmaster queue list",
        "taskmaster queue pause emails",
        "taskmaster queue resume emails",
        "taskmaster queue drain emails",
        "taskmaster queue set emails --rate 100 --burst 10 --concurrency 8 --depth 1000 --deadline-action flag",
        "taskmaster workflow list",
        "taskmaster workflow get 00000000000000000000000000",
        "taskmaster workflow cancel 00000000000000000000000000",
        "taskmaster workflow fork 00000000000000000000000000 --at step",
        "taskmaster cluster status --watch --partitions --output json",
        "taskmaster cluster bootstrap",
        "taskmaster cluster join --config taskmaster.toml --addr 10.0.0.1:7700",
        "taskmaster cluster join n1:7800 n2:7800",
        "taskmaster cluster drain n2",
        "taskmaster cluster activate n2",
        "taskmaster cluster remove n2 --force",
        "taskmaster cluster move 12 --from n1 --to n4",
        "taskmaster cluster rebalance",
        "taskmaster cluster transfer-leader map n2",
        "taskmaster cluster replication 5",
        "taskmaster bench --batch 64 --connections 16 --payload 64 --tasks 1000 --rate 1000 --duration 10 --output json",
        "taskmaster doctor --output json",
        "taskmaster config check taskmaster.toml",
        "taskmaster config show --config taskmaster.toml",
        "taskmaster completions bash",
        "taskmaster --addr 10.0.0.1:7700 -vv queue list",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn wrong_lines_are_refused_with_advice() {
    for (line, part) in [
        ("taskmaster submti", "'submit'"),
        ("taskmaster submit --kind k --delay 5", "has no unit"),
        ("taskmaster submit --kind k --priority urgent", "critical, high, normal, low"),
        ("taskmaster submit --kind k --wait --from f", "cannot be used with"),
        ("taskmaster submit --kind k --memory 256", "has no unit"),
        ("taskmaster submit --kind k --resource gpu", "name=amount"),
        ("taskmaster submit --kind k --on north", "name=value"),
        ("taskmaster submit --kind k --prefer north", "name=value"),
        ("taskmaster submit --kind k --or cpu", "name=amount"),
        ("taskmaster submit --kind k --or cpu=many", "many"),
        ("taskmaster submit --kind k --or memory=4", "has no unit"),
        ("taskmaster submit --kind k --or on:zone", "name=amount"),
        ("taskmaster worker --label zone=no/rth", "name=value"),
        ("taskmaster task get 123", "26 characters"),
        ("taskmaster task cancel", "<ID>"),
        ("taskmaster worker --kind send", "--exec"),
        ("taskmaster run x.yaml --var novalue", "name=value"),
        ("taskmaster run x.yaml --speed 0", "no factor"),
        ("taskmaster queue set emails --burst 3", "--rate"),
        ("taskmaster cluster move twelve --from n1 --to n4", "give its number"),
        ("taskmaster cluster move 12 --from n1", "--to <NODE>"),
        ("taskmaster cluster replication 2", "1, 3, 5"),
        ("taskmaster dev --nodes 10", "1..=9"),
        ("taskmaster cluster join", "--config"),
    ] {
        let message = parse(line).expect_err(line);
        assert!(message.contains(part), "{line}: {message}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let error = Cli::try_parse_from(["taskmaster", "nonsense"]).unwrap_err();
    assert_eq!(error.exit_code(), i32::from(Exit::Usage.number()));
}

#[test]
fn help_names_every_exit_code() {
    let help = Cli::command().render_help().to_string();
    let codes = [
        Exit::Success,
        Exit::Failed,
        Exit::Usage,
        Exit::Refused,
        Exit::Unreachable,
        Exit::NotFound,
        Exit::TaskFailed,
        Exit::TimedOut,
        Exit::Interrupted,
    ];
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in codes {
        assert!(flat.contains(&format!(" {} ", code.number())), "{code:?} is missing in the help");
    }
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(parse(&format!("taskmaster completions {shell}")).is_ok());
    }
}
