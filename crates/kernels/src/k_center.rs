//! Greedy k-center (Gonzalez 1985), in a random projection that keeps distances well enough for the choice (Johnson &
//! Lindenstrauss 1984).

/// Dimensions of the projection, a multiple of [`LANES`].
pub const PROJECTED: usize = 48;
/// Numbers that are added side by side.
const LANES: usize = 16;

/// `point` less `centre`, in the projection that `signs`, `[channel][PROJECTED]`, make.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub fn project(point: &[f32], centre: &[f32], signs: &[f32], out: &mut [f32]) {
    let mut sum = [0f32; PROJECTED];
    let (signs, _) = signs.as_chunks::<PROJECTED>();
    for (i, signs) in signs.iter().enumerate() {
        let z = point[i] - centre[i];
        for lane in 0..PROJECTED {
            sum[lane] += z * signs[lane];
        }
    }
    out.copy_from_slice(&sum);
}

/// Which of the `points`, `[point][PROJECTED]`, are chosen: each next one is the farthest from those taken.
pub fn k_center(points: &[f32], wanted: usize) -> Vec<usize> {
    let n = points.len() / PROJECTED;
    let mut nearest = vec![f32::INFINITY; n];
    let mut picked = Vec::with_capacity(wanted);
    let mut next = 0;
    while picked.len() < wanted {
        picked.push(next);
        let mut from = [0f32; PROJECTED];
        from.copy_from_slice(&points[next * PROJECTED..][..PROJECTED]);
        next = nearer(points, &from, &mut nearest);
    }
    picked
}

/// Lowers each point's distance to that from `from`; the index of the largest.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn nearer(points: &[f32], from: &[f32; PROJECTED], nearest: &mut [f32]) -> usize {
    let (mut best, mut at) = (-1.0, 0);
    let (points, _) = points.as_chunks::<PROJECTED>();
    for (i, p) in points.iter().enumerate() {
        let mut sum = [0f32; LANES];
        for block in 0..PROJECTED / LANES {
            for lane in 0..LANES {
                let z = p[block * LANES + lane] - from[block * LANES + lane];
                sum[lane] += z * z;
            }
        }
        // in halves: one sum after the other would wait for each
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sum[lane] += sum[lane + half];
            }
            half /= 2;
        }
        let d2 = if sum[0] < nearest[i] { sum[0] } else { nearest[i] };
        nearest[i] = d2;
        if d2 > best {
            (best, at) = (d2, i);
        }
    }
    at
}
