//! Behaviour of reading a configuration.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Config, String> {
    parse("t.toml", text, Vec::new()).map(|loaded| loaded.config).map_err(|error| error.to_string())
}

fn refusal(text: &str) -> String {
    read(text).expect_err("must be refused")
}

fn with_variable(name: &str, value: &str) -> Result<Loaded, Error> {
    parse("t.toml", "[node]\nshards = 1\n", vec![(name.to_owned(), value.to_owned())])
}

#[test]
fn empty_file_gives_the_defaults() {
    assert_eq!(read("").unwrap(), Config::default());
}

#[test]
fn the_documented_file_equals_the_defaults_and_names_every_key() {
    let text = include_str!("../../taskmaster.toml");
    assert_eq!(parse("taskmaster.toml", text, Vec::new()).unwrap().config, Config::default());
    // The section of a cluster is commented out, settings without a blank behind the sign.
    let setting = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let uncommented: Vec<&str> = text.lines().map(|line| if setting(line) { &line[1..] } else { line }).collect();
    let text = uncommented.join("\n").replace("127.0.0.1:7700", "0.0.0.0:7700");
    let loaded = parse("taskmaster.toml", &text, Vec::new()).unwrap();
    let mut expected = Config { clustered: true, ..Config::default() };
    expected.listen.address.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(loaded.config, expected);
    for (section, key, _) in Config::default().shown() {
        assert!(loaded.origins.contains_key(&format!("{section}.{key}")), "{section}.{key} is not documented");
    }
}

#[test]
fn shown_toml_reads_back_as_the_same_configuration() {
    let text = "[limits]\nmemory = \"3GiB\"\n[workers]\ngrace = \"59m58s4ms\"\nqueues = [\"a\", \"b\"]\n";
    let config = read(text).unwrap();
    let shown = config.to_toml(|key| if key == "node.shards" { Origin::Environment } else { Origin::File(7) });
    assert_eq!(read(&shown).unwrap(), config);
}

#[test]
fn unknown_keys_and_sections_are_refused_with_line_and_suggestion() {
    assert_eq!(
        refusal("[node]\ndata_dir = \"x\"\nshard = 2\n"),
        "t.toml:3: unknown key 'shard' in [node]; did you mean 'shards'?"
    );
    assert_eq!(refusal("[limit]\n"), "t.toml:1: unknown section [limit]; did you mean 'limits'?");
    assert_eq!(
        refusal("[node]\nfinished_max = 1\n"),
        "t.toml:2: unknown key 'finished_max' in [node]; it belongs in [queues]"
    );
    assert!(refusal("[log]\ncolour = true\n").contains("its keys are level, format"));
    assert!(refusal("node = 3\n").contains("write [node]"));
}

#[test]
fn values_of_wrong_shape_unit_or_range_are_refused_with_advice() {
    for (text, part) in [
        ("[wal]\nsegment_size = \"64\"", "has no unit; write for example 64MiB"),
        ("[wal]\nsegment_size = 64", "with its unit in quotes"),
        ("[wal]\nsegment_size = \"64MB\"", "multiple of 1MiB"),
        ("[wal]\nsegment_size = \"1MiB\"", "between 32MiB and 4GiB"),
        ("[workers]\ngrace = \"5 weeks\"", "no duration"),
        ("[workers]\ngrace = \"2h\"", "between 0s and 1h"),
        ("[workers]\ngrace = \"9999d\"", "over ten years"),
        ("[workers]\ngrace = 5", "with its unit in quotes"),
        ("[node]\nshards = -1", "must not be negative"),
        ("[node]\nshards = \"two\"", "whole number"),
        ("[node]\nshards = 70000", "at most 65535"),
        ("[node]\npartitions = 0", "between 1 and 4096"),
        ("[node]\nshards = 1.5", "cannot be a float"),
        ("[node]\nname = \"a b\"", "no blanks"),
        ("[listen]\naddress = \"localhost\"", "127.0.0.1:7700"),
        ("[listen]\naddress = \"127.0.0.1:65535\"", "ephemeral"),
        ("[log]\nlevel = \"loud\"", "one of error, warn, info, debug, trace"),
        ("[queues]\nauto_create = \"yes\"", "true or false"),
        ("[workers]\nqueues = \"noop\"", "list of texts"),
        ("[workers]\nqueues = [1]", "list of texts"),
        ("[limits]\nmemory = \"lots\"", "\"auto\""),
        ("[node]\nshards = 8\npartitions = 4", "at most node.partitions"),
        ("[node\n", "is not TOML"),
    ] {
        let message = refusal(text);
        assert!(message.contains(part), "{text:?} gave {message:?}, expected {part:?}");
    }
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_the_file() {
    let message = refusal("[wal]\nsegment_size = 1\n[lag]\n[node]\nshard = 2\npartitions = 0\n");
    let lines: Vec<_> = message.lines().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["2", "3", "5", "6"]);
}

#[test]
fn a_node_is_of_a_cluster_when_the_section_is_there() {
    let local = "[cluster]\nlisten = \"127.0.0.1:7800\"\n";
    assert!(!read("").unwrap().clustered);
    assert!(read(local).unwrap().clustered);
    assert!(with_variable("CLUSTER__LISTEN", "127.0.0.1:7800").unwrap().config.clustered);
    let seeds = with_variable("CLUSTER__SEEDS", "n1:7800, [::1]:7801").unwrap_err().to_string();
    assert!(seeds.contains("which only this host reaches"), "{seeds}");
    let config = read(&format!("{local}seeds = [\"n1:7800\", \"[::1]:7801\"]\nzone = \"a\"\n")).unwrap();
    assert_eq!(config.cluster.seeds, ["n1:7800", "[::1]:7801"]);
    assert_eq!(read(&config.to_toml(|_| Origin::Default)).unwrap(), config);
    assert_eq!(config.json()["cluster"]["tls_ca"], serde_json::Value::Null);
    assert_eq!(Config::default().json()["cluster"], serde_json::Value::Null);
    assert!(!Config::default().to_toml(|_| Origin::Default).contains("[cluster]"));
}

#[test]
fn what_does_not_make_a_cluster_is_refused_with_advice() {
    for (text, part) in [
        ("seeds = \"n1:7800\"", "list of texts"),
        ("seeds = [\"n1\"]", "such as \"n1.example:7800\""),
        ("seeds = [\"::1:7800\"]", "needs a host and the port"),
        ("seeds = [\"n1:0\"]", "needs a host and the port"),
        ("seed = []", "did you mean 'seeds'?"),
        ("advertise = \"n1:7800\"", "without a port"),
        ("dns = \"a b\"", "such as \"n1.example:7800\""),
        ("listen = \"127.0.0.1:0\"", "other nodes must know the port"),
        ("listen = \"127.0.0.1:7701\"", "keep them apart"),
        ("listen = \"127.0.0.1:65535\"\n[node]\nshards = 2", "too few ports for 2 shards"),
        ("listen = \"10.0.0.1:7800\"", "which only this host reaches"),
        ("replication = 2", "2 replicas survive no more losses than 1"),
        ("replication = 7", "between 1 and 5"),
        ("replace_after = \"1s\"", "between 5s and 7d"),
        ("moves_max = 0", "between 1 and 256"),
        ("node_name = \"a b\"", "no blanks"),
        ("tls_ca = \"ca.pem\"", "go together"),
    ] {
        let error = refusal(&format!("[cluster]\n{text}\n"));
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn environment_overrides_the_file_and_is_checked_alike() {
    let loaded = with_variable("NODE__SHARDS", "3").unwrap();
    assert_eq!(loaded.config.node.shards, 3);
    assert_eq!(loaded.origins["node.shards"], Origin::Environment);
    assert_eq!(with_variable("WORKERS__QUEUES", "a, b").unwrap().config.workers.queues, ["a", "b"]);
    assert!(!with_variable("QUEUES__AUTO_CREATE", "false").unwrap().config.queues.auto_create);

    let refused = |name, value| with_variable(name, value).unwrap_err().to_string();
    assert!(
        refused("NODE__SHARD", "3").contains("TASKMASTER_NODE__SHARD: unknown key 'shard' in [node]; did you mean")
    );
    assert!(refused("NOD__SHARDS", "3").contains("unknown section 'nod'; did you mean 'node'?"));
    assert!(refused("WAL__SEGMENT_SIZE", "12").contains("TASKMASTER_WAL__SEGMENT_SIZE: wal.segment_size is no size"));
}

#[test]
fn the_example_for_kubernetes_sets_what_there_is() {
    let text = include_str!("../../deploy/kubernetes.yaml");
    let variable = |line: &str| {
        let (name, value) = line.split_once("{name: TASKMASTER_")?.1.strip_suffix('}')?.split_once(", value: ")?;
        let value = value.trim_matches('"').replace("$(POD)", "taskmaster-0").replace("$(NAMESPACE)", "default");
        Some((name.to_owned(), value))
    };
    let found: Vec<(String, String)> = text.lines().filter_map(variable).collect();
    assert_eq!(found.len(), text.matches("TASKMASTER_").count(), "{found:?}");
    let config = parse("t.toml", "", found).unwrap().config;
    assert!(config.clustered);
    assert_eq!(config.cluster.advertise, "taskmaster-0.taskmaster.default.svc.cluster.local");
    let ports = (config.listen.address.port(), config.cluster.listen.port());
    assert_eq!(ports, (7_700, 7_800), "those of the service");
    assert!(!config.cluster.listen.ip().is_loopback());
}

#[test]
fn variables_without_the_double_underscore_are_no_settings() {
    let all = [("TASKMASTER_ADDR", "x"), ("TASKMASTER_NODE__SHARDS", "2"), ("HOME", "/")];
    let found = variables(all.into_iter().map(|(name, value)| (name.into(), value.into())));
    assert_eq!(found, [("NODE__SHARDS".to_owned(), "2".to_owned())]);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Some(Path::new("no/such/file.toml"))).unwrap_err().to_string();
    assert!(error.starts_with("no/such/file.toml: cannot be read"), "{error}");
}

proptest! {
    #[test]
    fn sizes_and_intervals_read_back_as_shown(bytes in 1u64..(1 << 50), ms in 0u64..315_000_000_000) {
        prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        prop_assert_eq!(Interval::ms(ms).to_string().parse(), Ok(Interval::ms(ms)));
    }

    #[test]
    fn hostile_text_never_panics(text in "\\PC{0,200}") {
        let _ = read(&text);
    }
}

const STREAM: &str = "[[stream]]\nname = \"s\"\nbrokers = [\"b:9092\"]\ntopics = [\"t\"]\nkind = \"k\"\n";

#[test]
fn the_documented_stream_names_every_key() {
    let text = include_str!("../../taskmaster.toml");
    let block = &text[text.find("# [[stream]]").unwrap()..];
    let block: Vec<&str> = block.lines().take_while(|line| !line.is_empty()).map(|line| &line[2..]).collect();
    let config = read(&block.join("\n")).unwrap();
    assert_eq!(config.streams.len(), 1);
    for key in super::Stream::KEYS {
        assert!(block.iter().any(|line| line.starts_with(&format!("{key} = "))), "stream.{key} is not documented");
    }
    let shown = config.to_toml(|_| Origin::Default);
    assert_eq!(read(&shown).unwrap(), config, "{shown}");
    assert_eq!(config.json()["streams"][0]["secrets"]["sasl.password"], "file:/etc/taskmaster/kafka-password");
}

#[test]
fn the_documented_events_name_every_key_and_are_checked_with_sentences() {
    let text = include_str!("../../taskmaster.toml");
    let block = &text[text.find("# [events]").unwrap()..];
    let block: Vec<&str> = block.lines().take_while(|line| !line.is_empty()).map(|line| &line[2..]).collect();
    let config = read(&block.join("\n")).unwrap();
    for key in super::events::Events::KEYS {
        assert!(block.iter().any(|line| line.starts_with(&format!("{key} = "))), "events.{key} is not documented");
    }
    let shown = config.to_toml(|_| Origin::Default);
    assert_eq!(read(&shown).unwrap(), config, "{shown}");
    let events = "[events]\nbrokers = [\"b:9092\"]\n";
    let with = |line: &str| refusal(&format!("{events}topic = \"t\"\n{line}\n"));
    assert!(refusal(events).contains("events needs a topic"));
    assert!(with("delivery = \"once\"").contains("\"exactly-once\" or \"at-least-once\""));
    assert!(with("positions = \"t\"").contains("positions in the topic itself"));
    assert!(with("topc = \"q\"").contains("unknown key 'topc' in [events]; did you mean 'topic'?"));
    assert!(with("kafka = { \"transactional.id\" = \"x\" }").contains("follows from other keys"));
    assert!(refusal("[event]\n").contains("did you mean 'events'?"));
}

#[test]
fn streams_are_checked_with_sentences() {
    assert_eq!(read(STREAM).unwrap().streams[0].queue, "default");
    let with = |line: &str| refusal(&format!("{STREAM}{line}\n"));
    assert!(with("queu = \"q\"").contains("t.toml:6: unknown key 'queu' in [[stream]]; did you mean 'queue'?"));
    assert!(with("payload = \"body\"").contains("payload is \"body\", but must be \"value\""));
    assert!(with("start = \"now\"").contains("\"earliest\" or \"latest\""));
    assert!(with("dead_letter = \"t\"").contains("its own dead letters"));
    assert!(with("kafka = { \"group.id\" = \"g\" }").contains("'group.id' follows from other keys"));
    let secret = with("kafka = { \"sasl.password\" = \"s3cret\" }");
    assert!(secret.contains("does not belong into this file") && !secret.contains("s3cret"), "{secret}");
    let secret = with("secrets = { \"sasl.password\" = \"s3cret\" }");
    assert!(secret.contains("must say where it is") && !secret.contains("s3cret"), "{secret}");
    assert!(refusal(&format!("{STREAM}{STREAM}")).contains("two streams are named \"s\""));
    assert!(refusal("[[stream]]\nname = \"s\"\n").contains("stream kind has a name of 0 bytes"));
    assert!(refusal("[stream]\nname = \"s\"\n").contains("write [[stream]]"));
    assert!(refusal("[streams]\n").contains("did you mean 'stream'?"));
}

#[test]
fn secrets_of_a_stream_come_from_files_and_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "s3cret\n").unwrap();
    let config = read(&format!("{STREAM}secrets = {{ \"sasl.password\" = \"file:{}\" }}\n", file.display())).unwrap();
    let settings = config.streams[0].settings().unwrap();
    assert_eq!(settings.properties["sasl.password"], "s3cret");
    assert!(!format!("{settings:?}{config:?}{}", config.to_toml(|_| Origin::Default)).contains("s3cret"));
    let missing = read(&format!("{STREAM}secrets = {{ \"sasl.password\" = \"env:NO_SUCH_VARIABLE\" }}\n")).unwrap();
    assert!(missing.streams[0].settings().unwrap_err().to_string().contains("NO_SUCH_VARIABLE"));
}
