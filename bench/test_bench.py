#!/usr/bin/env python3
"""Facts about the benchmark's own arithmetic and checks; needs no PostgreSQL. Run: python3 bench/test_bench.py"""
import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchlib import basebackup, changes, cluster, delta, detached, docs_rows, dumps, incr, newer, outside, peer, push, report, rounds, server  # noqa: E402
from benchlib import settings, tools, wal, walker  # noqa: E402
from benchlib.measure import Sample, last_output, measure, server_read_bytes  # noqa: E402


def sample(wall: float, cpu: float) -> Sample:
    return Sample(wall=wall, user=cpu - 0.5, system=0.25, server_cpu=0.25, machine_cpu=cpu, steal=0, rss_process=5_000_000,
                  rss_tree=9_000_000, load=0.1, read=3_000_000)


def results(ours: list[tuple], theirs: list[tuple]) -> rounds.Results:
    made = rounds.Results()
    made.samples = {("restore", "pgark"): [sample(*x) for x in ours], ("restore", "pgbackrest"): [sample(*x) for x in theirs]}
    return made


def increments(operation: str, ours: dict[str, int], theirs: dict[str, int]) -> rounds.Results:
    made = rounds.Results()
    made.samples = {(operation, tool): [sample(0.2, 1)] for tool in ("pgark", "pgbackrest")}
    made.facts = {(operation, "pgark"): [ours], (operation, "pgbackrest"): [theirs]}
    return made


def compared(made: rounds.Results) -> str:
    return report.comparison(made, report.in_comparison(made))


class Report(unittest.TestCase):
    def test_ratios_are_taken_pair_by_pair(self):
        self.assertEqual(report.ratios([1.0, 6.0], [2.0, 3.0]), [0.5, 2.0])

    def test_unpaired_runs_are_refused(self):
        with self.assertRaises(settings.BenchError):
            report.ratios([1.0], [1.0, 2.0])

    def test_a_zero_of_the_peer_gives_no_ratio(self):
        self.assertIsNone(report.ratios([1.0], [0.0]))

    def test_the_table_holds_median_range_ratio_and_goal(self):
        table = compared(results([(5, 8), (6, 8), (9, 8)], [(10, 10), (10, 10), (10, 10)]))
        self.assertIn("| restore | wall seconds | 6.00 (5.00..9.00) | 10.00 (10.00..10.00) | 0.60 (0.50..0.90) | ≤ 0.70: met |", table)
        self.assertIn("0.80 (0.80..0.80) | ≤ 0.70: missed |", table)
        self.assertIn("- restore, wall seconds: 0.50 0.60 0.90", table)

    def test_an_increment_is_shown_against_the_cluster_and_the_changed_pages(self):
        made = increments("incr pages1pct", {"stored": 2_000_000, "size": 400_000_000, "read": 10_000_000, "changed": 8_000_000},
                          {"stored": 4_000_000, "size": 400_000_000, "changed": 8_000_000})
        table = compared(made)
        self.assertIn("| stored, % of the changed pages | 25.0 (25.0..25.0) | 50.0 (50.0..50.0) | 0.50 (0.50..0.50) |  |", table)
        self.assertIn(f"| {report.READ_SHARE} | 2.50 (2.50..2.50) |  |  | pgark ≤ 3.00: met |", table)
        self.assertIn("| wall seconds | 0.20 (0.20..0.20) | 0.20 (0.20..0.20) | 1.00 (1.00..1.00) | ≤ 0.25: missed |", table)

    def test_an_increment_of_nothing_has_a_goal_of_its_own_and_no_share_of_changed_pages(self):
        facts = {"stored": 2_000, "size": 400_000_000, "changed": 0}
        table = compared(increments("incr nochange", facts, facts))
        self.assertIn("| 1.00 (1.00..1.00) | pgark ≤ 1.00: met |", table)
        self.assertNotIn("% of the changed pages", table)

    def test_archiving_is_shown_by_segment_and_against_each_tool(self):
        made = rounds.Results()
        made.samples = {("archive", "cp"): [sample(1, 1)], ("archive", "pgbackrest"): [sample(8, 10)], ("archive", "pgark"): [sample(2, 4)]}
        made.facts = {key: [{"stored": 5_000_000}] for key in made.samples}
        lines = report.archive_table(made, 200).splitlines()
        self.assertEqual(lines[2], "| pgark | 2.00 (2.00..2.00) |  | 20.0 (20.0..20.0) |  | 5.0 (5.0..5.0) |")
        self.assertEqual(lines[3], "| pgBackRest | 8.00 (8.00..8.00) | 0.25 (0.25..0.25) | 50.0 (50.0..50.0) | 0.40 (0.40..0.40) | 5.0 (5.0..5.0) |")
        self.assertTrue(lines[4].startswith("| cp, not durable |"))
        self.assertNotIn("archive", compared(made))

    def test_dumps_are_shown_by_the_rows_that_change_and_against_the_first_and_against_one_dump(self):
        def kept(first: int, each: int) -> list[dumps.Day]:
            return [dumps.Day(wall=2.0 - bool(n), cpu=1.5, memory=30_000_000, stored=first + n * each) for n in range(dumps.DAYS)]
        days = {keeper.name: kept(200_000_000, 200_000_000) for keeper in dumps.KEEPERS} | {"pgark": kept(100_000_000, 2_000_000)}
        found = dumps.Dumps(database_bytes=500_000_000, versions=["pgark 1"], days=days, samples=[sample(1, 1)], commands=[["/x/pgark", "backup"]])
        section = report.dumps_section({dumps.NEIGHBOURS: found, dumps.AT_RANDOM: found}, Path("/w"))
        self.assertIn("| pgark | 2.00 | 1.50 | 1.00 (1.00..1.00) | 1.50 (1.50..1.50) | 30 | 100.0 | 118.0 | 1.18 | 0.59 |", section)
        self.assertIn("| `pg_dump -Fc` | 2.00 | 1.50 | 1.00 (1.00..1.00) | 1.50 (1.50..1.50) | 30 | 200.0 | 2000.0 | 10.00 | 10.00 |", section)
        self.assertEqual(section.count(f"by all {dumps.DAYS}, MB"), 2)
        self.assertIn("a database of 500 MB", section)

    def test_postgresql_s_own_backup_has_a_section_of_its_own_with_the_server_s_reading(self):
        operation, tools_used = "basebackup nochange", ("pgark", "pg_basebackup")
        made = results([(5, 8)], [(10, 10)])
        made.samples |= {(operation, tool): [sample(wall, 1)] for wall, tool in zip((2, 8), tools_used)}
        made.facts = {(operation, tool): [{"read_all": read, "stored": 1_000_000}] for read, tool in zip((6_000_000, 3_000_000), tools_used)}
        facts = basebackup.Facts(server="18.6", versions=["pgark 1", "pg_basebackup 18.6"], scale=100, docs_mb=500, data_bytes=2_000_000_000,
                                 commands=[["pgark", "backup"]], differing={"pgark": [], "pg_basebackup": ["base/5/1_vm", "base/5/2_vm"]})
        section = report.basebackup_section(made, facts, Path("/work"))
        self.assertIn("| operation | figure | pgark | pg_basebackup |", section)
        self.assertIn(f"| {operation} | wall seconds | 2.00 (2.00..2.00) | 8.00 (8.00..8.00) | 0.25 (0.25..0.25) |", section)
        self.assertIn(f"| {operation} | {report.READ_ALL} | 6.0 (6.0..6.0) | 3.0 (3.0..3.0) | 2.00 (2.00..2.00) |", section)
        self.assertNotIn(report.READ_BY_COMMAND, section)
        self.assertIn("- pgark: every table file restored is that of the cluster, byte by byte", section)
        self.assertIn("- pg_basebackup: of the table files restored, 2 differ from the cluster, all of them visibility maps (base/5/1_vm)", section)
        self.assertNotIn("basebackup", compared(made))
        self.assertIn(report.READ_BY_COMMAND, compared(made))

    def test_one_tool_alone_has_its_figures_of_postgresql_s_section_too(self):
        made = rounds.Results(samples={("basebackup restore", "pg_basebackup"): [sample(8, 1)]})
        facts = basebackup.Facts("18.6", ["pg_basebackup 18.6"], 100, 500, 2_000_000_000, differing={"pg_basebackup": []})
        self.assertIn("| basebackup restore | wall seconds | 8.00 (8.00..8.00) |", report.basebackup_section(made, facts, Path("/work")))

    def test_the_walker_s_part_is_its_work_without_the_reading_as_a_share_of_each_push(self):
        walked = walker.Walked(push_cpu=[0.04, 0.02, 0.09])
        for slower in (1, 3):
            walked.add({"segments": 10, "bytes": 160_000_000, "records": 5, "read": {"wall": 0.1, "cpu": 0.1},
                        "walk": {"wall": 0.2, "cpu": 0.2 * slower}, "index": {"wall": 0.4, "cpu": 0.2 * slower}})
        section = report.walker_section(walked, [20.0])
        self.assertIn("| reading alone | 1600 (1600..1600) | 10.00 (10.00..10.00) |", section)
        self.assertIn("| the walker's part: the third without the first | | 30.00 (10.00..50.00) |", section)
        self.assertIn("| a push: 3 single pushes, one worker; the walker's part is 75% | | 40.00 (20.00..90.00) |", section)
        self.assertIn("| a push: case `archive`; the walker's part is 150% | | 20.00 (20.00..20.00) |", section)
        self.assertNotIn("case `archive`", report.walker_section(walked, []))

    def test_calls_are_compared_by_their_medians(self):
        table = report.latency_table({("one push", "pgark"): [1.0, 2.0, 9.0], ("one push", "pgbackrest"): [4.0, 4.0, 5.0]})
        self.assertIn("| one push | 2.0 (1.0..9.0) | 4.0 (4.0..5.0) | 0.50 |", table)

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


    def test_postgresql_s_own_backup_may_differ_in_visibility_maps_alone_and_pgark_in_nothing(self):
        s = replace(settings.parse([]), data=self.source, pgbin=Path("/usr/lib/postgresql/18/bin"))
        own, ours = tools.BaseBackup(s), tools.Pgark(s)
        self.assertEqual(basebackup.compare(s, own, self.copy), [])
        for data in (self.source, self.copy):
            (data / "base/5/1259_vm").write_bytes(data.name.encode())
        self.assertEqual(basebackup.compare(s, own, self.copy), ["base/5/1259_vm"])
        with self.assertRaisesRegex(settings.BenchError, "1259_vm"):
            basebackup.compare(s, ours, self.copy)
        (self.copy / "base/5/1259").write_bytes(b"sane")
        with self.assertRaisesRegex(settings.BenchError, "'base/5/1259'"):
            basebackup.compare(s, own, self.copy)


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


    def test_bytes_read_by_children_are_counted(self):
        got = measure(["sh", "-c", "head -c 5000000 /dev/zero >/dev/null; true"], self.log, None)
        self.assertGreaterEqual(got.read, 5_000_000)

    def test_bytes_read_by_the_children_of_a_server_are_counted_while_they_live_and_after(self):
        before = server_read_bytes(os.getpid())
        child = subprocess.Popen(["sh", "-c", "head -c 5000000 /dev/zero >/dev/null; echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        living = server_read_bytes(os.getpid()) - before
        child.communicate(b"\n")
        reaped = server_read_bytes(os.getpid()) - before
        for count in (living, reaped):
            self.assertTrue(5_000_000 <= count < 10_000_000, count)

    def test_the_last_output_is_that_of_the_last_command_alone(self):
        measure(["echo", "first"], self.log, None)
        measure(["echo", "second"], self.log, None)
        self.assertEqual(last_output(self.log), "second\n")

    def test_what_an_archive_command_leaves_behind_is_counted_once_it_is_no_longer_below_the_server(self):
        here = Path(self.dir.name)
        watch = detached.Detached(os.getpid(), here)
        script = here / "archive-push.py"
        script.write_text("import time\nwhile time.process_time() < 0.5: pass\n")
        subprocess.run(["sh", "-c", f"setsid '{sys.executable}' '{script}' &"], check=True)
        cluster.wait_until("the process left behind", lambda: watch.look() == 0 and watch.seconds() > 0)
        self.assertTrue(0.2 < watch.seconds() < 1.0, watch.seconds())

    def test_what_runs_below_the_server_or_elsewhere_is_not_left_behind(self):
        here = Path(self.dir.name)
        below, elsewhere = detached.Detached(os.getpid(), here), detached.Detached(1 << 30, Path("/nonexistent"))
        anywhere = detached.Detached(1 << 30, here)
        child = subprocess.Popen(["sh", "-c", "read x", f"{here}/archive-push"], stdin=subprocess.PIPE)
        try:
            cluster.wait_until("the child", lambda: anywhere.look() == 1)
            self.assertEqual((below.look(), elsewhere.look()), (0, 0))
        finally:
            child.communicate()


class Changes(unittest.TestCase):
    def test_changes_cover_one_percent_of_the_rows_and_move_with_the_number(self):
        self.assertEqual(changes.statements("nochange", 200, 1), [])
        self.assertIn("WHERE aid BETWEEN 293003 AND 493002", changes.statements("pages1pct", 200, 1)[-1])
        self.assertIn("WHERE aid BETWEEN 586006 AND 786005", changes.statements("pages1pct", 200, 2)[-1])
        self.assertEqual(changes.statements("rows1pct", 200, 3)[0], "SELECT setseed(3 / 1000.0)")
        self.assertIn("random() * 20000000)::int AS aid FROM generate_series(1, 200000)", changes.statements("rows1pct", 200, 3)[-1])

    def test_pages_newer_than_a_position_are_counted_and_a_torn_tail_is_not(self):
        def page(lsn: int) -> bytes:
            return (lsn >> 32).to_bytes(4, sys.byteorder) + (lsn & 0xFFFFFFFF).to_bytes(4, sys.byteorder) + bytes(8184)
        since = changes.parse_lsn("1/F0000028")
        self.assertEqual(since, 0x1F0000028)
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"".join(map(page, [0, since, since + 1, 0x200000000, 0xFFFFFFFF])) + b"tail")
            f.flush()
            self.assertEqual(changes.changed_pages(Path(f.name), since), 2)

    def test_only_the_start_of_the_biggest_file_is_overwritten(self):
        with tempfile.TemporaryDirectory() as d:
            small, big = Path(d) / "small", Path(d) / "big"
            small.write_bytes(bytes(10))
            big.write_bytes(bytes(5000))
            self.assertEqual(delta.biggest_file(Path(d)), big)
            delta.overwrite_start(big, 4000)
            self.assertNotEqual(big.read_bytes()[:4000], bytes(4000))
            self.assertEqual(big.read_bytes()[4000:], bytes(1000))

    def test_a_copy_starts_from_the_segment_of_a_clean_stop_only(self):
        control = "Database cluster state:               {}\nLatest checkpoint's REDO WAL file:    000000010000000200000003\n"
        self.assertEqual(cluster.redo_segment(control.format("shut down")), "000000010000000200000003")
        for state in ("in production", "shut down in recovery"):
            with self.assertRaises(settings.BenchError):
                cluster.redo_segment(control.format(state))


    def test_a_made_cluster_keeps_the_segment_it_starts_from_and_what_is_no_segment(self):
        with tempfile.TemporaryDirectory() as d:
            s, needed = replace(settings.parse([]), data=Path(d)), "000000010000000200000003"
            kept = {needed, "archive_status", "00000002.history"}
            (Path(d) / "pg_wal").mkdir()
            for name in (*kept, "000000010000000200000002", "000000010000000200000004"):
                (Path(d) / "pg_wal" / name).touch()
            with mock.patch.object(cluster, "stop") as stop, mock.patch.object(cluster, "first_segment", lambda _: needed):
                cluster.drop_old_wal(s)
            stop.assert_called_once_with(s)
            self.assertEqual({p.name for p in (Path(d) / "pg_wal").iterdir()}, kept)

    def test_wal_is_left_out_of_a_size_wherever_it_lies(self):
        with tempfile.TemporaryDirectory() as d:
            for name in ("0-full/pg_wal/a", "0-full/base/1", "pg_wal/b", "pg_wal.txt"):
                (Path(d) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(d) / name).write_bytes(bytes(10))
            self.assertEqual(cluster.size_bytes(Path(d)), 40)
            self.assertEqual(cluster.size_bytes(Path(d), skip="pg_wal"), 20)


class Increments(unittest.TestCase):
    def test_each_tool_meets_each_change_on_a_fresh_copy_and_its_chain_is_used_after_the_last(self):
        done: list[tuple] = []

        class Maker:
            def __init__(self, name: str):
                self.name = name

            def __call__(self, copy: str) -> "Maker":
                return self

        def recorded(_s, _results, number: int, operation: str, tool: str, _sample, **_facts) -> None:
            done.append((number, operation, tool))
        with mock.patch.multiple(cluster, make_copy=lambda _s, name: done.append(("copy", name)) or name, start=mock.DEFAULT,
                                 remove_copy=lambda copy: done.append(("remove", copy))), \
                mock.patch.multiple(incr, full=mock.DEFAULT, change=lambda *_: 0, record=recorded), contextlib.redirect_stderr(io.StringIO()):
            incr.rounds_on_copies(settings.parse(["--runs", "1"]), "case", [Maker("a"), Maker("b")], rounds.Results(),
                                  lambda *_: (None, {}), lambda copy, _tool, number: done.append((number, "chain", copy)))
        expected = []
        for number, order in ((0, "ab"), (1, "ba")):
            expected += [("copy", name) for name in order]
            expected += [(number, f"case {kind}", name) for kind in ("nochange", "pages1pct") for name in order]
            expected += [step for name in order for step in ((number, "case rows1pct", name), (number, "chain", name))]
            expected += [("remove", name) for name in order]
        self.assertEqual(done, expected)


class NewerServer(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.s = replace(settings.parse(["--work", self.dir.name]), pgbin=Path("/usr/lib/postgresql/15/bin"))

    def have(self, *majors: int) -> None:
        for name in ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", peer.PROGRAM, *(f"usr/lib/postgresql/{m}/bin/initdb" for m in majors)):
            (self.s.chroot / name).parent.mkdir(parents=True, exist_ok=True)
            (self.s.chroot / name).touch()

    def test_a_server_with_increments_of_its_own_is_used_as_it_is(self):
        own = replace(self.s, pgbin=Path("/usr/lib/postgresql/17/bin"))
        self.assertIs(newer.server(own), own)
        self.assertEqual(peer.chroot_packages(replace(own, tools=("pgark",))), [])

    def test_else_the_chroot_gets_one_if_the_case_is_to_run(self):
        self.assertEqual(peer.chroot_packages(self.s), ["pgbackrest", "postgresql"])
        self.assertEqual(peer.chroot_packages(replace(self.s, cases=("incr",))), ["pgbackrest"])
        self.have(18)
        self.assertEqual(peer.chroot_packages(self.s), [])

    def test_servers_that_are_too_old_or_not_supported_are_none(self):
        self.have(16, 19)
        self.assertEqual(peer.chroot_packages(self.s), ["postgresql"])
        with self.assertRaisesRegex(settings.BenchError, "no PostgreSQL 17 to 18"):
            newer.server(self.s)

    def test_programs_run_from_a_tree_in_which_they_find_their_files(self):
        self.have(17, 18)
        made = newer.server(self.s)
        self.assertEqual(newer.server(self.s), made)
        self.assertEqual((made.major, made.server_bin.parent.parent.parent.parent), (18, made.work / "server-sid" / "usr"))
        script = (made.server_bin / "initdb").read_text()
        self.assertIn(f"--argv0 {made.server_bin}/initdb ", script)
        self.assertIn(f' {self.s.chroot}/usr/lib/postgresql/18/bin/initdb "$@"', script)
        self.assertTrue(os.access(made.server_bin / "initdb", os.X_OK))
        self.assertEqual((made.server_bin.parent / "lib").readlink(), self.s.chroot / "usr/lib/postgresql/18/lib")
        self.assertEqual((made.work / "server-sid/usr/share/postgresql").readlink(), self.s.chroot / "usr/share/postgresql")

    def test_without_a_loader_there_is_no_script(self):
        with self.assertRaisesRegex(settings.BenchError, "no dynamic loader"):
            outside.write(self.s, self.s.work / "bin/x", Path("x"))

    def test_its_cluster_is_half_as_large_and_has_a_name_of_its_own(self):
        self.have(18)
        self.assertEqual(basebackup.own_settings(self.s).cluster, self.s.work / "cluster-s100-d500-pg18")
        self.assertEqual(basebackup.own_settings(replace(self.s, scale=1, docs_mb=0)).cluster.name, "cluster-s1-d0-pg18")


class Wal(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.settings = replace(settings.parse(["--segments", "2"]), data=Path(self.dir.name))
        wal.status(self.settings).mkdir(parents=True)
        self.names = [f"0000000100000000000000{n:02X}" for n in (9, 10, 11)]

    def test_ready_segments_are_those_from_the_first_on_without_other_files(self):
        for name in (*self.names, "00000002.history", f"{self.names[0]}.00000028.backup"):
            (wal.status(self.settings) / f"{name}.ready").touch()
        self.assertEqual(wal.ready(self.settings), self.names)
        self.assertEqual(wal.ready(self.settings, self.names[1]), self.names[1:])

    def test_marks_of_the_list_alone_are_turned_back(self):
        for name in self.names:
            (wal.status(self.settings) / f"{name}.done").touch()
        wal.mark_ready(self.settings, self.names[:2])
        self.assertEqual(wal.ready(self.settings), self.names[:2])

    def test_a_list_with_a_segment_gone_is_no_list(self):
        (Path(self.dir.name) / wal.LIST).write_text("\n".join(self.names))
        for name in self.names[:2]:
            (Path(self.dir.name) / "pg_wal" / name).touch()
        self.assertEqual(wal.segments(self.settings), self.names[:2])
        (Path(self.dir.name) / "pg_wal" / self.names[0]).unlink()
        self.assertEqual(wal.segments(self.settings), [])

    def test_a_missing_segment_is_asked_for_on_the_same_timeline_after_all_others(self):
        self.assertEqual(push.after_all("0000000300000002000000A1"), "000000030000FFFF000000A1")


class Tools(unittest.TestCase):
    def test_what_pgark_read_is_taken_from_its_document(self):
        pgark = tools.Pgark(settings.parse([]))
        self.assertEqual(pgark.read_bytes('W-X a warning\n{"read_bytes": 5, "base": {"method": "wal"}}\n'), 5)

    def test_the_commands_of_the_chosen_cases_are_shown(self):
        for made in (tools.Pgark(settings.parse([])), tools.PgBackRest(settings.parse([]))):
            shown = [" ".join(map(str, cmd)) for cmd in made.commands(("incr", "delta"))]
            self.assertRegex(shown[0], "--type[ =]incr")
            self.assertIn("--delta", shown[1])
            self.assertNotIn("--delta", " ".join(map(str, made.restore(Path("to")))))
            self.assertTrue(tools.archive_command(made).count("%p") == 1)


    def test_every_case_can_be_shown(self):
        for made in (tools.Pgark(settings.parse([])), tools.PgBackRest(settings.parse([]))):
            self.assertEqual(len(made.commands(settings.CASES)), 6)

    def test_each_increment_builds_on_the_newest_backup_and_all_of_them_are_combined_oldest_first(self):
        with tempfile.TemporaryDirectory() as d:
            made = tools.BaseBackup(replace(settings.parse(["--work", d]), pgbin=Path("/usr/lib/postgresql/18/bin")))
            for kind in ("full", "incr", "incr"):
                cmd = list(map(str, made.backup(kind)))
                Path(cmd[cmd.index("-D") + 1]).mkdir(parents=True)
                self.assertEqual(f"--incremental={made.repository}/0-full/backup_manifest" in cmd, made._chain()[-1].name == "1-incr")
            self.assertEqual(cmd[-1], f"--incremental={made.repository}/1-incr/backup_manifest")
            combined = list(map(str, made.restore(Path("to"))))
            self.assertEqual(combined[1:], [*(f"{made.repository}/{name}" for name in ("0-full", "1-incr", "2-incr")), "-o", "to"])


class Arguments(unittest.TestCase):
    def test_a_missing_pgark_is_named_with_the_way_out(self):
        s = settings.parse(["--pgark", "/nonexistent/pgark"])
        with self.assertRaisesRegex(settings.BenchError, "cargo build --release"):
            settings.require_pgark(s)
        settings.require_pgark(settings.parse(["--pgark", "/nonexistent/pgark", "--only", "pgbackrest"]))

    def test_partial_runs_do_not_write_the_page(self):
        self.assertTrue(settings.parse([]).write)
        for partial in (["--only", "pgark"], ["--case", "backup"], ["--case", "push"], ["--no-write"]):
            self.assertFalse(settings.parse(partial).write)

    def test_nonsense_counts_are_refused(self):
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            settings.parse(["--runs", "0"])

    def test_only_the_reference_sizes_are_the_reference(self):
        self.assertTrue(settings.parse([]).is_reference)
        for other in (["--scale", "5"], ["--docs-mb", "5"], ["--segments", "5"]):
            self.assertFalse(settings.parse(other).is_reference)


class DocsRows(unittest.TestCase):
    def rows(self, first: int, last: int) -> str:
        return subprocess.run([sys.executable, docs_rows.__file__, str(first), str(last)], stdout=subprocess.PIPE,
                              env=os.environ, text=True, check=True).stdout

    def test_rows_are_repeatable_about_a_kilobyte_and_whole(self):
        rows = self.rows(1, 300)
        self.assertEqual(rows, self.rows(1, 300))
        self.assertTrue(all(line.count("\t") == 4 for line in rows.splitlines()))
        self.assertTrue(700 < len(rows) / 300 < 1300, len(rows) / 300)


class Server(unittest.TestCase):
    def test_percentiles_are_of_single_answers(self):
        load = server.Load(seconds=[n / 1000 for n in range(1, 1001)])
        self.assertEqual([round(load.at(p)) for p in (50, 95, 99)], [500, 951, 991])

    def test_an_answer_is_complete_when_all_of_its_body_is_there(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            client = server.Client(ours, "pgark_session=x")
            client.ask("/")
            self.assertIn(b"Cookie: pgark_session=x\r\n", theirs.recv(1000))
            for part, complete in ((b"HTTP/1.1 200 OK\r\nContent-", False), (b"Length: 3\r\n\r\nab", False), (b"c", True)):
                theirs.sendall(part)
                self.assertEqual(client.take(), complete)
            client.ask("/")
            theirs.sendall(b"HTTP/1.1 429 Too Many Requests\r\n\r\n")
            with self.assertRaises(settings.BenchError):
                client.take()

    def test_the_table_has_a_line_for_each_page_with_its_rounds(self):
        served = server.Served(200, "pgark 0.1.0", looks={"info": [(0.1, 0.05, 30_000_000)]})
        served.loads = {"first screen": [server.Load(seconds=[0.02] * 1000, wall=2, cpu=1, bytes=5), server.Load(seconds=[0.04] * 1000, wall=4, cpu=3)]}
        table = server.table(served)
        self.assertIn("| first screen | 30 (20..40) | 30 (20..40) | 30 (20..40) | 375 (250..500) | 2.00 (1.00..3.00) | 5 |", table)
        self.assertIn("| `info` | 100 (100..100) | 50 (50..50) | 30 |", table)


if __name__ == "__main__":
    unittest.main()
