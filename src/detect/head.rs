//! The head: from a picture's features to an anomaly map and a score, by what teaching learned (a [`Detector`]).
//!
//! A detector has one member or several, of one family or both (see `teach::recipe`). Each member gives every grid cell a
//! distance; the distances, divided by what is usual there, are enlarged and smoothed to the member's map. The score is a
//! weighted sum of each map's maximum or mean of its highest values; the weights are 1 / (count x deviation among held-out
//! good parts), so that the score of several terms is the mean of their z-scores plus a constant. The map is the members'
//! maps with the same weights. One member with one term has weight 1.

use crate::detect::enlarge::Enlarger;
use crate::detect::patchcore::Bank;
use crate::detect::ppca::Ppca;
use crate::error::{Error, Result};
use crate::prepare::shrink::Size;
use linesight_kernels::nearest::Search;
use serde::{Deserialize, Serialize};

/// Map pixels for each cell of the network's grid.
pub const MAP_SCALE: u32 = 4;

/// What teaching learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Detector {
    /// The network's feature grid.
    pub grid: Size,
    /// Features of a grid cell.
    pub channels: usize,
    pub members: Vec<Member>,
}

/// One family's normality model and how its distances become a map and a score.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub view: View,
    pub family: Family,
    /// What is usual at each cell of the view's grid, from held-out parts: distances are divided by it.
    pub usual: Option<Vec<f32>>,
    /// Smoothing of the map, map pixels.
    pub sigma: f32,
    pub terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Family {
    /// A Gaussian at each position.
    Ppca(Ppca),
    /// A memory bank for all positions.
    Patchcore(Bank),
}

/// How a member sees the network's features.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// 1: the grid as it is; 2: means of 2x2 cells.
    pub cell: u32,
    /// Features less their mean over the picture, divided by their deviation over the picture plus this; none leaves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standardise: Option<f32>,
}

impl View {
    /// The features as they are.
    pub const PLAIN: View = View { cell: 1, standardise: None };

    /// The view's grid.
    pub fn grid(self, grid: Size) -> Size {
        Size { width: grid.width / self.cell, height: grid.height / self.cell }
    }

    /// Makes the view of features `[position][channel]` on `grid`; a plain view is the features themselves.
    pub fn of<'a>(self, features: &'a [f32], grid: Size, channels: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if self == View::PLAIN {
            return features;
        }
        let to = self.grid(grid);
        scratch.clear();
        if self.cell == 1 {
            scratch.extend_from_slice(features);
        } else {
            scratch.resize(to.area() * channels, 0.0);
            pool(features, grid, channels, self.cell as usize, scratch);
        }
        if let Some(floor) = self.standardise {
            standardise(scratch, channels, floor);
        }
        scratch
    }
}

/// Means of `by` x `by` cells.
fn pool(features: &[f32], grid: Size, channels: usize, by: usize, out: &mut [f32]) {
    let width = grid.width as usize / by;
    let share = 1.0 / (by * by) as f32;
    for (i, cell) in out.chunks_exact_mut(channels).enumerate() {
        let (x, y) = (i % width * by, i / width * by);
        for (dx, dy) in (0..by * by).map(|k| (k % by, k / by)) {
            let from = ((y + dy) * grid.width as usize + x + dx) * channels;
            for (o, f) in cell.iter_mut().zip(&features[from..from + channels]) {
                *o += share * f;
            }
        }
    }
}

/// Each channel less its mean over the picture, divided by its deviation plus `floor`.
fn standardise(features: &mut [f32], channels: usize, floor: f32) {
    let (mean, deviation) = channel_statistics(features, channels);
    let gain: Vec<f32> = deviation.iter().map(|d| 1.0 / (d + floor).max(1e-6)).collect();
    for cell in features.chunks_exact_mut(channels) {
        for ((f, m), g) in cell.iter_mut().zip(&mean).zip(&gain) {
            *f = (*f - m) * g;
        }
    }
}

/// Mean and standard deviation of each channel over a picture's cells.
pub fn channel_statistics(features: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (features.len() / channels).max(1) as f32;
    let mut mean = vec![0f32; channels];
    for cell in features.chunks_exact(channels) {
        mean.iter_mut().zip(cell).for_each(|(m, f)| *m += f / n);
    }
    let mut variance = vec![0f32; channels];
    for cell in features.chunks_exact(channels) {
        for ((v, f), m) in variance.iter_mut().zip(cell).zip(&mean) {
            *v += (f - m) * (f - m) / n;
        }
    }
    (mean, variance.into_iter().map(f32::sqrt).collect())
}

/// A share of the score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Mean of this share of the map's highest values; 0 is the maximum.
    pub top: f32,
    pub weight: f32,
}

/// Mean of the highest `top` share of the values (at least one); 0 is the maximum.
pub fn highest(values: &[f32], top: f32, scratch: &mut Vec<f32>) -> f32 {
    let k = (top * values.len() as f32).round() as usize;
    if k <= 1 {
        return values.iter().copied().fold(0.0, f32::max);
    }
    scratch.clear();
    scratch.extend_from_slice(values);
    let (_, _, _) = scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    scratch[..k].iter().sum::<f32>() / k as f32
}

impl Detector {
    /// Checks sizes and that every number is finite and every weight positive.
    pub fn validate(&self) -> Result<()> {
        if self.members.is_empty() {
            return Err(Error::failed("the detector has no member"));
        }
        for m in &self.members {
            let grid = m.view.grid(self.grid);
            if m.view.cell == 0 || grid.area() == 0 {
                return Err(Error::failed(format!("cells of {} do not fit the grid", m.view.cell)));
            }
            let channels = match &m.family {
                Family::Ppca(p) => {
                    p.validate()?;
                    if p.grid != grid {
                        return Err(Error::failed(format!(
                            "the Gaussians are for a grid of {}x{}, {}x{} is wanted",
                            p.grid.width, p.grid.height, grid.width, grid.height
                        )));
                    }
                    p.channels
                }
                Family::Patchcore(b) => b.channels,
            };
            if channels != self.channels {
                return Err(Error::failed(format!("{channels} features a cell, the network gives {}", self.channels)));
            }
            let usual = m.usual.as_ref();
            if usual.is_some_and(|u| u.len() != grid.area() || u.iter().any(|v| !(v.is_finite() && *v > 0.0))) {
                return Err(Error::failed("the usual distances do not fit the grid or are not positive"));
            }
            let positive = |v: f32| v.is_finite() && v > 0.0;
            let terms = m.terms.iter().all(|t| positive(t.weight) && (0.0..=1.0).contains(&t.top));
            if m.terms.is_empty() || !terms || !(m.sigma.is_finite() && m.sigma >= 0.0) {
                return Err(Error::failed("a weight, share or smoothing of the score is out of range"));
            }
        }
        Ok(())
    }
}

/// The map of one inspection, in the unit of the score.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyMap {
    pub size: Size,
    pub values: Vec<f32>,
}

impl AnomalyMap {
    /// The map's maximum.
    pub fn max(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }
}

/// What the head says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Raw distance from normal, >= 0.
    pub score: f32,
    pub map: AnomalyMap,
}

/// Scores features; belongs to one thread and keeps its scratch memory.
#[derive(Default)]
pub struct Head {
    viewed: Vec<f32>,
    distances: Vec<f32>,
    sorted: Vec<f32>,
    search: Search,
    /// One for each kind of map that was made.
    enlargers: Vec<Enlarger>,
}

impl Head {
    pub fn new() -> Self {
        Self::default()
    }

    /// Map and score of one part's features `[position][channel]`. `mask`, of the map's size, keeps the pixels that are not 0.
    ///
    /// # Errors
    /// The features are not as many as the detector is for, or some are no numbers.
    pub fn score(&mut self, detector: &Detector, features: &[f32], mask: Option<&[u8]>) -> Result<Scored> {
        if features.len() != detector.grid.area() * detector.channels {
            return Err(Error::failed(format!(
                "the network gave {} features, the model is for {}",
                features.len(),
                detector.grid.area() * detector.channels
            )));
        }
        let mut score = 0.0;
        let mut map: Option<AnomalyMap> = None;
        for member in &detector.members {
            let one = self.member_map(detector, member, features, mask)?;
            let mut weight = 0.0;
            for term in &member.terms {
                score += term.weight * highest(&one.values, term.top, &mut self.sorted);
                weight += term.weight;
            }
            match &mut map {
                None if weight == 1.0 => map = Some(one),
                None => {
                    let values = one.values.into_iter().map(|v| weight * v).collect();
                    map = Some(AnomalyMap { size: one.size, values });
                }
                Some(map) => map.values.iter_mut().zip(one.values).for_each(|(m, v)| *m += weight * v),
            }
        }
        let map = map.ok_or_else(|| Error::failed("the detector has no member"))?;
        Ok(Scored { score, map })
    }

    /// One member's map, before weights.
    fn member_map(
        &mut self,
        detector: &Detector,
        member: &Member,
        features: &[f32],
        mask: Option<&[u8]>,
    ) -> Result<AnomalyMap> {
        let grid = member.view.grid(detector.grid);
        let mut distances = std::mem::take(&mut self.distances);
        distances.resize(grid.area(), 0.0);
        let viewed = member.view.of(features, detector.grid, detector.channels, &mut self.viewed);
        match &member.family {
            Family::Ppca(p) => p.distances(viewed, &mut distances),
            Family::Patchcore(bank) => bank.distances(&mut self.search, viewed, &mut distances),
        }
        // comparing what is no number finds nothing anomalous
        if !distances.iter().sum::<f32>().is_finite() {
            return Err(Error::failed("the network gave features that are no numbers").hint(
                "the device computes wrongly: use another one with --device, or teach again with --precision f32",
            ));
        }
        if let Some(usual) = &member.usual {
            distances.iter_mut().zip(usual).for_each(|(d, u)| *d /= u);
        }
        let map = self.smooth(&distances, grid, map_size(detector.grid), member.sigma, mask);
        self.distances = distances;
        Ok(map)
    }

    /// Enlarges a grid of distances to `size` and smooths it.
    pub fn smooth(&mut self, distances: &[f32], grid: Size, size: Size, sigma: f32, mask: Option<&[u8]>) -> AnomalyMap {
        let enlarger = match self.enlargers.iter().position(|e| e.is_for(grid, size, sigma)) {
            Some(known) => known,
            None => {
                self.enlargers.push(Enlarger::new(grid, size, sigma));
                self.enlargers.len() - 1
            }
        };
        let mut values = self.enlargers[enlarger].enlarge(distances);
        if let Some(mask) = mask {
            values.iter_mut().zip(mask).for_each(|(v, &m)| *v *= f32::from(u8::from(m != 0)));
        }
        AnomalyMap { size, values }
    }
}

/// Size of the map for a feature grid.
pub fn map_size(grid: Size) -> Size {
    Size { width: grid.width * MAP_SCALE, height: grid.height * MAP_SCALE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_zero_outside_the_mask() {
        let grid = Size { width: 4, height: 4 };
        let size = map_size(grid);
        let mask: Vec<u8> = (0..size.area()).map(|i| u8::from(i % size.width as usize >= 8)).collect();
        let map = Head::new().smooth(&[1.0; 16], grid, size, 1.5, Some(&mask));
        assert_eq!(map.values[0], 0.0);
        assert!((map.max() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_highest_share_is_averaged() {
        let values: Vec<f32> = (0..100).map(|v| ((v * 37) % 100) as f32).collect();
        let mut scratch = Vec::new();
        assert_eq!(highest(&values, 0.0, &mut scratch), 99.0);
        assert_eq!(highest(&values, 0.01, &mut scratch), 99.0);
        assert_eq!(highest(&values, 0.05, &mut scratch), 97.0);
        assert_eq!(highest(&values, 1.0, &mut scratch), 49.5);
    }

    #[test]
    fn pooled_and_standardised_views() {
        let grid = Size { width: 4, height: 2 };
        // two channels: x + 4 y, and a constant
        let features: Vec<f32> = (0..8).flat_map(|i| [i as f32, 5.0]).collect();
        let mut scratch = Vec::new();
        let pooled = View { cell: 2, standardise: None }.of(&features, grid, 2, &mut scratch).to_vec();
        assert_eq!(pooled, [2.5, 5.0, 4.5, 5.0]);
        let view = View { cell: 2, standardise: Some(0.0) };
        let standard = view.of(&features, grid, 2, &mut scratch).to_vec();
        assert_eq!(standard, [-1.0, 0.0, 1.0, 0.0]);
    }

    /// The score of several terms is their weighted sum, and the map shows the same weights.
    #[test]
    fn members_add_up_with_their_weights() {
        let grid = Size { width: 2, height: 2 };
        let bank = Bank::new(1, vec![0.0], vec![0.0], 1).unwrap();
        let member = |terms: Vec<Term>| Member {
            view: View::PLAIN,
            family: Family::Patchcore(bank.clone()),
            usual: Some(vec![2.0; 4]),
            sigma: 0.0,
            terms,
        };
        let detector = Detector {
            grid,
            channels: 1,
            members: vec![
                member(vec![Term { top: 0.0, weight: 0.5 }]),
                member(vec![Term { top: 0.0, weight: 1.0 }, Term { top: 1.0, weight: 1.0 }]),
            ],
        };
        detector.validate().unwrap();
        // all four cells are 3 from the bank's only vector, which is 1.5 times what is usual
        let scored = Head::new().score(&detector, &[3.0; 4], None).unwrap();
        assert!((scored.score - 1.5 * 2.5).abs() < 1e-5, "{}", scored.score);
        assert!((scored.map.max() - 1.5 * 2.5).abs() < 1e-5);
        assert!(Head::new().score(&detector, &[3.0; 3], None).is_err());
        let e = Head::new().score(&detector, &[3.0, f32::NAN, 3.0, 3.0], None).unwrap_err();
        assert_eq!(e.to_string(), "the network gave features that are no numbers");
    }
}
