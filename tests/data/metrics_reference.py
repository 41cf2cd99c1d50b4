"""Makes metrics-reference.json: inputs and what scikit-learn and an exact AUPRO in numpy say about them.

    python -m venv v && v/bin/pip install scikit-learn==1.9.1 scipy==1.17.1 && v/bin/python tests/data/metrics_reference.py
"""

import json
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def ranking(name, scores, defective):
    scores, defective = np.asarray(scores, np.float32), np.asarray(defective, bool)
    precision, recall, thresholds = precision_recall_curve(defective, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    best = np.flatnonzero(np.isclose(f1, f1.max(), rtol=0, atol=1e-12))[-1]
    return {
        "name": name,
        "scores": [float(s) for s in scores],
        "defective": [bool(d) for d in defective],
        "auroc": float(roc_auc_score(defective, scores)),
        "average_precision": float(average_precision_score(defective, scores)),
        "best_f1": float(f1[best]),
        "best_f1_threshold": float(thresholds[best]),
    }


def aupro(images, limit=0.3):
    """Per-region overlap against the false-positive rate at every distinct score, up to `limit`, normalised."""
    regions, normal = [], []
    for scores, mask in images:
        labels, n = label(mask, np.ones((3, 3)))
        regions += [np.sort(scores[labels == i]) for i in range(1, n + 1)]
        normal.append(scores[~mask])
    normal = np.sort(np.concatenate(normal))
    thresholds = np.unique(np.concatenate([s.ravel() for s, _ in images]))[::-1]
    at_least = lambda sorted_, t: (len(sorted_) - np.searchsorted(sorted_, t, "left")) / len(sorted_)
    fpr = np.array([0.0] + [at_least(normal, t) for t in thresholds])
    pro = np.array([0.0] + [np.mean([at_least(r, t) for r in regions]) for t in thresholds])
    inside = fpr < limit
    end = np.flatnonzero(~inside)[0]
    share = (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    x = np.append(fpr[inside], limit)
    y = np.append(pro[inside], pro[end - 1] + share * (pro[end] - pro[end - 1]))
    return float(np.trapezoid(y, x) / limit), len(regions)


def pixels(name, images):
    images = [(np.asarray(s, np.float32), np.asarray(m, bool)) for s, m in images]
    area, regions = aupro(images)
    return {
        "name": name,
        "images": [
            {"mask": ["".join("#" if v else "." for v in row) for row in m], "scores": s.tolist()} for s, m in images
        ],
        "regions": regions,
        "auroc": float(
            roc_auc_score(np.concatenate([m.ravel() for _, m in images]), np.concatenate([s.ravel() for s, _ in images]))
        ),
        "aupro": area,
    }


def main():
    rng = np.random.default_rng(7)
    quarters = lambda v: np.round(np.clip(v, 0, None) * 4) / 4
    rankings = [
        ranking("many ties", quarters(rng.normal([3] * 40 + [4] * 25, 1)), [0] * 40 + [1] * 25),
        ranking("no ties", rng.gamma(3, 2, 50) + np.repeat([0, 3], 25), np.repeat([0, 1], 25)),
        ranking("separated", list(range(1, 11)), [0] * 6 + [1] * 4),
        ranking("reversed", list(range(10, 0, -1)), [0] * 6 + [1] * 4),
        ranking("one defective", rng.normal(10, 2, 30), [0] * 20 + [1] + [0] * 9),
        ranking("all equal", [2.5] * 9, [0] * 6 + [1] * 3),
    ]
    yy, xx = np.mgrid[:20, :24]
    disc = lambda x, y, r: (xx - x) ** 2 + (yy - y) ** 2 <= r * r
    blob = lambda x, y, r: np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * r * r))
    # multiples of 1/32 below 64 keep a bin of their own
    grid = lambda v: np.round(np.clip(v, 0, 63) * 32) / 32
    noise = lambda: rng.gamma(4, 0.5, (20, 24))
    none = np.zeros((20, 24), bool)
    two = disc(5, 5, 3) | disc(17, 12, 5)
    line = (xx == yy) & (xx > 3) & (xx < 15)
    cases = [
        pixels("found", [(grid(noise() + 9 * blob(5, 5, 3) + 6 * blob(17, 12, 5)), two), (grid(noise()), none)]),
        pixels("large one found, small one missed", [(grid(noise() + 8 * blob(17, 12, 5)), two), (grid(noise()), none)]),
        pixels("thin and diagonal", [(grid(noise() + 4 * blob(9, 9, 4)), line), (grid(noise()), none), (grid(noise()), two)]),
        pixels("few levels", [(np.round(noise() + 2 * blob(5, 5, 3)), two), (np.round(noise()), line)]),
    ]
    out = {"scikit_learn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__}
    out |= {"rankings": rankings, "pixels": cases}
    Path(__file__).with_name("metrics-reference.json").write_text(json.dumps(out) + "\n")


main()
