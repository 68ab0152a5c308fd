//! Readers refuse what is broken with file and line, and never panic.

use proptest::prelude::*;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::replay::{self, ReplayOptions, lora, lucid, openb, psplib, swf, wfformat};

const GOOD: &str =
    "; MaxProcs: 8\n1 0 -1 10 4 -1 -1 4 60 -1 1 3 1 -1 1 -1 -1 -1\n2 5 -1 20 8 -1 -1 8 60 -1 1 3 1 -1 1 -1 -1 -1\n";

#[test]
fn a_trace_is_read_and_replayed() {
    let trace = swf::read("good.swf", GOOD).unwrap();
    assert_eq!((trace.width, trace.jobs.len()), (8, 2));
    let report = replay::run(&trace, &ReplayOptions::new(Policy::Fifo));
    // The second is as wide as the machine: it starts when the first has ended.
    assert_eq!(report.waits, [0, 5000]);
    assert_eq!((report.tasks, report.refused, report.weeks.len()), (2, 0, 1));
    assert!((report.slowdown_mean - (1.0 + 1.25) / 2.0).abs() < 1e-9);
}

#[test]
fn broken_traces_are_refused_with_their_line() {
    let broken = [
        ("1 0 -1 10 4", "fields"),
        ("1 -5 -1 10 4 -1 -1 4 60 -1 1 3 1 -1 1 -1 -1 -1", "submit time"),
        ("1 0 -1 -10 4 -1 -1 4 60 -1 1 3 1 -1 1 -1 -1 -1", "run time"),
        ("1 0 -1 NaN 4 -1 -1 4 60 -1 1 3 1 -1 1 -1 -1 -1", "no number"),
        ("1 0 -1 inf 4 -1 -1 4 60 -1 1 3 1 -1 1 -1 -1 -1", "no number"),
        ("1 0 -1 10 4 -1 -1 4 1e300 -1 1 3 1 -1 1 -1 -1 -1", "limit"),
        ("1 0 -1 10 9 -1 -1 9 60 -1 1 3 1 -1 1 -1 -1 -1", "9 slots of 8"),
        ("1 0 -1 10 1e18 -1 -1 1e18 60 -1 1 3 1 -1 1 -1 -1 -1", "slots"),
    ];
    for (row, what) in broken {
        let error = swf::read("broken.swf", &format!("{GOOD}{row}\n")).unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("broken.swf", 4), "{row}: {error}");
        assert!(error.what.contains(what), "{row}: {error}");
    }
    let nothing = swf::read("zero.swf", "; MaxProcs: 8\n1 0 -1 10 0 -1 -1 0 60 -1 1 3 1 -1 1 -1 -1 -1\n").unwrap();
    assert_eq!((nothing.jobs.len(), nothing.skipped), (0, 1), "a job without processors says nothing");
    assert!(swf::read("empty.swf", "").is_err());
}

#[test]
fn other_formats_are_refused_with_their_line() {
    let head = "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,negative_prompt_length,\
                num_images_per_prompt,num_inference_steps,checkpoint_model_version_id,num_lora\n";
    let good = "2024-11-15 16:57:50,T,SUCCEED,32.0,G,63.0,26.0,1.0,30.0,M,0\n";
    assert_eq!(lora::read("l", &format!("{head}{good}")).unwrap().jobs[0].submit, 1_731_689_870_000);
    for row in ["2024-13-15 16:57:50,T,S,1,G,,,1,1,M,0", "2024-11-15 16:57:50,T,S,NaN,G,,,1,1,M,0", "x,y"] {
        assert_eq!(lora::read("l", &format!("{head}{good}{row}\n")).unwrap_err().line, 3, "{row}");
    }
    assert_eq!(openb::nodes("n", "sn,cpu_milli,memory_mib,gpu\na,1,1,1\nb,1,1,9\n").unwrap_err().line, 3);
    assert_eq!(openb::pods("p", "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,2,500\n").unwrap_err().line, 2);
    assert_eq!(openb::pods("p", "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,-1,0,0\n").unwrap_err().line, 2);
    assert_eq!(psplib::read("j", "1 1\n4\nx 0 0\n").unwrap_err().line, 3);
    let error = wfformat::read("w", "{\n\"workflow\":\n}").unwrap_err();
    assert_eq!(error.line, 3);
    let ring =
        r#"{"workflow": {"specification": {"tasks": [{"id": "a", "parents": ["a"]}]}, "execution": {"tasks": []}}}"#;
    assert!(wfformat::read("w", ring).unwrap_err().what.contains("ring"));
    let alone = "model,dataset,batchsize,amp,speed,gpu_util,gmem_util,gmem\nA,B,1,0,1,50,20,100\n";
    let pair = "\n0,A,B,1,1,0,1.0,A,B,1,1,0,-2\n";
    assert_eq!(lucid::read(("s", alone), ("p", pair)).unwrap_err().line, 2);
}

#[test]
fn the_same_trace_and_seed_give_the_same_report() {
    let trace = swf::read("good.swf", GOOD).unwrap();
    for policy in [Policy::Fifo, Policy::Shortest, Policy::Deadline, Policy::Auto] {
        let options = ReplayOptions { seed: 3, restartable: true, ..ReplayOptions::new(policy) };
        assert_eq!(replay::run(&trace, &options), replay::run(&trace, &options));
        assert_eq!(Policy::named(policy.name()), Some(policy));
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(
        text in "[0-9a-z.,:; \\-\\n]{0,300}",
        rows in prop::collection::vec(prop::collection::vec(any::<f64>(), 18), 0..4),
    ) {
        let numbers: Vec<String> = rows.iter().map(|row| row.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")).collect();
        for text in [text, numbers.join("\n")] {
            if let Ok(trace) = swf::read("t", &text) {
                prop_assert_eq!(replay::run(&trace, &ReplayOptions::new(Policy::Auto)).tasks, trace.jobs.len());
            }
            let _ = (lora::read("t", &text), psplib::read("t", &text).is_ok(), wfformat::read("t", &text));
            let _ = (openb::nodes("t", &text), openb::pods("t", &text), lucid::read(("t", &text), ("t", &text)));
        }
    }
}
