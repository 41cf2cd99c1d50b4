//! Chooses the vectors of a memory bank: greedy k-center over the taught patches (Roth et al. 2022; Gonzalez 1985 for the
//! algorithm), in a random projection that keeps distances well enough for the choice (Johnson & Lindenstrauss 1984).

use super::features::Features;
use crate::detect::patchcore::Bank;
use crate::error::{Error, Result};
use linesight_kernels::k_center::{self, PROJECTED};
use rayon::prelude::*;

/// Vectors in a bank: more find little and cost time at every picture.
pub const VECTORS: usize = 1000;
/// Patches that are looked at; of more, as many are drawn at random.
const POOL: usize = 60_000;
/// A cell's distance is the mean of so many nearest vectors: which patches were chosen matters less.
const NEIGHBOURS: usize = 3;

/// The bank of the parts `chosen`, from the cells where `judged` is true (all without it).
pub fn bank(features: &Features, chosen: &[usize], judged: Option<&[bool]>, seed: u64) -> Result<Bank> {
    let c = features.channels;
    let mut rng = fastrand::Rng::with_seed(seed);
    let cells: Vec<usize> = (0..features.grid.area()).filter(|&i| judged.is_none_or(|j| j[i])).collect();
    let total = cells.len() * chosen.len();
    if total == 0 {
        return Err(Error::failed("there is no patch to remember: the mask leaves no cell"));
    }
    let mut drawn: Vec<usize> = if total <= POOL { (0..total).collect() } else { rng.choose_multiple(0..total, POOL) };
    // sorted: the choice does not depend on the order of drawing, and memory is read in order
    drawn.sort_unstable();
    let patch = |i: usize| -> &[f32] {
        let at = cells[i % cells.len()] * c;
        &features.parts[chosen[i / cells.len()]][at..at + c]
    };
    let mut centre = vec![0f64; c];
    for &i in &drawn {
        centre.iter_mut().zip(patch(i)).for_each(|(m, f)| *m += f64::from(*f));
    }
    let centre: Vec<f32> = centre.into_iter().map(|m| (m / drawn.len() as f64) as f32).collect();
    let wanted = VECTORS.min(drawn.len());
    let picked = if wanted == drawn.len() {
        (0..wanted).collect()
    } else {
        let projected = project(&drawn.iter().map(|&i| patch(i)).collect::<Vec<_>>(), &centre, &mut rng);
        k_center::k_center(&projected, wanted)
    };
    let vectors = picked.iter().flat_map(|&k| patch(drawn[k]).iter().zip(&centre).map(|(f, m)| f - m)).collect();
    Bank::new(c, vectors, centre, NEIGHBOURS)
}

/// The patches in a random projection, `[patch][PROJECTED]`.
fn project(patches: &[&[f32]], centre: &[f32], rng: &mut fastrand::Rng) -> Vec<f32> {
    let c = centre.len();
    // sparse signs (Achlioptas 2003) would need fewer products; dense ones keep the loop simple, and this is not the hot path
    let signs: Vec<f32> = (0..c * PROJECTED).map(|_| if rng.bool() { 1.0 } else { -1.0 }).collect();
    let mut out = vec![0f32; patches.len() * PROJECTED];
    out.par_chunks_mut(PROJECTED).zip(patches).for_each(|(out, patch)| k_center::project(patch, centre, &signs, out));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::shrink::Size;

    /// Two tight clusters and one far patch: the far one is remembered although it is one among thousands.
    #[test]
    fn rare_patches_are_remembered() {
        let grid = Size { width: 40, height: 40 };
        let mut rng = fastrand::Rng::with_seed(1);
        let parts = (0..3)
            .map(|_| {
                (0..grid.area())
                    .flat_map(|i| if i % 2 == 0 { [10.0, 0.0] } else { [0.0, 10.0] })
                    .map(|v: f32| v + 0.1 * rng.f32())
                    .collect()
            })
            .collect();
        let mut f = Features { grid, channels: 2, parts };
        f.parts[1][600] = -40.0;
        let bank = bank(&f, &[0, 1, 2], None, 0).unwrap();
        assert_eq!(bank.len(), VECTORS);
        assert!(bank.vectors().chunks(2).any(|v| v[0] + bank.centre()[0] < -39.0));
        let again = super::bank(&f, &[0, 1, 2], None, 0).unwrap();
        assert_eq!(bank, again, "the same seed gives the same bank");
        let few = super::bank(&f, &[0], Some(&(0..1600).map(|i| i < 5).collect::<Vec<_>>()), 0).unwrap();
        assert_eq!(few.len(), 5, "only judged cells are remembered");
        assert!(super::bank(&f, &[0], Some(&[false; 1600]), 0).is_err());
    }
}
