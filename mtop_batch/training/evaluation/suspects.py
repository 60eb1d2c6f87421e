"""Examples whose label is likely to be wrong: a model that has not seen them is sure of another one.

Confident learning (Northcutt et al., 2021, section 3.1): t_j is the mean probability of label j among the examples that
have it. An example is suspect if, of the labels with a probability of at least their t_j, the most probable is not its
own. Probabilities are those of a logistic regression on document vectors, cross-validated, so one pass of the texts
through the encoder is all that it takes. The encoder may have been trained on these very examples: what it has learned
by heart is no longer suspect.

Shapes: R examples, D hidden width, C labels.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.same_text import same_text_key
from mtop_batch.errors import DataError
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]

FEWEST_EXAMPLES = 20
_NUM_FOLDS = 5
# In the middle of what probes choose (`training.probe.L2_PENALTIES`), of the mean loss.
_L2_PENALTY = 0.03


def find_suspects(raw: RawExamples, vectors: FloatArray, seed: int = 0) -> pa.Table:
    """The examples of a classification whose label is likely to be wrong, the surest first.

    A text that several examples have counts once, or one fold would tell the other its label; one with labels that
    contradict each other is left out, for it is known to be wrong.

    Args:
        raw: R examples.
        vectors: (R, D) Their document vectors.
        seed: Of the folds.

    Returns:
        The columns of `label_report.ERROR_COLUMNS`; `score` is the probability of the predicted label.

    Raises:
        DataError: There are too few examples to say anything.
    """
    rows = _rows_to_judge(raw)
    labels = raw.labels[rows].astype(np.int64)
    known, counts = np.unique(labels, return_counts=True)
    if len(rows) < FEWEST_EXAMPLES or len(known) < 2:
        raise DataError(
            f"{len(rows):,} different texts of labels with two examples or more, and {len(known)} such labels: too few "
            f"to tell which are labelled wrongly; it takes {FEWEST_EXAMPLES} and 2"
        )
    probabilities = _out_of_fold(vectors[rows], labels, min(_NUM_FOLDS, int(counts.max())), seed)
    own = np.searchsorted(known, labels)
    thresholds = np.array([probabilities[own == index, index].mean() for index in range(len(known))])
    said = np.where(probabilities >= thresholds, probabilities, -1.0).argmax(axis=1)
    places = np.arange(len(rows))
    lead = probabilities[places, said] - probabilities[places, own]
    suspects = np.flatnonzero((said != own) & (lead > 0))
    suspects = suspects[np.argsort(-lead[suspects], kind="stable")]
    names = raw.task.labels
    return pa.table(
        {
            "task": [raw.task.name] * len(suspects),
            "text": [raw.texts[rows[place]] for place in suspects],
            "second_text": [None if raw.seconds is None else raw.seconds[rows[place]] for place in suspects],
            "label": [names[known[own[place]]] for place in suspects],
            "predicted": [names[known[said[place]]] for place in suspects],
            "score": probabilities[suspects, said[suspects]].astype(np.float32),
        },
        schema=ERROR_COLUMNS,
    )


def _rows_to_judge(raw: RawExamples) -> IntArray:
    """The first row of each text that has one label only, of labels with at least two such texts."""
    first: dict[object, int] = {}
    contradictory: set[object] = set()
    for row, pair in enumerate(raw.pairs()):
        key = same_text_key(pair)
        if raw.labels[first.setdefault(key, row)] != raw.labels[row]:
            contradictory.add(key)
    rows = np.array([row for key, row in first.items() if key not in contradictory], np.int64)
    labels = raw.labels[rows].astype(np.int64)
    return rows[np.bincount(labels, minlength=raw.task.num_outputs)[labels] >= 2]


def _out_of_fold(vectors: FloatArray, labels: IntArray, num_folds: int, seed: int) -> FloatArray:
    """(R, C) The probability of each label that occurs, by a model that has not seen the example."""
    centred = vectors.astype(np.float32) - vectors.mean(axis=0, dtype=np.float32)
    features = centred / max(float(np.sqrt(np.square(centred).mean())), 1e-12)
    model = LogisticRegression(C=1 / (_L2_PENALTY * len(labels)), max_iter=200)
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A label with fewer examples than folds is missing in some; 200 steps are near enough to the minimum.
        warnings.simplefilter("ignore")
        found: FloatArray = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return found
