"""Planning: whatever a table has been through, a plan covers exactly the cells that are not current."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch.corpus.files import Layout, SourceFile
from mtop_batch.labelling.plan import staleness as why
from mtop_batch.labelling.plan.placement import choose_label_sets
from mtop_batch.labelling.plan.planner import build_plan
from mtop_batch.labelling.plan.staleness import LabelFile, Staleness, relevant_sets
from mtop_batch.labelling.plan.work import Plan, Unit, decode_units, encode_units
from mtop_batch.table.definition import VECTOR, Definition, LabelSet
from mtop_batch.table.footer import Footer
from tests.labelling.support import definition

Corpus = Mapping[SourceFile, tuple[int, ...]]
Cell = tuple[str, int, str]
"""Source path, row, task."""


@dataclass
class Table:
    """A label table in memory: footers by label set and path."""

    files: dict[tuple[str, str], Footer | None] = field(default_factory=dict)

    def plan(self, wanted: Definition, corpus: Corpus, unit_rows: int = 8) -> Plan:
        definitions = {name: footer.label_set(name) for (name, _), footer in self.files.items() if footer}
        matter = {label_set.name for label_set in relevant_sets(wanted, definitions.values())}
        label_files = [
            LabelFile.of(name, path, footer) if footer else LabelFile(name, path, None)
            for (name, path), footer in self.files.items()
            if name in matter
        ]
        listing: dict[str, list[str]] = {}
        for name, path in self.files:
            listing.setdefault(name, []).append(path)
        staleness = Staleness(wanted, list(definitions.values()), label_files, listing)
        current, stale = [], []
        for source, row_groups in corpus.items():
            num_rows = staleness.num_rows_if_current(source)
            if num_rows is None:
                stale.append((source, Layout(row_groups, wanted.text_columns)))
            else:
                current.append((source, num_rows))
        return build_plan(staleness, wanted.fingerprints, current, stale, unit_rows)

    def label_sets(self) -> set[str]:
        return {name for name, _ in self.files}

    def start(self, plan: Plan) -> None:
        for file in plan.obsolete:
            name, _, path = file.partition("/")
            del self.files[name, path]

    def do(self, wanted: Definition, units: Iterable[Unit], max_targets: int = 99) -> None:
        for unit in units:
            for target in unit.targets[:max_targets]:
                self.files[target.label_set, target.path] = unit.footer(target, wanted, "run")

    def current_cells(self, wanted: Definition, corpus: Corpus) -> Counter[Cell]:
        """Staleness with current labels, each counted once per label file that has them."""
        found: Counter[Cell] = Counter()
        for (name, _), footer in self.files.items():
            if footer and footer.source in corpus:
                tasks = [task for task in wanted.fingerprints if footer.label_set(name).holds(wanted, task)]
                rows = range(*footer.rows)
                found.update((footer.source.path, row, task) for row in rows for task in tasks)
        return found

    def check_plain_readers(self) -> None:
        """No label set shows a row twice, or two contents of one source file."""
        rows_seen: Counter[tuple[str, str, int]] = Counter()
        contents: dict[tuple[str, str], SourceFile] = {}
        for (name, _), footer in self.files.items():
            assert footer is not None
            assert contents.setdefault((name, footer.source.path), footer.source) == footer.source
            rows_seen.update((name, footer.source.path, row) for row in range(*footer.rows))
        assert max(rows_seen.values(), default=1) == 1


def all_cells(wanted: Definition, corpus: Corpus) -> set[Cell]:
    return {
        (source.path, row, task)
        for source, row_groups in corpus.items()
        for row in range(sum(row_groups))
        for task in wanted.fingerprints
    }


def planned_cells(units: Iterable[Unit]) -> Counter[Cell]:
    return Counter((u.source.path, row, task) for u in units for row in range(*u.rows) for task in u.tasks)


def check_plan(plan: Plan, table: Table, wanted: Definition, corpus: Corpus) -> None:
    current, planned = table.current_cells(wanted, corpus), planned_cells(plan.units)
    assert set(current) | set(planned) == all_cells(wanted, corpus)
    assert not set(current) & set(planned)
    assert max(planned.values(), default=1) == 1
    assert (plan.cells_planned, plan.cells_current) == (planned.total(), len(set(current)))
    assert plan.reasons.total() == plan.cells_planned == sum(plan.planned_per_task.values())
    assert plan.num_articles * len(wanted.fingerprints) == plan.cells_total
    with_vectors = vector_rows(table, wanted, corpus)
    for unit in plan.units:
        rows = {(unit.source.path, row) for row in range(*unit.rows)}
        from_vectors = rows <= with_vectors and wanted.probes.issuperset(unit.tasks)
        assert bool(unit.vectors) == from_vectors or not rows
        if unit.vectors:
            assert [row for part in unit.vectors for row in range(*part.rows)] == list(range(*unit.rows))
        assert all(target.tasks == (VECTOR,) for target in unit.targets if VECTOR in target.tasks)
        assert Counter(task for target in unit.targets for task in target.tasks) == Counter(unit.tasks)
        assert list(unit.tasks) == [task for task in wanted.fingerprints if task in unit.tasks]
    paths = [(target.label_set, target.path) for unit in plan.units for target in unit.targets]
    assert len(set(paths)) == len(paths)
    for name, path in paths:
        footer = table.files.get((name, path))
        assert footer is None or footer.source not in corpus, "a current label file would be overwritten"


def vector_rows(table: Table, wanted: Definition, corpus: Corpus) -> set[tuple[str, int]]:
    """Rows whose current content has the vectors that a wanted probe reads."""
    return {
        (footer.source.path, row)
        for (name, _), footer in table.files.items()
        if footer and footer.source in corpus and footer.label_set(name).holds_vectors(wanted)
        for row in range(*footer.rows)
    }


fingerprints = st.dictionaries(st.sampled_from(["a", "b", "p1", "p2", VECTOR]), st.sampled_from(["1", "2"]), min_size=1)
row_groups = st.lists(st.integers(0, 12), max_size=4).map(tuple)
corpora = st.dictionaries(
    st.sampled_from(["x.parquet", "d=1/y.parquet", "d=1/y.rg00000-00001.parquet"]),
    st.tuples(st.sampled_from(["v1", "v2"]), row_groups),
    min_size=1,
).map(lambda files: {SourceFile(path, 10, version): groups for path, (version, groups) in files.items()})


@st.composite
def histories(draw: st.DrawFn) -> tuple[Table, Corpus]:
    """A table after a few runs, some cut short, with other definitions, unit sizes and contents."""
    table = Table()
    layouts: dict[SourceFile, tuple[int, ...]] = {}
    for _ in range(draw(st.integers(0, 4))):
        wanted = definition(draw(fingerprints), text_columns=draw(st.sampled_from([("title",), ("title", "body")])))
        corpus = {source: layouts.setdefault(source, groups) for source, groups in draw(corpora).items()}
        plan = table.plan(wanted, corpus, draw(st.integers(1, 20)))
        table.start(plan)
        units = [unit for unit in plan.units if draw(st.integers(0, 3))]
        table.do(wanted, units, max_targets=draw(st.sampled_from([1, 99])))
    corpus = {source: layouts.setdefault(source, groups) for source, groups in draw(corpora).items()}
    return table, corpus


@settings(deadline=None)
@given(histories(), fingerprints, st.integers(1, 20))
def test_planned_and_current_cells_are_all_cells_and_do_not_overlap(
    history: tuple[Table, Corpus], tasks: dict[str, str], unit_rows: int
) -> None:
    table, corpus = history
    wanted = definition(tasks)
    check_plan(table.plan(wanted, corpus, unit_rows), table, wanted, corpus)


@settings(deadline=None)
@given(histories(), fingerprints, st.integers(1, 20), st.integers(1, 20), st.data())
def test_after_any_part_of_a_plan_the_next_plan_is_exactly_the_rest(
    history: tuple[Table, Corpus], tasks: dict[str, str], unit_rows: int, unit_rows_next: int, data: st.DataObject
) -> None:
    table, corpus = history
    wanted = definition(tasks)
    plan = table.plan(wanted, corpus, unit_rows)
    done = [unit for unit in plan.units if data.draw(st.booleans())]
    undisturbed = Table(dict(table.files))
    sets_before = table.label_sets()
    table.start(plan)
    lost_no_set = table.label_sets() == sets_before  # one that lost its last file is not known to the next plan
    table.do(wanted, done)
    rest = table.plan(wanted, corpus, unit_rows_next)
    check_plan(rest, table, wanted, corpus)
    assert planned_cells(rest.units) == planned_cells(plan.units) - planned_cells(done)
    if unit_rows_next == unit_rows and lost_no_set:
        assert [unit for unit in plan.units if unit not in done and unit.num_rows] == [
            unit for unit in rest.units if unit.num_rows
        ]
        table.start(rest)
        table.do(wanted, rest.units)
        undisturbed.start(plan)
        undisturbed.do(wanted, plan.units)
        assert table == undisturbed


@settings(deadline=None)
@given(histories(), fingerprints, st.integers(1, 20))
def test_plain_readers_of_every_label_set_see_each_row_once_at_every_moment(
    history: tuple[Table, Corpus], tasks: dict[str, str], unit_rows: int
) -> None:
    table, corpus = history
    wanted = definition(tasks)
    table.check_plain_readers()
    plan = table.plan(wanted, corpus, unit_rows)
    table.start(plan)
    for unit in plan.units:
        for num_targets in range(1, len(unit.targets) + 1):
            table.do(wanted, [unit], max_targets=num_targets)
            table.check_plain_readers()
    nothing_left = table.plan(wanted, corpus, unit_rows)
    assert (nothing_left.units, nothing_left.obsolete) == ((), ())


X, Y = SourceFile("x.parquet", 10, "v1"), SourceFile("y.parquet", 10, "v1")
AB = definition({"a": "1", "b": "1"})


def labelled(wanted: Definition, corpus: Corpus) -> Table:
    table = Table()
    table.do(wanted, table.plan(wanted, corpus).units)
    return table


def reasons(table: Table, wanted: Definition, corpus: Corpus) -> dict[str, int]:
    return dict(table.plan(wanted, corpus).reasons)


def test_every_reason_is_told_with_its_number_of_cells() -> None:
    table = labelled(AB, {X: (5,)})
    changed = replace(X, version="v2")
    assert reasons(table, AB, {X: (5,)}) == {}
    assert reasons(table, AB, {X: (5,), Y: (3,)}) == {why.NEW_FILE: 6}
    assert reasons(table, AB, {changed: (4,)}) == {why.CONTENT_CHANGED: 8}
    assert reasons(table, definition({"a": "1", "b": "1", "d": "1"}), {X: (5,)}) == {why.NEW_TASK: 5}
    assert reasons(table, definition({"a": "1", "b": "2"}), {X: (5,)}) == {why.TASK_CHANGED: 5}
    assert reasons(table, definition({"a": "2", "b": "2"}), {X: (5,)}) == {why.BUNDLE_CHANGED: 10}
    body_only = definition({"a": "1", "b": "1"}, text_columns=("body",))
    assert reasons(table, body_only, {X: (5,)}) == {why.COLUMNS_CHANGED: 10}


def test_a_file_labelled_in_part_is_unfinished_and_a_damaged_label_file_is_done_again() -> None:
    corpus = {X: (5, 5)}
    table = Table()
    table.do(AB, table.plan(AB, corpus, unit_rows=5).units[:1])
    assert dict(table.plan(AB, corpus, unit_rows=5).reasons) == {why.UNFINISHED: 10}
    table = labelled(AB, {X: (5,), Y: (5,)})
    table.files[table_set(AB), "x.parquet"] = None
    plan = table.plan(AB, {X: (5,), Y: (5,)})
    assert (dict(plan.reasons), plan.obsolete) == ({why.DAMAGED: 10}, ())


def table_set(wanted: Definition, tasks: Sequence[str] = ()) -> str:
    return wanted.label_set_name(tasks or wanted.fingerprints)


def test_new_content_in_one_file_replaces_it_in_one_step_else_the_old_goes_first() -> None:
    old, new = X, replace(X, version="v2")
    table = labelled(AB, {old: (5,)})
    assert table.plan(AB, {new: (4,)}).obsolete == ()
    assert table.plan(AB, {new: (5, 5)}, unit_rows=5).obsolete == (f"{table_set(AB)}/x.parquet",)
    sliced = Table()
    sliced.do(AB, sliced.plan(AB, {old: (5, 5)}, unit_rows=5).units)
    assert sliced.plan(AB, {new: (5, 5)}, unit_rows=5).obsolete == (
        f"{table_set(AB)}/x.rg00000-00001.parquet",
        f"{table_set(AB)}/x.rg00001-00002.parquet",
    )


def test_a_task_added_later_gets_a_set_of_its_own_and_new_files_fill_up_both() -> None:
    table = labelled(AB, {X: (5,)})
    abd = definition({"a": "1", "b": "1", "d": "1"}, bundle_name="news-2")
    units = table.plan(abd, {X: (5,), Y: (3,)}).units
    old_file, new_file = units
    assert [(t.label_set, t.tasks) for t in old_file.targets] == [(table_set(abd, "d"), ("d",))]
    assert [(t.label_set, t.tasks) for t in new_file.targets] == [
        (table_set(AB), ("a", "b")),
        (table_set(abd, "d"), ("d",)),
    ]
    assert new_file.tasks == ("a", "b", "d")


def test_a_kill_between_two_label_files_of_a_unit_leaves_only_the_second_to_do() -> None:
    abd = definition({"a": "1", "b": "1", "d": "1"})
    table = labelled(AB, {X: (5,)})
    table.do(abd, table.plan(abd, {X: (5,), Y: (3,)}).units, max_targets=1)
    (unit,) = table.plan(abd, {X: (5,), Y: (3,)}).units
    assert (unit.source, unit.tasks) == (Y, ("d",))


def test_the_largest_fitting_sets_are_filled_and_sets_of_other_columns_are_not() -> None:
    wanted = definition({"a": "1", "b": "1", "c": "1", "d": "1"})
    sets = [
        LabelSet("ab", {"a": "1", "b": "1"}, *wanted.columns),
        LabelSet("bcd", {"b": "1", "c": "1", "d": "1"}, *wanted.columns),
        LabelSet("a-other", {"a": "1"}, ("body",), "id"),
        LabelSet("abcd-old", {"a": "1", "b": "1", "c": "1", "d": "0"}, *wanted.columns),
    ]
    chosen = choose_label_sets(wanted, tuple(wanted.fingerprints), sets)
    assert chosen == [(table_set(wanted, "a"), ("a",)), ("bcd", ("b", "c", "d"))]


def test_one_retrained_task_gets_a_set_that_old_and_new_files_share() -> None:
    abc, retrained = definition({"a": "1", "b": "1", "c": "1"}), definition({"a": "2", "b": "1", "c": "1"})
    table = labelled(abc, {X: (5,)})
    old_file, new_file = table.plan(retrained, {X: (5,), Y: (3,)}).units
    a, bc = (table_set(retrained, tasks) for tasks in ("a", "bc"))
    assert [(t.label_set, t.tasks) for t in old_file.targets] == [(a, ("a",))]
    assert [(t.label_set, t.tasks) for t in new_file.targets] == [(a, ("a",)), (bc, ("b", "c"))]
    table.do(retrained, [old_file])
    assert table.plan(retrained, {X: (5,), Y: (3,)}).units == (new_file,)


def test_files_without_rows_get_a_label_file_once() -> None:
    for groups in ((), (0,), (0, 0)):
        table = labelled(AB, {X: groups})
        assert list(table.files) == [(table_set(AB), "x.parquet")]
        assert table.plan(AB, {X: groups}).units == ()


def test_label_files_of_removed_sources_are_orphaned() -> None:
    table = labelled(AB, {X: (5,), Y: (5,)})
    staleness = Staleness(
        AB, [LabelSet(table_set(AB), AB.fingerprints, *AB.columns)], [], {table_set(AB): ["x.parquet", "y.parquet"]}
    )
    assert staleness.orphaned({"x.parquet"}) == [f"{table_set(AB)}/y.parquet"]
    assert table.plan(AB, {X: (5,)}).units == ()


def test_units_survive_json() -> None:
    import json

    table = labelled(AB, {X: (5,)})
    units = table.plan(definition({"a": "1", "d": "1"}), {X: (5,), Y: (4, 90)}).units
    assert [Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) for unit in units] == list(units)
    assert decode_units(encode_units(units)) == list(units)
    assert encode_units(units).count(json.dumps(units[1].tasks)) == 1
    assert str(units[0]) == "x.parquet"
    assert str(units[1]) == "y.parquet rows 0-4"
