//! Charts as SVG. Colours are place holders that the page's style sheet replaces, so that one
//! drawing suits a light and a dark page.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::ReportError;
use super::series::{ChartData, Role};
use crate::progress::readable_count;

const SIZE: (u32, u32) = (560, 250);
const TEXT: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);

/// Place holders of the curves; `style.css` names the same.
fn color(role: Role) -> RGBColor {
    match role {
        Role::Train => RGBColor(3, 3, 3),
        Role::Eval => RGBColor(4, 4, 4),
        Role::Base => RGBColor(5, 5, 5),
    }
}

/// Draws a chart over steps 0 to `last_step` or beyond, as an `<svg>` element.
pub(crate) fn svg(chart: &ChartData, last_step: f64) -> Result<String, ReportError> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    let drawn = draw(&area, chart, last_step).and_then(|()| Ok(area.present()?));
    drop(area);
    drawn.map_err(|e| ReportError::Draw {
        curve: chart.title.clone(),
        detail: e.to_string(),
    })?;
    Ok(text)
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    chart: &ChartData,
    last_step: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (low, high) = value_range(chart);
    let mut context = ChartBuilder::on(area)
        .margin_top(8)
        .margin_right(14)
        .x_label_area_size(26)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..last_step.max(1.0), low..high)?;
    let label = ("sans-serif", 13).into_font().color(&TEXT);
    context
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(label)
        .x_labels(9)
        .y_labels(5)
        .x_label_formatter(&|value| readable_step(*value))
        .y_label_formatter(&|value| readable_value(*value, high - low))
        .draw()?;
    for curve in &chart.curves {
        let style = color(curve.role).stroke_width(if curve.role == Role::Base { 1 } else { 2 });
        context.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
        // A curve of few points shows where it was measured; one of a single point shows at all.
        if curve.points.len() == 1 || (curve.role == Role::Eval && curve.points.len() <= 40) {
            let dots = curve.points.iter();
            context.draw_series(dots.map(|&at| Circle::new(at, 3, color(curve.role).filled())))?;
        }
    }
    Ok(())
}

/// From the smallest to the largest value, with a margin; never empty.
fn value_range(chart: &ChartData) -> (f64, f64) {
    let values = chart
        .curves
        .iter()
        .flat_map(|curve| curve.points.iter().map(|point| point.1));
    let (low, high) = (values.chain(chart.include))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
    let margin = 0.06 * (high - low);
    let margin = if margin > 0.0 {
        margin
    } else {
        (0.1 * high.abs()).max(1e-6)
    };
    let keeps = |edge| chart.include == Some(edge) && edge == 0.0;
    (
        if keeps(low) { low } else { low - margin },
        if keeps(high) { high } else { high + margin },
    )
}

fn readable_step(value: f64) -> String {
    let text = readable_count(value);
    match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, unit)) if number.contains('.') => {
            format!(
                "{}{unit}",
                number.trim_end_matches('0').trim_end_matches('.')
            )
        }
        _ => text,
    }
}

/// With the decimals that tell apart values on an axis `span` long.
fn readable_value(value: f64, span: f64) -> String {
    if span >= 5000.0 {
        readable_step(value)
    } else if span < 0.005 {
        if value.abs() < 1e-12 {
            "0".to_owned()
        } else {
            format!("{value:.1e}").replace(".0e", "e")
        }
    } else {
        let decimals = (1.0 - (span / 5.0).log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    }
}
