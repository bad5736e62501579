"""Choose among a run's parameters by what they synthesize, not by how far learning went.

Learning moves on while its samples may get worse: energies stiffen, chains wander. So fresh videos
are measured now and then, always from the same noise, and the best parameters are kept.
"""

from __future__ import annotations

import math

from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.measures import Comparison, Measures, compare
from stg_train.learn import Kept, Learner, grown_at
from stg_train.sample import sample

VIDEOS = 2
# Of the videos that choose; those that are measured when learning is done have another seed.
SEED_OFFSET = 1 << 62
# Share by which later parameters must be better than those that are kept. Two videos do not tell
# less apart, and of equals the earlier energy is the weaker one, which moves longer walks less.
MARGIN = 0.02

# What counts as one unit of each measure: the goals that samples are held to.
SPATIAL_DB, TEMPORAL_DB, RATIO, FEATURE, DIFFERENCE = 1.0, 1.5, 1.1, 0.03, 0.1


def score(measures: Measures) -> float:
    """How far a video is from its clip, 0 at best; at 1 it is as far as the goals allow."""
    parts = (
        measures.spatial_db / SPATIAL_DB,
        measures.temporal_db / TEMPORAL_DB,
        *(
            abs(math.log(max(ratio, 1e-6))) / math.log(RATIO)
            for ratio in (measures.motion, measures.sharpness, measures.moving_contrast)
        ),
        measures.feature_distance / FEATURE,
        max(0.0, 1 - measures.difference) / DIFFERENCE,
    )
    return sum(parts) / len(parts)


def mean_score(found: Comparison) -> float:
    """`score` of all compared videos, on the average."""
    return sum(score(measures) for measures in found.videos) / len(found.videos)


def sample_score(learner: Learner) -> float | None:
    """Mean score of fresh videos; infinite where a walk diverges.

    None where nothing can be compared: a clip of a few frames or pixels, or an incomplete one.
    """
    if learner.observed.observed_mask is not None:
        return None
    try:
        made = sample(learner, count=VIDEOS, seed=(learner.recipe.seed + SEED_OFFSET) % 2**63)
        found = compare(list(learner.observed.pixels), list(made.videos))
    except DivergenceError:
        return math.inf
    except InputError:
        return None
    return mean_score(found)


def keep_best(learner: Learner, found: float) -> None:
    """Keep the learner's parameters, of score `found`, where they are clearly the best so far."""
    better = found < (1 - MARGIN) * learner.best_score
    if learner.best is None or _outgrown(learner) or better:
        learner.best_score = found
        for scale in learner.scales():
            scale.best = Kept(scale.update_count, scale.parameters(), scale.returns)


def take_best(learner: Learner) -> None:
    """Give the learner the parameters that were kept, if any."""
    for scale in learner.scales():
        if scale.best is not None and not _outgrown(scale):
            scale.energy.load_state_dict(scale.best.parameters)


def _outgrown(learner: Learner) -> bool:
    """Were the best parameters learned with fewer layers than are in use now?"""
    grown = grown_at(learner.recipe, max(learner.update_count - 1, 0))
    return learner.best is not None and learner.best.update <= grown
