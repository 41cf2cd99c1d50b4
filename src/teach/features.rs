//! Features of the taught parts, and which of them are held out together.

use super::Progress;
use super::parts::Part;
use crate::detect::backbone::{Backbone, Request};
use crate::detect::head::View;
use crate::error::{Error, Result};
use crate::prepare::shrink::Size;
use crate::prepare::{Preparation, Preparer};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::VecDeque;

/// Features of pictures.
#[derive(Debug, Clone)]
pub struct Features {
    pub grid: Size,
    pub channels: usize,
    /// `[part][position][channel]`
    pub parts: Vec<Vec<f32>>,
}

impl Features {
    /// The features as a member of the detector sees them.
    pub fn viewed(&self, view: View) -> Cow<'_, Features> {
        if view == View::PLAIN {
            return Cow::Borrowed(self);
        }
        let parts = self.parts.par_iter().map(|f| {
            let mut scratch = Vec::new();
            view.of(f, self.grid, self.channels, &mut scratch);
            scratch
        });
        Cow::Owned(Features { grid: view.grid(self.grid), channels: self.channels, parts: parts.collect() })
    }
}

/// Runs the network over `count` pictures, several in flight; `fill` writes picture `i` into the network's input.
pub fn run(
    backbone: &mut Backbone,
    count: usize,
    mut fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Features> {
    let mut free = (0..backbone.pool_size()).map(|_| backbone.request()).collect::<Result<Vec<_>>>()?;
    let mut running = VecDeque::new();
    let mut parts = Vec::with_capacity(count);
    for i in 0..count {
        let mut request = match free.pop() {
            Some(r) => r,
            None => {
                let mut r: Request =
                    running.pop_front().ok_or_else(|| Error::failed("the device offers no inference request"))?;
                parts.push(r.wait()?.to_vec());
                r
            }
        };
        fill(i, request.input()?)?;
        request.start()?;
        running.push_back(request);
        progress("features", i as u64 + 1, Some(count as u64));
    }
    for mut r in running {
        parts.push(r.wait()?.to_vec());
    }
    Ok(Features { grid: backbone.grid(), channels: backbone.channels(), parts })
}

/// Features of parts, prepared as an inspection would prepare them.
pub(super) fn extract(
    backbone: &mut Backbone,
    p: &Preparation,
    parts: &[Part],
    progress: Progress<'_>,
) -> Result<Features> {
    let mut preparer = Preparer::new(p)?;
    let fill = |i: usize, input: &mut [u8]| {
        let part = &parts[i];
        preparer.prepare(p, &part.frame, part.crop, input).map(|_| ())
    };
    run(backbone, parts.len(), fill, progress)
}

/// Contiguous folds of whole groups (`groups[i]` is the physical part that view `i` shows, ascending): parts that look alike
/// because they were seen one after the other stay together.
pub fn folds(groups: &[usize], wanted: usize) -> Vec<Vec<usize>> {
    let mut distinct = groups.to_vec();
    distinct.dedup();
    let n = wanted.clamp(2, distinct.len().max(2));
    (0..n)
        .map(|f| {
            let chosen = &distinct[f * distinct.len() / n..(f + 1) * distinct.len() / n];
            (0..groups.len()).filter(|&i| chosen.contains(&groups[i])).collect()
        })
        .filter(|f: &Vec<usize>| !f.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_cover_every_part_once() {
        for (n, k) in [(5, 5), (7, 5), (50, 5), (6, 2)] {
            let f = folds(&(0..n).collect::<Vec<_>>(), k);
            assert_eq!(f.concat(), (0..n).collect::<Vec<_>>());
        }
        // three views of each of four parts: a part is never on both sides
        let groups: Vec<usize> = (0..12).map(|i| i / 3).collect();
        let f = folds(&groups, 3);
        assert_eq!(f.concat(), (0..12).collect::<Vec<_>>());
        assert!(f.iter().all(|f| f.len() % 3 == 0), "{f:?}");
    }
}
