//! What the load generator itself can do: the published cases against a node without memory.

use taskmaster_bench::stub::{Faults, Stub};
use taskmaster_bench::{NodeInfo, Options, run};

fn main() -> anyhow::Result<()> {
    let cases = [(64, 16, None), (1024, 4, None), (1, 64, None), (1, 1, None), (64, 4, Some(1e3)), (64, 4, Some(1e5))];
    for (batch, connections, rate_per_s) in cases {
        let stub = Stub::start(1, Faults::default())?;
        let node = NodeInfo { addr: stub.addr().to_owned(), data_dir: None, pid: None };
        let options =
            Options { batch, connections, rate_per_s, duration_s: Some(3.0), floor_s: 0.0, ..Options::default() };
        println!("{}\n", run(&options, &node)?);
    }
    Ok(())
}
