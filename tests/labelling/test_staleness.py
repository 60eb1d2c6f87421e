"""Planning: whatever the store has been through, a plan covers exactly the cells that are not current."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.corpus.files import Layout, SourceFile
from mtop_batch.labelling.plan import staleness as why
from mtop_batch.labelling.plan.placement import choose_label_sets
from mtop_batch.labelling.plan.planner import build_plan
from mtop_batch.labelling.plan.staleness import Staleness, relevant_sets
from mtop_batch.labelling.plan.work import Plan, Unit, decode_units, encode_units
from mtop_batch.table.definition import VECTOR, Definition, LabelSet, ViewDefinition
from mtop_batch.table.footer import LabelFooter
from mtop_batch.table.row_ranges import is_tiling
from mtop_batch.table.store import LabelFile, StoreListing
from tests.labelling.support import definition, small_slices

view = ViewDefinition.of_one_input
Corpus = Mapping[SourceFile, tuple[int, ...]]
Cell = tuple[str, int, str]
"""Source path, row, task."""


@pytest.fixture(autouse=True, scope="module")
def _slices_of_eight_rows() -> Iterator[None]:
    with small_slices(8):
        yield


@dataclass
class Store:
    """A store in memory: the footer of every label file, None if it is damaged."""

    files: dict[LabelFile, LabelFooter | None] = field(default_factory=dict)

    @property
    def listing(self) -> StoreListing:
        return StoreListing(dict.fromkeys(self.files, 1))

    def label_sets(self) -> list[LabelSet]:
        found = {file.label_set: footer.label_set(file.label_set) for file, footer in self.files.items() if footer}
        return list(found.values())

    def plan(self, wanted: Definition, corpus: Corpus) -> Plan:
        damaged = [file for file, footer in self.files.items() if footer is None]
        staleness = Staleness(wanted, self.label_sets(), self.listing, damaged)
        stale = [
            (source, Layout(row_groups, {columns: columns for columns in wanted.text_columns.values()}))
            for source, row_groups in corpus.items()
        ]
        return build_plan(staleness, wanted.fingerprints, [], stale)

    def do(self, wanted: Definition, units: Iterable[Unit], max_targets: int = 99) -> None:
        for unit in units:
            for target in unit.targets[:max_targets]:
                assert self.files.get(target.file) is None, "a label file would be overwritten"
                self.files[target.file] = unit.footer(target, wanted, "run")

    def rows_of(self, corpus: Corpus, view: ViewDefinition, task: str) -> set[tuple[str, int]]:
        """Rows whose present content has labels of a task by this definition."""
        return {
            (footer.source.path, row)
            for footer in self.files.values()
            if footer and footer.source in corpus and view.matches(footer.view, task)
            for row in range(*footer.rows)
        }

    def whole(self, wanted: Definition, corpus: Corpus) -> set[tuple[str, str]]:
        """Sources and tasks that one label set has by this definition for all rows."""
        found: dict[tuple[str, SourceFile, str], set[tuple[int, int]]] = {}
        for file, footer in self.files.items():
            for task in wanted.fingerprints:
                if footer and footer.source in corpus and wanted.view.matches(footer.view, task):
                    found.setdefault((file.label_set, footer.source, task), set()).add(footer.rows)
        return {
            (source.path, task) for (_, source, task), rows in found.items() if is_tiling(rows, sum(corpus[source]))
        }


def planned_cells(units: Iterable[Unit]) -> Counter[Cell]:
    return Counter((u.source.path, row, task) for u in units for row in range(*u.rows) for task in u.tasks)


def check_plan(plan: Plan, store: Store, wanted: Definition, corpus: Corpus) -> None:
    whole, planned = store.whole(wanted, corpus), planned_cells(plan.units)
    pairs = {(unit.source.path, task) for unit in plan.units for task in unit.tasks}
    assert not whole & pairs
    assert whole | pairs == {(source.path, task) for source in corpus for task in wanted.fingerprints}
    assert max(planned.values(), default=1) == 1
    assert (plan.cells_planned, plan.cells_current) == (planned.total(), plan.cells_total - planned.total())
    assert plan.reasons.total() == plan.cells_planned == sum(plan.planned_per_task.values())
    assert plan.num_articles * len(wanted.fingerprints) == plan.cells_total
    for unit in plan.units:
        with_vectors = store.rows_of(corpus, wanted.vector_view(unit.text_columns), VECTOR)
        assert {wanted.text_columns[task] for task in unit.tasks} == {unit.text_columns}
        rows = {(unit.source.path, row) for row in range(*unit.rows)}
        from_vectors = rows <= with_vectors and wanted.probes.issuperset(unit.tasks)
        assert bool(unit.vectors) == from_vectors or not rows
        assert all(target.tasks == (VECTOR,) for target in unit.targets if VECTOR in target.tasks)
        assert Counter(task for target in unit.targets for task in target.tasks) == Counter(unit.tasks)
        assert list(unit.tasks) == [task for task in wanted.fingerprints if task in unit.tasks]
    files = [target.file for unit in plan.units for target in unit.targets]
    assert len(set(files)) == len(files)
    assert all(store.files.get(file) is None for file in files), "a label file would be overwritten"


inputs = st.sampled_from(
    [("title",), ("title", "body"), {"a": ("title",), "p1": ("title",)}, {"b": ("body",), VECTOR: ("title",)}]
)
fingerprints = st.dictionaries(st.sampled_from(["a", "b", "p1", "p2", VECTOR]), st.sampled_from(["1", "2"]), min_size=1)
row_groups = st.lists(st.integers(0, 12), max_size=4).map(tuple)
corpora = st.dictionaries(
    st.sampled_from(["x.parquet", "d=1/y.parquet", "d=1/y.parquet@/z.parquet"]),
    st.tuples(st.sampled_from(["v1", "v2"]), row_groups),
    min_size=1,
).map(lambda files: {SourceFile(path, 10, version): groups for path, (version, groups) in files.items()})


@st.composite
def histories(draw: st.DrawFn) -> tuple[Store, Corpus]:
    """A store after a few runs, some cut short, with other definitions and contents, and damage."""
    store = Store()
    layouts: dict[SourceFile, tuple[int, ...]] = {}
    for _ in range(draw(st.integers(0, 4))):
        wanted = definition(draw(fingerprints), text_columns=draw(inputs))
        corpus = {source: layouts.setdefault(source, groups) for source, groups in draw(corpora).items()}
        units = [unit for unit in store.plan(wanted, corpus).units if draw(st.integers(0, 3))]
        store.do(wanted, units, max_targets=draw(st.sampled_from([1, 99])))
        if store.files and not draw(st.integers(0, 3)):
            store.files[draw(st.sampled_from(list(store.files)))] = None
    corpus = {source: layouts.setdefault(source, groups) for source, groups in draw(corpora).items()}
    return store, corpus


@given(histories(), fingerprints, inputs)
def test_a_plan_is_for_every_task_of_a_source_that_no_label_set_has_whole(
    history: tuple[Store, Corpus], tasks: dict[str, str], columns: Any
) -> None:
    store, corpus = history
    wanted = definition(tasks, text_columns=columns)
    check_plan(store.plan(wanted, corpus), store, wanted, corpus)


@given(histories(), fingerprints, inputs, st.data())
def test_after_any_part_of_a_plan_the_next_plan_is_exactly_the_rest(
    history: tuple[Store, Corpus], tasks: dict[str, str], columns: Any, data: st.DataObject
) -> None:
    store, corpus = history
    wanted = definition(tasks, text_columns=columns)
    plan = store.plan(wanted, corpus)
    done = [unit for unit in plan.units if data.draw(st.booleans())]
    undisturbed = Store(dict(store.files))
    store.do(wanted, done)
    rest = store.plan(wanted, corpus)
    check_plan(rest, store, wanted, corpus)
    assert rest.units == tuple(unit for unit in plan.units if unit not in done)
    store.do(wanted, rest.units)
    undisturbed.do(wanted, plan.units)
    assert store == undisturbed
    assert store.plan(wanted, corpus).units == ()


@given(histories(), fingerprints, fingerprints)
def test_what_a_run_of_an_old_plan_writes_late_is_there_already_or_of_a_name_of_its_own(
    history: tuple[Store, Corpus], tasks: dict[str, str], others: dict[str, str]
) -> None:
    store, corpus = history
    wanted, other = definition(tasks), definition(others)
    late = store.plan(wanted, corpus)
    for run in (other, wanted):
        store.do(run, store.plan(run, corpus).units)
    for unit in late.units:
        for target in unit.targets:
            assert store.files.get(target.file) in (None, unit.footer(target, wanted, "run"))


@given(histories(), fingerprints, inputs)
def test_whatever_was_before_one_label_set_has_each_wanted_task_whole_in_the_end(
    history: tuple[Store, Corpus], tasks: dict[str, str], columns: Any
) -> None:
    store, corpus = history
    wanted = definition(tasks, text_columns=columns)
    store.do(wanted, store.plan(wanted, corpus).units)
    assert store.whole(wanted, corpus) == {(source.path, task) for source in corpus for task in tasks}


X, Y = SourceFile("x.parquet", 10, "v1"), SourceFile("y.parquet", 10, "v1")
AB = definition({"a": "1", "b": "1"})


def labelled(wanted: Definition, corpus: Corpus) -> Store:
    store = Store()
    store.do(wanted, store.plan(wanted, corpus).units)
    return store


def reasons(store: Store, wanted: Definition, corpus: Corpus) -> dict[str, int]:
    return dict(store.plan(wanted, corpus).reasons)


def table_set(wanted: Definition, tasks: Sequence[str] = ()) -> str:
    return wanted.label_set_name(tasks or wanted.fingerprints)


def targets(unit: Unit) -> list[tuple[str, tuple[str, ...]]]:
    return [(target.file.label_set, target.tasks) for target in unit.targets]


def test_tasks_that_read_other_columns_have_units_and_label_sets_of_their_own() -> None:
    wanted = definition({"a": "1", "b": "1", "c": "1"}, text_columns={"b": ("headline",)})
    plan = Store().plan(wanted, {X: (5,)})
    assert [(unit.tasks, unit.text_columns) for unit in plan.units] == [
        (("a", "c"), ("title", "body")),
        (("b",), ("headline",)),
    ]
    assert [targets(unit) for unit in plan.units] == [
        [(table_set(wanted, ("a", "c")), ("a", "c"))],
        [(table_set(wanted, ("b",)), ("b",))],
    ]
    assert (plan.num_articles_planned, plan.num_rows_planned, plan.cells_planned) == (5, 10, 15)
    moved = definition({"a": "1", "b": "1", "c": "1"}, text_columns={"b": ("teaser",)})
    assert reasons(labelled(wanted, {X: (5,)}), moved, {X: (5,)}) == {why.COLUMNS_CHANGED: 5}


def test_a_probe_takes_stored_vectors_of_its_own_columns_only() -> None:
    stored = labelled(definition({"a": "1", VECTOR: "1"}), {X: (5,)})
    wanted = definition({"a": "1", "p1": "1", "p2": "1", VECTOR: "1"}, text_columns={"p2": ("headline",)})
    first, second = stored.plan(wanted, {X: (5,)}).units
    assert (first.tasks, first.vectors is None) == (("p1",), False)
    assert (second.tasks, second.vectors) == (("p2",), None)


def test_every_reason_is_told_with_its_number_of_cells() -> None:
    store = labelled(AB, {X: (5,)})
    changed = replace(X, version="v2")
    assert reasons(store, AB, {X: (5,)}) == {}
    assert reasons(store, AB, {X: (5,), Y: (3,)}) == {why.NEW_FILE: 6}
    assert reasons(store, AB, {changed: (4,)}) == {why.CONTENT_CHANGED: 8}
    assert reasons(store, definition({"a": "1", "b": "1", "d": "1"}), {X: (5,)}) == {why.NEW_TASK: 5}
    assert reasons(store, definition({"a": "1", "b": "2"}), {X: (5,)}) == {why.TASK_CHANGED: 5}
    assert reasons(store, definition({"a": "2", "b": "2"}), {X: (5,)}) == {why.BUNDLE_CHANGED: 10}
    body_only = definition({"a": "1", "b": "1"}, text_columns=("body",))
    assert reasons(store, body_only, {X: (5,)}) == {why.COLUMNS_CHANGED: 10}


def test_a_file_labelled_in_part_is_unfinished_and_a_damaged_label_file_is_done_again() -> None:
    corpus = {X: (5, 5)}
    store = Store()
    store.do(AB, store.plan(AB, corpus).units[:1])
    assert reasons(store, AB, corpus) == {why.UNFINISHED: 10}
    store = labelled(AB, {X: (5,), Y: (5,)})
    damaged = next(iter(store.files))
    store.files[damaged] = None
    (unit,) = store.plan(AB, {X: (5,), Y: (5,)}).units
    assert (unit.source, unit.targets[0].file) == (X, damaged)
    assert reasons(store, AB, {X: (5,), Y: (5,)}) == {why.DAMAGED: 10}


def test_labels_that_lie_in_two_sets_are_brought_into_one() -> None:
    corpus = {X: (8, 8)}
    store = Store()
    store.do(AB, store.plan(AB, corpus).units[:1])
    only_a = definition({"a": "1"})
    first, second = store.plan(only_a, corpus).units
    assert targets(first) == targets(second) == [(table_set(only_a), ("a",))]
    store.do(only_a, [first, second])
    first, second = store.plan(AB, corpus).units
    assert first.tasks == second.tasks == ("b",)


def test_content_that_comes_back_is_current_at_once() -> None:
    old, new = X, replace(X, version="v2")
    store = labelled(AB, {old: (5,)})
    store.do(AB, store.plan(AB, {new: (4,)}).units)
    assert reasons(store, AB, {new: (4,)}) == reasons(store, AB, {old: (5,)}) == {}


def test_a_task_added_later_gets_a_set_of_its_own_and_new_files_fill_up_both() -> None:
    store = labelled(AB, {X: (5,)})
    abd = definition({"a": "1", "b": "1", "d": "1"}, bundle_name="news-2")
    old_file, new_file = store.plan(abd, {X: (5,), Y: (3,)}).units
    assert targets(old_file) == [(table_set(abd, "d"), ("d",))]
    assert targets(new_file) == [(table_set(AB), ("a", "b")), (table_set(abd, "d"), ("d",))]
    assert new_file.tasks == ("a", "b", "d")


def test_a_kill_between_two_label_files_of_a_unit_leaves_only_the_second_to_do() -> None:
    abd = definition({"a": "1", "b": "1", "d": "1"})
    store = labelled(AB, {X: (5,)})
    store.do(abd, store.plan(abd, {X: (5,), Y: (3,)}).units, max_targets=1)
    (unit,) = store.plan(abd, {X: (5,), Y: (3,)}).units
    assert (unit.source, unit.tasks) == (Y, ("d",))


def test_the_largest_fitting_sets_are_filled_and_sets_of_other_columns_are_not() -> None:
    wanted = definition({"a": "1", "b": "1", "c": "1", "d": "1"})
    sets = [
        LabelSet("ab", view({"a": "1", "b": "1"}, *wanted.view.columns("a"))),
        LabelSet("bcd", view({"b": "1", "c": "1", "d": "1"}, *wanted.view.columns("a"))),
        LabelSet("a-other", view({"a": "1"}, ("body",), "id")),
        LabelSet("abcd-old", view({"a": "1", "b": "1", "c": "1", "d": "0"}, *wanted.view.columns("a"))),
    ]
    chosen = choose_label_sets(wanted, tuple(wanted.fingerprints), sets)
    assert chosen == [(table_set(wanted, "a"), ("a",)), ("bcd", ("b", "c", "d"))]
    assert [found.name for found in relevant_sets(wanted, sets)] == ["ab", "bcd", "abcd-old"]


def test_one_retrained_task_gets_a_set_that_old_and_new_files_share() -> None:
    abc, retrained = definition({"a": "1", "b": "1", "c": "1"}), definition({"a": "2", "b": "1", "c": "1"})
    store = labelled(abc, {X: (5,)})
    old_file, new_file = store.plan(retrained, {X: (5,), Y: (3,)}).units
    a, bc = (table_set(retrained, tasks) for tasks in ("a", "bc"))
    assert targets(old_file) == [(a, ("a",))]
    assert targets(new_file) == [(a, ("a",)), (bc, ("b", "c"))]
    store.do(retrained, [old_file])
    assert store.plan(retrained, {X: (5,), Y: (3,)}).units == (new_file,)


def test_files_without_rows_get_a_label_file_once() -> None:
    for groups in ((), (0,), (0, 0)):
        store = labelled(AB, {X: groups})
        assert [(file.label_set, name.rows) for file, name in store.listing.names.items()] == [(table_set(AB), (0, 0))]
        assert store.plan(AB, {X: groups}).units == ()


def test_vectors_count_when_one_set_has_those_of_the_whole_source() -> None:
    wanted = definition({"p": "1", VECTOR: "1"})
    store = labelled(wanted, {X: (8, 8)})
    assert Staleness(wanted, store.label_sets(), store.listing).has_vectors(X, 16)
    assert not Staleness(wanted, store.label_sets(), store.listing).has_vectors(Y, 16)
    store.files.popitem()
    assert not Staleness(wanted, store.label_sets(), store.listing).has_vectors(X, 16)


def test_units_survive_json() -> None:
    store = labelled(AB, {X: (5,)})
    store.do(definition({VECTOR: "1"}), store.plan(definition({VECTOR: "1"}), {X: (5,)}).units)
    units = store.plan(definition({"p": "1", "q": "1"}), {X: (5,), Y: (4, 90)}).units
    units += store.plan(definition({"p": "1"}), {X: (5,)}).units
    assert units[-1].vectors is not None
    assert [Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) for unit in units] == list(units)
    assert decode_units(encode_units(units)) == list(units)
    assert encode_units(units).count(json.dumps(units[1].tasks)) == 1
    assert str(units[0]) == "x.parquet"
    assert str(units[1]) == "y.parquet rows 0-4"
