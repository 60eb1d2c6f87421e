"""The numbers of the papers, in per cent: what their authors measured.

The paper is Huang et al. (2022), with ELECTRA-base++; of many tasks it is Rice Wolfe and Lundgaard (2021), "Exceeding
the Limits of Visual-Linguistic Multi-Task Learning", with BERT-base, images beside texts, and tasks of online shops.
"""

from __future__ import annotations

from collections.abc import Mapping

NEWS_TASKS: Mapping[str, str] = {
    "politics": "Politics",
    "wellness": "Wellness",
    "entertainment": "Entertainment",
    "travel": "Travel",
    "style_and_beauty": "Style and Beauty",
    "parenting": "Parenting",
    "healthy_living": "Healthy Living",
    "opinion": "Opinion",
}
"""Our task -> its column in Table 1."""

GLUE_TASKS: Mapping[str, str] = {
    "cola": "CoLA",
    "mnli": "MNLI",
    "snli_to_mnli": "MNLI",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qnli_of_dev": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst2": "SST-2",
    "stsb": "STS-B",
}
"""Our task -> its column in Tables 2 and 3."""

_NEWS = (*NEWS_TASKS.values(), "Avg")
_GLUE = ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "Avg")


def _rows(columns: tuple[str, ...], rows: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {name: dict(zip(columns, values.split(), strict=True)) for name, values in rows.items()}


TABLE_1 = _rows(
    _NEWS,
    {
        "single-task": "88.1 86.4 90.1 93.5 92.4 87.1 82.6 76.0 87.0",
        "mt-dnn": "88.0 86.2 89.7 93.4 90.7 87.9 84.1 74.9 86.9",
        "p-tuning": "88.6 87.3 90.2 94.2 93.1 89.4 85.5 76.4 88.1",
        "p-tuning-v2": "88.1 87.1 90.7 92.7 91.1 88.2 84.1 74.1 87.0",
        "ca-mtl": "88.3 87.6 90.4 94.1 93.2 89.9 82.7 74.6 87.6",
        "mtop": "89.9 88.2 91.6 94.6 93.3 88.6 85.2 75.5 88.4",
    },
)
"""Accuracy on the evaluation set of the paper's news set; median of five runs."""

TABLE_2 = _rows(
    _GLUE,
    {
        "single-task": "63.3 88.4/87.7 88.9 93.1 72.6 67.0 95.2 88.9 82.8",
        "mt-dnn": "60.6 87.6/87.1 87.7 92.9 72.2 80.2 94.8 88.6 83.5",
        "p-tuning": "60.3 87.9/87.3 88.4 92.8 71.8 80.4 95.5 89.4 83.8",
        "p-tuning-v2": "61.8 88.0/87.4 88.0 92.7 72.2 80.5 95.3 88.8 83.9",
        "ca-mtl": "61.5 87.9/87.4 88.3 92.6 72.2 80.4 95.3 88.7 83.8",
        "mtop": "62.3 88.1/87.6 89.3 92.6 72.4 80.6 95.6 90.0 84.3",
    },
)
"""GLUE's test sets: Matthews (CoLA), Spearman (STS-B), F1 (QQP, MRPC), accuracy otherwise."""

TABLE_3 = _rows(
    _GLUE,
    {
        "mt-dnn": "62.9 87.7/87.2 85.5 92.1 91.2 83.7 94.3 90.6 86.0",
        "mtop-rd-rd": "63.3 87.7/87.3 88.5 92.5 91.5 84.5 94.5 91.0 86.8",
        "mtop-tk-rd": "64.4 87.8/87.2 89.2 92.1 91.4 84.8 94.0 91.2 86.9",
        "mtop-st-rd": "65.9 87.7/87.2 90.0 92.6 91.3 85.9 94.6 91.6 87.4",
        "mtop-rd-st": "65.3 87.8/87.1 89.2 92.3 91.4 85.6 94.3 91.5 87.2",
        "mtop-no-stop": "66.9 87.7/87.5 90.2 92.4 91.4 84.8 94.4 91.8 87.5",
        "mtop": "67.2 87.8/87.5 89.0 92.4 91.4 86.6 94.7 91.6 87.6",
    },
)
"""GLUE's development sets: Matthews (CoLA), mean of Pearson and Spearman (STS-B), accuracy otherwise."""

MANY_COLUMNS = ("mean", "T10", "B10")
MANY = _rows(
    MANY_COLUMNS,
    {
        "many": "75.48 71.69 54.09",
        "many-linear": "74.97 72.37 51.70",
        "many-cosine": "74.88 73.33 53.02",
        "many-demon": "74.51 73.72 52.01",
    },
)
"""Their Table 1: alpha from 1 to 0.1."""
MANY_ALPHA = MANY | _rows(
    MANY_COLUMNS,
    {
        "many-linear-to-0.5": "74.66 73.56 50.05",
        "many-linear-to-0.0": "75.31 72.49 52.98",
        "many-exponential-to-0.5": "74.79 73.33 51.69",
        "many-exponential-to-0.0": "74.86 69.85 52.38",
        "many-cosine-to-0.5": "74.63 73.71 52.25",
        "many-cosine-to-0.0": "74.47 73.28 51.20",
        "many-demon-to-0.5": "73.20 73.82 47.46",
        "many-demon-to-0.0": "74.31 73.84 52.92",
    },
)
"""Their Table 1."""
MANY_READS = _rows(
    MANY_COLUMNS,
    {"many-attention": "72.95 66.39 55.07", "many-dypa": "74.33 69.83 54.39"},
)
"""Their Table 2: attention heads with two heads."""
MANY_NUMBERS = _rows(
    MANY_COLUMNS,
    {
        "many-alone": "61.50 72.33 34.40",
        "many": "73.29 69.30 54.39",
        "many-500": "72.54 67.36 52.80",
        "many-1000": "74.98 67.02 57.08",
    },
)
"""Their Table 3: attention heads, DyPA."""
MANY_TRANSFER = _rows(("mean",), {"many-large": "90.27", "many-large-100": "90.77", "many-large-1000": "91.12"})
"""Their Table 4: a task of 405,840 examples and 2,196 labels."""
MANY_FEWER = _rows(
    ("mean",),
    {
        "many-of-10-by-size": "60.90",
        "many-of-10-falling": "67.46",
        "many-of-10-dypa": "69.97",
        "many-of-25-by-size": "73.42",
        "many-of-25-falling": "76.25",
        "many-of-25-dypa": "78.12",
        "many-of-50-by-size": "67.71",
        "many-of-50-falling": "75.12",
        "many-of-50-dypa": "75.47",
        "many-of-75-by-size": "71.40",
        "many-of-75-falling": "77.34",
        "many-of-75-dypa": "78.65",
    },
)
"""Their Table 6: without falling alpha and DyPA, with the first, with both."""
