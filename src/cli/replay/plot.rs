//! Waits, slowdowns and use of the slots of a replay, as one SVG.

use std::error::Error;
use std::path::Path;

use plotters::coord::ranged1d::Ranged;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const SIZE: (u32, u32) = (1_200, 1_350);
const LABEL: (&str, u32) = ("sans-serif", 16);
const TITLE: (&str, u32) = ("sans-serif", 22);
/// Points of a curve: more are not seen.
const POINTS_MAX: usize = 600;

/// What is drawn of one policy.
pub(super) struct Curves {
    pub(super) name: &'static str,
    pub(super) waits_s: Vec<f64>,
    pub(super) slowdowns: Vec<f64>,
    /// Part of the slots in use, in equal parts of the time.
    pub(super) utilisation: Vec<f64>,
}

/// Points of the distribution of some values, from `floor` on: below this part of them is what is at most the value.
#[expect(clippy::cast_precision_loss, reason = "points of a curve")]
fn distribution(values: &[f64], floor: f64) -> Vec<(f64, f64)> {
    let mut values: Vec<f64> = values.iter().map(|value| value.max(floor)).collect();
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let step = count.div_ceil(POINTS_MAX).max(1);
    let places = (0..count).step_by(step).chain(count.checked_sub(1));
    places.map(|place| (values[place], (place + 1) as f64 / count as f64)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "points of a curve")]
fn over_time(parts: &[f64]) -> Vec<(f64, f64)> {
    let count = parts.len().max(1) as f64;
    parts.iter().enumerate().map(|(place, part)| (100.0 * place as f64 / count, 100.0 * part)).collect()
}

/// Draws the curves into a file.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(path: &Path, trace: &str, curves: &[Curves]) -> Result<(), Box<dyn Error>> {
    let waits: Vec<_> = curves.iter().map(|curve| (curve.name, distribution(&curve.waits_s, 1.0))).collect();
    let slowdowns: Vec<_> = curves.iter().map(|curve| (curve.name, distribution(&curve.slowdowns, 1.0))).collect();
    let used: Vec<_> = curves.iter().map(|curve| (curve.name, over_time(&curve.utilisation))).collect();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.titled(trace, ("sans-serif", 26))?.split_evenly((3, 1));
        distributed(&panels[0], "Waits", "seconds, at least 1", &waits)?;
        distributed(&panels[1], "Bounded slowdowns", "times", &slowdowns)?;
        timed(&panels[2], &used)?;
        root.present()?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Lines = [(&'static str, Vec<(f64, f64)>)];

fn distributed<'a>(area: &Area<'a>, title: &str, unit: &str, lines: &Lines) -> Result<(), Box<dyn Error>> {
    let last = lines.iter().flat_map(|(_, points)| points.last()).map(|(x, _)| *x).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, TITLE)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..last).log_scale(), 0.0..1.0)?;
    chart.configure_mesh().x_desc(unit).y_desc("part of the tasks").label_style(LABEL).draw()?;
    draw_lines(&mut chart, lines, 3)
}

fn timed<'a>(area: &Area<'a>, lines: &Lines) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption("Slots in use", TITLE)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..100.0, 0.0..100.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("% of the time from the first submission to the last end")
        .y_desc("% of the slots")
        .label_style(LABEL)
        .draw()?;
    draw_lines(&mut chart, lines, 2)
}

/// Draws the lines of all policies, so many pixels wide, and says which is whose.
fn draw_lines<'a, X: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
    lines: &Lines,
    width: u32,
) -> Result<(), Box<dyn Error>> {
    for (number, (name, points)) in lines.iter().enumerate() {
        let style = Palette99::pick(number).stroke_width(width);
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    let mut legend = chart.configure_series_labels();
    legend
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(LABEL)
        .draw()?;
    Ok(())
}
