#!/usr/bin/env python3
"""Facts about the benchmark's own arithmetic and checks; needs no PostgreSQL. Run: python3 bench/test_bench.py"""
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchlib import docs_rows, report, rounds, settings  # noqa: E402
from benchlib.measure import Sample, measure  # noqa: E402


def sample(wall: float, cpu: float) -> Sample:
    return Sample(wall=wall, user=cpu - 0.5, system=0.25, server_cpu=0.25, machine_cpu=cpu, steal=0, rss_process=5_000_000,
                  rss_tree=9_000_000, load=0.1)


def results(ours: list[tuple], theirs: list[tuple]) -> rounds.Results:
    made = rounds.Results()
    made.samples = {("restore", "pgark"): [sample(*x) for x in ours], ("restore", "pgbackrest"): [sample(*x) for x in theirs]}
    return made


class Report(unittest.TestCase):
    def setUp(self):
        self.settings = settings.parse(["--case", "restore"])

    def test_ratios_are_taken_pair_by_pair(self):
        self.assertEqual(report.ratios([1.0, 6.0], [2.0, 3.0]), [0.5, 2.0])

    def test_unpaired_runs_are_refused(self):
        with self.assertRaises(settings.BenchError):
            report.ratios([1.0], [1.0, 2.0])

    def test_a_zero_of_the_peer_gives_no_ratio(self):
        self.assertIsNone(report.ratios([1.0], [0.0]))

    def test_the_table_holds_median_range_ratio_and_goal(self):
        table = report.comparison(self.settings, results([(5, 8), (6, 8), (9, 8)], [(10, 10), (10, 10), (10, 10)]))
        self.assertIn("| restore | wall seconds | 6.00 (5.00..9.00) | 10.00 (10.00..10.00) | 0.60 (0.50..0.90) | ≤ 0.70: met |", table)
        self.assertIn("0.80 (0.80..0.80) | ≤ 0.70: missed |", table)
        self.assertIn("- restore, wall seconds: 0.50 0.60 0.90", table)

    def test_server_cpu_counts_and_the_larger_memory_figure_is_shown(self):
        self.assertEqual(sample(1, 3).cpu, 3)
        self.assertEqual(sample(1, 3).memory, 9_000_000)

    def test_a_busy_machine_is_said_to_be_busy(self):
        quiet = results([(5, 8)], [(10, 10)])
        self.assertNotIn("busy", report.quietness(quiet))
        quiet.samples["restore", "pgark"].append(replace(sample(5, 1), machine_cpu=1 + 5 * os.cpu_count()))
        self.assertIn("busy machine", report.quietness(quiet))

    def test_only_the_text_between_the_markers_is_replaced(self):
        with tempfile.TemporaryDirectory() as d:
            page = Path(d) / "page.md"
            page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
            report.write_page("new", page)
            report.write_page("newer", page)
            self.assertEqual(page.read_text(), f"before\n{report.BEGIN}\nnewer\n{report.END}\nafter\n")

    def test_a_page_without_its_markers_is_left_alone(self):
        with tempfile.TemporaryDirectory() as d:
            page = Path(d) / "page.md"
            page.write_text(f"{report.END} {report.BEGIN}")
            with self.assertRaises(settings.BenchError):
                report.write_page("new", page)
            self.assertEqual(page.read_text(), f"{report.END} {report.BEGIN}")

    def test_the_committed_page_has_its_markers(self):
        text = report.PAGE.read_text()
        self.assertEqual((text.count(report.BEGIN), text.count(report.END)), (1, 1))


class Restored(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.source, self.copy = Path(self.dir.name) / "source", Path(self.dir.name) / "copy"
        for data in (self.source, self.copy):
            for name in ("base/5/1259", "global/pg_control"):
                (data / name).parent.mkdir(parents=True)
                (data / name).write_bytes(b"same")

    def check(self, compare_bytes: bool) -> None:
        rounds.check_restored(self.source, self.copy, compare_bytes)

    def test_a_faithful_copy_passes(self):
        self.check(compare_bytes=True)

    def test_other_bytes_fail_when_bytes_are_compared(self):
        (self.copy / "base/5/1259").write_bytes(b"sane")
        self.check(compare_bytes=False)
        with self.assertRaises(settings.BenchError):
            self.check(compare_bytes=True)

    def test_a_short_or_missing_file_fails_always(self):
        (self.copy / "base/5/1259").write_bytes(b"sam")
        with self.assertRaises(settings.BenchError):
            self.check(compare_bytes=False)
        (self.copy / "base/5/1259").unlink()
        with self.assertRaises(settings.BenchError):
            self.check(compare_bytes=False)

    def test_a_restore_without_pg_control_fails(self):
        (self.copy / "global/pg_control").unlink()
        with self.assertRaises(settings.BenchError):
            self.check(compare_bytes=False)


class Measured(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.log = Path(self.dir.name) / "log"

    def test_cpu_and_memory_of_children_are_counted(self):
        work = "x = bytearray(80_000_000)\nimport time\nwhile time.process_time() < 0.6: pass"
        got = measure(["sh", "-c", f"'{sys.executable}' -c '{work}'; true"], self.log, None)
        self.assertGreater(got.cpu, 0.5)
        self.assertGreater(got.rss_process, 80_000_000)
        self.assertGreater(got.rss_tree, 80_000_000)

    def test_a_failing_command_ends_the_run_with_its_output(self):
        with self.assertRaisesRegex(settings.BenchError, "out of cheese"):
            measure(["sh", "-c", "echo out of cheese >&2; exit 4"], self.log, None)


class Arguments(unittest.TestCase):
    def test_a_missing_pgark_is_named_with_the_way_out(self):
        s = settings.parse(["--pgark", "/nonexistent/pgark"])
        with self.assertRaisesRegex(settings.BenchError, "cargo build --release"):
            settings.require_pgark(s)
        settings.require_pgark(settings.parse(["--pgark", "/nonexistent/pgark", "--only", "pgbackrest"]))

    def test_partial_runs_do_not_write_the_page(self):
        self.assertTrue(settings.parse([]).write)
        for partial in (["--only", "pgark"], ["--case", "backup"], ["--no-write"]):
            self.assertFalse(settings.parse(partial).write)

    def test_nonsense_counts_are_refused(self):
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            settings.parse(["--runs", "0"])


class DocsRows(unittest.TestCase):
    def rows(self, first: int, last: int) -> str:
        return subprocess.run([sys.executable, docs_rows.__file__, str(first), str(last)], stdout=subprocess.PIPE,
                              env=os.environ, text=True, check=True).stdout

    def test_rows_are_repeatable_about_a_kilobyte_and_whole(self):
        rows = self.rows(1, 300)
        self.assertEqual(rows, self.rows(1, 300))
        self.assertTrue(all(line.count("\t") == 4 for line in rows.splitlines()))
        self.assertTrue(700 < len(rows) / 300 < 1300, len(rows) / 300)


if __name__ == "__main__":
    unittest.main()
