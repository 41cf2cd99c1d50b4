//! Memory bank of normal patches: for parts in any pose, and textures, where a place of the part has no fixed grid cell.
//!
//! PatchCore (Roth et al. 2022): how far a cell's features are from the nearest of the bank's vectors, which teaching chose
//! by greedy k-center; here the mean distance of the nearest few ([`linesight_kernels::nearest`]). The published re-weighting of
//! the score is left out: it gave nothing on any set that was tried.

use crate::error::{Error, Result};
use linesight_kernels::nearest::{MOST_NEIGHBOURS, Search, Vectors};

/// The taught vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    pub channels: usize,
    /// `[vector][channel]`, less the centre.
    vectors: Vec<f32>,
    /// How many of the nearest vectors a distance is the mean of.
    neighbours: usize,
    searched: Vectors,
}

impl Bank {
    /// `vectors`: `[vector][channel]`, with `centre` already taken off.
    ///
    /// # Errors
    /// The sizes do not go together, a number is none, or `neighbours` is not 1 to [`MOST_NEIGHBOURS`].
    pub fn new(channels: usize, vectors: Vec<f32>, centre: Vec<f32>, neighbours: usize) -> Result<Self> {
        if channels == 0 || centre.len() != channels || vectors.is_empty() || !vectors.len().is_multiple_of(channels) {
            return Err(Error::failed(format!(
                "a bank of {} values and a centre of {} do not make vectors of {channels} features",
                vectors.len(),
                centre.len()
            )));
        }
        if !(1..=MOST_NEIGHBOURS).contains(&neighbours) {
            return Err(Error::failed(format!("neighbours are {neighbours}, 1 to {MOST_NEIGHBOURS} are wanted")));
        }
        if let Some(v) = vectors.iter().chain(&centre).find(|v| !v.is_finite()) {
            return Err(Error::failed(format!("the bank holds {v}")));
        }
        let Some(searched) = Vectors::new(&vectors, centre, neighbours) else {
            return Err(Error::failed("the bank holds numbers that are too large"));
        };
        Ok(Bank { channels, vectors, neighbours, searched })
    }

    /// Distance of each cell's features `[cell][channel]` from the vectors nearest to it, into `out` (one value a cell).
    pub fn distances(&self, search: &mut Search, features: &[f32], out: &mut [f32]) {
        search.distances(&self.searched, features, out);
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.vectors.len() / self.channels
    }

    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// `[vector][channel]`, less the centre.
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Mean of the taught patches.
    pub fn centre(&self) -> &[f32] {
        self.searched.centre()
    }

    /// How many of the nearest vectors a distance is the mean of; all of them where there are fewer.
    pub fn neighbours(&self) -> usize {
        self.neighbours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks_that_make_no_sense_are_refused() {
        assert!(Bank::new(3, vec![0.0; 4], vec![0.0; 3], 1).is_err());
        assert!(Bank::new(3, vec![], vec![0.0; 3], 1).is_err());
        let e = Bank::new(2, vec![0.0, f32::NAN], vec![0.0; 2], 1).unwrap_err();
        assert_eq!(e.to_string(), "the bank holds NaN");
        let e = Bank::new(2, vec![0.0; 2], vec![0.0; 2], MOST_NEIGHBOURS + 1).unwrap_err();
        assert_eq!(e.to_string(), "neighbours are 4, 1 to 3 are wanted");
        assert!(Bank::new(2, vec![1e38; 2], vec![0.0; 2], 0).is_err());
        let e = Bank::new(2, vec![1e38; 2], vec![0.0; 2], 1).unwrap_err();
        assert_eq!(e.to_string(), "the bank holds numbers that are too large");
    }
}
