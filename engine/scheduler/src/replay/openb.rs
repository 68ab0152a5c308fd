//! Pods and nodes of Alibaba's GPU trace (openb, v2023).

use crate::place::{Ask, DEVICE, DEVICES_MAX, Worker};
use crate::replay::ReadError;

/// The rows of a CSV file as numbers of the columns asked for.
fn rows<const N: usize>(file: &str, text: &str, columns: [&str; N]) -> Result<Vec<[u32; N]>, ReadError> {
    let mut lines = (1..).zip(text.lines());
    let header: Vec<&str> = lines.next().map(|(_, line)| line.trim_end().split(',').collect()).unwrap_or_default();
    let mut places = [0; N];
    for (place, name) in places.iter_mut().zip(columns) {
        let found = header.iter().position(|column| *column == name);
        *place = found.ok_or_else(|| ReadError::new(file, 1, format!("no column {name:?}")))?;
    }
    let mut rows = Vec::new();
    for (line, row) in lines {
        let cells: Vec<&str> = row.trim_end().split(',').collect();
        let mut values = [0; N];
        for ((value, place), name) in values.iter_mut().zip(places).zip(columns) {
            let cell = cells.get(place).copied().unwrap_or_default();
            let cell = if cell.is_empty() { "0" } else { cell };
            *value = cell.parse().map_err(|_| ReadError::new(file, line, format!("{name}: {cell:?}")))?;
        }
        rows.push(values);
    }
    Ok(rows)
}

/// Reads the nodes.
///
/// # Errors
/// With file and line.
pub fn nodes(file: &str, text: &str) -> Result<Vec<Worker>, ReadError> {
    let mut workers = Vec::new();
    for (line, [cpu, memory, devices]) in (2..).zip(rows(file, text, ["cpu_milli", "memory_mib", "gpu"])?) {
        if devices as usize > DEVICES_MAX || cpu == 0 {
            return Err(ReadError::new(file, line, format!("a node with {cpu} cpu and {devices} devices")));
        }
        workers.push(Worker::new(cpu, memory, devices));
    }
    Ok(workers)
}

/// Reads what the pods ask for.
///
/// # Errors
/// With file and line.
pub fn pods(file: &str, text: &str) -> Result<Vec<Ask>, ReadError> {
    let mut asks = Vec::new();
    let columns = ["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];
    for (line, [cpu, memory, devices, share]) in (2..).zip(rows(file, text, columns)?) {
        let asks_nothing = cpu == 0 && memory == 0 && devices == 0;
        if devices as usize > DEVICES_MAX || share > DEVICE || devices > 1 && share != DEVICE || asks_nothing {
            return Err(ReadError::new(file, line, format!("a pod with {cpu} cpu, {devices} devices of {share}")));
        }
        let devices = if share == 0 { 0 } else { devices };
        asks.push(Ask { cpu, memory, devices, share });
    }
    Ok(asks)
}
