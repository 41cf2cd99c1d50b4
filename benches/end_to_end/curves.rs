//! What was measured, as curves in one picture.

use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

/// Name and points.
pub type Curve = (String, Vec<(f64, f64)>);

/// One pair of axes, both from 0.
pub struct Panel {
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
    pub curves: Vec<Curve>,
}

/// Told apart in grey and by the colour-blind, too (Okabe and Ito 2008).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Draws panels, two side by side, into an SVG file.
pub fn draw(panels: &[Panel], file: &Path) -> Result<(), Box<dyn Error>> {
    let rows = panels.len().div_ceil(2);
    let root = SVGBackend::new(file, (960, 340 * rows as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((rows, 2))) {
        let points = || panel.curves.iter().flat_map(|(_, points)| points);
        let (right, top) = points().fold((0f64, 0f64), |(x, y), p| (x.max(p.0), y.max(p.1)));
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption(panel.title, ("sans-serif", 17))
            .x_label_area_size(38)
            .y_label_area_size(48)
            .build_cartesian_2d(0f64..1.05 * right, 0f64..1.12 * top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(panel.x)
            .y_desc(panel.y)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .draw()?;
        for ((name, points), colour) in panel.curves.iter().zip(COLOURS) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
            let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
            chart.draw_series(line)?.label(name).legend(key);
        }
        if panel.curves.len() > 1 {
            let back = WHITE.mix(0.8);
            chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).background_style(back).draw()?;
        }
    }
    root.present()?;
    Ok(())
}

fn number(value: &f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}
