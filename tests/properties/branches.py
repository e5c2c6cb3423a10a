"""Which branches of its module each property executes: ``python -m tests.properties.branches``.

A property that executes few branches of the code that it is about shows little, however many examples it draws. Each
has a floor, near what it executes today; below it this fails.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import coverage
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOORS: dict[str, dict[str, dict[str, int]]] = {
    "properties/test_batcher.py": {
        "test_every_message_is_in_one_batch_within_limits_and_in_time": {"core.batcher": 38},
        "test_every_message_is_in_one_batch_of_its_key_and_the_completion_rules_hold": {"core.batcher": 50},
    },
    "properties/test_columns.py": {
        "test_a_chunk_is_what_its_messages_are_one_by_one": {"core.columns": 95, "core.lines": 90, "core.compose": 55},
    },
    "properties/test_compose_bulk.py": {
        "test_a_request_is_exactly_its_messages": {"core.document": 74},
        "test_every_document_that_is_one_is_accepted_and_means_the_same": {"core.document": 45},
        "test_an_answer_gives_each_item_its_own_result_or_none_at_all": {"core.bulk": 20},
        "test_any_answer_whatever_is_results_or_an_unknown_outcome": {"core.bulk": 28},
        "test_no_quoted_value_of_the_document_survives_and_field_names_do": {"core.bulk": 33},
        "test_blanking_is_never_an_exception": {"core.bulk": 36},
    },
    "properties/test_copies.py": {
        "test_with_room_enough_every_byte_is_kept": {"core.copies": 36},
        "test_a_copy_always_fits_and_names_what_was_cut": {"core.copies": 61},
    },
    "properties/test_dotenv.py": {
        "test_what_is_written_is_read_by_us_and_by_compose": {"core.dotenv": 67},
        "test_what_we_read_compose_reads": {"core.dotenv": 72},
        "test_what_compose_refuses_is_a_problem": {"core.dotenv": 58},
    },
    "properties/test_fields.py": {
        "test_a_document_keeps_its_own_and_gets_the_rest": {"core.fields": 55},
    },
    "properties/test_frames_differential.py": {
        "test_the_same_comes_of_a_stream_at_every_split": {"core.frames": 64},
        "test_the_same_comes_of_a_stream_in_any_pieces": {"core.frames": 63},
        "test_what_pamqp_encodes_is_understood_as_pamqp_does": {"core.frames": 44},
        "test_raw_properties_are_read_and_kept_byte_by_byte": {"core.properties": 61},
        "test_a_malformed_stream_is_always_a_wire_error": {"core.frames": 71},
        "test_corrupted_bytes_give_a_wire_error_or_a_valid_parse": {"core.frames": 70},
        "test_arbitrary_bytes_give_a_wire_error_or_wait_for_more": {"core.frames": 20},
        "test_arbitrary_property_sets_give_values_or_an_error": {"core.properties": 74},
        "test_a_table_of_pamqps_is_read_field_by_field": {"core.properties": 17},
    },
    "properties/test_ledger.py": {
        "TestLedger::runTest": {"core.ledger": 95},
    },
    "properties/test_merging.py": {
        "test_a_merged_update_does_what_both_do": {"core.merge": 76},
        "test_folded_operations_leave_what_all_leave": {"core.coalesce": 25},
        "test_a_chain_of_operations_leaves_what_all_leave": {"core.coalesce": 29},
        "test_of_two_versions_the_one_stays_that_would_be_stored": {"core.coalesce": 6},
    },
    "properties/test_order.py": {
        "TestOrder::runTest": {"core.order": 57},
    },
    "properties/test_outbox.py": {
        "TestOutbox::runTest": {"core.outbox": 88},
    },
    "properties/test_pacing.py": {
        "test_the_limit_and_the_pauses_are_bounded": {"core.pacing": 79},
        "test_an_outage_is_probed_seldom_and_its_end_is_noticed_soon": {"core.pacing": 33},
        "test_the_share_of_429s_falls_as_it_slows_down": {"core.pacing": 25},
    },
    "unit/test_exact_json.py": {
        "test_a_round_trip_changes_nothing": {"core.exact_json": 26},
        "test_any_number_keeps_its_digits": {"core.exact_json": 17},
        "test_what_is_found_is_there": {"core.exact_json": 20},
    },
    "unit/test_times.py": {
        "test_every_spelling_of_a_time_is_the_same_time": {"core.times": 57},
    },
    "unit/test_staging.py": {
        "test_splicing_gives_what_taking_apart_gives": {"core.staging": 19},
        "test_every_envelope_is_json_and_holds_the_body": {"core.staging": 25},
    },
    "unit/test_handling.py": {
        "test_no_message_gets_a_verdict_that_was_not_given_for_it": {"library.handling": 77},
    },
}
"""By file, for each property: the modules that it is about, and the least share of their branches, in percent."""


class Branches:
    """A plugin that measures each property by itself, with all its parameters."""

    def __init__(self) -> None:
        self._measures: dict[str, tuple[coverage.Coverage, dict[str, int]]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Measure a property, if it has a floor."""
        name = item.nodeid.removeprefix("tests/").partition("[")[0]
        file, _, test = name.partition("::")
        floors = FLOORS.get(file, {}).get(test)
        if floors is None:
            return (yield)
        measure, _ = self._measures.get(name, (None, None))
        if measure is None:
            files = [_file(module) for module in floors]
            measure = coverage.Coverage(data_file=None, branch=True, config_file=False, include=files)
            self._measures[name] = measure, floors
        measure.start()
        try:
            return (yield)
        finally:
            measure.stop()

    def judge(self) -> bool:
        """Print the share of each property; return whether each reaches its floor."""
        good = len(self._measures) == sum(map(len, FLOORS.values()))
        for name, (measure, floors) in self._measures.items():
            for module, floor in floors.items():
                ways = measure.branch_stats(_file(module)).values()
                taken, total = sum(one for _, one in ways), sum(one for one, _ in ways)
                share = 100 * taken // total
                fault = f"  below its floor of {floor} %" if share < floor else ""
                print(f"{share:3} %  {taken:3} of {total:3}  {module:16}  {name}{fault}")
                good = good and not fault
        return good


def _file(module: str) -> str:
    return str(importlib.import_module(f"sidecar.{module}").__file__)


def main() -> int:
    """Print the table; return 1 if a property fails, is below its floor or doesn't run."""
    plugin = Branches()
    result = pytest.main(
        [
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/{file}::{test}" for file, tests in FLOORS.items() for test in tests),
        ],
        plugins=[plugin],
    )
    return 0 if plugin.judge() and not result else 1


if __name__ == "__main__":
    sys.exit(main())
